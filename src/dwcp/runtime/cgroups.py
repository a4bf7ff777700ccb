"""Control groups for commands: version 2 or 1 where this process may write them, else none.

Only paths and small files: what the limits are is decided elsewhere, and who joins is the shim's act.
Groups are named after the agent's data directory, so that agents and tests on one machine never meet.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("pids", "memory", "cpu")
CPU_PERIOD_US = 100_000
V2, V1, NONE = "cgroup v2", "cgroup v1", "rlimit"


@dataclass(frozen=True, slots=True)
class GroupLimits:
    cpu_milli: int  # thousandths of a core
    memory_bytes: int
    processes: int


@dataclass(frozen=True, slots=True)
class Group:
    """One command's groups: the directories, one (v2) or one per controller (v1)."""

    directories: tuple[Path, ...]

    @property
    def procs(self) -> tuple[str, ...]:
        """Files that a process joins by writing its pid."""
        return tuple(str(directory / "cgroup.procs") for directory in self.directories)

    @property
    def oom_files(self) -> tuple[str, ...]:
        """Files with an `oom_kill N` line, by either version's name."""
        names = ("memory.events", "memory.oom_control")
        return tuple(str(d / name) for d in self.directories for name in names if (d / name).exists())


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where this agent's groups live. `version` is what the job's status calls `limits_enforced`."""

    version: str
    parents: dict[str, Path]  # by controller (v1), or under "" (v2); empty for none

    def create(self, name: str, limits: GroupLimits) -> Group:
        """Raises OSError when the kernel refuses; then nothing is left behind."""
        directories = tuple(parent / name for parent in self.parents.values())
        group = Group(directories)
        try:
            for directory in directories:
                directory.mkdir(exist_ok=True)
                _write_limits(directory, limits)
        except OSError:
            remove(group)
            raise
        return group

    def find(self, name: str) -> Group:
        return Group(tuple(parent / name for parent in self.parents.values() if (parent / name).is_dir()))

    def names(self) -> set[str]:
        """Of every group that exists, so that a restarted agent can remove what a crash left."""
        return {
            child.name
            for parent in self.parents.values()
            if parent.is_dir()
            for child in parent.iterdir()
            if child.is_dir()
        }

    def close(self) -> None:
        """Remove the agent's own groups if nothing lives in them."""
        for parent in self.parents.values():
            with contextlib.suppress(OSError):
                parent.rmdir()


def _write_limits(directory: Path, limits: GroupLimits) -> None:
    """Each file exists only where its controller does; a controller that is missing was excluded before."""
    quota = max(1000, limits.cpu_milli * CPU_PERIOD_US // 1000)
    files = {
        "pids.max": str(limits.processes),
        "memory.limit_in_bytes": str(limits.memory_bytes),
        "memory.memsw.limit_in_bytes": str(limits.memory_bytes),
        "cpu.cfs_period_us": str(CPU_PERIOD_US),
        "cpu.cfs_quota_us": str(quota),
        "memory.max": str(limits.memory_bytes),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": f"{quota} {CPU_PERIOD_US}",
    }
    for name, value in files.items():
        if (directory / name).exists():
            (directory / name).write_text(value)


def kill(group: Group, *, timeout_s: float = 5.0) -> None:
    """SIGKILL everything in the group and wait until it is empty; raises TimeoutError."""
    until = time.monotonic() + timeout_s
    while members := _members(group):
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            raise TimeoutError(f"processes {sorted(members)} survive SIGKILL")
        time.sleep(0.01)


def _members(group: Group) -> set[int]:
    found: set[int] = set()
    for procs in group.procs:
        with contextlib.suppress(FileNotFoundError):
            found |= {int(line) for line in Path(procs).read_text().split()}
    return found


def remove(group: Group) -> None:
    """Kill what is left in the group and delete it; a group that is gone already is fine."""
    kill(group)
    until = time.monotonic() + 2.0
    for directory in group.directories:
        while directory.is_dir():
            try:
                directory.rmdir()
            except OSError:  # the kernel keeps it busy for an instant after the last exit
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)


# --------------------------------------------------------------------------- detection


def detect(name: str, *, root: Path = ROOT, own: Path = Path("/proc/self/cgroup")) -> Cgroups:
    """The best that works here: a trial group is made and removed. `name` is this agent's parent group."""
    for candidate in (_version_2(name, root, own), _version_1(name, root)):
        if candidate is not None and _works(candidate):
            return candidate
    return Cgroups(NONE, {})


def _version_2(name: str, root: Path, own: Path) -> Cgroups | None:
    """At the root for root, else in a group that was delegated to this user."""
    bases = [root] if (root / "cgroup.controllers").exists() else []
    with contextlib.suppress(OSError):
        mine = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
        bases += [root / mine.lstrip("/")] if bases and mine != "/" else []
    for base in bases:
        with contextlib.suppress(OSError):
            have = set((base / "cgroup.controllers").read_text().split())
            if not have.issuperset(CONTROLLERS):
                continue
            wanted = " ".join(f"+{controller}" for controller in CONTROLLERS)
            (base / "cgroup.subtree_control").write_text(wanted)
            parent = base / name
            parent.mkdir(exist_ok=True)
            (parent / "cgroup.subtree_control").write_text(wanted)
            return Cgroups(V2, {"": parent})
    return None


def _version_1(name: str, root: Path) -> Cgroups | None:
    parents = {controller: root / controller / name for controller in CONTROLLERS}
    if not all((root / controller / "cgroup.procs").exists() for controller in CONTROLLERS):
        return None
    try:
        for parent in parents.values():
            parent.mkdir(exist_ok=True)
    except OSError:
        return None
    return Cgroups(V1, parents)


def _works(cgroups: Cgroups) -> bool:
    try:
        remove(cgroups.create("trial", GroupLimits(1000, 64 << 20, 16)))
    except (OSError, TimeoutError):
        cgroups.close()
        return False
    return True
