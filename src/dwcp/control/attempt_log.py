"""The transactions of an attempt's agent: each compares the revision that it was decided from.

A failed one reads what it compared, so that losing a race also brings the newer state.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from dwcp.api.kv import Compare, Put, Range, RangeDone, Relation, Target, Txn, TxnDone
from dwcp.api.workloads import (
    FINAL_STATES,
    Allocation,
    Node,
    Output,
    State,
    WorkloadState,
    allocation_key,
    node_key,
    output_key,
    state_key,
)
from dwcp.control.attempt import CLOCK_SKEW_MS_MAX


@dataclass(frozen=True, slots=True)
class Seen:
    """A workload's committed state and the revision of its key; revision 0: there is none."""

    state: WorkloadState | None
    revision: int


@dataclass(frozen=True, slots=True)
class SeenAllocation:
    allocation: Allocation
    revision: int


def _unchanged(key: bytes, revision: int) -> Compare:
    return Compare(key, Target.MOD, Relation.EQUAL, revision)


def _clock_agrees(now_ms: int) -> tuple[Compare, Compare]:
    """Whoever sets a lease deadline must have nearly the time that the replicas agreed on."""
    return (
        Compare(b"", Target.TIME, Relation.LESS_EQUAL, now_ms + CLOCK_SKEW_MS_MAX),
        Compare(b"", Target.TIME, Relation.GREATER_EQUAL, now_ms - CLOCK_SKEW_MS_MAX),
    )


def hold(workload: str, seen: Seen, state: WorkloadState, *, now_ms: int) -> Txn:
    """Start or renew: `state` carries a new lease deadline."""
    key = state_key(workload)
    return Txn(
        compare=(_unchanged(key, seen.revision), *_clock_agrees(now_ms)),
        success=(Put(key, msgspec.json.encode(state)),),
        failure=(Range(key),),
    )


def renewed(state: WorkloadState, *, now_ms: int, lease_ms: int) -> WorkloadState:
    return msgspec.structs.replace(state, lease_deadline_ms=now_ms + lease_ms)


def running(state: WorkloadState, *, now_ms: int, lease_ms: int, limits_enforced: str) -> WorkloadState:
    return msgspec.structs.replace(
        renewed(state, now_ms=now_ms, lease_ms=lease_ms),
        state=State.RUNNING,
        started=True,
        limits_enforced=limits_enforced,
    )


def ended(
    state: WorkloadState,
    to: State,
    *,
    reason: str,
    exit_status: int | None,
    output: Output | None,
    late: bool,
) -> WorkloadState:
    """The state after this attempt. Waiting again, it has no node; ended, it still says where it ran.

    A move goes on where it waits again: the node it names keeps its place.
    """
    again = to is State.PENDING
    return msgspec.structs.replace(
        state,
        state=to,
        node="" if again else state.node,
        move=state.move if again else "",
        moves=state.moves + (again and state.move != ""),
        lease_deadline_ms=0,
        reason=reason,
        exit_status=exit_status,
        output_root=output.root if output is not None and to in (State.DONE, State.FAILED) else "",
        deadline_missed=state.deadline_missed or (late and to in FINAL_STATES),
    )


def end(
    workload: str, seen: Seen, state: WorkloadState, *, node: str, held: SeenAllocation, output: Output | None
) -> Txn:
    """The end of an attempt in one transaction: its state, its output (once), its place on the node."""
    key, allocation_at = state_key(workload), allocation_key(node)
    compare = [_unchanged(key, seen.revision), _unchanged(allocation_at, held.revision)]
    puts = [Put(key, msgspec.json.encode(state))]
    if output is not None and seen.state is not None:
        output_at = output_key(workload, seen.state.attempt)
        compare.append(_unchanged(output_at, 0))
        puts.append(Put(output_at, msgspec.json.encode(output)))
    left = tuple(entry for entry in held.allocation.placed if entry.workload != workload)
    if left != held.allocation.placed:
        puts.append(Put(allocation_at, msgspec.json.encode(Allocation(placed=left))))
    return Txn(compare=tuple(compare), success=tuple(puts), failure=(Range(key), Range(allocation_at)))


def announce(node: Node, known: Node | None, revision: int) -> Txn | None:
    """Write what this machine offers, keeping an operator's drain; None if the log says so already."""
    if known is not None:
        node = msgspec.structs.replace(node, status=known.status)
    if node == known:
        return None
    key = node_key(node.name)
    return Txn(
        compare=(_unchanged(key, revision),),
        success=(Put(key, msgspec.json.encode(node)),),
        failure=(Range(key),),
    )


def read_state(done: RangeDone) -> Seen:
    """Raises `msgspec.MsgspecError` for a value that is no state."""
    if not done.kvs:
        return Seen(None, 0)
    found = done.kvs[0]
    return Seen(msgspec.json.decode(found.value, type=WorkloadState), found.mod_revision)


def read_allocation(done: RangeDone) -> SeenAllocation:
    if not done.kvs:
        return SeenAllocation(Allocation(), 0)
    found = done.kvs[0]
    return SeenAllocation(msgspec.json.decode(found.value, type=Allocation), found.mod_revision)


def seen_by_failure(done: TxnDone) -> Seen | None:
    """The state that a refused transaction read."""
    first = done.results[0] if done.results else None
    return read_state(first) if isinstance(first, RangeDone) else None
