"""Jobs whose machine, shim, command or submission is lost, and jobs that are cancelled meanwhile."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest
from tests.acceptance.drills import Drill, Job, drill, wait_until

pytestmark = [pytest.mark.process, pytest.mark.accept, pytest.mark.timeout(300)]
RETRIES = ("safe", "never")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    """One platform for the group."""
    with drill(tmp_path_factory.mktemp("machines")) as made:
        yield made


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that stands still, as on a machine that is cut off, and then goes on with what it believed."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def running(world: Drill, *, retry: str, sleep_s: float) -> tuple[Job, str]:
    """A job whose command has begun, and the node it runs on."""
    job = world.submit(retry=retry, site="", sleep_s=sleep_s, data=False)
    wait_until(lambda: world.witness.starts[job.token] > 0, f"{job.id} runs: {world.view(job)}")
    return job, str(world.view(job)["state"]["node"])


def shim_of(world: Drill, job: Job) -> psutil.Process:
    marker = next(world.running.root.glob(f"data/dwcp-agent-*/attempts/{job.id}-1/started"))
    return psutil.Process(json.loads(marker.read_bytes())["pid"])


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def taken_away(world: Drill, job: Job) -> bool:
    """Whether the first attempt is not the workload's state any more."""
    state = world.view(job).get("state", {})
    return bool(state) and (state["state"] != "running" or state["attempt"] > 1)


@pytest.mark.parametrize("retry", RETRIES)
@pytest.mark.parametrize("point", ["", "manager.expire.before_commit", "manager.expire.after_commit"])
def test_a_machine_is_away_for_longer_than_its_lease(world: Drill, point: str, retry: str) -> None:
    """Goal: its work is dead before another machine has it. Method: stop the agent beyond the lease, the
    manager dying while it says so; then the agent wakes up and must not undo anything."""
    service = world.arm(point) if point else ""
    job, node = running(world, retry=retry, sleep_s=8)
    shim = shim_of(world, job)
    with stopped(world.pid(f"dwcp-agent-{node}")):
        wait_until(lambda: taken_away(world, job), "the lease runs out")
        assert not runs(shim), "the manager took the work away while it ran"
        state = world.finish(job)
    if point:
        assert world.has_fired(service, point)
    world.settle()
    time.sleep(1)  # for the agent that woke up to do harm
    assert world.witness.starts[job.token] == (2 if retry == "safe" else 1)
    world.check(job, state)
    assert state.state == ("done" if retry == "safe" else "unknown")


@pytest.mark.parametrize("point", ["", "manager.cancel.before_commit", "manager.cancel.after_commit"])
def test_a_cancelled_job_ends_although_the_manager_dies(world: Drill, point: str) -> None:
    """Goal: a cancellation is done, or can be asked for again. Method: cancel a running job, kill, ask again."""
    job, _ = running(world, retry="never", sleep_s=50)
    shim = shim_of(world, job)
    service = world.arm(point) if point else ""
    wait_until(lambda: world.running.dwcp("cancel", job.id).returncode in {0, 4}, "the cancellation is taken")
    state = world.finish(job)
    if point:
        assert world.has_fired(service, point)
    assert state.state == "cancelled"
    assert not runs(shim)
    assert world.witness.starts[job.token] == 1
    assert world.outputs(job) == []


def shim_itself(world: Drill, job: Job) -> psutil.Process:
    return shim_of(world, job)


def sandbox(world: Drill, job: Job) -> psutil.Process:
    return shim_of(world, job).children()[0]


def command(world: Drill, job: Job) -> psutil.Process:
    """The innermost process: the job's own."""
    return shim_of(world, job).children(recursive=True)[-1]


@pytest.mark.parametrize("retry", RETRIES)
@pytest.mark.parametrize("after_s", [0.0, 1.3])
@pytest.mark.parametrize(
    ("victim", "number"),
    [
        (shim_itself, signal.SIGKILL),
        (sandbox, signal.SIGKILL),
        (command, signal.SIGKILL),
        (command, signal.SIGTERM),
    ],
)
def test_somebody_kills_the_work(
    world: Drill,
    victim: Callable[[Drill, Job], psutil.Process],
    number: signal.Signals,
    after_s: float,
    retry: str,
) -> None:
    """Goal: a death from outside is no failure of the job. Method: signal its shim, sandbox or command from
    here; a safe job is run again, the other one is unknown and was started once."""
    job, _ = running(world, retry=retry, sleep_s=4)
    time.sleep(after_s)
    victim(world, job).send_signal(number)
    state = world.finish(job)
    world.check(job, state)
    expected = ("done", 2, 2) if retry == "safe" else ("unknown", 1, 1)
    assert (state.state, state.attempt, world.witness.starts[job.token]) == expected


@pytest.mark.parametrize("point", ["ship.target.before_chunk", "ship.target.after_chunk"])
def test_the_source_dies_during_the_upload(world: Drill, point: str) -> None:
    """Goal: a submission outlives its agent. Method: SIGKILL the data's agent while it takes the files."""
    service = world.arm(point, "dwcp-agent-oslo")
    job = world.submit(retry="never")
    assert world.has_fired(service, point)
    world.check(job, world.finish(job))
