"""A running platform under bad input: what goes in is refused with a sentence, and the platform is unharmed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.acceptance.running import RunningPlatform, started

from dwcp.runtime.layout import Layout
from dwcp.runtime.platform import services_of
from dwcp.runtime.world import ServicePlan

FINAL = {"done", "failed", "unknown", "cancelled"}
TRACEBACK = "Traceback (most recent"


@dataclass(frozen=True)
class Refusal:
    """How one command ended."""

    code: int
    out: str
    err: str

    def check(self, *words: str) -> None:
        """One line on standard error that holds every word, and is no fault of ours."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert "please report it" not in self.err, self.err
        for word in words:
            assert word in self.err, f"{word!r} is missing from {self.err!r}"


@dataclass(frozen=True)
class Siege:
    """One platform; `folder` is for job files and what they name."""

    running: RunningPlatform
    folder: Path

    @property
    def layout(self) -> Layout:
        return self.running.layout

    @property
    def plans(self) -> dict[str, ServicePlan]:
        return {plan.name: plan for plan in services_of(self.running.platform)}

    def dwcp(self, *arguments: str, timeout_s: float = 60) -> Refusal:
        """One command; whatever it was given, it never answers with a stack."""
        done = self.running.dwcp(*arguments, timeout_s=timeout_s)
        assert TRACEBACK not in done.stderr, done.stderr
        return Refusal(done.returncode, done.stdout, done.stderr)

    def pids(self) -> dict[str, int]:
        return {state.name: state.pid for state in self.running.platform.supervisor.states()}

    def wait_ready(self, *, seconds: float = 60) -> None:
        self.wait(self._is_ready, "ready", seconds)

    def _is_ready(self) -> bool:
        return self.running.platform.status().ready

    def check_logs(self) -> None:
        """No process of the platform has written a stack."""
        for log in self.layout.logs.iterdir():
            assert TRACEBACK not in log.read_text(errors="replace"), f"a traceback in {log.name}"

    def workload_count(self) -> int:
        return len(self._workloads())

    def _workloads(self) -> list[dict[str, Any]]:
        url = f"http://{self.running.net}.0.11:8080/api/v1/workloads"
        answer = httpx.get(url, verify=False, trust_env=False)  # plain HTTP: no authorities are loaded for it
        found: list[dict[str, Any]] = answer.json()["workloads"]
        return found

    def submit_folder(self, payload: Path) -> Refusal:
        """A job whose files are in that folder."""
        job = self.folder / f"job-{time.monotonic_ns()}.yaml"
        demand = {"cpu": 0.1, "memory_mib": 64, "storage_mib": 64}
        data = {"path": str(payload), "site": "oslo"}
        job.write_text(json.dumps({"name": "bad", "demand": demand, "run": ["true"], "data": data}))
        return self.dwcp("submit", str(job))

    def run_job(self) -> str:
        """An ordinary job from oslo to rome goes through to its end; returns its id."""
        workload = self.start_job()
        self.wait(lambda: self.state(workload)["state"] in FINAL, f"the end of {workload}", 90)
        assert self.state(workload)["state"] == "done", self.state(workload)
        return workload

    def start_job(self) -> str:
        """The same, only submitted."""
        payload = self.folder / f"payload-{time.monotonic_ns()}"
        payload.mkdir()
        (payload / "hosts").write_bytes(Path("/etc/passwd").read_bytes() * 100)
        job = payload.with_suffix(".yaml")
        content = {
            "name": "good",
            "demand": {"cpu": 0.1, "memory_mib": 64, "storage_mib": 64},
            "data": {"path": str(payload), "site": "oslo"},
            "place": {"site": "rome"},
            "run": ["sh", "-c", "ls > out/list"],
        }
        job.write_text(json.dumps(content))
        return str(self.running.json("submit", str(job))["id"])

    def state(self, workload: str) -> dict[str, Any]:
        """As the manager shows it."""
        return next(dict(view["state"]) for view in self._workloads() if view["id"] == workload)

    @staticmethod
    def wait(condition: Callable[[], bool], what: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"not after {seconds} s: {what}"
            time.sleep(0.3)


@contextmanager
def siege(folder: Path) -> Iterator[Siege]:
    """A platform; at the end the processes are those of the beginning, and no log has a traceback."""
    with started() as running:
        subject = Siege(running, folder)
        before = subject.pids()
        yield subject
        assert subject.pids() == before, "bad input ended a process"
        subject.check_logs()
