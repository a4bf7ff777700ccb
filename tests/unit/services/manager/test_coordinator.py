"""One coordinator: submissions, hostile allocators, waiting, receipts, sweeping, drains."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.services.manager.stage import START_MS, FakeLog, MemoryReceipts, add_node, coordinator, finish

from dwcp.api.allocator import PlaceAnswer, PlaceRequest
from dwcp.api.kv import Put, Txn
from dwcp.api.manager import EventKind, Submission
from dwcp.api.workloads import (
    Allocation,
    Capacity,
    Demand,
    Job,
    NodeStatus,
    Place,
    Placed,
    State,
    WorkloadState,
    allocation_key,
    node_key,
    state_key,
)
from dwcp.control.errors import (
    ClockSkewed,
    DemandImpossible,
    NodeUnknown,
    NotReady,
    WorkloadEnded,
    WorkloadExists,
    WorkloadUnknown,
)
from dwcp.services.manager.coordinator import Coordinator
from dwcp.services.manager.events import Events
from dwcp.services.manager.ports import LogUnreachable

ID = "w-aaaaaaaaaa"
OTHER = "w-bbbbbbbbbb"


class Scene:
    """A log with one node, and a manager that has read it."""

    def __init__(self, *, nodes: tuple[str, ...] = ("oslo",), **more: object) -> None:
        self.log = FakeLog()
        for name in nodes:
            add_node(self.log, name)
        self.receipts = MemoryReceipts()
        self.events = Events(boot_ms=START_MS)
        self.manager = self.restart(**more)

    def restart(self, **more: object) -> Coordinator:
        self.manager = coordinator(self.log, receipts=self.receipts, events=self.events, **more)  # type: ignore[arg-type]
        finish(self.manager.refresh(linearizable=True))
        return self.manager

    def submit(self, identity: str = ID, **changes: object) -> bool:
        base = Job(name="j", demand=Demand(cpu=1, memory_mib=64, storage_mib=64), run=("true",))
        job = msgspec.structs.replace(base, **changes)
        return bool(finish(self.manager.submit(Submission(id=identity, job=job), by="ann"))[1])

    def step(self) -> None:
        finish(self.manager.step())

    def state(self, identity: str = ID) -> WorkloadState:
        return msgspec.json.decode(self.log.get(state_key(identity)) or b"", type=WorkloadState)

    def set_state(self, identity: str = ID, **changes: object) -> None:
        changed = msgspec.structs.replace(self.state(identity), **changes)
        self.log.put(state_key(identity), msgspec.json.encode(changed))

    def kinds(self) -> list[str]:
        return [event.report.kind.value for event in self.events.after(0).events]


class Scripted:
    """A placer that answers what it is told to, in order, then for ever the last."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = list(nodes)
        self.asked: list[PlaceRequest] = []

    async def place(self, wanted: PlaceRequest) -> PlaceAnswer:
        self.asked.append(wanted)
        node = self.nodes.pop(0) if len(self.nodes) > 1 else self.nodes[0]
        return PlaceAnswer(workload=wanted.workload, node=node, policy="scripted", candidates=(), reason="no")

    async def release(self, workload: str) -> None:
        return


def test_a_job_is_placed_and_told() -> None:
    """Goal: the happy way of the manager's part. Method: submit, step; look at log, events, receipt."""
    scene = Scene()

    assert scene.submit()
    scene.step()

    assert (scene.state().state, scene.state().node, scene.state().attempt) == (State.PLACED, "oslo", 1)
    assert scene.kinds() == ["pending", "proposed", "placed"]
    assert scene.receipts.has(ID, 1, "placed")


def test_the_same_submission_again_makes_nothing() -> None:
    """Goal: a retry is safe, another job under the id is refused. Method: both, and after a restart."""
    scene = Scene()

    assert scene.submit()
    assert not scene.submit()
    scene.restart()
    assert not scene.submit()
    with pytest.raises(WorkloadExists):
        scene.submit(priority=5)


def test_a_submission_unknown_to_this_manager_is_found_in_the_log() -> None:
    """Goal: two managers, one id. Method: the second has an older view."""
    scene = Scene()
    second = coordinator(scene.log)
    finish(second.refresh(linearizable=True))
    scene.submit()

    job = scene.manager.inventory.workload(ID)
    assert job is not None
    entry, made = finish(second.submit(Submission(id=ID, job=job.spec.job), by="bob"))
    assert not made
    assert entry.spec.submitted_by == "ann"


def test_what_can_never_run_is_refused_before_it_is_stored() -> None:
    """Goal: refused at once, nothing in the log. Method: a demand over every node."""
    scene = Scene()

    with pytest.raises(DemandImpossible, match=r"demand.cpu"):
        scene.submit(demand=Demand(cpu=64, memory_mib=1, storage_mib=1))
    assert scene.log.get(state_key(ID)) is None


def test_nothing_is_promised_before_the_log_was_read() -> None:
    """Goal: an unread log refuses, not an empty one. Method: a fresh coordinator, and a log without nodes."""
    scene = Scene()
    scene.manager = coordinator(scene.log)
    with pytest.raises(NotReady):
        scene.submit()
    with pytest.raises(NotReady, match="no node"):
        Scene(nodes=()).submit()


@pytest.mark.parametrize("answer", ["nowhere", "full", "drained", "lima", ""])
def test_a_hostile_allocator_changes_nothing(answer: str) -> None:
    """Goal: the allocator is not trusted. Method: unknown, full, draining, wrongly placed proposals."""
    scene = Scene(nodes=("oslo", "full", "drained", "lima"))
    capacity = Capacity(cpu_milli=2000, memory_mib=1024, storage_mib=4096, bandwidth_mbps=100)
    entry = Placed(workload="w-cccccccccc", attempt=1, demand=capacity)
    scene.log.put(allocation_key("full"), msgspec.json.encode(Allocation(placed=(entry,))))
    add_node(scene.log, "drained", status=NodeStatus.DRAINING)
    placer = Scripted(answer)
    scene.restart(placer=placer)
    scene.submit(place=Place(site="oslo"))
    scene.step()

    if answer:
        assert scene.state().node == "oslo", "after two bad answers the manager decides by its own rules"
        assert "fallback" in scene.state().policy
        assert len(placer.asked) == 2
    else:
        assert scene.state().state is State.PENDING, "a proposal of none is believed: it costs only time"


def test_who_waits_is_told_why_and_tries_again_when_room_appears() -> None:
    """Goal: no busy asking, no long waiting. Method: a full node; steps in between; then it empties."""
    scene = Scene()
    scene.submit()
    scene.submit(OTHER, demand=Demand(cpu=2, memory_mib=64, storage_mib=64))
    scene.step()
    scene.step()

    assert scene.kinds().count("waiting") == 1, "asked once, then left alone for a second"
    waiting = [event for event in scene.events.after(0).events if event.report.kind is EventKind.WAITING]
    assert "cpu_milli 1000 free of 2000 needed" in str(waiting[0].report.fields["reason"])
    done = msgspec.structs.replace(scene.state(), state=State.DONE)
    empty = msgspec.json.encode(Allocation())
    scene.log.apply(
        Txn(success=(Put(state_key(ID), msgspec.json.encode(done)), Put(allocation_key("oslo"), empty)))
    )
    finish(scene.manager.refresh(linearizable=True))
    scene.step()
    assert scene.state(OTHER).state is State.PLACED


def test_priority_then_age() -> None:
    """Goal: what is placed first. Method: one place, a younger job of higher priority."""
    scene = Scene()
    scene.submit(demand=Demand(cpu=2, memory_mib=64, storage_mib=64))
    scene.log.now_ms += 10
    scene.submit(OTHER, demand=Demand(cpu=2, memory_mib=64, storage_mib=64), priority=5)
    scene.step()

    assert scene.state(OTHER).state is State.PLACED
    assert scene.state().state is State.PENDING


def test_unreachable_nodes_get_no_new_work() -> None:
    """Goal: known to fail means no work, by this manager's probes. Method: one of two is unreachable."""
    scene = Scene(nodes=("aaa", "oslo"), unreachable=lambda: frozenset({"aaa"}))
    scene.submit()
    scene.step()

    assert scene.state().node == "oslo"


def test_a_wrong_clock_is_reported_and_places_nothing() -> None:
    """Goal: leases need true time. Method: a clock three seconds ahead."""
    scene = Scene()
    scene.restart(now_ms=lambda: scene.log.now_ms + 3_000)
    scene.submit()

    with pytest.raises(ClockSkewed, match="synchronise"):
        scene.step()
    assert scene.state().state is State.PENDING


def test_a_slow_answer_is_no_wrong_clock() -> None:
    """Goal: a paused process does not blame the clock. Method: time passes between commit and answer."""
    scene = Scene()
    scene.submit()
    apply = scene.log.apply

    def slow(txn: Txn) -> object:
        scene.log.now_ms += 5_000  # before it is committed: the guard on time fails
        done = apply(txn)
        scene.log.now_ms += 5_000
        return done

    scene.log.apply = slow  # type: ignore[method-assign, assignment]
    scene.step()
    assert scene.state().state is State.PENDING


def test_an_expired_lease_frees_and_places_again_elsewhere() -> None:
    """Goal: a dead agent's job goes on. Method: nobody starts it; time passes the lease."""
    missed: list[str] = []
    scene = Scene(nodes=("oslo", "rome"), lease_missed=missed.append)
    scene.submit()
    scene.step()
    scene.log.now_ms += 3_001
    scene.step()
    assert (scene.state().state, missed) == (State.PENDING, ["oslo"])
    scene.step()
    assert (scene.state().state, scene.state().attempt) == (State.PLACED, 2)
    assert scene.receipts.has(ID, 1, "pending")


def test_an_unreachable_log_changes_no_view() -> None:
    """Goal: an unknown outcome is not assumed. Method: the log fails under a step."""
    scene = Scene()
    scene.submit()
    scene.log.failing = LogUnreachable("no answer")

    with pytest.raises(LogUnreachable):
        scene.step()
    entry = scene.manager.inventory.workload(ID)
    assert entry is not None
    assert entry.state.state is State.PENDING


def test_a_missing_receipt_is_made_good() -> None:
    """Goal: killed between commit and receipt. Method: a new manager finds a placed job without one."""
    scene = Scene()
    scene.submit()
    scene.step()
    scene.receipts = MemoryReceipts()
    scene.restart()
    scene.step()

    assert scene.receipts.has(ID, 1, "observed-placed")


def test_an_end_without_its_agents_receipt_is_witnessed_after_a_while() -> None:
    """Goal: the agent gets its time, then the manager reads a receipt itself. Method: done, without one."""
    scene = Scene()
    scene.submit()
    scene.step()
    scene.set_state(state=State.DONE)
    finish(scene.manager.refresh(linearizable=True))
    scene.step()
    assert not scene.receipts.has(ID, 1, "observed-done")
    scene.log.now_ms += 10_000
    scene.step()
    assert scene.receipts.has(ID, 1, "observed-done")


def test_cancel_in_each_state() -> None:
    """Goal: waiting ends at once, leased is asked, ended and unknown are refused. Method: each."""
    scene = Scene()
    scene.submit()
    assert finish(scene.manager.cancel(ID)).state.state is State.CANCELLED
    with pytest.raises(WorkloadEnded):
        finish(scene.manager.cancel(ID))
    with pytest.raises(WorkloadUnknown):
        finish(scene.manager.cancel(OTHER))
    scene.submit(OTHER)
    scene.step()
    assert finish(scene.manager.cancel(OTHER)).state.cancel
    assert finish(scene.manager.cancel(OTHER)).state.cancel, "asked twice is asked"
    scene.log.now_ms += 3_001
    scene.step()
    assert scene.state(OTHER).state is State.CANCELLED, "no agent did it by the lease's end"


def test_a_cancelled_job_that_waits_again_is_ended() -> None:
    """Goal: a cancel survives an agent that gave the attempt back. Method: pending with the flag."""
    scene = Scene()
    scene.submit()
    scene.set_state(cancel=True)
    finish(scene.manager.refresh(linearizable=True))
    scene.step()

    assert scene.state().state is State.CANCELLED


def test_drain() -> None:
    """Goal: no work while drained, work again after undo. Method: drain, submit, undo; unknown node."""
    scene = Scene()
    assert finish(scene.manager.drain("oslo", undo=False)).node.status is NodeStatus.DRAINING
    scene.submit()
    scene.step()
    assert scene.state().state is State.PENDING
    finish(scene.manager.drain("oslo", undo=True))
    scene.log.now_ms += 1_000
    scene.step()
    assert scene.state().state is State.PLACED
    with pytest.raises(NodeUnknown):
        finish(scene.manager.drain("kyoto", undo=False))


def test_an_orphaned_allocation_is_swept_only_when_it_stays() -> None:
    """Goal: halves of a transaction heard apart are no orphan. Method: at once, and five seconds later."""
    scene = Scene()
    scene.submit()
    scene.step()
    scene.set_state(state=State.DONE)
    finish(scene.manager.refresh(linearizable=True))
    scene.step()
    assert b"w-aaaa" in (scene.log.get(allocation_key("oslo")) or b"")
    scene.log.now_ms += 5_000
    scene.step()
    assert b"w-aaaa" not in (scene.log.get(allocation_key("oslo")) or b"")


def test_a_missed_deadline_is_recorded_and_the_job_still_runs() -> None:
    """Goal: recorded, not fatal. Method: no room until after the deadline."""
    scene = Scene()
    finish(scene.manager.drain("oslo", undo=False))
    scene.submit(deadline="10s")
    scene.log.now_ms += 10_001
    scene.step()
    finish(scene.manager.drain("oslo", undo=True))
    scene.log.now_ms += 4_000
    scene.step()

    assert (scene.state().state, scene.state().deadline_missed) == (State.PLACED, True)


def test_damaged_entries_do_not_stop_the_manager() -> None:
    """Goal: junk in the log costs only itself. Method: junk beside a good job, and an impossible node."""
    scene = Scene()
    scene.submit()
    scene.log.put(b"/w/x/spec", b"junk")
    scene.log.put(node_key("bad"), b'{"name":"bad"}')
    negative = Capacity(cpu_milli=-1, memory_mib=1, storage_mib=1, bandwidth_mbps=1)
    node = msgspec.structs.replace(add_node(scene.log, "neg"), capacity=negative)
    scene.log.put(node_key("neg"), msgspec.json.encode(node))
    finish(scene.manager.refresh(linearizable=True))
    scene.step()

    assert scene.state().state is State.PLACED
    assert set(scene.manager.inventory.damaged) == {b"/w/x/spec", node_key("bad"), node_key("neg")}


def test_history_is_no_news_after_a_restart() -> None:
    """Goal: a restarted manager does not retell what ended long ago. Method: one ended, one placed."""
    scene = Scene()
    scene.submit()
    finish(scene.manager.cancel(ID))
    scene.submit(OTHER)
    scene.step()
    scene.events = Events(boot_ms=START_MS + 1)
    scene.restart()

    assert [(event.report.workload, event.report.kind.value) for event in scene.events.after(0).events] == [
        (OTHER, "placed")
    ]
