"""Starting, watching and stopping the processes of one installation with supervisor.

One supervisor per installation, reached over a private socket. A process is known by
its pid and start time together; nothing is ever stopped by a name or a pattern.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
from supervisor.xmlrpc import SupervisorTransport

import dwcp
from dwcp.runtime import failpoints
from dwcp.runtime.config import environment
from dwcp.runtime.durable import replace_private
from dwcp.runtime.errors import AddressTaken, Contradiction, NotRunning, RuntimeFault
from dwcp.runtime.layout import Layout, ensure
from dwcp.runtime.world import ServicePlan

SOCKET_PATH_BYTES_MAX = 100  # the kernel allows 107, supervisor adds a suffix while it binds
STOP_SECONDS = 15  # what a service may take to drain before it is killed
_ANSWER_SECONDS = 10
_SUPERVISOR = "supervisord"


class SupervisionFailed(RuntimeFault):
    """The supervisor did not do what was asked; its log says why."""


class Running(msgspec.Struct, frozen=True):
    """A process that ran when this was written; `create_time` tells a reused pid apart."""

    pid: int
    create_time: float

    def process(self) -> psutil.Process | None:
        """The process, if it is still the same one and not a zombie."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.create_time) < 0.05
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What the supervisor knows of one service. `state` is its word: RUNNING, BACKOFF, FATAL, …"""

    name: str
    state: str
    pid: int
    detail: str
    exit_status: int

    @property
    def running(self) -> bool:
        return self.state == "RUNNING"

    @property
    def gave_up(self) -> bool:
        return self.state in {"FATAL", "EXITED", "STOPPED"}


class Supervisor:
    """The supervisor of one installation."""

    def __init__(self, layout: Layout, *, answer_s: float = _ANSWER_SECONDS) -> None:
        self._layout = layout
        self._answer_s = answer_s
        self._socket = layout.run / "supervisor.sock"

    # ------------------------------------------------------------------ life

    def is_running(self) -> bool:
        return self._own() is not None

    def start(self, plans: Sequence[ServicePlan]) -> None:
        """Starts the supervisor and with it every service. Raises `AddressTaken` or `SupervisionFailed`."""
        layout = self._layout
        check_ports(plans)
        for folder in (layout.run, layout.run / "programs", layout.logs):
            ensure(folder)
        for left in (*(layout.run / "programs").glob("*.conf"), *layout.run.glob("*.pid")):
            left.unlink()
        for plan in plans:
            self._write_program(plan, ())
        (layout.run / "supervisord.conf").write_text(self._main_config(), encoding="utf-8")
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(layout.run / "supervisord.conf")]
        done = subprocess.run(
            command,
            env=_clean_environment(),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode != 0:
            raise SupervisionFailed(f"supervisor did not start: {done.stderr.strip() or done.stdout.strip()}")
        self._note_own_pid()

    def start_missing(self) -> list[str]:
        """Starts the services that have given up or were stopped; returns their names."""
        names = [state.name for state in self.states() if state.gave_up]
        for name in names:
            self._call("startProcess", name, False)
        return names

    def stop(self) -> list[str]:
        """Stops everything and makes sure that nothing is left; returns what had to be killed."""
        own = self._own()
        services = [running for _, running in self._noted()]
        if own is not None:
            self._ask_to_stop()
            _wait_gone([own], STOP_SECONDS + 10)
        left = [running for running in [*services, *_listed(own)] if running.process() is not None]
        killed = stop_processes(left)
        for file in self._layout.run.glob("*.pid"):
            file.unlink()
        self._own_file.unlink(missing_ok=True)
        return killed

    def halt(self, name: str) -> None:
        """Stops one service and leaves it stopped; `start_missing` starts it again."""
        self._call("stopProcess", name)

    def restart(self, plan: ServicePlan, armed: Sequence[str] = ()) -> None:
        """Restarts one service with these failpoints (tests only); without them, as it was planned."""
        failpoints.parse(armed, testing=bool(plan.config.get("testing")))
        self._write_program(plan, armed)
        self._call("reloadConfig")
        states = {state.name for state in self.states()}
        if plan.name in states:
            self._call("stopProcessGroup", plan.name, answer_s=STOP_SECONDS + 15)
            self._call("removeProcessGroup", plan.name)
        self._call("addProcessGroup", plan.name)

    def states(self) -> list[ServiceState]:
        """Every service as the supervisor sees it. Raises `NotRunning`."""
        return [
            ServiceState(
                name=info["name"],
                state=info["statename"],
                pid=info["pid"],
                detail=info["description"],
                exit_status=info["exitstatus"],
            )
            for info in self._call("getAllProcessInfo")
        ]

    # ------------------------------------------------------------------ files

    def _write_program(self, plan: ServicePlan, armed: Sequence[str]) -> None:
        layout = self._layout
        arguments = [sys.executable, "-m", plan.module, "--config", str(layout.config(plan.name))]
        for spec in armed:
            arguments += ["--failpoint", spec]
        lines = [
            f"[program:{plan.name}]",
            "command=" + " ".join(_quote(argument) for argument in arguments),
            "directory=/",
            "autorestart=true",
            "startsecs=2",  # one that ends sooner is restarted after 1, 2, 3 … s, then given up
            "startretries=8",
            f"stopwaitsecs={STOP_SECONDS}",
            "stopasgroup=false",  # an attempt outlives its agent
            "killasgroup=false",
            "redirect_stderr=true",
            f"stdout_logfile={_percent(layout.log(plan.name))}",
            "stdout_logfile_maxbytes=20MB",
            "stdout_logfile_backups=3",
        ]
        target = layout.run / "programs" / f"{plan.name}.conf"
        replace_private(target, ("\n".join(lines) + "\n").encode(), durable=False)

    def _main_config(self) -> str:
        layout = self._layout
        if len(os.fsencode(self._socket)) > SOCKET_PATH_BYTES_MAX:
            raise SupervisionFailed(
                f"{self._socket}: the path is too long for a socket; choose a shorter --state"
            )
        user = ["user=root"] if os.geteuid() == 0 else []
        lines = [
            "[unix_http_server]",
            f"file={_percent(self._socket)}",
            "chmod=0700",
            "[supervisord]",
            *user,
            "umask=077",
            "directory=/",
            f"pidfile={_percent(layout.run / 'supervisord.number')}",
            f"logfile={_percent(layout.logs / 'supervisor.log')}",
            "logfile_maxbytes=5MB",
            "logfile_backups=1",
            f"childlogdir={_percent(layout.logs)}",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
            "[include]",
            f"files={_percent(layout.run / 'programs')}/*.conf",
        ]
        return "\n".join(lines) + "\n"

    # ------------------------------------------------------------------ processes

    @property
    def _own_file(self) -> Path:
        return self._layout.run / f"{_SUPERVISOR}.pid"

    def _own(self) -> Running | None:
        running = _read_running(self._own_file)
        return running if running is not None and running.process() is not None else None

    def _note_own_pid(self) -> None:
        number = self._layout.run / "supervisord.number"
        deadline = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < deadline:
            try:
                found = psutil.Process(int(number.read_text()))
                running = Running(found.pid, found.create_time())
            except (OSError, ValueError, psutil.NoSuchProcess):
                time.sleep(0.05)
                continue
            self._own_file.write_bytes(msgspec.json.encode(running))
            return
        raise SupervisionFailed(f"supervisor did not come up; see {self._layout.logs / 'supervisor.log'}")

    def _noted(self) -> list[tuple[str, Running]]:
        """Every service that wrote its pid file."""
        found = []
        for file in self._layout.run.glob("*.pid"):
            running = _read_running(file)
            if running is not None and file != self._own_file:
                found.append((file.stem, running))
        return found

    def processes(self) -> list[psutil.Process]:
        """The supervisor, the services and whatever they started, as far as they still run."""
        own = self._own()
        roots = ([own] if own else []) + [running for _, running in self._noted()]
        found: dict[int, psutil.Process] = {}
        for running in roots:
            process = running.process()
            if process is not None:
                found[process.pid] = process
                found |= {child.pid: child for child in _children(process)}
        return list(found.values())

    # ------------------------------------------------------------------ calls

    def _ask_to_stop(self) -> None:
        """Stops all services at once; by itself the supervisor would stop one after the other."""
        try:
            self._call("stopAllProcesses", False)
            self._call("shutdown")
        except RuntimeFault:
            own = self._own()
            process = own.process() if own else None
            if process is not None:
                process.terminate()

    def _call(self, method: str, *arguments: Any, answer_s: float = 0) -> Any:  # Any: XML-RPC values
        """Raises `NotRunning` also for a supervisor that is there and does not answer in time."""
        if not self._socket.exists():
            raise NotRunning(f"the platform of {self._layout.root} does not run: start it with `dwcp up`")
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
        try:
            with _socket_timeout(answer_s or self._answer_s):
                return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as exc:
            raise SupervisionFailed(
                f"supervisor: {method} {' '.join(map(str, arguments))}: {exc.faultString}"
            ) from exc
        except (OSError, xmlrpc.client.ProtocolError) as exc:
            raise NotRunning(
                f"the supervisor of {self._layout.root} does not answer: run `dwcp down`, then `dwcp up`"
            ) from exc
        finally:
            transport.close()


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """supervisor's transport makes its socket itself and offers no other way to bound it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def exclusive(layout: Layout) -> Iterator[None]:
    """One `init`, `up` or `down` at a time. Raises `Contradiction` where another one is under way."""
    try:
        ensure(layout.root)
        lock = (layout.root / ".lock").open("a")
    except OSError as exc:
        raise Contradiction(
            f"{layout.root}: {exc.strerror}: it belongs to somebody else; choose a folder of your own with --state "
            "or $DWCP_STATE, or make a clone of your own"
        ) from exc
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Contradiction(
                f"{layout.root}: another `dwcp` is starting or stopping it: wait for it"
            ) from exc
        yield


def check_ports(plans: Sequence[ServicePlan]) -> None:
    """Raises `AddressTaken` naming the first address that is in use, and by whom as far as we may know."""
    for plan in plans:
        for address in plan.listens:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((address.host, address.port))
                except OSError as exc:
                    owner = _owner(address.host, address.port)
                    raise AddressTaken(
                        f"{plan.name} cannot listen on {address}: {exc.strerror}{owner}; free it, or "
                        "choose another network with `--net 127.x` (a new installation)"
                    ) from exc


def stop_processes(running: Sequence[Running]) -> list[str]:
    """Ends these processes, gently first; returns a line for each."""
    lines = []
    for one in running:
        process = one.process()
        if process is not None:
            lines.append(f"{process.pid} {' '.join(process.cmdline()[:5])}")
            process.terminate()
    for one in _wait_gone(running, STOP_SECONDS):
        process = one.process()
        if process is not None:
            process.kill()
    late = _wait_gone(running, 5)
    if late:
        raise SupervisionFailed(f"processes do not end: {', '.join(str(one.pid) for one in late)}")
    return lines


def _wait_gone(running: Sequence[Running], seconds: float) -> list[Running]:
    deadline = time.monotonic() + seconds
    left = [one for one in running if one.process() is not None]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [one for one in left if one.process() is not None]
    return left


def _listed(own: Running | None) -> list[Running]:
    return [own] if own is not None else []


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _read_running(file: Path) -> Running | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        return None


def _owner(host: str, port: int) -> str:
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return ""
    for connection in connections:
        local = connection.laddr
        taken = local and local.port == port and local.ip in {host, "0.0.0.0", "::"}  # noqa: S104  # a comparison
        if taken and connection.pid and connection.status == psutil.CONN_LISTEN:
            return f" (by process {connection.pid}, {_short_name(connection.pid)})"
    return ""


def _short_name(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline()[:4]) or psutil.Process(pid).name()
    except psutil.Error:
        return "which has ended meanwhile"


def _clean_environment() -> dict[str, str]:
    """What services inherit: enough to find programs and this code, no secret of the caller."""
    env = environment()
    source = str(Path(dwcp.__file__).resolve().parents[1])
    return {"PATH": env.path, "HOME": env.home or "/", "LANG": "C.UTF-8", "PYTHONPATH": source}


def _quote(argument: str) -> str:
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"')
    return _percent(f'"{escaped}"')


def _percent(value: object) -> str:
    """supervisor expands %(…)s in its configuration."""
    return str(value).replace("%", "%%")
