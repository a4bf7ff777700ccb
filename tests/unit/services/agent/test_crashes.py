"""SIGKILL at every point of an attempt, in the agent, the shim and the command: real processes, fake log."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.unit.services.agent.fakes import spec
from tests.unit.services.agent.machine import NODE, Machine

from dwcp.api.workloads import FINAL_STATES, Retry, State
from dwcp.runtime import sandbox
from dwcp.runtime.failpoints import POINTS

pytestmark = pytest.mark.process
W = "w-aaaaaaaaaa"
AGENT_POINTS = sorted(name for name in POINTS if name.startswith(("agent.", "shim.")))


def run_agent(machine: Machine, armed: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "tests.unit.services.agent.machine", str(machine.root), armed]
    agent = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={"PYTHONPATH": "src:."},
    )
    assert agent.stdout is not None
    assert json.loads(agent.stdout.readline())["pid"] == agent.pid
    return agent


def drive(machine: Machine, point: str, within_s: float = 40) -> int:
    """Restart the agent whenever it dies and place the workload whenever it waits; returns the deaths."""
    deaths = 0
    agent = run_agent(machine, f"{point}=kill")
    end = time.monotonic() + within_s
    try:
        while not (
            machine.log.state(W).state in FINAL_STATES and all(a.is_closed for a in machine.store.all())
        ):
            assert time.monotonic() < end, machine.log.state(W)
            if agent.poll() is not None:
                assert agent.returncode == -signal.SIGKILL
                deaths += 1
                end_process(agent)
                agent = run_agent(machine, f"{point}=kill")
            if machine.log.state(W).state is State.PENDING:
                machine.log.place(W, NODE, lease_ms=machine.lease_ms)
            time.sleep(0.05)
    finally:
        end_process(agent)
    return deaths


def end_process(agent: subprocess.Popen[bytes]) -> None:
    agent.kill()
    agent.wait()
    assert agent.stdout is not None
    agent.stdout.close()


@pytest.mark.parametrize("retry", list(Retry))
@pytest.mark.parametrize("point", AGENT_POINTS)
def test_killed_once_at_any_point(tmp_path: Path, point: str, retry: Retry) -> None:
    """Goal: `safe` completes with one output, `never` completes or ends unknown and never starts twice.
    Method: the point kills its process once, the agent is restarted, starts and outputs are counted."""
    sandbox.probe()
    machine = Machine(tmp_path, lease_ms=3000)
    (tmp_path / "payloads" / "p1").mkdir()
    machine.log.submit(spec(W, "echo started; sleep 1.2; echo x > out/f", retry=retry, payload="p1"))
    machine.log.place(W, NODE, lease_ms=machine.lease_ms)
    deaths = drive(machine, point)
    state = machine.log.state(W).state
    assert (tmp_path / "data" / "failpoints" / f"{point}.fired").exists(), "the point was never reached"
    assert deaths == (1 if point.startswith("agent.") else 0)
    starts = machine.said(W).count("started\n")
    if retry is Retry.SAFE:
        assert state is State.DONE
    else:
        assert state in (State.DONE, State.UNKNOWN)
        assert starts <= 1
    assert len(machine.log.outputs(W)) == (1 if state is State.DONE else 0)
    assert machine.log.placed(NODE) == ()
