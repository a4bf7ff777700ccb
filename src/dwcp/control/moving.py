"""Moves of placed work: who may be moved, how far each move is, and what comes next. Pure.

A move is asked for by one transaction: the target's place is taken for the next attempt, and the state
names the target. The attempt's own agent then gives it up, as it would after a cancellation, and only then
is the workload placed again. A move needs no lease to run out, and where an agent is lost its lease decides.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from dwcp.api.allocator import NodeState
from dwcp.api.rebalance import WAITING_MAX, Budget, Move, PlanRequest, Rebalance, Standing, Waiting, Work
from dwcp.api.workloads import NodeStatus, Retry, State
from dwcp.control.inventory import Inventory, NodeEntry, WorkloadEntry
from dwcp.control.jobs import demand_of


def movable(entry: WorkloadEntry) -> bool:
    """What never started may go anywhere; what runs only where its job allows another run."""
    state = entry.state
    if not entry.leased or state.cancel or state.move:
        return False
    return state.state is State.PLACED or entry.spec.job.retry is Retry.SAFE


def under_way(inventory: Inventory) -> list[WorkloadEntry]:
    """Asked to move and not placed again yet."""
    return [entry for entry in inventory.active() if entry.state.move]


def takes(target: NodeEntry | None, entry: WorkloadEntry, *, unreachable: frozenset[str]) -> bool:
    """Whether this node would take the workload beside what is placed and reserved there."""
    if target is None or target.node.status is not NodeStatus.READY or target.name in unreachable:
        return False
    right_site = entry.spec.job.place.site in ("", target.node.site)
    elsewhere = target.name != entry.state.node
    return right_site and elsewhere and target.fits(demand_of(entry.spec.job), workload=entry.id)


def standing(move: Move, inventory: Inventory) -> Standing:
    """How far it is, by what the log holds."""
    entry = inventory.workload(move.workload)
    if entry is None:
        return Standing.STAYED
    if entry.state.attempt > move.attempt:
        return Standing.MOVED
    if entry.state.move == move.target and (entry.leased or entry.state.state is State.PENDING):
        return Standing.UNDER_WAY
    here = (entry.state.node, entry.state.attempt) == (move.source, move.attempt)
    return Standing.WAITING if here and movable(entry) else Standing.STAYED


def standings(rebalance: Rebalance, inventory: Inventory) -> tuple[Standing, ...]:
    """Of a plan that is over, what still waits stayed."""
    found = [standing(move, inventory) for move in rebalance.moves]
    if rebalance.ended:
        found = [Standing.STAYED if each is Standing.WAITING else each for each in found]
    return tuple(found)


def due(
    rebalance: Rebalance, inventory: Inventory, *, slots: int, unreachable: frozenset[str]
) -> tuple[list[Move], bool]:
    """The moves to ask for now, and whether the plan is over.

    In the plan's order: a target without room is waited for while earlier moves may still make it,
    and passed over when nothing is under way any more.
    """
    found: list[Move] = []
    states = [(move, standing(move, inventory)) for move in rebalance.moves]
    busy = any(state is Standing.UNDER_WAY for _, state in states)
    for move, state in states:
        if state is not Standing.WAITING:
            continue
        if len(found) >= slots:
            return found, False
        entry, target = inventory.workload(move.workload), inventory.node(move.target)
        if entry is not None and takes(target, entry, unreachable=unreachable):
            found.append(move)
        elif busy or found:
            return found, False
    return found, not found and not busy


def leaving(inventory: Inventory, node: str) -> list[WorkloadEntry]:
    """What a drain of this node still has to move."""
    return [entry for entry in inventory.active() if entry.state.node == node and movable(entry)]


def node_states(nodes: Iterable[NodeEntry], unreachable: Container[str]) -> tuple[NodeState, ...]:
    """The nodes as a placer is told of them: what cannot be reached is down."""
    return tuple(
        NodeState(
            name=entry.name,
            site=entry.node.site,
            capacity=entry.node.capacity,
            allocation=entry.allocation,
            status=NodeStatus.DOWN if entry.name in unreachable else entry.node.status,
        )
        for entry in nodes
    )


def request(
    inventory: Inventory,
    *,
    unreachable: frozenset[str],
    budget: Budget,
    leave: tuple[str, ...] = (),
    gain_min_usd: float = 0.0,
) -> PlanRequest:
    """What a plan is made from, and judged by: this view."""
    nodes = inventory.nodes()
    waiting = [entry for entry in inventory.active() if entry.state.state is State.PENDING]
    return PlanRequest(
        nodes=node_states(nodes, unreachable),
        work=tuple(_work(inventory, [node for node in nodes if not leave or node.name in leave])),
        waiting=tuple(
            Waiting(entry.id, demand_of(entry.spec.job), entry.spec.job.priority, entry.spec.job.place.site)
            for entry in sorted(waiting, key=lambda entry: (-entry.spec.job.priority, entry.id))[:WAITING_MAX]
            if not entry.state.move and not entry.state.cancel
        ),
        leave=leave,
        budget=budget,
        gain_min_usd=gain_min_usd,
    )


def _work(inventory: Inventory, nodes: Iterable[NodeEntry]) -> Iterable[Work]:
    for node in nodes:
        for placed in node.allocation.placed:
            entry = inventory.workload(placed.workload)
            if entry is None or not movable(entry):
                continue
            if (entry.state.node, entry.state.attempt) == (node.name, placed.attempt):
                yield _listed(entry)


def _listed(entry: WorkloadEntry) -> Work:
    job, payload = entry.spec.job, entry.spec.payload
    return Work(
        workload=entry.id,
        node=entry.state.node,
        attempt=entry.state.attempt,
        restart=entry.state.state is State.RUNNING,
        priority=job.priority,
        site=job.place.site,
        data_site=payload.site if payload else "",
        data_bytes=payload.bytes if payload else 0,
    )


def data_bytes(entry: WorkloadEntry) -> int:
    """What has to be fetched again where it goes."""
    return entry.spec.payload.bytes if entry.spec.payload else 0
