"""The fleet that is kept: never overfull by a decision, every promise ends, every workload counts once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dwcp.allocation.fleet import FleetMalformed
from dwcp.allocation.serving.state import FleetState, NodeUnknown
from dwcp.api.allocator import NodeState
from dwcp.api.workloads import Allocation, Capacity, NodeStatus, Placed

names = st.sampled_from(["a", "b", "c"])
workloads = st.sampled_from([f"w{number}" for number in range(6)])
amounts = st.integers(0, 5)


def capacity(cpu: int) -> Capacity:
    return Capacity(cpu, cpu, cpu, cpu)


def node(name: str, cpu: int = 8, *placed: str) -> NodeState:
    entries = tuple(Placed(workload, 1, capacity(2)) for workload in placed)
    return NodeState(name, "oslo", capacity(cpu), Allocation(entries))


class Fleets(RuleBasedStateMachine):
    """Any order of descriptions, placements, releases and time; the plain sum is the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.state = FleetState()
        self.now = 0

    @rule(name=names, cpu=st.integers(4, 9), placed=st.lists(workloads, max_size=2, unique=True))
    def describe(self, name: str, cpu: int, placed: list[str]) -> None:
        self.state.upsert([node(name, cpu, *placed)])

    @rule(name=names)
    def forget(self, name: str) -> None:
        if name in self.state.roster.rows:
            self.state.remove([name])

    @rule(name=names, status=st.sampled_from(NodeStatus))
    def mark(self, name: str, status: NodeStatus) -> None:
        if name in self.state.roster.rows:
            self.state.set_status([name], status)

    @rule(
        workload=workloads,
        amount=amounts,
        row=st.integers(0, 2),
        until=st.none() | st.integers(1, 9),
        old=st.booleans(),
    )
    def place(self, workload: str, amount: int, row: int, until: int | None, old: bool) -> None:
        if row >= len(self.state):
            return
        scene = self.state.scene(workload=workload)
        fits = bool((scene.free[row] >= amount).all()) and bool(scene.open[row])
        taken = self.state.hold(
            workload,
            row,
            np.full(4, amount),
            version=int(scene.version[row]) - old,
            now_ms=self.now,
            until_ms=None if until is None else self.now + until,
            run_ms=10,
        )
        assert taken == (fits and not old)

    @rule(workload=workloads)
    def release(self, workload: str) -> None:
        known = workload in self.state.held()
        assert self.state.release(workload) == known

    @rule(by=st.integers(0, 5))
    def pass_time(self, by: int) -> None:
        self.now += by
        self.state.expire(self.now)
        assert all(one.until_ms is None or one.until_ms > self.now for one in self.state.held().values())

    @invariant()
    def what_is_held_counts(self) -> None:
        """Held at least, and at most with everything that descriptions list."""
        held, listed = np.zeros_like(self.state.used), np.zeros_like(self.state.used)
        for one in self.state.held().values():
            held[self.state.roster.rows[one.node]] += one.demand
        for row, one in enumerate(self.state.nodes()):
            listed[row] += 2 * len(one.allocation.placed)
        assert (self.state.used >= held).all()
        assert (self.state.used <= held + listed).all()

    @invariant()
    def nothing_is_overfull_by_a_decision(self) -> None:
        assert self.state.overfull() == 0


TestFleets = Fleets.TestCase
TestFleets.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_fork_is_another_fleet() -> None:
    """Goal: trying things changes nothing. Method: place in the fork, look at the first."""
    state = FleetState()
    state.upsert([node("a")])
    state.hold("w", 0, np.full(4, 3), version=int(state.version[0]), now_ms=0, until_ms=None, run_ms=0)
    other = state.fork()
    other.release("w")

    assert (state.used == 3).all()
    assert (other.used == 0).all()


def test_bad_descriptions_change_nothing() -> None:
    """Goal: all or nothing. Method: an absurd node beside a good one; a node that nobody knows."""
    state = FleetState()
    state.upsert([node("a")])
    with pytest.raises(FleetMalformed):
        state.upsert([node("b"), node("c", -1)])
    with pytest.raises(NodeUnknown, match="nobody"):
        state.remove(["nobody"])

    assert state.roster.names == ("a",)
    assert state.revision == 1


def test_what_a_description_lists_is_no_longer_held() -> None:
    """Goal: a placement that became real counts once. Method: hold, then describe the node with it."""
    state = FleetState()
    state.upsert([node("a")])
    state.hold("w", 0, np.full(4, 2), version=int(state.version[0]), now_ms=0, until_ms=None, run_ms=0)
    state.upsert([node("a", 8, "w")])

    assert (state.used == 2).all()
    assert not state.held()
