"""A whole platform of real processes for one test group, on a loopback network of its own.

Everything is done as an operator would: through the command line and the ledger.
Only the arming of failpoints goes through `runtime.supervision`, as `--failpoint` needs a restart.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dwcp.runtime import installation
from dwcp.runtime.layout import Layout
from dwcp.runtime.supervision import Supervisor
from dwcp.runtime.world import ServicePlan, services

SRC = Path(__file__).resolve().parents[2] / "src"
CLI = (sys.executable, "-c", "from dwcp.cli.main import run; run()")
FINAL = {"done", "failed", "unknown", "cancelled"}
LEASE = "3s"
PAYLOAD_BYTES = 2_000_000


def free_net() -> str:
    """A /16 of 127 that no other test of this run uses: by process id."""
    return f"127.{64 + os.getpid() % 128}"


@dataclass(frozen=True, slots=True)
class Answer:
    """One call of the command line."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


class Platform:
    """One installation. `dwcp` is the only way in, but for arming and looking at files."""

    def __init__(self, root: Path, net: str) -> None:
        self.root = root
        self.net = net
        self.layout = Layout(root / "state")

    def dwcp(self, *arguments: str, timeout: float = 90) -> Answer:
        """Run the command line; it must never end in a traceback."""
        done = subprocess.run(
            [*CLI, *arguments, "--state", str(self.layout.root)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYTHONPATH": str(SRC), "NO_COLOR": "1"},
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Answer(done.returncode, done.stdout, done.stderr)

    def up(self, *arguments: str) -> None:
        answer = self.dwcp("up", "--net", self.net, "--testing", "--lease", LEASE, *arguments, timeout=180)
        assert answer.code == 0, answer.err + answer.out

    def down(self) -> None:
        answer = self.dwcp("down", timeout=120)
        assert answer.code == 0, answer.err + answer.out

    # ----------------------------------------------------------------- services

    @property
    def plans(self) -> dict[str, ServicePlan]:
        return {plan.name: plan for plan in services(installation.open_world(self.layout), self.layout)}

    def arm(self, service: str, *specs: str) -> None:
        """Restart one service with failpoints that have not fired yet, and wait until it is ready."""
        fired = self.layout.data(service) / "failpoints"
        shutil.rmtree(fired, ignore_errors=True)
        Supervisor(self.layout).restart(self.plans[service], specs)
        self.wait_ready(service)

    def fired(self, service: str, point: str) -> bool:
        """Whether the armed process killed itself there."""
        return any((self.layout.data(service)).glob(f"**/failpoints/{point}.fired"))

    def wait_ready(self, *names: str, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while True:
            rows = self.dwcp("status", "--json").document["services"]
            waiting = [r["name"] for r in rows if (not names or r["name"] in names) and not r["ready"]]
            if not waiting:
                return
            assert time.monotonic() < until, f"not ready: {waiting}"
            time.sleep(0.3)

    def pid(self, service: str) -> int:
        rows = self.dwcp("status", "--json").document["services"]
        return next(int(row["pid"]) for row in rows if row["name"] == service)

    # ----------------------------------------------------------------- work

    def payload(self) -> Path:
        """About 2 MB of real files."""
        folder = self.root / "payload"
        if not folder.exists():
            folder.mkdir(parents=True)
            taken = 0
            for source in sorted(Path("/usr/share").glob("*/**/*")):
                if taken >= PAYLOAD_BYTES:
                    break
                if source.is_symlink() or not source.is_file() or not 0 < source.stat().st_size < 300_000:
                    continue
                taken += source.stat().st_size
                shutil.copyfile(source, folder / f"{len(list(folder.iterdir())):04d}-{source.name[:40]}")
        return folder

    def job(self, *, retry: str, command: str, site: str = "rome", wall: str = "60s") -> Path:
        """A job file beside the payload."""
        self.payload()
        path = self.root / f"job-{time.monotonic_ns()}.yaml"
        path.write_text(
            json.dumps(
                {
                    "name": "matrix",
                    "demand": {"cpu": 0.5, "memory_mib": 128, "storage_mib": 64},
                    "data": {"path": "./payload", "site": "oslo"},
                    "place": {"site": site},
                    "run": ["sh", "-c", command],
                    "retry": retry,
                    "limits": {"wall": wall},
                }
            )
        )
        return path

    def submit(self, job: Path) -> str:
        answer = self.dwcp("submit", "-f", str(job), "--json")
        assert answer.code == 0, answer.err + answer.out
        return str(answer.document["id"])

    def state(self, workload: str) -> dict[str, Any]:
        answer = self.dwcp("ledger", "get", f"/w/{workload}/state", "--json")
        assert answer.code == 0, answer.err + answer.out
        value: dict[str, Any] = json.loads(answer.document["kvs"][0]["value"])
        return value

    def finish(self, workload: str, *, seconds: float = 75) -> dict[str, Any]:
        """Wait for a final state and return it."""
        until = time.monotonic() + seconds
        while (state := self.state(workload))["state"] not in FINAL:
            assert time.monotonic() < until, f"{workload} is still {state}"
            time.sleep(0.4)
        return state

    # ----------------------------------------------------------------- evidence

    def outputs(self, workload: str) -> list[dict[str, Any]]:
        """What was published, as the ledger has it."""
        prefix = f"/w/{workload}/out/"
        answer = self.dwcp("ledger", "get", prefix, "--prefix", "--json")
        return [json.loads(kv["value"]) for kv in answer.document["kvs"]]

    def starts(self, workload: str) -> int:
        """How often the job's command was started, over all attempts on all agents."""
        return len(list(self.layout.root.glob(f"data/dwcp-agent-*/attempts/{workload}-*/started")))

    def fetch(self, workload: str) -> Path:
        """The output, verified by the command line while it is fetched."""
        folder = self.root / f"out-{workload}"
        answer = self.dwcp("output", workload, str(folder))
        assert answer.code == 0, answer.err + answer.out
        return folder

    def verify_receipts(self, workload: str) -> Sequence[Path]:
        """Every receipt of the workload, verified offline."""
        folder = self.root / f"receipts-{workload}"
        answer = self.dwcp("receipt", "get", workload, "--out", str(folder))
        assert answer.code == 0, answer.err + answer.out
        files = sorted(folder.iterdir())
        for file in files:
            verified = subprocess.run(
                [*CLI, "receipt", "verify", str(file), "--genesis", str(self.layout.genesis)],
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": str(SRC)},
            )
            assert verified.returncode == 0, verified.stderr + verified.stdout
        return files


@contextmanager
def platform(root: Path, *arguments: str) -> Iterator[Platform]:
    """A platform that is up; taken down at the end, whatever happened."""
    subject = Platform(root, free_net())
    subject.up(*arguments)
    try:
        yield subject
    finally:
        subject.down()
