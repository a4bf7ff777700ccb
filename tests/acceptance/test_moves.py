"""Drains, rebalances and a killed agent on a running platform: all work ends placed, nothing runs twice at once."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator

import httpx
import pytest
from tests.acceptance.drills import Drill, Job, drill, wait_until

from dwcp.api import rebalance as api
from dwcp.api.rebalance import Move, Order, RebalanceView
from dwcp.api.requests import Request, answer
from dwcp.runtime import keys
from dwcp.runtime.world import url

pytestmark = [pytest.mark.process, pytest.mark.accept, pytest.mark.timeout(300)]
DRAIN_POINTS = [
    "",
    "manager.move.before_commit",
    "manager.move.after_commit",
    "allocator.plan.before",
    "allocator.plan.after",
]
ORDER_POINTS = [
    "manager.rebalance.before_commit",
    "manager.rebalance.after_commit",
    "manager.move.after_commit",
]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    """One platform for the group."""
    with drill(tmp_path_factory.mktemp("moves")) as made:
        yield made


def running(
    world: Drill, *, retry: str, site: str = "", sleep_s: float = 6, cpu: float = 0.5
) -> tuple[Job, str]:
    """A job whose command has begun, and its node."""
    job = world.submit(retry=retry, site=site, sleep_s=sleep_s, cpu=cpu, data=False)
    wait_until(lambda: world.witness.starts[job.token] > 0, f"{job.id} runs: {world.view(job)}")
    return job, node_of(world, job)


def node_of(world: Drill, job: Job) -> str:
    return str(world.view(job).get("state", {}).get("node", ""))


def manager(world: Drill, wanted: Request) -> httpx.Response | None:
    """As the operator, over mutual TLS; None while it does not answer."""
    tls = keys.client_context(world.running.layout.tls("operator"))
    address = world.running.platform.plan("dwcp-manager").mutual
    assert address is not None
    try:
        return httpx.request(
            wanted.method,
            url(address, tls=True) + wanted.path,
            content=wanted.body or None,
            headers=wanted.headers,
            verify=tls,
            timeout=20,
            trust_env=False,
        )
    except httpx.HTTPError:
        return None


def view(world: Drill) -> RebalanceView:
    got = manager(world, api.view())
    return answer(RebalanceView, got.content) if got is not None and got.is_success else view(world)


@pytest.mark.parametrize("point", DRAIN_POINTS)
def test_a_drained_node_is_left_by_what_may_leave(world: Drill, point: str) -> None:
    """Goal: a drain moves what may run again, once, whoever dies meanwhile. Method: a safe and a careful job on
    one node, drain, SIGKILL at the point; starts are counted by the witness."""
    service = world.arm(point) if point else ""
    job, node = running(world, retry="safe")
    careful, _ = running(world, retry="never", site=node)
    try:
        wait_until(lambda: world.running.dwcp("drain", node).returncode == 0, "the drain is taken")
        wait_until(
            lambda: node_of(world, job) not in ("", node), f"{job.id} leaves {node}: {world.view(job)}"
        )
        if point:
            assert world.has_fired(service, point)
        state, other = world.finish(job), world.finish(careful)
        world.check(job, state)
        world.check(careful, other)
    finally:
        world.settle()
        assert world.running.dwcp("drain", node, "--undo").returncode == 0
    assert (state.state, state.attempt, world.witness.starts[job.token]) == ("done", 2, 2)
    assert (other.state, other.attempt, world.witness.starts[careful.token]) == ("done", 1, 1)


@pytest.mark.parametrize("point", ORDER_POINTS)
def test_an_ordered_move_happens_once_although_the_manager_dies(world: Drill, point: str) -> None:
    """Goal: an order is exactly-once and resumed. Method: SIGKILL at the point; the same order until it is taken."""
    service = world.arm(point)
    job, node = running(world, retry="safe", sleep_s=20)
    target = next(name for name in ("oslo", "rome", "lima") if name != node)
    order = Order(f"order-{next(_numbers)}", (Move(job.id, 1, node, target),))

    def taken() -> bool:
        got = manager(world, api.order(order))
        assert got is None or got.is_success or got.status_code >= 500, got.text
        return got is not None and got.is_success

    wait_until(taken, "the order is taken")
    wait_until(lambda: view(world).rebalance.ended, f"the plan ends: {world.view(job)}")
    assert world.has_fired(service, point)
    assert node_of(world, job) == target
    state = world.finish(job)
    world.check(job, state)
    assert (state.attempt, world.witness.starts[job.token]) == (2, 2)


def test_a_rebalance_makes_room_and_a_killed_agent_loses_nothing(world: Drill) -> None:
    """Goal: the operator's way, with a failure in it. Method: a small job in the way of a large one, `dwcp
    rebalance`; then the agent that runs the large one is killed; all ends, each start accounted for."""
    capacity = json.loads(world.running.dwcp("nodes", "--json").stdout)["nodes"][0]["node"]["capacity"]
    cores = capacity["cpu_milli"] / 1000
    others = ("oslo", "lima")  # both empty: their drain moves nothing, and leaves one choice
    assert [world.running.dwcp("drain", name).returncode for name in others] == [0, 0]
    loose, node = running(world, retry="safe", sleep_s=20, cpu=cores / 2)
    assert [world.running.dwcp("drain", name, "--undo").returncode for name in others] == [0, 0]
    large = world.submit(retry="safe", site=node, sleep_s=6, cpu=cores, data=False)
    wait_until(lambda: world.shown(large) == "pending", f"{large.id} waits")

    shown = world.running.dwcp("rebalance", "--dry-run", "--json")
    assert shown.returncode == 0, shown.stderr
    assert [move["workload"] for move in json.loads(shown.stdout)["result"]["plan"]["moves"]] == [loose.id]
    assert node_of(world, loose) == node, "a dry run changes nothing"
    done = world.running.dwcp("rebalance", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert node_of(world, loose) in others
    wait_until(lambda: world.witness.starts[large.token] > 0, f"{large.id} runs: {world.view(large)}")
    os.kill(world.pid(f"dwcp-agent-{node}"), signal.SIGKILL)
    for job in (loose, large):
        state = world.finish(job)
        world.check(job, state)
        assert state.state == "done", state
    assert world.witness.starts[loose.token] == 2
    assert world.witness.starts[large.token] == state.attempt, (
        "again only where its lease was lost with its agent"
    )

    report = world.running.dwcp("ops", "resource-allocation-report", "--json")
    assert report.returncode == 0, report.stdout
    found = json.loads(report.stdout)["result"]
    assert found["commits"]["moves"]["rebalance"] >= 1
    assert found["fleet"]["placed_by"]["planned move"] >= 1
