"""The agent over a fake log and real sandboxes: the way of a workload, and what goes wrong on it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest
from tests.unit.services.agent.fakes import spec
from tests.unit.services.agent.machine import CAPACITY, NODE, Machine

from dwcp.api.kv import Put, Target, Txn
from dwcp.api.workloads import Node, NodeStatus, Output, Retry, State, node_key, output_key, state_key
from dwcp.control.attempt import Cause
from dwcp.runtime import sandbox
from dwcp.runtime.attempts import Prepared
from dwcp.runtime.clock import SystemClock
from dwcp.services.agent.claims import UNKNOWN_KEPT_NS, Claims
from dwcp.services.agent.courier import output_folder
from dwcp.services.agent.ports import OutputRefused

pytestmark = pytest.mark.process
W = "w-aaaaaaaaaa"


@pytest.fixture(autouse=True)
def _isolated() -> None:
    sandbox.probe()


def submit(machine: Machine, script: str, workload: str = W, **options: object) -> None:
    machine.log.submit(spec(workload, script, **options))  # type: ignore[arg-type]
    machine.log.place(workload, NODE, lease_ms=machine.lease_ms)


def test_a_job_runs_from_placed_to_done(tmp_path: Path) -> None:
    """Goal: the whole way.
    Method: a payload, a command that transforms it, the output and the log's entries."""

    async def story() -> None:
        machine = Machine(tmp_path)
        (tmp_path / "payloads" / "p1").mkdir()
        (tmp_path / "payloads" / "p1" / "in").write_text("data")
        async with machine.running():
            await asyncio.sleep(0.2)
            submit(machine, "tr a-z A-Z < in > out/result; echo said", payload="p1", retry=Retry.SAFE)
            await machine.until(W, "done")
            await machine.until_true(lambda: machine.store.attempt(W, 1).is_closed)
        state = machine.log.state(W)
        output = machine.log.get(output_key(W, 1), Output)
        assert output is not None
        assert (state.exit_status, state.output_root, state.started) == (0, output.root, True)
        assert (tmp_path / "published" / output.root / "result").read_text() == "DATA"
        assert machine.log.placed(NODE) == ()
        assert machine.listener.kinds() == ["shipping", "shipping", "shipped", "running", "published", "done"]
        assert [receipt.kind for receipt in machine.listener.receipts] == ["running", "done"]
        assert machine.said(W) == "said\n"
        assert not machine.store.attempt(W, 1).work.exists()

    asyncio.run(story())


def test_running_is_committed_before_the_command_starts(tmp_path: Path) -> None:
    """Goal: the order that fencing rests on.
    Method: the log does not answer transactions; nothing may start."""

    async def story() -> None:
        machine = Machine(tmp_path)
        submit(machine, "echo started")
        machine.log.unsure = 20_000  # half are never sent, the others lose their answer
        async with machine.running():
            for _ in range(30):
                if machine.store.attempt(W, 1).is_launched:
                    assert machine.log.state(W).state is not State.PLACED
                await asyncio.sleep(0.02)

    asyncio.run(story())


@pytest.mark.parametrize("script", ["exit 7", "echo x > out/f; exit 7"])
def test_a_failing_command_fails_with_its_status(tmp_path: Path, script: str) -> None:
    """Goal: the user sees why. Method: an exit status, with and without output; the place is given back."""

    async def story() -> None:
        machine = Machine(tmp_path)
        submit(machine, script, retry=Retry.SAFE)
        async with machine.running():
            await machine.until(W, "failed")
        state = machine.log.state(W)
        assert state.exit_status == 7
        assert "status 7" in state.reason
        assert machine.log.placed(NODE) == ()

    asyncio.run(story())


def test_lost_answers_change_nothing(tmp_path: Path) -> None:
    """Goal: `Indeterminate` is resolved by looking. Method: half the answers are lost, half the requests."""

    async def story() -> None:
        machine = Machine(tmp_path)
        machine.log.unsure = 9
        submit(machine, "echo started; sleep 2")
        async with machine.running():
            await machine.until(W, "done")
        assert machine.said(W) == "started\n"
        assert len(machine.log.outputs(W)) == 1
        states = [msgspec.json.decode(text)["state"] for text in machine.log.values(state_key(W))]
        assert [state for state, after in zip(states, [*states[1:], ""], strict=True) if state != after] == [
            "pending", "placed", "running", "done",
        ]  # fmt: skip

    asyncio.run(story())


def test_a_cancel_stops_a_running_command(tmp_path: Path) -> None:
    """Goal: `dwcp cancel` works while leased. Method: cancel a sleeper; it ends soon, as cancelled."""

    async def story() -> None:
        machine = Machine(tmp_path)
        submit(machine, "echo started; sleep 60")
        async with machine.running():
            await machine.until(W, "running")
            machine.log.cancel(W)
            await machine.until(W, "cancelled", within_s=8)
        assert machine.log.placed(NODE) == ()
        assert machine.log.outputs(W) == []

    asyncio.run(story())


def test_a_cut_off_agent_stops_its_work_before_the_lease_ends(tmp_path: Path) -> None:
    """Goal: no two attempts at once. Method: the log goes away; when the lease ends in committed time, the
    command is dead; when the log is back, a job that may not be retried is `unknown`."""

    async def story() -> None:
        machine = Machine(tmp_path)
        submit(machine, "echo started; sleep 60")
        async with machine.running():
            await machine.until(W, "running")
            machine.log.down = True
            attempt = machine.store.attempt(W, 1)
            await machine.until_true(lambda: SystemClock().now_ms() >= machine.log.state(W).lease_deadline_ms)
            assert not attempt.is_alive
            ended = attempt.exit()
            assert ended is not None
            assert ended.cause is Cause.LEASE
            machine.log.down = False
            await machine.until(W, "unknown")

    asyncio.run(story())


def test_a_replaced_attempt_is_stopped_and_a_new_one_here_waits_for_it(tmp_path: Path) -> None:
    """Goal: two attempts of one workload never overlap. Method: the log moves on behind the agent's back and
    places the workload here again; starts and ends must alternate."""

    async def story() -> None:
        machine = Machine(tmp_path)
        submit(machine, "echo started; sleep 1.5; echo ended", retry=Retry.SAFE)
        async with machine.running():
            await machine.until_true(lambda: bool(machine.said(W)))
            machine.log.change(W, lambda state: msgspec.structs.replace(state, state=State.PENDING, node=""))
            machine.log.place(W, NODE, lease_ms=machine.lease_ms)
            await machine.until(W, "done")
        first, second = machine.store.attempt(W, 1), machine.store.attempt(W, 2)
        ended = first.exit()
        assert ended is not None
        assert ended.cause is Cause.SUPERSEDED
        assert first.file("exit.json").stat().st_mtime_ns < second.file("started").stat().st_mtime_ns
        assert machine.said(W) == "started\nstarted\nended\n"

    asyncio.run(story())


def test_capacity_is_never_exceeded_here(tmp_path: Path) -> None:
    """Goal: this machine keeps its promise. Method: three placements on room for two; count what runs."""

    async def story() -> None:
        machine = Machine(tmp_path)
        names = [f"w-{letter * 10}" for letter in "abc"]
        for name in names:
            submit(machine, "sleep 1", name)
        most = 0
        async with machine.running():
            async with asyncio.timeout(20):
                while any(machine.log.state(name).state is not State.DONE for name in names):
                    most = max(most, sum(machine.store.attempt(name, 1).is_alive for name in names))
                    await asyncio.sleep(0.02)
        assert most == 2

    asyncio.run(story())


@pytest.mark.parametrize("retry", list(Retry))
def test_a_lost_shim_is_an_unknown_fate(tmp_path: Path, retry: Retry) -> None:
    """Goal: the agent says what it cannot know.
    Method: SIGKILL the shim; the job's word on retries decides."""

    async def story() -> None:
        machine = Machine(tmp_path)
        submit(machine, "echo started; sleep 60", retry=retry)
        async with machine.running():
            await machine.until(W, "running")
            attempt = machine.store.attempt(W, 1)
            await machine.until_true(lambda: bool(machine.said(W)))
            identity = attempt.shim()
            assert identity is not None
            os.kill(identity.pid, signal.SIGKILL)
            await machine.until(W, "pending" if retry is Retry.SAFE else "unknown", within_s=8)
        assert machine.log.placed(NODE) == ()
        assert "shim died" in machine.log.state(W).reason

    asyncio.run(story())


def test_a_lost_record_is_an_unknown_fate(tmp_path: Path) -> None:
    """Goal: an emptied disk is no licence to start again. Method: running in the log, nothing on disk."""

    async def story() -> None:
        machine = Machine(tmp_path)
        submit(machine, "echo started")
        machine.log.change(W, lambda state: msgspec.structs.replace(state, state=State.RUNNING))
        async with machine.running():
            await machine.until(W, "unknown")
        assert machine.said(W) == ""

    asyncio.run(story())


def test_a_payload_that_is_gone_fails_the_job_with_a_sentence(tmp_path: Path) -> None:
    """Goal: no endless shipping.
    Method: a root that nobody has; and one that is delayed twice, which succeeds."""

    async def story() -> None:
        machine = Machine(tmp_path)
        submit(machine, "true", payload="nowhere")
        (tmp_path / "payloads" / "p1").mkdir()
        machine.goods.delays = 2
        submit(machine, "true", "w-bbbbbbbbbb", payload="p1")
        async with machine.running():
            await machine.until(W, "failed")
            await machine.until("w-bbbbbbbbbb", "done")
        assert "no source has nowhere" in machine.log.state(W).reason

    asyncio.run(story())


def test_a_writer_with_a_wrong_clock_is_refused_and_says_so(tmp_path: Path) -> None:
    """Goal: leases rest on committed time. Method: committed time 5 s ahead of this machine."""

    async def story() -> None:
        machine = Machine(tmp_path)
        submit(machine, "echo started")
        machine.log.skew_ms = 5000
        async with machine.running():
            await machine.until_true(lambda: "note" in machine.listener.kinds())
        assert machine.log.state(W).state is State.PLACED
        assert machine.said(W) == ""
        compared = {guard.target for txn in machine.log.history for guard in txn.compare}
        assert Target.TIME in compared

    asyncio.run(story())


def test_an_agent_that_restarts_adopts_what_runs(tmp_path: Path) -> None:
    """Goal: a restart of the agent is not noticed by the job. Method: stop it cleanly, start another over the
    same folder, within the lease; one start, the right output."""

    async def story() -> None:
        machine = Machine(tmp_path)
        submit(machine, "echo started; sleep 2.5; echo x > out/f")
        async with machine.running():
            await machine.until(W, "running")
            await machine.until_true(lambda: machine.store.attempt(W, 1).is_alive)
        async with Machine(tmp_path).running():
            await machine.until(W, "done")
        assert machine.said(W) == "started\n"

    asyncio.run(story())


def test_the_node_is_announced_and_a_drain_survives(tmp_path: Path) -> None:
    """Goal: a restart does not undo an operator's drain.
    Method: announce, drain, restart with less capacity."""

    async def story() -> None:
        machine = Machine(tmp_path)

        async def announce() -> None:
            async with machine.running() as station:
                await machine.until_true(lambda: station.announced)

        await announce()
        found = machine.log.get(node_key(NODE), Node)
        assert found is not None
        assert (found.capacity, found.status) == (CAPACITY, NodeStatus.READY)
        drained = msgspec.structs.replace(found, status=NodeStatus.DRAINING, address="elsewhere:1")
        machine.log.apply(Txn(success=(Put(node_key(NODE), msgspec.json.encode(drained)),)))
        await announce()
        found = machine.log.get(node_key(NODE), Node)
        assert found is not None
        assert (found.status, found.address) == (NodeStatus.DRAINING, "127.0.0.32:7070")

    asyncio.run(story())


def test_a_missed_deadline_is_recorded_and_not_fatal(tmp_path: Path) -> None:
    """Goal: deadlines are facts, not guillotines. Method: a deadline shorter than the command."""

    async def story() -> None:
        machine = Machine(tmp_path)
        submit(machine, "sleep 1", deadline="500ms")
        async with machine.running():
            await machine.until(W, "done")
        assert machine.log.state(W).deadline_missed

    asyncio.run(story())


def test_payloads_are_given_back_once_their_workload_has_ended(tmp_path: Path) -> None:
    """Goal: bounded disk at the source. Method: claims of a pending, an ended, a fresh unknown and an old
    unknown workload; only the ended and the old unknown one are released."""

    async def story() -> None:
        machine = Machine(tmp_path)
        machine.log.submit(spec(W, "true"))
        machine.log.submit(spec("w-bbbbbbbbbb", "true"))
        machine.log.change("w-bbbbbbbbbb", lambda state: msgspec.structs.replace(state, state=State.DONE))
        machine.goods.claimed = [W, "w-bbbbbbbbbb", "w-cccccccccc", "w-dddddddddd", "output-w-bbbbbbbbbb-1"]
        claims = Claims(machine.log, machine.goods)
        claims.first_seen_ns["w-dddddddddd"] = -UNKNOWN_KEPT_NS
        await claims.sweep(now_ns=0)
        assert machine.goods.released == ["w-bbbbbbbbbb", "w-dddddddddd"]

    asyncio.run(story())


def test_an_attempt_that_the_log_forgot_is_tidied(tmp_path: Path) -> None:
    """Goal: leftovers of an earlier life do not stay. Method: a prepared attempt of a workload that ended."""

    async def story() -> None:
        machine = Machine(tmp_path)
        machine.log.submit(spec(W, "true"))
        attempt = machine.store.attempt(W, 1)
        attempt.prepare(Prepared(spec(W, "true"), 1, 0, "rlimit"))
        attempt.fresh_work()
        async with machine.running():
            await machine.until_true(lambda: attempt.is_closed)
        assert not attempt.work.exists()
        assert attempt.facts().abandoned

    asyncio.run(story())


def test_an_output_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """Goal: a job cannot publish the host's files.
    Method: links, files and nothing where the folder should be."""
    work = tmp_path / "work"
    (work / "real" / "deep").mkdir(parents=True)
    (work / "link").symlink_to("/etc")
    (work / "file").write_text("x")
    assert output_folder(work, "real/deep/") == work / "real" / "deep"
    for bad in ("link", "link/ssl", "file", "gone", "../work/real"):
        with pytest.raises(OutputRefused):
            output_folder(work, bad)
