"""The manager's transactions, each built from a view and guarded by that view's revisions.

Every builder returns one `Txn` whose failure branch reads what it compared, so
that a lost race also brings the newer view. Nothing here decides *whether*:
that is `reconcile`. Committed time is `Compare(TIME)`; no clock is trusted
beyond `SKEW_MS`.
"""

from __future__ import annotations

import msgspec

from dwcp.api.kv import Compare, Put, Range, Relation, Target, Txn
from dwcp.api.rebalance import REBALANCE, Rebalance
from dwcp.api.workloads import (
    FINAL_STATES,
    Allocation,
    NodeStatus,
    Placed,
    Retry,
    Spec,
    State,
    WorkloadState,
    allocation_key,
    node_key,
    spec_key,
    state_key,
)
from dwcp.consensus.core.errors import invariant
from dwcp.control.errors import WorkloadEnded
from dwcp.control.inventory import NodeEntry, WorkloadEntry
from dwcp.control.jobs import demand_of

SKEW_MS = 1_000  # a writer whose clock is further from committed time may not set a lease


def create(spec: Spec) -> Txn:
    """A new workload, pending. Refused when the id exists; the answer then holds the other spec."""
    spec_at, state_at = spec_key(spec.id), state_key(spec.id)
    pending = WorkloadState(state=State.PENDING)
    return Txn(
        compare=(_revision(spec_at, 0), _revision(state_at, 0)),
        success=(Put(spec_at, _json(spec)), Put(state_at, _json(pending))),
        failure=(Range(spec_at), Range(state_at)),
    )


def place(workload: WorkloadEntry, node: NodeEntry, *, now_ms: int, lease_ms: int, policy: str) -> Txn:
    """`pending` to `placed`, and the node's allocation with it.

    The node's own entry is compared too: a drain that comes first wins. A place that a move kept there
    becomes this attempt's; one that it kept elsewhere is swept later.
    """
    demand = demand_of(workload.spec.job)
    invariant(workload.state.state is State.PENDING, f"{workload.id} is placed while {workload.state.state}")
    invariant(node.fits(demand, workload=workload.id), f"{workload.id} does not fit on {node.name}")
    attempt = workload.state.attempt + 1
    state = msgspec.structs.replace(
        workload.state,
        state=State.PLACED,
        attempt=attempt,
        node=node.name,
        lease_deadline_ms=now_ms + lease_ms,
        policy=policy,
        reason="",
        move="",
    )
    return _guarded(
        workload,
        (node,),
        compare=(_revision(node_key(node.name), node.revision), *_near(now_ms)),
        puts=(_state(workload, state), _kept(node, workload, attempt)),
    )


def move(workload: WorkloadEntry, target: NodeEntry) -> Txn:
    """Keeps a place at `target` for the next attempt, and asks the present one's agent to give it up.

    Until that has happened both places are held, so that no node ever holds more than it has. The
    target's own entry is compared too: a drain that comes first wins.
    """
    demand = demand_of(workload.spec.job)
    invariant(workload.leased and not workload.state.move, f"{workload.id} is moved while it may not be")
    invariant(target.fits(demand, workload=workload.id), f"{workload.id} does not fit on {target.name}")
    state = msgspec.structs.replace(workload.state, move=target.name)
    return _guarded(
        workload,
        (target,),
        compare=(_revision(node_key(target.name), target.revision),),
        puts=(_state(workload, state), _kept(target, workload, workload.state.attempt + 1)),
    )


def order(rebalance: Rebalance, *, revision: int) -> Txn:
    """Records an operator's plan, or its end; `revision` is that of the plan it replaces."""
    return Txn(
        compare=(_revision(REBALANCE, revision),),
        success=(Put(REBALANCE, _json(rebalance)),),
        failure=(Range(REBALANCE),),
    )


def expire(workload: WorkloadEntry, node: NodeEntry | None) -> Txn:
    """What becomes of an attempt whose lease has passed in committed time; see `after_lease`.

    `node` is None when the log has no such node any more: then there is no allocation to clear.
    """
    passed = Compare(b"", Target.TIME, Relation.GREATER, workload.state.lease_deadline_ms)
    puts = [_state(workload, after_lease(workload))]
    if node is not None:
        puts.append(Put(allocation_key(node.name), _json(_without(node, workload.id))))
    return _guarded(workload, () if node is None else (node,), compare=(passed,), puts=tuple(puts))


def after_lease(workload: WorkloadEntry) -> WorkloadState:
    """The state after a lease ran out.

    A placed attempt never started, so it may always be placed again. One that
    ran may have had effects: again only where the job allows it.
    """
    state = workload.state
    ended = msgspec.structs.replace(state, node="", lease_deadline_ms=0, move="")
    late = f"attempt {state.attempt} on {state.node} was not renewed before its lease ended"
    if state.cancel:
        return msgspec.structs.replace(ended, state=State.CANCELLED, reason=f"cancelled; {late}")
    if state.state is State.PLACED or workload.spec.job.retry is Retry.SAFE:
        return msgspec.structs.replace(ended, state=State.PENDING, reason=late, move=state.move)
    return msgspec.structs.replace(
        ended, state=State.UNKNOWN, reason=f"{late}; the job says retry: never, so it is not run again"
    )


def cancel(workload: WorkloadEntry) -> Txn:
    """Ends a waiting workload at once; asks the attempt's agent to end a leased one.

    Raises `WorkloadEnded` when there is nothing left to cancel.
    """
    state = workload.state
    if state.state in FINAL_STATES:
        raise WorkloadEnded(f"{workload.id} has ended already: {state.state.value}")
    if state.state is State.PENDING:
        ended = msgspec.structs.replace(
            state, state=State.CANCELLED, cancel=True, move="", reason="cancelled before it was placed"
        )
        return _guarded(workload, (), compare=(), puts=(_state(workload, ended),))
    asked = msgspec.structs.replace(state, cancel=True)
    return _guarded(workload, (), compare=(), puts=(_state(workload, asked),))


def drain(node: NodeEntry, *, status: NodeStatus) -> Txn:
    """No new work for the node, or work again; what may be moved is moved by later transactions."""
    key = node_key(node.name)
    changed = msgspec.structs.replace(node.node, status=status)
    return Txn(
        compare=(_revision(key, node.revision),), success=(Put(key, _json(changed)),), failure=(Range(key),)
    )


def miss_deadline(workload: WorkloadEntry, *, deadline_ms: int) -> Txn:
    """Records that a waiting workload is late; it goes on waiting."""
    late = msgspec.structs.replace(workload.state, deadline_missed=True)
    passed = Compare(b"", Target.TIME, Relation.GREATER, deadline_ms)
    return _guarded(workload, (), compare=(passed,), puts=(_state(workload, late),))


def sweep(workload: WorkloadEntry, node: NodeEntry) -> Txn:
    """Clears an allocation entry that its workload's state no longer backs."""
    return _guarded(
        workload,
        (node,),
        compare=(),
        puts=(Put(allocation_key(node.name), _json(_without(node, workload.id))),),
    )


# --------------------------------------------------------------------------- parts


def _guarded(
    workload: WorkloadEntry,
    nodes: tuple[NodeEntry, ...],
    *,
    compare: tuple[Compare, ...],
    puts: tuple[Put, ...],
) -> Txn:
    """A transaction bound to the workload's state and to the nodes' allocations as they were seen."""
    state_at = state_key(workload.id)
    allocations = [(allocation_key(node.name), node.allocation_revision) for node in nodes]
    return Txn(
        compare=(
            _revision(state_at, workload.revision),
            *(_revision(key, revision) for key, revision in allocations),
            *compare,
        ),
        success=puts,
        failure=(
            Range(state_at),
            *(Range(key) for key, _ in allocations),
            *(Range(node_key(node.name)) for node in nodes),
        ),
    )


def _near(now_ms: int) -> tuple[Compare, Compare]:
    """This writer's clock agrees with committed time, to `SKEW_MS`."""
    return (
        Compare(b"", Target.TIME, Relation.LESS_EQUAL, now_ms + SKEW_MS),
        Compare(b"", Target.TIME, Relation.GREATER_EQUAL, now_ms - SKEW_MS),
    )


def _revision(key: bytes, revision: int) -> Compare:
    return Compare(key, Target.MOD, Relation.EQUAL, revision)


def _state(workload: WorkloadEntry, state: WorkloadState) -> Put:
    return Put(state_key(workload.id), _json(state))


def _kept(node: NodeEntry, workload: WorkloadEntry, attempt: int) -> Put:
    """The node's allocation with this attempt in it, once."""
    entry = Placed(workload=workload.id, attempt=attempt, demand=demand_of(workload.spec.job))
    return Put(
        allocation_key(node.name), _json(Allocation(placed=(*_without(node, workload.id).placed, entry)))
    )


def _without(node: NodeEntry, workload: str) -> Allocation:
    return Allocation(placed=tuple(entry for entry in node.allocation.placed if entry.workload != workload))


def _json(shape: msgspec.Struct) -> bytes:
    return msgspec.json.encode(shape)
