"""A whole platform; the manager and the allocator are killed before and after each arrow of the main job.

One platform for the module. Each case restarts one service with one failpoint
armed, submits a small job through the command line, and expects the job to be
done exactly once and its receipt verified, whoever died on the way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.ledger_world import SOURCE

from dwcp.runtime import failpoints
from dwcp.runtime.clock import SystemClock
from dwcp.runtime.layout import Layout
from dwcp.runtime.platform import Platform
from dwcp.runtime.supervision import Supervisor

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]
NET = f"127.{20 + (os.getpid() + 100) % 200}"
JOB = """
name: sums
demand: {cpu: 1, memory_mib: 64, storage_mib: 64}
data: {path: ./payload, site: oslo}
place: {site: rome}
run: ["sh", "-c", "echo once >> out/starts; sha256sum a > out/sum"]
retry: RETRY
"""
MANAGER, ALLOCATOR = "dwcp-manager", "maddpg-allocator"


class Installation:
    """A platform on a network of its own, driven through the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layout = Layout(folder / "state")
        (folder / "payload").mkdir(parents=True)
        (folder / "payload" / "a").write_text("some data\n")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(SOURCE), *sys.path]),
            "DWCP_STATE": str(self.layout.root),
        }
        program = "from dwcp.cli.main import run; run()"
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def answer(self, *arguments: str) -> Any:
        """The JSON document of a command that succeeds."""
        ran = self.run(*arguments, "--json")
        assert ran.returncode == 0, f"{arguments}: {ran.returncode}: {ran.stdout}{ran.stderr}"
        return json.loads(ran.stdout)

    def arm(self, service: str, *points: str) -> None:
        platform = Platform(self.layout, SystemClock())
        for point in points:
            (self.layout.data(service) / "failpoints" / f"{point}.fired").unlink(missing_ok=True)
        Supervisor(self.layout).restart(platform.plan(service), [f"{point}=kill" for point in points])
        self.until(lambda: platform.status().ready)

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Real processes have no event to wait for."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.run("workloads").stdout
            time.sleep(0.2)

    def state(self, identity: str) -> str:
        """The workload's state; empty while the manager is away."""
        shown = self.run("workloads", identity, "--json")
        return str(json.loads(shown.stdout)["state"]["state"]) if shown.returncode == 0 else ""

    def fired(self, service: str, point: str) -> bool:
        return failpoints.has_fired(point, self.layout.data(service))

    def job(self, *, retry: str = "never", command: str = "") -> str:
        text = JOB.replace("RETRY", retry)
        if command:
            text = "\n".join(line for line in text.splitlines() if not line.startswith("run:"))
            text += f"\nrun: {command}\n"
        path = self.folder / "job.yaml"
        path.write_text(text)
        return str(path)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("platform"))
    started = made.run("up", "--net", NET, "--testing", "--lease", "3s")
    try:
        assert started.returncode == 0, started.stderr
        yield made
    finally:
        made.run("down")


FULL = pytest.mark.accept  # the whole matrix; one case of it runs always
ON_THE_WAY = [
    pytest.param(MANAGER, "manager.submit.before_commit", marks=FULL),
    pytest.param(MANAGER, "manager.submit.after_commit", marks=FULL),
    pytest.param(MANAGER, "manager.propose.before", marks=FULL),
    pytest.param(MANAGER, "manager.propose.after", marks=FULL),
    pytest.param(MANAGER, "manager.place.before_commit", marks=FULL),
    pytest.param(MANAGER, "manager.place.after_commit"),
    pytest.param(ALLOCATOR, "allocator.place.before", marks=FULL),
    pytest.param(ALLOCATOR, "allocator.place.after", marks=FULL),
]


@pytest.mark.parametrize(("service", "point"), ON_THE_WAY)
def test_a_kill_on_the_way_costs_only_time(installation: Installation, service: str, point: str) -> None:
    """Goal: the job is done once and proven. Method: SIGKILL at the point; `submit --wait` goes through it."""
    installation.arm(service, point)

    ended = installation.answer("submit", installation.job(), "--wait")

    assert installation.fired(service, point), "the point was not on the way"
    assert ended["workload"]["state"]["state"] == "done"
    assert ended["receipt"]["signers"]
    identity = ended["workload"]["id"]
    result = installation.folder / f"result-{point}"
    installation.answer("output", identity, str(result))
    assert (result / "starts").read_text() == "once\n"
    receipts = installation.answer("receipt", "get", identity)["receipts"]
    kinds = {receipt["kind"] for receipt in receipts}
    assert kinds & {"done", "observed-done"}
    nodes = installation.answer("nodes")["nodes"]
    assert all(not node["allocation"]["placed"] for node in nodes), "something is still held"


@FULL
@pytest.mark.parametrize("point", ["manager.cancel.before_commit", "manager.cancel.after_commit"])
def test_a_kill_around_a_cancellation(installation: Installation, point: str) -> None:
    """Goal: a cancellation is done or can be asked again. Method: cancel a long job while the manager dies."""
    command = '["sleep", "60"]'
    identity = installation.answer("submit", installation.job(command=command))["id"]
    installation.arm(MANAGER, point)

    installation.run("cancel", identity)  # the answer is lost with the manager
    installation.until(lambda: installation.run("cancel", identity).returncode in (0, 4))

    assert installation.fired(MANAGER, point)
    assert installation.run("watch", identity, "--quiet").returncode == 2
    assert installation.answer("workloads", identity)["state"]["state"] == "cancelled"


@FULL
@pytest.mark.parametrize("point", ["manager.expire.before_commit", "manager.expire.after_commit"])
def test_a_kill_around_an_expiry(installation: Installation, point: str) -> None:
    """Goal: a lease that ran out is settled once. Method: the only agent is away; the manager dies expiring."""
    identity = installation.answer("submit", installation.job(retry="safe", command='["sleep", "60"]'))["id"]
    installation.until(lambda: installation.state(identity) == "running")
    installation.arm(MANAGER, point)
    agent = next(row for row in installation.answer("status")["services"] if row["name"] == "dwcp-agent-rome")
    subprocess.run(["kill", "-STOP", str(agent["pid"])], check=True)
    try:
        installation.until(lambda: installation.fired(MANAGER, point))
        installation.until(lambda: installation.state(identity) in ("pending", "placed"))
    finally:
        subprocess.run(["kill", "-CONT", str(agent["pid"])], check=True)
    assert installation.run("cancel", identity).returncode == 0
    assert installation.run("watch", identity, "--quiet").returncode == 2


@FULL
def test_two_managers_at_once(installation: Installation) -> None:
    """Goal: neither overfills a node nor runs a job twice. Method: a second process, more jobs than cores."""
    text = installation.layout.config(MANAGER).read_text()
    text = text.replace(f"{NET}.0.11", f"{NET}.0.21").replace("run_dir:", "#run_dir:")
    text = text.replace(str(installation.layout.data(MANAGER)), str(installation.folder / "second"))
    config = installation.folder / "second.yaml"
    config.write_text(text)
    installation.arm(MANAGER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), *sys.path])}
    with (installation.folder / "second.log").open("ab") as log:
        second = subprocess.Popen(
            [sys.executable, "-m", "dwcp.services.manager", "--config", str(config)],
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        metrics = f"http://{NET}.0.21:8080/metrics"
        installation.until(lambda: _committed_by(metrics) >= 0)
        command = '["sh", "-c", "echo once >> out/starts; sleep 2"]'
        job = installation.job(command=command)
        names = [installation.answer("submit", job)["id"] for _ in range(6)]
        for name in names:
            assert installation.run("watch", name, "--quiet").returncode == 0
        assert _committed_by(metrics) > 0, "the second manager had no part in it"
    finally:
        second.terminate()
        assert second.wait(timeout=20) == 0
    for name in names:
        result = installation.folder / f"two-{name}"
        installation.answer("output", name, str(result))
        assert (result / "starts").read_text() == "once\n"


def _committed_by(url: str) -> float:
    """State changes that this manager committed, and races that it lost; -1 while it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as got:
            lines = got.read().decode().splitlines()
    except OSError:
        return -1
    names = ("dwcp_manager_transitions_total{", "dwcp_manager_conflicts_total{")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))
