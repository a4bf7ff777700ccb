"""The attempts of one agent on its disk: what survives any crash, and who may start what.

One directory per attempt, `WORKLOAD-ATTEMPT/`; the files in it are the whole state. The start marker
`started` is created once, by the shim that runs the command or by an agent that gives the attempt up;
the flock on `lock` is held by the shim and by everything in its sandbox.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dwcp.api.workloads import Output, Shape, Spec
from dwcp.consensus.core.errors import CoreError
from dwcp.control.attempt import Cause, Exit, Facts
from dwcp.runtime import shim

STREAMS = ("stdout", "stderr")
LAUNCH_TIMEOUT_S = 30.0


class AttemptDamaged(CoreError):
    """A file of an attempt cannot be read: the disk lost it or something wrote there; it is not run."""


class LaunchFailed(CoreError):
    """The shim could not be started: look at the sentence, which is the shim's."""


class Prepared(Shape, frozen=True):
    """`attempt.json`: durable before the start is committed. `slot` chooses the sandbox's uid."""

    spec: Spec
    attempt: int
    slot: int
    limits_enforced: str


@dataclass(frozen=True, slots=True)
class ShimIdentity:
    """Pid, start time and boot id name one process for ever; pid alone does not."""

    pid: int
    start_ticks: int
    boot_id: str

    @property
    def runs(self) -> bool:
        return (
            self.pid > 0 and self.boot_id == shim.boot_id() and shim.start_ticks(self.pid) == self.start_ticks
        )


@dataclass(frozen=True, slots=True)
class AttemptStore:
    """All attempts below `root`, which only the agent and its shims write."""

    root: Path

    def attempt(self, workload: str, number: int) -> AttemptDirectory:
        return AttemptDirectory(self.root / f"{workload}-{number}", workload, number)

    def all(self) -> Iterator[AttemptDirectory]:
        if not self.root.is_dir():
            return
        for path in sorted(self.root.iterdir()):
            workload, dash, number = path.name.rpartition("-")
            if dash and number.isdigit() and not path.name.startswith("."):
                yield AttemptDirectory(path, workload, int(number))

    def free_slot(self) -> int:
        """The lowest slot that no open attempt has."""
        taken = {
            attempt.prepared().slot for attempt in self.all() if attempt.is_prepared and not attempt.is_closed
        }
        return next(slot for slot in range(len(taken) + 1) if slot not in taken)

    def clean(self, *, keep: int) -> list[str]:
        """Delete closed attempts beyond the `keep` newest; open ones are never touched."""
        closed = sorted(
            (attempt for attempt in self.all() if attempt.is_closed),
            key=lambda attempt: attempt.file("closed").stat().st_mtime,
        )
        doomed = closed[: max(0, len(closed) - keep)]
        for attempt in doomed:
            attempt.delete()
        return [attempt.name for attempt in doomed]


@dataclass(frozen=True, slots=True)
class AttemptDirectory:
    """One attempt's files. Every question is answered from disk, so an agent that just started knows all."""

    path: Path
    workload: str
    number: int

    @property
    def name(self) -> str:
        return self.path.name

    def file(self, name: str) -> Path:
        return self.path / name

    @property
    def work(self) -> Path:
        return self.path / "work"

    # ------------------------------------------------------------------ before the start

    def prepare(self, prepared: Prepared) -> None:
        """Durable, directory entries included, before anything about this attempt is committed."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        shim.sync_directory(self.path.parent)
        shim.write_durable(self.file("attempt.json"), msgspec.json.encode(prepared))

    @property
    def is_prepared(self) -> bool:
        return self.file("attempt.json").exists()

    def prepared(self) -> Prepared:
        """Raises `AttemptDamaged`."""
        try:
            return msgspec.json.decode(self.file("attempt.json").read_bytes(), type=Prepared)
        except (OSError, msgspec.MsgspecError) as exc:
            raise AttemptDamaged(f"{self.file('attempt.json')}: {exc}") from exc

    def fresh_work(self) -> Path:
        """An empty work folder; what an interrupted materialisation left is dropped."""
        if self.work.exists():
            remove_tree(self.work)
        self.work.mkdir(mode=0o700)
        return self.work

    def mark_shipped(self, uid: int | None, output: str) -> None:
        """The work folder is complete: make the output folder, hand all to the sandbox's user."""
        (self.work / output).mkdir(parents=True, exist_ok=True)
        if uid is not None:
            hand_over(self.work, uid)
        shim.write_durable(self.file("shipped"), b"")

    def abandon(self) -> bool:
        """Take the start marker as a tombstone; False if a shim was faster. Afterwards nothing can start."""
        return shim.take_marker(self.path, {"abandoned": True})

    # ------------------------------------------------------------------ running

    def set_lease(self, deadline_ns: int) -> None:
        """On `shim.boottime_ns`'s clock. Not synced: a reboot ends the command anyway."""
        temporary = self.file(".lease.new")
        temporary.write_text(str(deadline_ns))
        temporary.rename(self.file("lease"))

    def lease_deadline_ns(self) -> int:
        """0 if there is none."""
        try:
            return int(self.file("lease").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def launch(self, orders: dict[str, Any], failpoints: Sequence[str]) -> None:
        """Start the shim, which starts the command unless the marker is taken; returns once the marker
        is durable, ours or not. Blocking. Raises `LaunchFailed`."""
        shim.write_durable(self.file("launch.json"), json.dumps(orders).encode())
        argv = [sys.executable, "-I", "-S", shim.__file__, str(self.path), *failpoints]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=LAUNCH_TIMEOUT_S,
                start_new_session=True,  # signals to the agent's group are not the shim's
                cwd="/",
                env={},
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise LaunchFailed(f"{self.name}: {exc}") from exc
        if done.returncode not in (shim.STARTED, shim.REFUSED):
            raise LaunchFailed(f"{self.name}: {done.stderr.decode(errors='replace').strip()}")

    def stop(self, cause: Cause) -> None:
        """Ask the shim to kill the command; the first cause stays."""
        if not self.file("stop").exists():
            temporary = self.file(".stop.new")
            temporary.write_text(cause.value)
            temporary.rename(self.file("stop"))

    def kill(self) -> None:
        """For a shim that does not act on `stop`, and for what one left behind when it was killed."""
        identity = self.shim()
        if identity is not None and identity.runs:
            os.kill(identity.pid, signal.SIGKILL)
        self.kill_orphans()

    def kill_orphans(self) -> None:
        """A shim killed while its sandbox was being set up leaves a bubblewrap behind that never ends.

        The lock is held, so members of the shim's session live, so its number was not given to others.
        """
        identity = self.shim()
        if identity is None or identity.runs or identity.boot_id != shim.boot_id() or not self.is_alive:
            return
        for pid in shim.session_members(identity.pid):
            if shim.start_ticks(pid) >= identity.start_ticks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _marker(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.file("started").read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise AttemptDamaged(f"{self.file('started')}: {exc}") from exc
        return found if isinstance(found, dict) else {}

    @property
    def is_launched(self) -> bool:
        """Whether the start marker is taken, by a shim or as a tombstone."""
        return self.file("started").exists()

    def shim(self) -> ShimIdentity | None:
        """Who took the start marker, if it was a shim."""
        marker = self._marker()
        if not marker or "pid" not in marker:
            return None
        return ShimIdentity(int(marker["pid"]), int(marker["start_ticks"]), str(marker["boot_id"]))

    @property
    def is_alive(self) -> bool:
        """Whether shim or sandbox hold the lock. Asked of the kernel, so a reused pid cannot deceive."""
        try:
            fd = os.open(self.file("lock"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    # ------------------------------------------------------------------ after the end

    def exit(self) -> Exit | None:
        """How the command ended; None if nobody recorded it. Raises `AttemptDamaged`."""
        try:
            found = json.loads(self.file("exit.json").read_bytes())
            cause = found["cause"]
            return Exit(
                status=int(found["status"]),
                cause=None if cause is None else Cause(cause),
                entered=bool(found["entered"]),
                killed=bool(found["killed"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise AttemptDamaged(f"{self.file('exit.json')}: {exc}") from exc

    def publish(self, output: Output) -> None:
        """The output's manifest is durable in the chunk store; from here its root does not change."""
        shim.write_durable(self.file("output.json"), msgspec.json.encode(output))

    def output(self) -> Output | None:
        try:
            return msgspec.json.decode(self.file("output.json").read_bytes(), type=Output)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as exc:
            raise AttemptDamaged(f"{self.file('output.json')}: {exc}") from exc

    def close(self) -> None:
        """Nothing is left to do: drop the work folder, keep the record and the logs."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.work.exists():
            remove_tree(self.work)
        shim.write_durable(self.file("closed"), b"")

    @property
    def is_closed(self) -> bool:
        return self.file("closed").exists()

    def delete(self) -> None:
        """Renamed first, so that an interrupted deletion is no attempt with half its files."""
        doomed = self.path.with_name(f".{self.name}")
        self.path.rename(doomed)
        remove_tree(doomed)

    def facts(self, *, ship_failed: str = "", start_failed: str = "", publish_failed: str = "") -> Facts:
        """Everything `decide` needs. `alive` is read before `exit`, so no recorded end is missed."""
        marker = self._marker()
        alive = self.is_alive
        return Facts(
            recorded=self.is_prepared,
            shipped=self.file("shipped").exists(),
            ship_failed=ship_failed,
            start_failed=start_failed,
            launched=marker is not None,
            abandoned=marker is not None and "abandoned" in marker,
            alive=alive and marker is not None,
            exit=self.exit(),
            published=self.file("output.json").exists(),
            publish_failed=publish_failed,
        )


def hand_over(directory: Path, uid: int) -> None:
    """Give a tree to the sandbox's user, links themselves and not what they point at."""
    os.chown(directory, uid, uid, follow_symlinks=False)
    for parent, folders, files in os.walk(directory):
        for name in (*folders, *files):
            os.chown(Path(parent, name), uid, uid, follow_symlinks=False)


def remove_tree(directory: Path) -> None:
    """Delete a tree whose folders may be read-only: payloads bring such modes, commands make them."""
    directory.chmod(0o700)
    for parent, folders, _ in os.walk(directory):
        for name in folders:
            folder = Path(parent, name)
            if not folder.is_symlink():
                folder.chmod(0o700)
    shutil.rmtree(directory)
