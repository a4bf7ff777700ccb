"""Two managers, agents and submitters on one log, interleaved and killed at every await by a seed.

An operator drains nodes, takes that back, and orders moves meanwhile.

Checked after every commit: no node is overfull, attempt numbers grow, a leased
attempt is never replaced before its lease has ended in committed time. Checked
at every start of a command: no other attempt of that workload is alive, and a
`retry: never` job starts at most once. Checked at the end: everything ended.
"""

from __future__ import annotations

import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from tests.unit.services.manager.stage import FakeLog, MemoryReceipts, Turn, add_node, coordinator

from dwcp.api.kv import Compare, Put, Relation, Target, Txn
from dwcp.api.manager import Submission
from dwcp.api.rebalance import Move, Order
from dwcp.api.workloads import (
    FINAL_STATES,
    Allocation,
    Demand,
    Job,
    Node,
    Retry,
    State,
    WorkloadState,
    allocation_key,
    node_key,
    state_key,
)
from dwcp.control.attempt_log import ended
from dwcp.control.errors import ClockSkewed, ControlError
from dwcp.control.moving import movable
from dwcp.services.manager.coordinator import Coordinator

LEASE_MS = 3_000
MARGIN_MS = 500
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


@dataclass
class World:
    """Everything of one seed, and what has been seen so far."""

    seed: int
    moving: bool = False  # an operator drains and orders moves, jobs run long and mostly may run again
    rng: random.Random = field(init=False)
    log: FakeLog = field(default_factory=FakeLog)
    nodes: list[str] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    seen: dict[str, WorkloadState] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    alive_until: dict[tuple[str, int], int] = field(default_factory=dict)  # when its agent stops it
    receipts: MemoryReceipts = field(default_factory=MemoryReceipts)
    calm: bool = False
    crashes: int = 0
    expiries: int = 0
    moved: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        for position in range(self.rng.randint(2 if self.moving else 1, 3)):
            name = f"node{position}"
            self.nodes.append(name)
            add_node(self.log, name, cpu_milli=self.rng.choice([1000, 2000, 3000]))
        for number in range(self.rng.randint(2, 6)):
            retry = self.rng.choice([Retry.SAFE, Retry.NEVER, *([Retry.SAFE] * 2 if self.moving else [])])
            cpu = self.rng.choice([0.5, 1, 1])
            self.jobs[f"w-{LETTERS[number] * 10}"] = Job(
                name=f"job{number}",
                demand=Demand(cpu=cpu, memory_mib=64, storage_mib=64),
                run=("true",),
                retry=retry,
            )
        self.log.staged = True
        self.log.checks.append(self.check)

    # ------------------------------------------------------------------ invariants

    def check(self) -> None:
        for name in self.nodes:
            node = msgspec.json.decode(self.log.get(node_key(name)) or b"", type=Node)
            raw = self.log.get(allocation_key(name))
            placed = msgspec.json.decode(raw, type=Allocation).placed if raw else ()
            assert sum(entry.demand.cpu_milli for entry in placed) <= node.capacity.cpu_milli, name
            assert len({entry.workload for entry in placed}) == len(placed), f"{name} holds one twice"
        for name in self.jobs:
            raw = self.log.get(state_key(name))
            if raw is not None:
                self._check_change(name, msgspec.json.decode(raw, type=WorkloadState))

    def _check_change(self, name: str, after: WorkloadState) -> None:
        before = self.seen.get(name)
        self.seen[name] = after
        if before is None or before == after:
            return
        assert before.state not in FINAL_STATES, f"{name} came back from {before.state}"
        assert after.attempt >= before.attempt, f"{name}: attempts went back"
        if after.state is State.PLACED and before.state is State.PENDING:
            assert after.attempt == before.attempt + 1
        if before.state is State.RUNNING and after.state is State.PENDING and before.move:
            self.moved += 1
            ran_until = self.alive_until.get((name, before.attempt), 0)
            over = self.log.time_ms > before.lease_deadline_ms
            assert over or ran_until <= self.log.now_ms, f"{name} was given up while it ran"
        elif before.state is State.RUNNING and after.state in (State.PENDING, State.UNKNOWN):
            self.expiries += 1
            assert self.log.time_ms > before.lease_deadline_ms, f"{name} was given up before its lease ended"
        if before.state is State.RUNNING and after.state is State.PENDING:
            assert self.jobs[name].retry is Retry.SAFE

    def command_starts(self, name: str, attempt: int, stop_ms: int) -> None:
        for (other, number), until in self.alive_until.items():
            assert other != name or number == attempt or until <= self.log.now_ms, (
                f"{name} runs twice at once"
            )
        self.starts[name] = self.starts.get(name, 0) + 1
        assert self.jobs[name].retry is Retry.SAFE or self.starts[name] == 1, f"{name} started twice"
        self.alive_until[name, attempt] = stop_ms

    # ------------------------------------------------------------------ actors

    async def manager(self, *, ahead_ms: int = 0) -> None:
        """`ahead_ms`: how wrong its clock is; beyond a second it may still expire, never place."""
        log = self.log
        mine = coordinator(
            log, lease_ms=LEASE_MS, receipts=self.receipts, now_ms=lambda: log.now_ms + ahead_ms
        )
        while True:
            await mine.refresh(linearizable=True)
            for _ in range(self.rng.randint(1, 4)):  # several rounds on one view, as between watches
                try:
                    await mine.step()
                except ClockSkewed:
                    assert abs(ahead_ms) > 1_000
                await Turn()

    async def submitter(self, name: str) -> None:
        mine = coordinator(self.log, lease_ms=LEASE_MS, receipts=self.receipts)
        await mine.refresh(linearizable=True)
        await mine.submit(Submission(id=name, job=self.jobs[name]), by="test")
        if self.rng.random() < 0.2 and not self.calm:
            await self._cancel(mine, name)

    async def _cancel(self, mine: Coordinator, name: str) -> None:
        try:
            await mine.cancel(name)
        except ControlError:
            return  # it had ended already, or others were quicker three times

    async def operator(self) -> None:
        """Drains, takes it back, and orders what a plan proposes, however little it gains."""
        mine = coordinator(self.log, lease_ms=LEASE_MS, receipts=self.receipts)
        while True:
            await mine.refresh(linearizable=True)
            moves = [
                Move(entry.id, entry.state.attempt, entry.state.node, target)
                for entry in mine.inventory.active()
                for target in self.nodes
                if movable(entry)
            ]
            self.rng.shuffle(moves)
            try:
                await mine.drain(self.rng.choice(self.nodes), undo=self.calm or self.rng.random() < 0.7)
                for move in moves:
                    await self._order(mine, move)
            except ControlError:
                pass  # its entry kept changing
            for _ in range(self.rng.randint(1, 20)):
                await Turn()

    async def _order(self, mine: Coordinator, move: Move) -> None:
        try:
            await mine.order(Order(f"r{self.rng.randrange(10**6)}", (move,)), by="ann")
        except ControlError:
            return  # it does not hold, or another one is under way

    async def agent(self, node: str) -> None:
        """An agent without memory: what it started before it died has its own stop."""
        while True:
            await Turn()
            for name in self.jobs:
                kv = self.log.data.get(state_key(name))
                if kv is None:
                    continue
                state = msgspec.json.decode(kv.value, type=WorkloadState)
                if state.node == node and state.state is State.PLACED:
                    await self._start(name, kv.mod_revision, state)
                elif state.node == node and state.state is State.RUNNING:
                    await self._go_on(name, kv.mod_revision, state)

    async def _start(self, name: str, revision: int, state: WorkloadState) -> None:
        sent_ms = self.log.now_ms
        if state.cancel:
            return
        if state.move:
            await self._give_up(name, revision, state)
            return
        running = msgspec.structs.replace(
            state, state=State.RUNNING, started=True, lease_deadline_ms=sent_ms + LEASE_MS
        )
        if await self._guarded(name, revision, running):
            stop_ms = sent_ms + LEASE_MS - MARGIN_MS
            if self.log.now_ms < stop_ms:
                self.command_starts(name, state.attempt, stop_ms)

    async def _go_on(self, name: str, revision: int, state: WorkloadState) -> None:
        key = (name, state.attempt)
        if self.alive_until.get(key, 0) <= self.log.now_ms:
            return  # stopped, or never started: the lease will tell everybody
        if state.move and self.jobs[name].retry is Retry.SAFE:
            self.alive_until[key] = 0
            await self._give_up(name, revision, state)
            return
        sent_ms = self.log.now_ms
        if self.rng.random() < (0.1 if self.moving else 0.5) or self.calm:
            done = msgspec.structs.replace(state, state=State.DONE, exit_status=0, lease_deadline_ms=0)
            if await self._guarded(name, revision, done, node=state.node):
                self.alive_until[key] = 0
        else:
            renewed = msgspec.structs.replace(state, lease_deadline_ms=sent_ms + LEASE_MS)
            if await self._guarded(name, revision, renewed):
                self.alive_until[key] = sent_ms + LEASE_MS - MARGIN_MS

    async def _give_up(self, name: str, revision: int, state: WorkloadState) -> None:
        again = ended(state, State.PENDING, reason="moved", exit_status=None, output=None, late=False)
        await self._guarded(name, revision, again, node=state.node)

    async def _guarded(self, name: str, revision: int, state: WorkloadState, *, node: str = "") -> bool:
        now_ms = self.log.now_ms
        compare = [
            Compare(state_key(name), Target.MOD, Relation.EQUAL, revision),
            Compare(b"", Target.TIME, Relation.LESS_EQUAL, now_ms + 1_000),
        ]
        puts = [Put(state_key(name), msgspec.json.encode(state))]
        if node:
            kv = self.log.data[allocation_key(node)]
            placed = msgspec.json.decode(kv.value, type=Allocation).placed
            left = Allocation(placed=tuple(entry for entry in placed if entry.workload != name))
            compare.append(Compare(kv.key, Target.MOD, Relation.EQUAL, kv.mod_revision))
            puts.append(Put(kv.key, msgspec.json.encode(left)))
        return (await self.log.txn(Txn(compare=tuple(compare), success=tuple(puts)))).done.succeeded

    # ------------------------------------------------------------------ running

    def run(self, turns: int) -> None:
        """Random turns with crashes, then calm until everything has ended."""
        ahead_ms = self.rng.choice([-3_000, -500, 0, 900, 3_000])
        makers: dict[str, Any] = {
            "manager-a": self.manager,
            "manager-b": lambda: self.manager(ahead_ms=ahead_ms),
        }
        if self.moving:
            makers["operator"] = self.operator
        makers |= {f"agent-{node}": lambda node=node: self.agent(node) for node in self.nodes}
        for name in self.jobs:
            for copy in "ab":  # a submitter that retries through the other manager
                makers[f"submit-{name}-{copy}"] = lambda name=name: self.submitter(name)
        actors: dict[str, Coroutine[Any, Any, Any]] = {name: make() for name, make in makers.items()}
        for turn in range(turns * 4):
            self.calm = turn >= turns
            if self.calm and self._all_ended():
                break
            self._turn(actors, makers)
        for actor in actors.values():
            actor.close()
        assert self._all_ended(), {name: state.state for name, state in self.seen.items()}

    def _turn(self, actors: dict[str, Coroutine[Any, Any, Any]], makers: dict[str, Any]) -> None:
        name = self.rng.choice(sorted(actors))
        if not self.calm and self.rng.random() < 0.03:
            self.crashes += 1
            actors[name].close()
            actors[name] = makers[name]()
        try:
            actors[name].send(None)
        except StopIteration:
            del actors[name]
        self.log.now_ms += self.rng.choice([0, 1, 5, 20, 100] if self.rng.random() < 0.98 else [2_000, 5_000])

    def _all_ended(self) -> bool:
        return len(self.seen) == len(self.jobs) and all(s.state in FINAL_STATES for s in self.seen.values())


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_two_managers_never_overfill_or_run_twice(first: int) -> None:
    """Goal: DESIGN's promise for two managers. Method: seeds choose who runs, who dies and how time jumps."""
    crashes = expiries = 0
    for seed in range(first, first + 10):
        world = World(seed)
        world.run(turns=1_500)
        crashes += world.crashes
        expiries += world.expiries
    assert crashes > 100, "the schedules must contain crashes"
    assert expiries > 0, "the schedules must contain leases that run out"


@pytest.mark.parametrize("first", range(0, 75, 25))
def test_moves_never_overfill_or_run_twice(first: int) -> None:
    """Goal: drains and moves keep every promise. Method: the same, with an operator who cannot leave it alone."""
    crashes = moved = 0
    for seed in range(first, first + 25):
        world = World(seed, moving=True)
        world.run(turns=1_500)
        crashes += world.crashes
        moved += world.moved
    assert crashes > 100, "the schedules must contain crashes"
    assert moved > 10, "the schedules must contain moves of what runs"
