"""What the control log calls for now: a pure function from a view and a time to decisions.

Decisions are proposals. Executing one twice, late, or beside another manager
is safe, because its transaction compares everything it leaned on.
"""

from __future__ import annotations

from dataclasses import dataclass

from dwcp.api.workloads import State
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


Decision = Place | Expire | Cancel | MissDeadline | Sweep


def decide(inventory: Inventory, *, now_ms: int) -> list[Decision]:
    """Everything due at `now_ms`: what frees capacity first, then placements by priority and age."""
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
    return [*freeing, *(Place(entry) for entry in ready)]


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
    """Whether any workload has not ended."""
    return bool(inventory.active())


def _sweeps(inventory: Inventory) -> list[Sweep]:
    found = []
    for node in inventory.nodes():
        for placed in node.allocation.placed:
            entry = inventory.workload(placed.workload)
            if entry is not None and entry.revision and not _backs(entry, node.name, placed.attempt):
                found.append(Sweep(entry, node))
    return found


def _backs(workload: WorkloadEntry, node: str, attempt: int) -> bool:
    state = workload.state
    return state.state in LEASED and state.node == node and state.attempt == attempt
