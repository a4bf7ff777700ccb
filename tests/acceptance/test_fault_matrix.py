"""SIGKILL before and after every arrow of the main job, in every process that takes part in it.

A `retry: safe` job must complete with exactly one published output; a `retry: never` job must
complete or end `unknown`, its command never started twice. Each case kills a real process at a
named point, once; the supervisor starts it again, as in production.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.drills import Drill, drill, wait_until

from dwcp.runtime import failpoints

# Not on the way of a job that nobody cancels and whose lease never runs out, or far from it.
# Each has a test of its own, named here.
ELSEWHERE = {
    "manager.expire.": "test_lost_machines.py",
    "manager.cancel.": "test_lost_machines.py",
    "manager.move.": "test_moves.py",
    "manager.rebalance.": "test_moves.py",
    "allocator.plan.": "test_moves.py",
    "node.snapshot.": "test_lost_replicas.py",
    "ship.push.": "../integration/test_shipping.py",  # passed by who submits, not by a service
    "ops.": "../integration/test_model_commands.py",  # passed by operations scripts
}
ON_THE_WAY = sorted(name for name in failpoints.POINTS if not name.startswith(tuple(ELSEWHERE)))
# One before or after each arrow, for every push; all of them in `make accept`.
SMOKE = [
    "manager.submit.after_commit",
    "allocator.place.before",
    "manager.place.after_commit",
    "ship.source.before_pack",
    "ship.target.after_chunk",
    "agent.running.after_commit",
    "shim.exec.after",
    "shim.command",
    "agent.publish.after",
    "agent.done.after_commit",
    "node.journal.after_write",
]

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    """One platform for the group."""
    with drill(tmp_path_factory.mktemp("matrix")) as made:
        yield made


def test_a_plain_job_ends_done_with_verified_receipts(world: Drill) -> None:
    """Goal: without faults the job is done once. Method: run it; fetch, count, verify; forge a receipt."""
    job = world.submit(retry="never")
    state = world.finish(job)
    world.check_safe(job, state)
    world.check_never(job, state)
    assert (world.starts(job), world.witness.starts[job.token]) == (1, 1)

    receipt = sorted((world.folder / f"receipts-{job.id}").iterdir())[-1]
    genesis = str(world.running.layout.genesis)
    assert world.running.dwcp("receipt", "verify", str(receipt), "--genesis", genesis).returncode == 0
    document = json.loads(receipt.read_text())
    document["result"] = document["result"][:-2] + ("00" if document["result"][-2:] != "00" else "01")
    forged = world.folder / "forged.json"
    forged.write_text(json.dumps(document))
    answer = world.running.dwcp("receipt", "verify", str(forged), "--genesis", genesis)
    assert answer.returncode == 2, answer.stdout
    assert "result" in answer.stderr


@pytest.mark.parametrize("point", SMOKE)
def test_a_kill_on_each_arrow(world: Drill, point: str) -> None:
    """Goal: one kill on each arrow costs nothing. Method: SIGKILL there, a job that may be retried."""
    world.run_with_kill(point, retry="safe")


def test_a_drained_node_is_left(world: Drill) -> None:
    """Goal: a drain moves what may run again, once. Method: drain under a running job; both kinds of evidence.
    With kills: `test_moves.py`."""
    job = world.submit(retry="safe", site="", sleep_s=4, data=False)
    wait_until(lambda: world.witness.starts[job.token] > 0, f"{job.id} runs: {world.view(job)}")
    node = world.view(job)["state"]["node"]
    assert world.running.dwcp("drain", node).returncode == 0
    try:
        state = world.finish(job)
        world.check(job, state)
    finally:
        assert world.running.dwcp("drain", node, "--undo").returncode == 0
    assert (state.attempt, state.moves, world.witness.starts[job.token]) == (2, 1, 2)
    assert state.node != node


@pytest.mark.accept
@pytest.mark.parametrize("point", [point for point in ON_THE_WAY if point not in SMOKE])
def test_a_safe_job_survives_a_kill_anywhere(world: Drill, point: str) -> None:
    """Goal: exactly one output, wherever a process dies. Method: SIGKILL at the point, then all evidence."""
    world.run_with_kill(point, retry="safe")


@pytest.mark.accept
@pytest.mark.parametrize("point", ON_THE_WAY)
def test_a_job_that_must_not_be_repeated_is_not(world: Drill, point: str) -> None:
    """Goal: no command starts twice. Method: SIGKILL at the point; count starts in two ways."""
    world.run_with_kill(point, retry="never")


def test_every_point_has_a_test() -> None:
    """Goal: no point is left out. Method: what is not on the way is named in the file that is said to have it."""
    folder = Path(__file__).parent
    for name in failpoints.POINTS:
        if name not in ON_THE_WAY:
            file = next(file for prefix, file in ELSEWHERE.items() if name.startswith(prefix))
            text = (folder / file).read_text()
            assert f'"{name}"' in text or f"{name}=kill" in text, f"{file} does not kill at {name}"
    assert set(SMOKE) <= set(ON_THE_WAY)
