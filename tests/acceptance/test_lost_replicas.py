"""The control log while replicas are killed, down or lying: jobs go on, and honest replicas agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.acceptance.drills import Drill, drill, points_of, wait_until

REPLICAS = ("probft-1", "probft-2", "probft-3", "probft-4")
SNAPSHOTS = ("node.snapshot.before_write", "node.snapshot.after_write", "node.snapshot.after_rename")
POINTS = [point for point in points_of("probft-1") if point not in SNAPSHOTS]
CHECKPOINT = 128  # positions between two snapshots, by default
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.process, pytest.mark.accept, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    """One platform for the group."""
    with drill(tmp_path_factory.mktemp("replicas")) as made:
        yield made


def status(world: Drill, name: str) -> dict[str, Any]:
    """What a replica says of itself; empty while it is away."""
    host = f"{world.running.net}.1.{REPLICAS.index(name) + 1}"
    try:
        answer = httpx.get(f"http://{host}:8080/cluster/status", timeout=5, trust_env=False)
    except httpx.HTTPError:
        return {}
    return dict(answer.json())


def leader(world: Drill) -> str:
    """Of the highest view that a replica is in."""
    known = [found for name in REPLICAS if (found := status(world, name))]
    return str(max(known, key=lambda found: int(found["view"]))["leader"])


def check_agreement(world: Drill, names: tuple[str, ...]) -> None:
    """The history digest chains all results, so equal digests at one index are one history."""

    def equal() -> bool:
        found = [status(world, name) for name in names]
        places = {one.get("index", -1) for one in found}
        if len(places) != 1 or places == {-1}:
            return False
        assert len({one["history"] for one in found}) == 1, found
        return True

    wait_until(equal, f"{names} are at one position")


@pytest.mark.parametrize("point", POINTS)
def test_the_leader_may_die_anywhere(world: Drill, point: str) -> None:
    """Goal: a leader's death costs time only. Method: SIGKILL the leader at the point while a job runs."""
    world.run_with_kill(point, retry="never", service=leader(world))
    world.settle()
    check_agreement(world, REPLICAS)


@pytest.mark.parametrize("point", SNAPSHOTS)
def test_a_replica_dies_around_a_snapshot(world: Drill, point: str) -> None:
    """Goal: a snapshot is whole or not there. Method: SIGKILL around its making, then again to restore it."""
    service = world.arm(point, "probft-2")
    world.write_positions(CHECKPOINT + 2)
    wait_until(lambda: world.has_fired(service, point), f"{service} passes {point}")
    world.settle()
    world.write_positions(CHECKPOINT + 2)
    check_agreement(world, REPLICAS)

    job = world.submit(retry="never")
    world.check(job, world.finish(job))
    os.kill(world.pid(service), 9)
    world.settle()
    check_agreement(world, REPLICAS)


@contextmanager
def without(world: Drill, name: str) -> Iterator[None]:
    """One replica is down and stays down meanwhile."""
    supervisor = world.running.platform.supervisor
    supervisor.halt(name)
    try:
        yield
    finally:
        supervisor.start_missing()
        world.wait_ready(name)
        check_agreement(world, REPLICAS)


@pytest.mark.parametrize(
    "point",
    [
        "",
        "manager.place.before_commit",
        "agent.running.before_commit",
        "shim.exec.before",
        "agent.publish.after",
        "agent.done.after_commit",
    ],
)
def test_one_of_four_is_down(world: Drill, point: str) -> None:
    """Goal: f replicas may be away. Method: stop the leader for good; a plain job, then kills elsewhere."""
    if point:
        world.arm(point)  # its restart is over before the replica goes
        world.disarm(*armed(point))
    with without(world, leader(world)):
        if point:
            world.run_with_kill(point, retry="safe")
        else:
            job = world.submit(retry="never")
            world.check(job, world.finish(job))


def armed(point: str) -> tuple[str, str]:
    service = "dwcp-manager" if point.startswith("manager.") else "dwcp-agent-rome"
    return service, point


@contextmanager
def lying(world: Drill, name: str) -> Iterator[None]:
    """The replica's place is taken by an equivocator, with its key and its journal."""
    supervisor = world.running.platform.supervisor
    supervisor.halt(name)
    config = world.running.layout.config(name)
    with (world.folder / "liar.log").open("ab") as log:
        liar = subprocess.Popen(
            [sys.executable, "-m", "tests.liars.equivocator", "--config", str(config)],
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: bool(status(world, name)), "the liar answers")
        yield
    finally:
        liar.terminate()
        liar.wait(timeout=20)
        supervisor.start_missing()
        world.wait_ready(name)


def accusers(world: Drill, culprit: str) -> list[str]:
    """Replicas whose log accuses it, with a proof."""
    found = []
    for name in REPLICAS:
        for line in world.running.layout.log(name).read_text().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            accused = event.get("event") == "replica.accused" and event.get("proof")
            if accused and event["culprit"] == REPLICAS.index(culprit):
                found.append(name)
                break
    return found


def test_an_equivocating_leader_is_accused_and_changes_nothing(world: Drill) -> None:
    """Goal: a lying leader splits nobody. Method: a real process that signs two proposals for one slot leads
    while jobs run; honest replicas end in one history, accuse it with proof, and receipts verify."""
    first = leader(world)
    liar = REPLICAS[(REPLICAS.index(first) + 1) % len(REPLICAS)]
    honest = tuple(name for name in REPLICAS if name != liar)
    with lying(world, liar):
        deadline = time.monotonic() + 200
        jobs = 0
        while jobs < 2 or not accusers(world, liar):
            assert time.monotonic() < deadline, "nobody accused the liar"
            if (REPLICAS.index(leader(world)) + 1) % len(REPLICAS) == REPLICAS.index(liar):
                os.kill(world.pid(leader(world)), 9)  # whose death makes the liar the next leader
            job = world.submit(retry="never")
            world.check(job, world.finish(job))
            jobs += 1
        assert set(accusers(world, liar)) <= set(honest)
        check_agreement(world, honest)
