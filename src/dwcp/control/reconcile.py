"""What the control log calls for now: a pure function from a view and a time to decisions.

Decisions are proposals. Executing one twice, late, or beside another manager
is safe, because its transaction compares everything it leaned on.
"""

from __future__ import annotations

from dataclasses import dataclass

from dwcp.api.rebalance import Move, Rebalance
from dwcp.api.workloads import NodeStatus, State
from dwcp.control import moving
from dwcp.control.inventory import LEASED, Inventory, NodeEntry, WorkloadEntry
from dwcp.control.jobs import duration_ms


@dataclass(frozen=True, slots=True)
class Place:
    """Waiting: find it a node."""

    workload: WorkloadEntry


@dataclass(frozen=True, slots=True)
class Expire:
    """Its lease has passed by this clock; the transaction asks committed time."""

    workload: WorkloadEntry


@dataclass(frozen=True, slots=True)
class Cancel:
    """Waiting again after a cancel was asked: end it."""

    workload: WorkloadEntry


@dataclass(frozen=True, slots=True)
class MissDeadline:
    """Still waiting when its deadline passed: record it."""

    workload: WorkloadEntry
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """An allocation entry that no state backs."""

    workload: WorkloadEntry
    node: NodeEntry


@dataclass(frozen=True, slots=True)
class Relocate:
    """A move of the ordered plan whose turn it is."""

    workload: WorkloadEntry
    move: Move


@dataclass(frozen=True, slots=True)
class EndRebalance:
    """Nothing of the ordered plan is left to do."""

    rebalance: Rebalance


@dataclass(frozen=True, slots=True)
class Evacuate:
    """A node is drained and holds work that may be moved."""

    node: NodeEntry


Decision = Place | Expire | Cancel | MissDeadline | Sweep | Relocate | EndRebalance | Evacuate
MOVES_AT_ONCE = 4
PLAN_MS_MAX = 3_600_000  # an agent that keeps a lease and ignores a wish must not keep a plan open for ever


def subject(decision: Decision) -> str:
    """What waits after a failed try: the workload, or the whole."""
    match decision:
        case EndRebalance():
            return "rebalance"
        case Evacuate(node):
            return f"drain {node.name}"
        case _:
            return decision.workload.id


def decide(
    inventory: Inventory,
    *,
    now_ms: int,
    moves_at_once: int = MOVES_AT_ONCE,
    unreachable: frozenset[str] = frozenset(),
) -> list[Decision]:
    """Everything due at `now_ms`: what frees capacity first, then placements by priority and age, then moves."""
    workloads = inventory.active()
    freeing: list[Decision] = [*_sweeps(inventory)]
    freeing += [
        Expire(entry) for entry in workloads if entry.leased and now_ms > entry.state.lease_deadline_ms
    ]
    waiting = [entry for entry in workloads if entry.state.state is State.PENDING]
    freeing += [Cancel(entry) for entry in waiting if entry.state.cancel]
    for entry in waiting:
        deadline = deadline_of(entry)
        if deadline and now_ms > deadline and not entry.state.deadline_missed and not entry.state.cancel:
            freeing.append(MissDeadline(entry, deadline))
    ready = [entry for entry in waiting if not entry.state.cancel]
    ready.sort(key=lambda entry: (-entry.spec.job.priority, entry.spec.submitted_ms, entry.id))
    slots = moves_at_once - len(moving.under_way(inventory))
    moves = _moves(inventory, now_ms=now_ms, slots=slots, unreachable=unreachable)
    return [*freeing, *(Place(entry) for entry in ready), *moves]


def _moves(inventory: Inventory, *, now_ms: int, slots: int, unreachable: frozenset[str]) -> list[Decision]:
    """Drains before an ordered plan: they are waited for."""
    found: list[Decision] = []
    drained = [node for node in inventory.nodes() if node.node.status is NodeStatus.DRAINING]
    if slots > 0:
        found += [Evacuate(node) for node in drained if moving.leaving(inventory, node.name)]
    rebalance = inventory.rebalance
    if rebalance is not None and not rebalance.ended:
        moves, over = moving.due(rebalance, inventory, slots=max(slots, 0), unreachable=unreachable)
        for move in moves:
            entry = inventory.workload(move.workload)
            if entry is not None:
                found.append(Relocate(entry, move))
        if over or now_ms - rebalance.asked_ms > PLAN_MS_MAX:
            found.append(EndRebalance(rebalance))
    return found


def next_due_ms(inventory: Inventory, *, now_ms: int) -> int | None:
    """When `decide` may say more than now, by the clock alone; None: not before something changes."""
    due: list[int] = []
    for entry in inventory.active():
        if entry.leased:
            due.append(entry.state.lease_deadline_ms + 1)
        elif entry.state.state is State.PENDING and not entry.state.deadline_missed:
            due.append(deadline_of(entry) + 1)
    return min((when for when in due if when > now_ms), default=None)


def deadline_of(workload: WorkloadEntry) -> int:
    """Unix ms, or 0 where the job has none."""
    text = workload.spec.job.deadline
    return workload.spec.submitted_ms + duration_ms(text, key="deadline") if text else 0


def busy(inventory: Inventory) -> bool:
    """Whether any workload has not ended, or a plan is under way."""
    planned = inventory.rebalance is not None and not inventory.rebalance.ended
    return planned or bool(inventory.active())


def _sweeps(inventory: Inventory) -> list[Sweep]:
    found = []
    for node in inventory.nodes():
        for placed in node.allocation.placed:
            entry = inventory.workload(placed.workload)
            if entry is not None and entry.revision and not _backs(entry, node.name, placed.attempt):
                found.append(Sweep(entry, node))
    return found


def _backs(workload: WorkloadEntry, node: str, attempt: int) -> bool:
    """Its own attempt is there, or a move keeps the place for the next one."""
    state = workload.state
    if state.move == node and attempt == state.attempt + 1:
        return state.state in LEASED or state.state is State.PENDING
    return state.state in LEASED and state.node == node and state.attempt == attempt
