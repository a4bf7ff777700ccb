"""Four real replicas on a loopback network of their own, for tests and benchmarks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.networks import free_net

from dwcp.consensus.ledger import genesis as genesis_file
from dwcp.runtime import installation, keys
from dwcp.runtime.client import LedgerClient
from dwcp.runtime.clock import SystemClock
from dwcp.runtime.layout import Layout
from dwcp.runtime.world import default_world

SOURCE = Path(keys.__file__).resolve().parents[2]


class LedgerWorld:
    """An installation and the processes of its replicas. Use as a context: nothing is left running."""

    def __init__(self, folder: Path, *, replicas: int = 4, net: str = "") -> None:
        self.layout = Layout(folder / "state")
        self.n = replicas
        world = default_world(net=net or free_net(), replicas=replicas, testing=True)
        installation.create(self.layout, world, now_ms=SystemClock().now_ms())
        self.plans = installation.write_configs(self.layout, world)[:replicas]
        self.genesis = genesis_file.load(self.layout.genesis)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.armed: set[int] = set()  # replicas that were started with failpoints

    def __enter__(self) -> LedgerWorld:
        return self

    def __exit__(self, *_: object) -> None:
        for replica in list(self.processes):
            self.kill(replica)

    def name(self, replica: int) -> str:
        return self.genesis.replicas[replica].name

    def data(self, replica: int) -> Path:
        return self.layout.data(self.name(replica))

    # ----------------------------------------------------------------- processes

    def start(self, replica: int, *, failpoints: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-m", "dwcp.services.consensus_node"]
        arguments += ["--config", str(self.layout.config(self.name(replica)))]
        for point in failpoints:
            arguments += ["--failpoint", point]
        self.layout.logs.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), *sys.path])}
        with self.layout.log(self.name(replica)).open("ab") as log:
            process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)
        self.processes[replica] = process
        (self.armed.add if failpoints else self.armed.discard)(replica)
        return process

    def start_all(self) -> None:
        for replica in range(self.n):
            self.start(replica)
        self.wait_ready(range(self.n))

    def kill(self, replica: int) -> None:
        """SIGKILL, as a power cut would."""
        process = self.processes.pop(replica)
        process.kill()
        process.wait()

    def stop(self, replica: int) -> int:
        """SIGTERM; the exit code."""
        process = self.processes.pop(replica)
        process.terminate()
        return process.wait(timeout=20)

    def freeze(self, replica: int) -> None:
        self.processes[replica].send_signal(signal.SIGSTOP)

    def thaw(self, replica: int) -> None:
        self.processes[replica].send_signal(signal.SIGCONT)

    # ----------------------------------------------------------------- looking

    def get(self, replica: int, path: str) -> Any:
        host = self.genesis.replicas[replica]
        url = f"http://{host.host}:{host.http_port}{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)

    def status(self, replica: int) -> Any:
        return self.get(replica, "/cluster/status")

    def log(self, replica: int) -> str:
        return self.layout.log(self.name(replica)).read_text()

    def wait_ready(self, replicas: Sequence[int] | range, seconds: float = 40) -> None:
        self.wait(lambda: all(map(self._ready, replicas)), seconds)

    def _ready(self, replica: int) -> bool:
        process = self.processes[replica]
        if process.poll() is not None:
            raise AssertionError(f"replica {replica} ended with {process.returncode}: {self.log(replica)}")
        try:
            return bool(self.get(replica, "/ready")["ready"])
        except (OSError, urllib.error.URLError):
            return False

    def wait(self, condition: Any, seconds: float = 40) -> None:
        """Until the condition holds; real processes have no event to wait for."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError("not within the time: " + self.report())
            time.sleep(0.05)

    def report(self) -> str:
        lines = []
        for replica in self.processes:
            try:
                lines.append(f"{replica}: {self.status(replica)}")
            except OSError as exc:
                lines.append(f"{replica}: {exc}")
            lines.append(self.log(replica)[-1500:])
        return "\n".join(lines)

    # ----------------------------------------------------------------- clients

    async def client(self, name: str = "operator") -> LedgerClient:
        return await LedgerClient.open(
            genesis=self.genesis,
            key=keys.load_sign_key(self.layout.sign_key(name)),
            tls=self.layout.tls(name),
            session_path=None,
        )
