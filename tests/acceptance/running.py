"""A whole platform of real processes for tests, on a network and in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.networks import free_net

from dwcp.runtime.clock import SystemClock
from dwcp.runtime.layout import Layout
from dwcp.runtime.platform import Platform

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class RunningPlatform:
    """An installation for tests; `dwcp` runs the real command line against it."""

    root: Path
    net: str

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    @property
    def platform(self) -> Platform:
        return Platform(self.layout, SystemClock())

    def dwcp(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """One command; never raises for its exit code."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "PYTHONPATH": str(ROOT / "src"),
            "DWCP_STATE": str(self.root),
        }
        command = [sys.executable, "-m", "dwcp.cli.main", *arguments]
        return subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def json(self, *arguments: str, timeout_s: float = 120) -> Any:  # Any: the command's own document
        """One command that must succeed, with --json."""
        done = self.dwcp(*arguments, "--json", timeout_s=timeout_s)
        assert done.returncode == 0, f"dwcp {' '.join(arguments)}: {done.returncode}: {done.stderr}"
        return json.loads(done.stdout)

    def restart(self, service: str, *failpoints: str) -> None:
        """Restarts one service with these failpoints armed, or as usual without them."""
        self.platform.supervisor.restart(self.platform.plan(service), failpoints)


@contextmanager
def installed(*, lease: str = "3s", replicas: int = 4) -> Iterator[RunningPlatform]:
    """An installation that was made and not started; whatever runs at the end is stopped.

    The folder's name is short: a socket's path may have 107 bytes.
    """
    root = Path(tempfile.mkdtemp(prefix="dwcp-"))
    made = RunningPlatform(root / "state", free_net())
    try:
        made.json("init", "--net", made.net, "--testing", "--lease", lease, "--replicas", str(replicas))
        yield made
    finally:
        made.dwcp("down")
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def started(*, lease: str = "3s", replicas: int = 4) -> Iterator[RunningPlatform]:
    """The same, started and ready."""
    with installed(lease=lease, replicas=replicas) as made:
        made.json("up")
        yield made
