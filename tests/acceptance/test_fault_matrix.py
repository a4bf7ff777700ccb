"""SIGKILL before and after every arrow of the main job, in every process that takes part in it.

A `retry: safe` job must complete with exactly one published output; a `retry: never`
job must complete or end `unknown`, its command never started twice. Each case kills a real
process at a named point (once); the supervisor starts it again, as in production.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.platforms import Platform, platform

from dwcp.runtime import failpoints

COMMAND = "find . -type f -name '0*' -print0 | sort -z | xargs -0 sha256sum > out/index.txt; sleep 0.3"

# Whose process passes the point. A point of the journal is passed by every replica: one is killed.
SERVICES = {
    "manager.": "dwcp-manager",
    "allocator.": "maddpg-allocator",
    "compression.": "compression-api",
    "ship.source.": "dwcp-agent-oslo",
    "ship.target.": "dwcp-agent-rome",
    "agent.": "dwcp-agent-rome",
    "shim.": "dwcp-agent-rome",
    "node.": "probft-2",
}
# Not on the way of a job that nobody cancels and whose lease never runs out; tested below.
ELSEWHERE = {name for name in failpoints.POINTS if name.startswith(("manager.expire.", "manager.cancel."))}
# Needs a checkpoint, which 128 positions make: tested with the node's own processes.
SNAPSHOTS = {name for name in failpoints.POINTS if name.startswith("node.snapshot.")}
POINTS = sorted(set(failpoints.POINTS) - ELSEWHERE - SNAPSHOTS)
# One before or after each arrow, for every push; the rest in `make accept`.
SMOKE = [
    "manager.submit.after_commit",
    "allocator.place.before",
    "manager.place.before_commit",
    "manager.place.after_commit",
    "ship.source.before_pack",
    "ship.target.after_chunk",
    "agent.running.before_commit",
    "agent.running.after_commit",
    "shim.exec.before",
    "shim.exec.after",
    "agent.publish.after",
    "agent.done.after_commit",
    "node.journal.after_write",
]

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One platform for the group."""
    with platform(tmp_path_factory.mktemp("matrix")) as subject:
        yield subject


def service_of(point: str) -> str:
    return next(service for prefix, service in SERVICES.items() if point.startswith(prefix))


def run_with_kill(world: Platform, point: str, *, retry: str) -> tuple[str, dict[str, Any]]:
    """Arm the point, run a job to its end, and make sure that the kill really happened."""
    service = service_of(point)
    world.arm(service, f"{point}=kill")
    try:
        workload = world.submit(world.job(retry=retry, command=COMMAND))
        state = world.finish(workload)
        assert world.fired(service, point), f"no process passed {point}"
    finally:
        world.arm(service)
    return workload, state


def check_safe(world: Platform, workload: str, state: dict[str, Any]) -> None:
    assert state["state"] == "done", state
    published = world.outputs(workload)
    assert [each["root"] for each in published] == [state["output_root"]]
    index = (world.fetch(workload) / "index.txt").read_text()
    expected = len([f for f in world.payload().iterdir() if f.name.startswith("0")])
    assert len(index.splitlines()) == expected
    assert world.verify_receipts(workload)


def check_never(world: Platform, workload: str, state: dict[str, Any]) -> None:
    assert state["state"] in {"done", "unknown"}, state
    assert world.starts(workload) <= 1
    assert len(world.outputs(workload)) == (state["state"] == "done")


@pytest.mark.parametrize("point", SMOKE)
def test_a_kill_on_each_arrow(world: Platform, point: str) -> None:
    """Goal: one kill on each arrow costs nothing. Method: SIGKILL there, a job that may be retried."""
    workload, state = run_with_kill(world, point, retry="safe")
    check_safe(world, workload, state)


@pytest.mark.accept
@pytest.mark.parametrize("point", [point for point in POINTS if point not in SMOKE])
def test_a_safe_job_survives_a_kill_anywhere(world: Platform, point: str) -> None:
    """Goal: exactly one output, wherever a process dies. Method: SIGKILL at the point, then all evidence."""
    workload, state = run_with_kill(world, point, retry="safe")
    check_safe(world, workload, state)


@pytest.mark.accept
@pytest.mark.parametrize("point", POINTS)
def test_a_job_that_must_not_be_repeated_is_not(world: Platform, point: str) -> None:
    """Goal: no command starts twice. Method: SIGKILL at the point; count durable starts on all agents."""
    workload, state = run_with_kill(world, point, retry="never")
    check_never(world, workload, state)


def test_a_plain_job_ends_done_with_verified_receipts(world: Platform, tmp_path: Path) -> None:
    """Goal: without faults the job is done once. Method: run it, fetch, verify; then tamper with a receipt."""
    workload = world.submit(world.job(retry="never", command=COMMAND))
    state = world.finish(workload)
    check_safe(world, workload, state)
    assert world.starts(workload) == 1
    receipt = world.verify_receipts(workload)[-1]
    text = receipt.read_text()
    position = text.index('"result"') + 14
    forged = tmp_path / "forged.json"
    forged.write_text(text[:position] + ("0" if text[position] != "0" else "1") + text[position + 1 :])
    answer = world.dwcp("receipt", "verify", str(forged), "--genesis", str(world.layout.genesis))
    assert answer.code == 2, answer.out
