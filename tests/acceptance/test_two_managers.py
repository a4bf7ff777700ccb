"""Two managers at once on one control log: neither overfills a node nor runs a job twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import msgspec
import pytest
from tests.acceptance.drills import FINAL, Drill, Job, drill, wait_until
from tests.acceptance.running import ROOT

from dwcp.api.workloads import Allocation, Node, prefix_end

JOBS = 20
COMMITTED = ("dwcp_manager_transitions_total{", "dwcp_manager_conflicts_total{")

pytestmark = [pytest.mark.process, pytest.mark.accept, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    """One platform for the group."""
    with drill(tmp_path_factory.mktemp("managers")) as made:
        yield made


def committed_by(url: str) -> float:
    """State changes that a manager committed, and races that it lost; -1 while it does not answer."""
    try:
        lines = httpx.get(f"{url}/metrics", timeout=5, trust_env=False).text.splitlines()
    except httpx.HTTPError:
        return -1
    return sum(float(line.split()[-1]) for line in lines if line.startswith(COMMITTED))


@contextmanager
def second_manager(world: Drill) -> Iterator[str]:
    """Another process with the first one's key, on an address and with a folder of its own; its URL."""
    name, net = "dwcp-manager", world.running.net
    text = world.running.layout.config(name).read_text()
    text = text.replace(f"{net}.0.11", f"{net}.0.21").replace("run_dir:", "#run_dir:")
    text = text.replace(str(world.running.layout.data(name)), str(world.folder / "second"))
    config = world.folder / "second.yaml"
    config.write_text(text)
    with (world.folder / "second.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dwcp.services.manager", "--config", str(config)],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
    url = f"http://{net}.0.21:8080"
    try:
        wait_until(lambda: committed_by(url) >= 0, "the second manager answers")
        yield url
    finally:
        process.terminate()
        code = process.wait(timeout=20)
    assert code == 0


class Auditor:
    """Reads what is placed on every node, all the while, and notes every node that holds too much."""

    def __init__(self, world: Drill) -> None:
        self._world = world
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.overfilled: list[str] = []
        self.most = 0  # placements seen at once

    def __enter__(self) -> Auditor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            self._look()

    def _look(self) -> None:
        rows = self._world.rows(b"/n/", prefix_end(b"/n/"))
        nodes = {
            node.name: node
            for key, value in rows.items()
            if key.endswith("/info") and (node := msgspec.json.decode(value, type=Node))
        }
        placed = 0
        for name, node in nodes.items():
            found = rows.get(f"/n/{name}/alloc")
            entries = msgspec.json.decode(found, type=Allocation).placed if found else ()
            placed += len(entries)
            if sum(entry.demand.cpu_milli for entry in entries) > node.capacity.cpu_milli:
                self.overfilled.append(f"{name}: {entries}")
        self.most = max(self.most, placed)


def test_two_managers_share_the_work(world: Drill) -> None:
    """Goal: two managers do no harm. Method: 20 jobs that fill the nodes several times over; capacities are
    audited by ordered reads throughout, starts are counted by the witness."""
    with second_manager(world) as url, Auditor(world) as auditor:

        def submit(_: int) -> Job:
            return world.submit(retry="never", site="", sleep_s=1.5, cpu=1, data=False)

        with ThreadPoolExecutor(3) as pool:
            jobs = list(pool.map(submit, range(JOBS)))
        for job in jobs:
            wait_until(lambda job=job: world.shown(job) in FINAL, f"{job.id} ends", seconds=150)  # type: ignore[misc]
        assert committed_by(url) > 0, "the second manager had no part in it"
    assert auditor.overfilled == []
    assert auditor.most > 1
    assert [world.shown(job) for job in jobs] == ["done"] * JOBS
    assert [world.witness.starts[job.token] for job in jobs] == [1] * JOBS
    assert [world.starts(job) for job in jobs] == [1] * JOBS
    left = world.rows(b"/n/", prefix_end(b"/n/"))
    assert all(b"w-" not in value for key, value in left.items() if key.endswith("/alloc"))
