"""The manager's hands for moves: drains and ordered plans, one transaction for each move.

Plans come from the allocator and are judged by this manager's own view; where they do not hold, or none
comes, the same rules are computed here. What was asked for is in the log, so any manager goes on with it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from dwcp.allocation.errors import FleetMalformed, PlanRefused
from dwcp.api.kv import Txn
from dwcp.api.rebalance import (
    BYTES_MAX,
    GIB,
    MOVES_MAX,
    Budget,
    Move,
    Order,
    Plan,
    PlanRequest,
    Rebalance,
    RebalanceView,
    Wish,
)
from dwcp.control import moving, placement
from dwcp.control.errors import Contended, RebalanceRefused, RebalanceUnderWay
from dwcp.control.inventory import Inventory, WorkloadEntry
from dwcp.control.reconcile import MOVES_AT_ONCE
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.manager import rules
from dwcp.services.manager.ports import Committed

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
TRIES = 3


class Planner(Protocol):
    """Proposes moves. Neither raises for anything but a request that cannot be (`FleetMalformed`)."""

    async def plan(self, wanted: PlanRequest) -> Plan:
        """By the allocator; by the same rules here, saying so, where it does not answer."""
        ...

    async def own(self, wanted: PlanRequest, *, because: str) -> Plan:
        """By the rules here."""
        ...


class OwnRules:
    """A planner without an allocator."""

    async def plan(self, wanted: PlanRequest) -> Plan:
        return rules.plan(wanted)

    async def own(self, wanted: PlanRequest, *, because: str) -> Plan:
        return msgspec.structs.replace(rules.plan(wanted), policy=f"greedy (manager's own: {because})")


@dataclass(frozen=True, slots=True)
class MoveLimits:
    """How much may be under way at once, over drains and plans together."""

    at_once: int = MOVES_AT_ONCE
    bytes_at_once: int = 10 * GIB


@dataclass(frozen=True, slots=True)
class Moves:
    """`commit` commits one transaction of a step; `note` tells about a workload, for people."""

    inventory: Inventory
    planner: Planner
    commit: Callable[[str, Txn], Awaitable[Committed]]
    note: Callable[[WorkloadEntry, str], None]
    warn: Callable[[str], None]
    unreachable: Callable[[], frozenset[str]]
    telemetry: Telemetry
    limits: MoveLimits
    told: dict[str, str] = field(default_factory=dict)  # a drained node -> why work stays there, as last told

    # ------------------------------------------------------------------ planning

    async def wish(self, wish: Wish) -> Plan:
        """What would be moved now. Raises `RebalanceRefused`."""
        try:
            return await self._plan(self._request(wish.budget, gain_min_usd=wish.gain_min_usd))
        except FleetMalformed as exc:
            raise RebalanceRefused(str(exc)) from exc

    async def _plan(self, wanted: PlanRequest) -> Plan:
        """A plan that holds by this view: the other side may be wrong, late, or lying."""
        proposed = await self.planner.plan(wanted)
        try:
            judged = rules.judge(wanted, proposed.moves)
        except PlanRefused as exc:
            self.warn(f"the allocator's plan does not hold: {exc}")
            return await self.planner.own(wanted, because="the allocator's plan did not hold")
        if not judged.moves and wanted.leave:
            return await self.planner.own(wanted, because="the allocator proposed nothing")
        return msgspec.structs.replace(judged, policy=proposed.policy, reason=proposed.reason)

    def _request(
        self, budget: Budget, *, leave: tuple[str, ...] = (), gain_min_usd: float = 0.0
    ) -> PlanRequest:
        unreachable = self.unreachable()
        return moving.request(
            self.inventory, unreachable=unreachable, budget=budget, leave=leave, gain_min_usd=gain_min_usd
        )

    # ------------------------------------------------------------------ an operator's plan

    def view(self) -> RebalanceView:
        rebalance = self.inventory.rebalance or Rebalance(id="", moves=(), ended=True)
        return RebalanceView(rebalance, moving.standings(rebalance, self.inventory))

    async def order(self, wanted: Order, *, by: str, now_ms: int) -> RebalanceView:
        """Records the plan; the same id again changes nothing. Raises `RebalanceRefused`, `RebalanceUnderWay`."""
        if not _ID.fullmatch(wanted.id):
            raise RebalanceRefused(f"id: {wanted.id[:40]!r}; use letters, digits and '-', at most 63")
        for _ in range(TRIES):
            known = self.inventory.rebalance
            if known is not None and known.id == wanted.id:
                return self._same(known, wanted)
            if known is not None and not known.ended:
                raise RebalanceUnderWay(f"{known.id} of {known.by} is under way; wait until it has ended")
            moves = self._judged(wanted.moves)
            made = Rebalance(id=wanted.id, moves=moves, by=by, asked_ms=now_ms)
            failpoint("manager.rebalance.before_commit")
            txn = placement.order(made, revision=self.inventory.rebalance_revision)
            committed = await self.commit("rebalance", txn)
            if committed.done.succeeded:
                failpoint("manager.rebalance.after_commit")
                return self.view()
        raise Contended(f"{wanted.id}: another plan was ordered meanwhile; plan again")

    def _same(self, known: Rebalance, wanted: Order) -> RebalanceView:
        if [_place(move) for move in known.moves] != [_place(move) for move in wanted.moves]:
            raise RebalanceRefused(f"{known.id} belongs to another plan already; order under a new id")
        return self.view()

    def _judged(self, moves: tuple[Move, ...]) -> tuple[Move, ...]:
        if not moves:
            raise RebalanceRefused("the plan has no moves, so there is nothing to order")
        try:
            wanted = self._request(Budget(moves_max=MOVES_MAX, bytes_max=BYTES_MAX))
            return rules.judge(wanted, moves, at_a_loss=True).moves
        except (PlanRefused, FleetMalformed) as exc:
            raise RebalanceRefused(f"the plan does not hold any more: {exc}; plan again") from exc

    async def end(self, rebalance: Rebalance) -> bool:
        """Whether the log says now that it is over."""
        if self.inventory.rebalance != rebalance:
            return True
        ended = msgspec.structs.replace(rebalance, ended=True)
        txn = placement.order(ended, revision=self.inventory.rebalance_revision)
        return (await self.commit("rebalance", txn)).done.succeeded

    # ------------------------------------------------------------------ one move

    async def ask(self, move: Move, *, reason: str) -> bool:
        """Reserves the target and asks the attempt's agent, if that still holds; whether it is done."""
        entry, target = self.inventory.workload(move.workload), self.inventory.node(move.target)
        if entry is None or target is None or not moving.movable(entry):
            return False
        if (entry.state.node, entry.state.attempt) != (move.source, move.attempt):
            return False
        if not moving.takes(target, entry, unreachable=self.unreachable()):
            return False
        failpoint("manager.move.before_commit")
        committed = await self.commit("move", placement.move(entry, target))
        if not committed.done.succeeded:
            return False
        failpoint("manager.move.after_commit")
        self.telemetry.count("dwcp_manager_moves_total", reason=reason)
        self.note(entry, f"{reason}: to be moved from {move.source} to {move.target}")
        return True

    async def evacuate(self, node: str) -> bool:
        """Asks for as many moves off the node as may be under way; whether any was made."""
        left = moving.leaving(self.inventory, node)
        running = moving.under_way(self.inventory)
        slots = min(self.limits.at_once - len(running), MOVES_MAX)
        if not left or slots <= 0:
            return False
        free = self.limits.bytes_at_once - sum(moving.data_bytes(entry) for entry in running)
        if not running:  # one that is larger than the whole budget goes alone
            free = max(free, min(moving.data_bytes(entry) for entry in left))
        try:
            plan = await self._plan(self._request(Budget(slots, max(free, 0)), leave=(node,)))
        except FleetMalformed as exc:
            self.warn(f"{node} cannot be drained: {exc}")
            return False
        done = [await self.ask(move, reason="drain") for move in plan.moves]
        self._tell_why(node, left, "" if plan.moves else plan.reason)
        return any(done)

    def _tell_why(self, node: str, left: list[WorkloadEntry], reason: str) -> None:
        """Once for each reason: the same question comes every few seconds."""
        if reason and self.told.get(node) != reason:
            self.warn(f"{node} is drained, and {len(left)} stay for now: {reason}")
            for entry in left:
                self.note(entry, f"drain: it stays on {node} for now: {reason}")
        self.told[node] = reason


def _place(move: Move) -> tuple[str, int, str, str]:
    return (move.workload, move.attempt, move.source, move.target)
