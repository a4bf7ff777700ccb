"""What a command may see and use: the bubblewrap call and the limits around it.

Building the call is pure; `probe` tries it once at the agent's start, so that a machine on which
sandboxes cannot work says so before it is given any work. Running it is the shim's part.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dwcp.api.workloads import Job, Network
from dwcp.consensus.core.errors import CoreError
from dwcp.runtime.cgroups import Group, GroupLimits

INNER_ID = 1000  # uid and gid as the command sees itself
TMP_BYTES = 64 << 20  # /tmp and /dev/shm inside, in memory, each
PROCESSES_MAX = 256
OPEN_FILES_MAX = 4096
LOG_BYTES_MAX = 8 << 20  # of each of stdout and stderr
UID_BASE = 1_900_000_000  # above every range that distributions and containers hand out

# Shown read-only if they exist. Nothing of /etc but what programs need to start and resolve names.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime")
ETC_EGRESS = ("/etc/resolv.conf", "/etc/ssl/certs", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services")

# The command's first step: say so on standard output, wait for the shim's word, or end if it is dead.
GATE = 'echo && read -r go && exec "$@" </dev/null'

PASSWD = f"job:x:{INNER_ID}:{INNER_ID}:job:/work:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
GROUP = f"job:x:{INNER_ID}:\nnogroup:x:65534:\n"


class SandboxUnavailable(CoreError):
    """Commands cannot be isolated here, so none is run: install bubblewrap, allow user namespaces."""


class DurationInvalid(CoreError):
    """A duration is a number and a unit, such as 90s, 5m or 1h."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """Everything that confines one command. `uid` None: the agent is an ordinary user and stays itself."""

    run: tuple[str, ...]
    network: Network
    uid: int | None
    wall_s: float
    memory_bytes: int
    storage_bytes: int
    files_max: int
    cpu_milli: int
    hidden: tuple[str, ...] = ()  # folders of the host that are replaced by empty ones if they would show

    @property
    def group_limits(self) -> GroupLimits:
        return GroupLimits(self.cpu_milli, self.memory_bytes, PROCESSES_MAX)


def seconds(duration: str) -> float:
    """`90s`, `5m`, `1h`, `2d`; raises `DurationInvalid`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", duration)
    if found is None:
        raise DurationInvalid(f"{duration!r} is no duration: write a number and ms, s, m, h or d, such as 5m")
    return float(found[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def confine(job: Job, *, uid: int | None, hidden: tuple[str, ...] = ()) -> Confinement:
    """A job's own limits as its sandbox enforces them."""
    return Confinement(
        run=job.run,
        network=job.network,
        uid=uid,
        wall_s=seconds(job.limits.wall),
        memory_bytes=job.demand.memory_mib << 20,
        storage_bytes=job.demand.storage_mib << 20,
        files_max=job.limits.files,
        cpu_milli=max(1, round(job.demand.cpu * 1000)),
        hidden=hidden,
    )


def _system(links: Mapping[str, str]) -> list[str]:
    """The host's programs and libraries; a link of the host (/bin → usr/bin) stays a link."""
    argv: list[str] = []
    for path in SYSTEM:
        argv += ["--symlink", links[path], path] if path in links else ["--ro-bind-try", path, path]
    return argv


def host_links() -> dict[str, str]:
    """Which of the system folders are links here."""
    return {path: str(Path(path).readlink()) for path in SYSTEM if Path(path).is_symlink()}


def _hidden(confinement: Confinement) -> list[str]:
    shown = (*SYSTEM, *ETC, *ETC_EGRESS)
    argv: list[str] = []
    for path in confinement.hidden:
        if any(path == root or path.startswith(root + "/") for root in shown):
            argv += ["--tmpfs", path, "--remount-ro", path]
    return argv


def bubblewrap(confinement: Confinement, *, work: str, links: Mapping[str, str]) -> list[str]:
    """The call, with `@lock`, `@status`, `@passwd`, `@group` where the shim puts descriptors.

    `work` is the folder that becomes /work. Limits on processes are set inside, where they count
    per user namespace and so per command, even when the agent's own user runs much else. There is no
    session of its own: the shim has one without a terminal, and finds by it what it left behind.
    """
    network = confinement.network is Network.EGRESS
    argv = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
    argv += ["--cap-drop", "ALL", "--clearenv", "--hostname", "job"]
    argv += ["--uid", str(INNER_ID), "--gid", str(INNER_ID)]
    argv += ["--share-net"] if network else []
    argv += _system(links)
    for path in ETC + (ETC_EGRESS if network else ()):
        argv += ["--ro-bind-try", path, path]
    argv += ["--ro-bind-data", "@passwd", "/etc/passwd", "--ro-bind-data", "@group", "/etc/group"]
    argv += _hidden(confinement)
    argv += ["--proc", "/proc", "--dev", "/dev"]
    argv += ["--size", str(TMP_BYTES), "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108
    argv += ["--size", str(TMP_BYTES), "--perms", "1777", "--tmpfs", "/tmp"]  # noqa: S108
    argv += ["--bind", work, "/work", "--chdir", "/work", "--remount-ro", "/"]
    argv += ["--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin", "--setenv", "HOME", "/work"]
    argv += ["--setenv", "LANG", "C.UTF-8", "--setenv", "TMPDIR", "/tmp"]  # noqa: S108
    argv += ["--sync-fd", "@lock", "--json-status-fd", "@status"]
    return [
        *argv,
        "--",
        "sh",
        "-c",
        GATE,
        "gate",
        "prlimit",
        f"--nproc={PROCESSES_MAX}",
        "--",
        *confinement.run,
    ]


def rlimits(confinement: Confinement, *, grouped: bool) -> dict[str, int]:
    """Limits of each process. Address space is limited only where no cgroup counts memory: it counts
    reserved pages too, and twice the demand leaves room for that."""
    limits = {"CORE": 0, "FSIZE": confinement.storage_bytes, "NOFILE": OPEN_FILES_MAX}
    return limits if grouped else limits | {"AS": 2 * confinement.memory_bytes + (256 << 20)}


def launch(confinement: Confinement, *, directory: Path, group: Group | None) -> dict[str, Any]:
    """The shim's orders for one attempt, as JSON. As root it binds the work folder over /tmp first."""
    work = str(directory / "work") if confinement.uid is None else "/tmp"  # noqa: S108
    return {
        "argv": bubblewrap(confinement, work=work, links=host_links()),
        "files": {"passwd": PASSWD, "group": GROUP},
        "uid": confinement.uid,
        "rlimits": rlimits(confinement, grouped=group is not None),
        "cgroup_procs": list(group.procs) if group else [],
        "oom_files": list(group.oom_files) if group else [],
        "wall_s": confinement.wall_s,
        "storage_bytes": confinement.storage_bytes,
        "files_max": confinement.files_max,
        "resident_bytes_max": None if group else confinement.memory_bytes,
        "log_bytes_max": LOG_BYTES_MAX,
    }


def sandbox_uid(slot: int) -> int | None:
    """The uid of a root agent's `slot`th concurrent command; None when the agent cannot change its uid."""
    return UID_BASE + slot if os.geteuid() == 0 else None


def probe() -> None:
    """Raises `SandboxUnavailable`, saying why, unless a command can be isolated here."""
    if shutil.which("bwrap") is None:
        raise SandboxUnavailable("bubblewrap is not installed: `apt-get install bubblewrap`")
    trial = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--uid", "1000", "--gid", "1000"]
    trial += [
        *_system(host_links()),
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--",
        "prlimit",
        "--nproc=9",
        "true",
    ]
    done = subprocess.run(trial, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        said = done.stderr.strip() or f"status {done.returncode}"
        raise SandboxUnavailable(f"bubblewrap cannot make a sandbox here ({said}): allow user namespaces")
