"""compression-api as a real process in an installation of its own, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.networks import free_net

from dwcp.runtime.config import load
from dwcp.runtime.installation import write_configs
from dwcp.runtime.layout import Layout
from dwcp.runtime.world import World

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Installed:
    """An installation of which only compression-api runs."""

    layout: Layout
    environment: dict[str, str]
    plain: str = ""
    pid: int = 0

    def dwcp(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dwcp.cli.main", *arguments]
        return self.run(command)

    def run(self, command: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=100, check=False
        )

    def model(self, *arguments: str, code: int = 0) -> Any:  # Any: the command's own answer
        done = self.dwcp("model", *arguments, "--json")
        assert done.returncode == code, f"{arguments}\n{done.returncode}\n{done.stdout}\n{done.stderr}"
        told = json.loads(done.stdout)
        return told["result"] or told["summary"] if "schema" in told else told


@contextmanager
def installation() -> Iterator[Installed]:
    """Made once; the service's own certificate, token book and folders."""
    with tempfile.TemporaryDirectory(prefix="dwcp-") as folder:
        layout = Layout(Path(folder) / "state")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": folder,
            "PYTHONPATH": ":".join([str(ROOT / "src"), str(ROOT), *sys.path[1:]]),
            "DWCP_STATE": str(layout.root),
        }
        made = Installed(layout, environment)
        done = made.dwcp("init", "--net", free_net())
        assert done.returncode == 0, done.stderr
        write_configs(layout, load(layout.cluster, World))
        yield made


@contextmanager
def serving(installed: Installed, module: str) -> Iterator[Installed]:
    """The service as a process of its own, ended by SIGTERM."""
    config = installed.layout.config("compression-api")
    log = (installed.layout.root / "service.log").open("ab")
    command = [sys.executable, "-m", module, "--config", str(config)]
    process = subprocess.Popen(command, env=installed.environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        world = load(installed.layout.cluster, World)
        installed.pid = process.pid
        installed.plain = f"http://{world.host('0.12')}:5000"
        wait_ready(installed.plain, process)
        yield installed
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def wait_ready(url: str, process: subprocess.Popen[bytes], *, seconds: int = 20) -> None:
    """Until the service at `url` says that it is ready; it may not end meanwhile."""
    for _ in range(seconds * 10):
        assert process.poll() is None
        try:
            if httpx.get(f"{url}/ready", trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} did not become ready")
