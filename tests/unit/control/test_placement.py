"""Transactions against a log in memory: each applies from a true view and fails from any outdated one."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.services.manager.stage import FakeLog, add_node

from dwcp.api.kv import Put, Txn
from dwcp.api.workloads import (
    FINAL_STATES,
    Allocation,
    Demand,
    Job,
    NodeStatus,
    Placed,
    Retry,
    Spec,
    State,
    WorkloadState,
    allocation_key,
    spec_key,
    state_key,
)
from dwcp.consensus.core.errors import InvariantBroken
from dwcp.control import placement
from dwcp.control.errors import WorkloadEnded
from dwcp.control.inventory import Inventory, NodeEntry, WorkloadEntry
from dwcp.control.jobs import demand_of

ID = "w-aaaaaaaaaa"
LEASE_MS = 3_000


class Scene:
    """One workload and one node in a log, and the view of them."""

    def __init__(self, *, retry: Retry = Retry.NEVER, deadline: str = "") -> None:
        self.log = FakeLog()
        add_node(self.log, "oslo")
        job = Job(
            name="j",
            demand=Demand(cpu=1, memory_mib=64, storage_mib=64),
            run=("true",),
            retry=retry,
            deadline=deadline,
        )
        self.spec = Spec(id=ID, job=job, payload=None, submitted_ms=self.log.now_ms, submitted_by="t")
        self.commit(placement.create(self.spec))

    def commit(self, txn: Txn) -> bool:
        return self.log.apply(txn).succeeded

    def view(self) -> tuple[WorkloadEntry, NodeEntry]:
        inventory = Inventory()
        inventory.load(self.log.data.values(), prefix=b"/", revision=self.log.revision)
        workload, node = inventory.workload(ID), inventory.node("oslo")
        assert workload is not None
        assert node is not None
        return workload, node

    def place(self) -> bool:
        workload, node = self.view()
        return self.commit(
            placement.place(workload, node, now_ms=self.log.now_ms, lease_ms=LEASE_MS, policy="p")
        )

    def set_state(self, **changes: object) -> None:
        workload, _ = self.view()
        state = msgspec.structs.replace(workload.state, **changes)
        self.log.put(state_key(ID), msgspec.json.encode(state))

    def touch(self, key: bytes) -> None:
        self.log.put(key, self.log.get(key) or b"{}")


def test_create_happens_once() -> None:
    """Goal: one id, one workload. Method: commit the same creation twice."""
    scene = Scene()

    assert not scene.commit(placement.create(scene.spec))
    assert scene.view()[0].state == WorkloadState(state=State.PENDING)


def test_place_sets_state_and_allocation_together() -> None:
    """Goal: both sides of a placement in one revision. Method: place and read."""
    scene = Scene()

    assert scene.place()
    workload, node = scene.view()
    assert (workload.state.state, workload.state.attempt, workload.state.node) == (State.PLACED, 1, "oslo")
    assert workload.state.lease_deadline_ms == scene.log.now_ms + LEASE_MS
    assert node.allocation.placed == (Placed(workload=ID, attempt=1, demand=demand_of(scene.spec.job)),)
    assert workload.revision == node.allocation_revision


@pytest.mark.parametrize("key", [state_key(ID), b"/n/oslo/alloc", b"/n/oslo/info"])
def test_place_from_an_outdated_view_fails(key: bytes) -> None:
    """Goal: state, allocation and the node's own entry are all compared. Method: touch each after reading."""
    scene = Scene()
    scene.log.put(allocation_key("oslo"), msgspec.json.encode(Allocation()))
    workload, node = scene.view()
    txn = placement.place(workload, node, now_ms=scene.log.now_ms, lease_ms=LEASE_MS, policy="p")
    scene.touch(key)

    assert not scene.commit(txn)


@pytest.mark.parametrize(("off_ms", "placed"), [(900, True), (-900, True), (1_200, False), (-1_200, False)])
def test_a_wrong_clock_cannot_set_a_lease(off_ms: int, placed: bool) -> None:
    """Goal: a writer over a second off is refused. Method: clocks on both sides of the line."""
    scene = Scene()
    workload, node = scene.view()
    now_ms = scene.log.now_ms + off_ms

    assert (
        scene.commit(placement.place(workload, node, now_ms=now_ms, lease_ms=LEASE_MS, policy="p")) is placed
    )


def test_a_node_without_room_is_our_own_mistake() -> None:
    """Goal: an overfull allocation cannot even be built. Method: a node that is full already."""
    scene = Scene()
    full = Placed(workload="w-bbbbbbbbbb", attempt=1, demand=scene.view()[1].node.capacity)
    scene.log.put(allocation_key("oslo"), msgspec.json.encode(Allocation(placed=(full,))))
    workload, node = scene.view()

    with pytest.raises(InvariantBroken):
        placement.place(workload, node, now_ms=scene.log.now_ms, lease_ms=LEASE_MS, policy="p")


@pytest.mark.parametrize(
    ("state", "retry", "cancel", "wanted"),
    [
        (State.PLACED, Retry.NEVER, False, State.PENDING),
        (State.PLACED, Retry.SAFE, False, State.PENDING),
        (State.RUNNING, Retry.SAFE, False, State.PENDING),
        (State.RUNNING, Retry.NEVER, False, State.UNKNOWN),
        (State.PLACED, Retry.NEVER, True, State.CANCELLED),
        (State.RUNNING, Retry.SAFE, True, State.CANCELLED),
    ],
)
def test_after_the_lease(state: State, retry: Retry, cancel: bool, wanted: State) -> None:
    """Goal: the table of INTERFACES. Method: every case; not before the deadline, and the node is freed."""
    scene = Scene(retry=retry)
    scene.place()
    scene.set_state(state=state, cancel=cancel)
    workload, node = scene.view()
    txn = placement.expire(workload, node)

    assert not scene.commit(txn), "committed time has not reached the deadline"
    scene.log.now_ms = workload.state.lease_deadline_ms + 1
    assert scene.commit(txn)
    after, freed = scene.view()
    assert after.state.state is wanted
    assert after.state.attempt == 1, "attempts only grow"
    assert freed.allocation.placed == ()
    assert after.state.reason
    assert not scene.commit(txn), "twice does nothing"


def test_a_renewal_beats_an_expiry() -> None:
    """Goal: the manager never overrides an agent that renewed. Method: renew between view and commit."""
    scene = Scene(retry=Retry.SAFE)
    scene.place()
    workload, node = scene.view()
    scene.set_state(state=State.RUNNING, lease_deadline_ms=workload.state.lease_deadline_ms + LEASE_MS)
    scene.log.now_ms = workload.state.lease_deadline_ms + 1

    assert not scene.commit(placement.expire(workload, node))


def test_cancel_ends_what_waits_and_asks_what_runs() -> None:
    """Goal: a leased attempt is its agent's to end. Method: cancel in each state."""
    scene = Scene()
    assert scene.commit(placement.cancel(scene.view()[0]))
    assert scene.view()[0].state.state is State.CANCELLED

    scene = Scene()
    scene.place()
    assert scene.commit(placement.cancel(scene.view()[0]))
    state = scene.view()[0].state
    assert (state.state, state.cancel) == (State.PLACED, True)

    for ended in sorted(FINAL_STATES):
        scene.set_state(state=ended)
        with pytest.raises(WorkloadEnded, match=ended.value):
            placement.cancel(scene.view()[0])


def test_drain_and_undo() -> None:
    """Goal: drain keeps the rest of the entry, and loses against a newer one. Method: drain, undo, race."""
    scene = Scene()
    before = scene.view()[1]
    assert scene.commit(placement.drain(before, status=NodeStatus.DRAINING))
    drained = scene.view()[1]
    assert drained.node == msgspec.structs.replace(before.node, status=NodeStatus.DRAINING)
    assert not scene.commit(placement.drain(before, status=NodeStatus.READY))
    assert scene.commit(placement.drain(drained, status=NodeStatus.READY))
    assert scene.view()[1].node == before.node


def test_a_missed_deadline_is_recorded_only_once_it_passed() -> None:
    """Goal: lateness is a fact of committed time. Method: before, after."""
    scene = Scene(deadline="10s")
    workload, _ = scene.view()
    txn = placement.miss_deadline(workload, deadline_ms=scene.log.now_ms + 10_000)

    assert not scene.commit(txn)
    scene.log.now_ms += 10_001
    assert scene.commit(txn)
    assert scene.view()[0].state.deadline_missed


def test_sweep_clears_one_entry() -> None:
    """Goal: an orphan goes, its neighbours stay. Method: two entries, one orphaned."""
    scene = Scene()
    demand = demand_of(scene.spec.job)
    entries = (
        Placed(workload=ID, attempt=1, demand=demand),
        Placed(workload="w-b", attempt=1, demand=demand),
    )
    scene.log.put(allocation_key("oslo"), msgspec.json.encode(Allocation(placed=entries)))
    workload, node = scene.view()

    assert scene.commit(placement.sweep(workload, node))
    assert scene.view()[1].allocation.placed == entries[1:]


def test_a_lost_race_brings_the_newer_view() -> None:
    """Goal: failure branches read what was compared. Method: feed the answer to the old view."""
    scene = Scene()
    inventory = Inventory()
    inventory.load(scene.log.data.values(), prefix=b"/", revision=scene.log.revision)
    workload, node = inventory.workload(ID), inventory.node("oslo")
    assert workload is not None
    assert node is not None
    txn = placement.place(workload, node, now_ms=scene.log.now_ms, lease_ms=LEASE_MS, policy="p")
    scene.place()

    inventory.committed(txn, scene.log.apply(txn))

    seen, full = inventory.workload(ID), inventory.node("oslo")
    assert seen is not None
    assert full is not None
    assert seen.state.state is State.PLACED
    assert full.allocation.placed


def test_damaged_entries_stop_nothing() -> None:
    """Goal: a bad value is reported and otherwise absent. Method: junk under every kind of key."""
    inventory = Inventory()
    for revision, key in enumerate(
        (spec_key(ID), state_key(ID), b"/n/oslo/info", b"/n/oslo/alloc", b"/w/x/out/1"), 1
    ):
        inventory.put(key, b"\xff not json", revision)

    assert len(inventory.damaged) == 5
    assert inventory.workloads() == []
    assert inventory.nodes() == []


def test_a_node_with_an_unreadable_allocation_gets_no_work() -> None:
    """Goal: unknown load is not zero load. Method: damage the allocation only."""
    scene = Scene()
    scene.log.put(allocation_key("oslo"), b"junk")
    inventory = Inventory()
    inventory.load(scene.log.data.values(), prefix=b"/", revision=scene.log.revision)

    assert inventory.node("oslo") is None


def test_older_news_is_ignored_and_gone_keys_are_gone() -> None:
    """Goal: order of arrival does not matter. Method: put out of order, then a read without the key."""
    inventory = Inventory()
    new = msgspec.json.encode(WorkloadState(state=State.RUNNING))
    old = msgspec.json.encode(WorkloadState(state=State.PLACED))
    scene = Scene()
    inventory.put(spec_key(ID), msgspec.json.encode(scene.spec), 1)

    assert inventory.put(state_key(ID), new, 7) is not None
    assert inventory.put(state_key(ID), old, 6) is None
    seen = inventory.workload(ID)
    assert seen is not None
    assert seen.state.state is State.RUNNING
    inventory.load([], prefix=b"/w/", revision=6)
    assert inventory.workload(ID) is None, "the spec of revision 1 was gone by 6"
    inventory.put(spec_key(ID), msgspec.json.encode(scene.spec), 8)
    kept = inventory.workload(ID)
    assert kept is not None
    assert kept.revision == 7, "what was written after the read stays"


def test_put_is_part_of_the_kv_interface() -> None:
    """Goal: success branches only write what they guard. Method: keys of a placement's puts."""
    scene = Scene()
    workload, node = scene.view()
    txn = placement.place(workload, node, now_ms=scene.log.now_ms, lease_ms=LEASE_MS, policy="p")

    puts = [part.key for part in txn.success if isinstance(part, Put)]
    assert puts == [state_key(ID), allocation_key("oslo")]
    assert set(puts) <= {guard.key for guard in txn.compare}
