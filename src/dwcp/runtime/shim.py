"""The process between an agent and a command: it outlives the agent, and the command never outlives it.

Run by path as `python -I -S shim.py DIRECTORY`, standard library only, because one runs for every
attempt. It knows one attempt directory and nothing else: no ledger, no network, no configuration.
Order that matters: lock, start marker made durable (O_EXCL), then exec; the exit made durable, then end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import stat
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

STARTED, REFUSED, FAILED = 0, 3, 4  # exit codes of the launcher

TICK_MS = 200  # how often lease and stop files are looked at
TERM_GRACE_S = 2.0  # between SIGTERM and SIGKILL when a stop was asked for; a lapsed lease gets none
LOCK_WAIT_S = 2.0  # a probing agent may hold the lock for an instant
WALK_SHARE = 20  # the work directory is walked at most 1/20 of the time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20000, 0x1000, 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


# --------------------------------------------------------------------------- files


def boottime_ns() -> int:
    """The clock of lease files: monotonic, counts suspended time, the same for every process of a boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def start_ticks(pid: int) -> int:
    """When `pid` started, in clock ticks since boot; with the boot id it names one process. 0: gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def session_members(leader: int) -> list[int]:
    """Processes of the session that `leader` made, itself included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == leader and fields[0] not in "ZX":
                    found.append(int(entry.name))
    return found


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durable(path: Path, content: bytes) -> None:
    """Whole and on disk, or not there at all. As `runtime.durable`, which a process without dwcp cannot import."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_directory(path.parent)


def take_marker(directory: Path, content: dict[str, object]) -> bool:
    """Create the start marker durably; False if it was there. Only its creator may start the command.

    The content is completed before it is linked, so nobody sees a half-written marker.
    """
    temporary = directory / f".started.{os.getpid()}"
    with temporary.open("wb") as file:
        file.write(json.dumps(content).encode())
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, directory / "started")
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    sync_directory(directory)
    return True


def lock(directory: Path) -> int | None:
    """The attempt's lock, inherited by the sandbox: while anybody holds it the command may be running."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(fd)
                return None
            time.sleep(0.05)


# --------------------------------------------------------------------------- failpoints


@dataclass(slots=True)
class Failpoints:
    """The same file protocol as `runtime.failpoints`, which cannot be imported here: once per directory."""

    armed: dict[str, str] = field(default_factory=dict)  # name → kill or pause:MS
    directory: Path = Path()

    def fires(self, name: str) -> bool:
        if name not in self.armed:
            return False
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(self.directory / f"{name}.fired", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return False
        os.fsync(fd)
        os.close(fd)
        sync_directory(self.directory)
        return True

    def __call__(self, name: str) -> None:
        action = self.armed.get(name, "")
        if action.startswith("pause:"):
            time.sleep(int(action.removeprefix("pause:")) / 1000)
        elif self.fires(name):
            os.kill(os.getpid(), signal.SIGKILL)


# --------------------------------------------------------------------------- the command


def _mount(source: str, target: str, flags: int) -> None:
    if _libc.mount(source.encode(), target.encode(), None, flags, None) != 0:
        raise OSError(ctypes.get_errno(), f"mounting {source}")


def _become(launch: dict[str, Any], directory: Path) -> None:
    """Give up root for the sandbox's own uid. The work directory lies below folders that this uid
    cannot enter, so it is first bound over /tmp in a mount namespace of our own."""
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unsharing the mount namespace")
    _mount("none", "/", _MS_REC | _MS_PRIVATE)
    _mount(str(directory / "work"), "/tmp", _MS_BIND)  # noqa: S108
    os.setgroups([])
    os.setresgid(launch["uid"], launch["uid"], launch["uid"])
    os.setresuid(launch["uid"], launch["uid"], launch["uid"])


def _exec(launch: dict[str, Any], directory: Path, fds: dict[str, int], shim: int) -> NoReturn:
    """In the forked child: cgroups, limits, identity, then bubblewrap. Raises OSError."""
    for procs in launch["cgroup_procs"]:
        Path(procs).write_text(str(os.getpid()))
    for name, value in launch["rlimits"].items():
        number = getattr(resource, f"RLIMIT_{name}")
        ceiling = resource.getrlimit(number)[1]
        capped = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(number, (capped, capped))
    if launch["uid"] is not None:
        _become(launch, directory)
    # After the change of uid, which would clear it; then look whether the parent is already gone.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != shim:
        os._exit(1)
    tokens = {f"@{name}": str(fd) for name, fd in fds.items()}
    for fd in fds.values():
        os.set_inheritable(fd, True)
    argv = [tokens.get(word, word) for word in launch["argv"]]
    os.execvpe(argv[0], argv, {"PATH": "/usr/bin:/bin"})  # noqa: S606 (bubblewrap, by list)


def _sealed(content: str) -> int:
    """A descriptor holding `content`, for files that bubblewrap places into the sandbox."""
    fd = os.memfd_create("dwcp")
    os.write(fd, content.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


@dataclass(slots=True)
class Stream:
    """One output pipe of the command, kept up to a size; the rest is read and dropped."""

    name: str
    pipe: int
    file: int
    left: int  # bytes that may still be kept
    announced: bool = True  # False: the first byte is the gate's and not the command's
    seen: int = 0

    def pump(self) -> bool:
        """Move what is there; False at the end of the stream."""
        try:
            data = os.read(self.pipe, 65536 if self.announced else 1)
        except BlockingIOError:
            return True
        if not self.announced:
            self.announced = bool(data)
            return bool(data)
        self.seen += len(data)
        if kept := data[: self.left]:
            with contextlib.suppress(OSError):  # a full disk costs the log, not the command
                os.write(self.file, kept)
            self.left -= len(kept)
        return bool(data)

    def drain(self) -> None:
        """What is left once every writer is dead."""
        os.set_blocking(self.pipe, True)
        while self.pump():
            pass


@dataclass(slots=True)
class Command:
    """The running sandbox. `outer` is bubblewrap, `inner` its pid namespace's first process (0: unknown).

    Bubblewrap ties the sandbox's life to its own only once all is set up; a shim killed before would
    leave it running. So the command waits at a gate: it announces itself and reads one line from us.
    """

    outer: int
    status_pipe: int
    gate: int  # -1 once it is open
    streams: dict[int, Stream]
    started_s: float = field(default_factory=time.monotonic)
    inner: int = 0
    status_text: bytes = b""

    @property
    def entered(self) -> bool:
        """Whether the sandbox was set up, up to the command's own first step."""
        return all(stream.announced for stream in self.streams.values())

    def open_gate(self) -> bool:
        """Whether this call let the command begin."""
        if self.gate < 0 or not self.entered:
            return False
        with contextlib.suppress(BrokenPipeError):
            os.write(self.gate, b"go\n")
        os.close(self.gate)
        self.gate = -1
        return True

    def read_status(self) -> bool:
        """Bubblewrap's JSON lines, of which the child's pid is the one of interest."""
        data = os.read(self.status_pipe, 4096)
        self.status_text += data
        for line in self.status_text.split(b"\n"):
            with contextlib.suppress(ValueError):
                self.inner = json.loads(line).get("child-pid", self.inner)
        return bool(data)

    def kill(self) -> None:
        """SIGKILL the namespace's first process, which takes everything in it along; then bubblewrap."""
        for pid in (self.inner, self.outer):
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM to what the sandbox's first process started; bubblewrap does not pass signals on."""
        for pid in children(self.inner):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def resident_bytes(pid: int) -> int:
    """Memory of `pid` and everything below it; a page that several share counts once among them."""
    return _share_bytes(pid) + sum(resident_bytes(child) for child in children(pid))


def _share_bytes(pid: int) -> int:
    """The kernel's proportional share, or, where it is not shown to us, the private pages."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        _, resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[:3]
        return (int(resident) - int(shared)) * resource.getpagesize()
    return 0


def _walk(directory: Path) -> Iterator[os.stat_result]:
    pending = [directory]
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    facts = entry.stat(follow_symlinks=False)
                    yield facts
                    if stat.S_ISDIR(facts.st_mode):
                        pending.append(Path(entry.path))


def usage(directory: Path) -> tuple[int, int]:
    """(bytes on disk, entries) below `directory`."""
    size = count = 0
    for facts in _walk(directory):
        size += facts.st_blocks * 512
        count += 1
    return size, count


# --------------------------------------------------------------------------- the watch


@dataclass(slots=True)
class Watch:
    """Lease, stop file and limits of one running command; the first one broken is the cause of its end."""

    directory: Path
    launch: dict[str, Any]
    command: Command
    cause: str | None = None
    kill_at_s: float = float("inf")
    walk_at_s: float = 0.0

    def look(self) -> None:
        now_s = time.monotonic()
        lapsed = lease_lapsed(self.directory)
        if self.cause is None:
            self.cause = stop_cause(self.directory) or ("lease" if lapsed else self._over_limit(now_s))
            if self.cause in ("cancelled", "moved"):
                self.command.terminate()
                self.kill_at_s = now_s + TERM_GRACE_S
            elif self.cause is not None:
                self.kill_at_s = now_s
        if lapsed or now_s >= self.kill_at_s:
            self.command.kill()

    def _over_limit(self, now_s: float) -> str | None:
        if now_s - self.command.started_s > self.launch["wall_s"]:
            return "wall"
        if now_s >= self.walk_at_s:
            cause = self.over_use()
            ended_s = time.monotonic()
            self.walk_at_s = ended_s + max(0.5, (ended_s - now_s) * WALK_SHARE)
            return cause
        return None

    def over_use(self) -> str | None:
        """Which limit on disk or memory is broken now."""
        size, count = usage(self.directory / "work")
        if size > self.launch["storage_bytes"]:
            return "storage"
        if count > self.launch["files_max"]:
            return "files"
        if _oom_kills(self.launch["oom_files"]):
            return "memory"  # one process is gone: the rest would go on with a hole in it
        watched = self.launch["resident_bytes_max"]
        if watched is not None and self.command.inner and resident_bytes(self.command.inner) > watched:
            return "memory"
        return None


def stop_cause(directory: Path) -> str | None:
    try:
        return (directory / "stop").read_text().strip() or "cancelled"
    except FileNotFoundError:
        return None


def lease_lapsed(directory: Path) -> bool:
    """No lease is a lapsed lease: the agent writes one before it launches."""
    try:
        return boottime_ns() >= int((directory / "lease").read_text())
    except (FileNotFoundError, ValueError):
        return True


# --------------------------------------------------------------------------- one attempt


def _spawn(directory: Path, launch: dict[str, Any], lock_fd: int) -> Command:
    shim = os.getpid()
    pipes = {name: os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) for name in ("stdout", "stderr")}
    gate_read, gate_write = os.pipe2(os.O_CLOEXEC)
    status_read, status_write = os.pipe2(os.O_CLOEXEC)
    fds = {"lock": lock_fd, "status": status_write}
    fds |= {name: _sealed(content) for name, content in launch["files"].items()}
    pid = os.fork()
    if pid == 0:
        try:
            os.umask(0o022)
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, and exec would pass it on
                signal.signal(ignored, signal.SIG_DFL)
            os.dup2(gate_read, 0)
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.set_blocking(pipes[name][1], True)
                os.dup2(pipes[name][1], number)
            _exec(launch, directory, fds, shim)
        except OSError as exc:
            os.write(2, f"dwcp: the sandbox could not be started: {exc}\n".encode())
        finally:
            os._exit(126)
    streams = {}
    for name, (read, write) in pipes.items():
        os.close(write)
        kept = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        streams[read] = Stream(name, read, kept, launch["log_bytes_max"], announced=name != "stdout")
    for name, fd in fds.items():
        if name != "lock":
            os.close(fd)
    os.close(gate_read)
    return Command(pid, status_read, gate_write, streams)


def _attend(watch: Watch, failpoint: Failpoints) -> None:
    """Until bubblewrap ends: move output, note its status, look at lease and limits."""
    command = watch.command
    pidfd = os.pidfd_open(command.outer)
    poll = select.poll()
    for fd in (pidfd, command.status_pipe, *command.streams):
        poll.register(fd, select.POLLIN | select.POLLHUP)
    while True:
        ready = {fd for fd, _ in poll.poll(TICK_MS)}
        for fd in ready & command.streams.keys():
            if not command.streams[fd].pump():
                poll.unregister(fd)
        if command.status_pipe in ready and not command.read_status():
            poll.unregister(command.status_pipe)
        if command.open_gate():
            failpoint("shim.exec.after")
            if failpoint.fires("shim.command"):
                os.kill(command.inner, signal.SIGKILL)
        if pidfd in ready:
            break
        watch.look()
    os.close(pidfd)


def _reap(command: Command) -> int:
    """Wait for bubblewrap, then for the namespace's first process, which is ours to reap (subreaper):
    once it is gone nothing of the command is left."""
    _, status = os.waitpid(command.outer, 0)
    command.kill()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    for stream in command.streams.values():
        stream.drain()
    while command.read_status():
        pass
    return status


def _oom_kills(files: list[str]) -> int:
    """The kernel's count of processes killed at the cgroup's memory limit (v1 and v2 name it alike)."""
    for name in files:
        with contextlib.suppress(OSError):
            for line in Path(name).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def _outcome(watch: Watch, status: int) -> dict[str, object]:
    command = watch.command
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # everything was reaped, so everything is in it
    code = os.waitstatus_to_exitcode(status)
    code = 128 - code if code < 0 else code
    cause = watch.cause or watch.over_use()
    return {
        "status": code,
        "cause": cause,
        "entered": command.entered,
        "killed": cause is None and code - 128 in (signal.SIGKILL, signal.SIGTERM),
        "wall_s": round(time.monotonic() - command.started_s, 3),
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        "memory_max_kib": used.ru_maxrss,
        "log_bytes": {stream.name: stream.seen for stream in command.streams.values()},
    }


def run(directory: Path, launch: dict[str, Any], lock_fd: int, failpoint: Failpoints) -> None:
    """Start the command, attend it, record its end. The marker is ours."""
    failpoint("shim.exec.before")
    early = stop_cause(directory) or ("lease" if lease_lapsed(directory) else None)
    if early is not None:
        outcome: dict[str, object] = {"status": 1, "cause": early, "entered": False, "killed": False}
    else:
        command = _spawn(directory, launch, lock_fd)
        watch = Watch(directory, launch, command)
        _attend(watch, failpoint)
        outcome = _outcome(watch, _reap(command))
    failpoint("shim.exit.before_record")
    write_durable(directory / "exit.json", json.dumps(outcome).encode())
    failpoint("shim.exit.after_record")


def _daemon(directory: Path, answer: int, failpoint: Failpoints) -> None:
    """The part that stays: its own session, no terminal, no parent that matters."""
    os.setsid()
    os.umask(0o077)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    lock_fd = lock(directory)
    marker: dict[str, object] = {
        "pid": os.getpid(),
        "start_ticks": start_ticks(os.getpid()),
        "boot_id": boot_id(),
    }
    if lock_fd is None or not take_marker(directory, marker):
        os.write(answer, b"refused: this attempt was already started or given up")
        return
    launch = json.loads((directory / "launch.json").read_bytes())
    os.write(answer, b"started")
    os.close(answer)
    run(directory, launch, lock_fd, failpoint)


def main(argv: list[str]) -> int:
    """Fork the part that stays and tell the caller what became of it."""
    directory = Path(argv[0]).resolve()
    specs = [argv[i + 1].partition("=") for i, word in enumerate(argv) if word == "--failpoint"]
    marks = [argv[i + 1] for i, word in enumerate(argv) if word == "--failpoint-directory"]
    failpoint = Failpoints({name: action for name, _, action in specs}, Path(marks[0]) if marks else Path())
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        code = 0
        try:
            _daemon(directory, write, failpoint)
        except Exception:  # noqa: BLE001 (nobody is left to raise to)
            code = 1
            (directory / "shim.log").write_text(traceback.format_exc())
        os._exit(code)
    os.close(write)
    said = b"".join(iter(lambda: os.read(read, 4096), b"")).decode()
    if said == "started":
        return STARTED
    sys.stderr.write((said or "failed: the shim died before it took the start marker") + "\n")
    return REFUSED if said.startswith("refused") else FAILED


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.stderr.write("usage: shim.py ATTEMPT_DIRECTORY: started by an agent, not by hand\n")
        sys.exit(64)
    try:
        sys.exit(main(sys.argv[1:]))
    except OSError as exc:
        sys.stderr.write(f"failed: {errno.errorcode.get(exc.errno or 0, '?')}: {exc}\n")
        sys.exit(FAILED)
