"""How well the fleet is used, from what the control log and the services' counters say. Pure.

What a source did not tell is None, in every figure: a gap is never a zero. Counters count since the start of
the process that shows them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dwcp.allocation.fleet import RESOURCES
from dwcp.allocation.rebalance import SHAPE_QUANTILE, stranded
from dwcp.api.manager import NodeView, Reach, WorkloadView
from dwcp.api.workloads import Capacity, NodeStatus, Shape, State

Samples = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]  # metric -> (labels, value)

LEARNED = "maddpg-placer"  # the policy's name where a model decided
ACTIVE = frozenset({State.PENDING, State.PLACED, State.RUNNING})
HELD = frozenset({State.PLACED, State.RUNNING})


class Use(Shape, frozen=True):
    """One resource at one site. `used` is what commands really use, of CPU and memory, where all agents said it."""

    site: str
    resource: str
    capacity: int
    allocated: int
    used: int | None

    @property
    def share(self) -> float | None:
        return self.allocated / self.capacity if self.capacity else None


class NodeUse(Shape, frozen=True):
    """One node, by resource: what it has, what is placed there, what commands really use (None: not told)."""

    name: str
    site: str
    status: str
    capacity: dict[str, int]
    allocated: dict[str, int]
    used: dict[str, int | None]
    placed: dict[str, int]  # thousandths of a core, by workload


class Stranding(Shape, frozen=True):
    """Cores of a site that are free and of no use to the 75th percentile demand; None: nothing to judge by."""

    site: str
    free_cores: float
    stranded_cores: float | None


class Tenant(Shape, frozen=True):
    """One submitter: cores that its unfinished work asks for, and those that are placed."""

    name: str
    workloads: int
    requested_cores: float
    allocated_cores: float


class Fleet(Shape, frozen=True):
    """What the manager knows."""

    uses: tuple[Use, ...]
    nodes: tuple[NodeUse, ...]
    stranding: tuple[Stranding, ...]
    tenants: tuple[Tenant, ...]
    fairness: float | None  # Jain's index of what tenants got of what they asked for
    overfull: tuple[str, ...]
    silent: tuple[str, ...]  # nodes that do not answer
    draining: tuple[str, ...]
    waiting: int
    moving: int
    late: int
    with_deadline: int
    placed_by: dict[str, int]  # newest placements by policy, from the log


class Decisions(Shape, frozen=True):
    """What the allocator counted."""

    by_policy: dict[str, int]
    model_share: float | None
    fallbacks: dict[str, int] | None
    infeasible: dict[str, int]
    regret_usd: float | None  # mean, of the model's choices against the rule's
    agreement: float | None


class Commits(Shape, frozen=True):
    """What the manager counted."""

    conflicts: dict[str, int]
    refused: dict[str, int]
    moves: dict[str, int]


def fleet(nodes: Iterable[NodeView], workloads: Iterable[WorkloadView]) -> Fleet:
    """From the manager's own lists."""
    known, listed = list(nodes), list(workloads)
    tenants = _tenants(listed)
    return Fleet(
        uses=tuple(_uses(known)),
        nodes=tuple(_node(view) for view in sorted(known, key=lambda view: view.node.name)),
        stranding=tuple(_stranding(known, listed)),
        tenants=tenants,
        fairness=jain(
            [each.allocated_cores / each.requested_cores for each in tenants if each.requested_cores]
        ),
        overfull=tuple(view.node.name for view in known if _is_overfull(view)),
        silent=tuple(view.node.name for view in known if view.reach is not Reach.REACHABLE),
        draining=tuple(view.node.name for view in known if view.node.status is NodeStatus.DRAINING),
        waiting=sum(view.state.state is State.PENDING for view in listed),
        moving=sum(bool(view.state.move) for view in listed if view.state.state in ACTIVE),
        late=sum(view.state.deadline_missed for view in listed if view.job.deadline),
        with_deadline=sum(bool(view.job.deadline) for view in listed),
        placed_by=dict(sorted(Counter(view.state.policy for view in listed if view.state.policy).items())),
    )


def decisions(samples: Samples) -> Decisions:
    """From the allocator's `/metrics`; a metric that it does not show is a gap."""
    by_policy = summed(samples, "dwcp_maddpg_optimization_total", "policy") or {}
    total = sum(by_policy.values())
    learned = by_policy.get(LEARNED, 0)
    judged = learned > 0  # a gauge shows 0 before its first pair: that is no result
    return Decisions(
        by_policy={name: count for name, count in by_policy.items() if count},
        model_share=learned / total if total else None,
        fallbacks=summed(samples, "dwcp_maddpg_fallback_total", "reason"),
        infeasible=summed(samples, "dwcp_maddpg_optimization_infeasible_total", "resource") or {},
        regret_usd=_gauge(samples, "dwcp_maddpg_shadow_regret_usd") if judged else None,
        agreement=_gauge(samples, "dwcp_maddpg_shadow_agreement_ratio") if judged else None,
    )


def commits(samples: Samples) -> Commits:
    """From the manager's `/metrics`: nothing counted yet is an empty table there."""
    return Commits(
        conflicts=summed(samples, "dwcp_manager_conflicts_total", "step") or {},
        refused=summed(samples, "dwcp_manager_refused_total", "reason") or {},
        moves=summed(samples, "dwcp_manager_moves_total", "reason") or {},
    )


def wan_bytes(samples: Samples, *, direction: str) -> int | None:
    """Compressed bytes that one agent sent or received; None where it does not count them."""
    found = summed(samples, "dwcp_ship_wire_bytes_total", "direction")
    return None if found is None else found.get(direction, 0)


def summed(samples: Samples, metric: str, label: str) -> dict[str, int] | None:
    """A counter's values by one label; None where the metric is not there."""
    if metric not in samples:
        return None
    found: Counter[str] = Counter()
    for labels, value in samples[metric]:
        found[labels.get(label, "")] += int(value)
    return dict(sorted(found.items()))


def jain(shares: Sequence[float]) -> float | None:
    """Jain's fairness index, 1/n … 1; None for nobody, or where nobody got anything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


def _gauge(samples: Samples, metric: str) -> float | None:
    found = samples.get(metric, ())
    return found[0][1] if found else None


def _tenants(workloads: Sequence[WorkloadView]) -> tuple[Tenant, ...]:
    names = sorted({view.submitted_by for view in workloads if view.state.state in ACTIVE})
    return tuple(_tenant(name, [view for view in workloads if view.submitted_by == name]) for name in names)


def _tenant(name: str, workloads: Sequence[WorkloadView]) -> Tenant:
    active = [view for view in workloads if view.state.state in ACTIVE]
    return Tenant(
        name=name,
        workloads=len(active),
        requested_cores=round(sum(view.job.demand.cpu for view in active), 3),
        allocated_cores=round(sum(view.job.demand.cpu for view in active if view.state.state in HELD), 3),
    )


def _used(view: NodeView) -> list[int]:
    return [sum(getattr(entry.demand, name) for entry in view.allocation.placed) for name in RESOURCES]


def _is_overfull(view: NodeView) -> bool:
    pairs = zip(RESOURCES, _used(view), strict=True)
    return any(used > getattr(view.node.capacity, name) for name, used in pairs)


def _uses(nodes: Sequence[NodeView]) -> Iterable[Use]:
    for site in sorted({view.node.site for view in nodes}):
        own = [view for view in nodes if view.node.site == site]
        for column, name in enumerate(RESOURCES):
            capacity = sum(getattr(view.node.capacity, name) for view in own)
            yield Use(site, name, capacity, sum(_used(view)[column] for view in own), _really(own, name))


def _node(view: NodeView) -> NodeUse:
    return NodeUse(
        name=view.node.name,
        site=view.node.site,
        status=view.node.status.value,
        capacity=dict(zip(RESOURCES, _amounts(view.node.capacity), strict=True)),
        allocated=dict(zip(RESOURCES, _used(view), strict=True)),
        used={name: _really((view,), name) for name in RESOURCES},
        placed={entry.workload: entry.demand.cpu_milli for entry in view.allocation.placed},
    )


def _really(nodes: Sequence[NodeView], resource: str) -> int | None:
    """Of a whole site; None where one of its agents did not say, or nobody measures that resource."""
    told = [getattr(view.used, resource, None) for view in nodes]
    return None if None in told else sum(one for one in told if one is not None)


def _stranding(nodes: Sequence[NodeView], workloads: Sequence[WorkloadView]) -> Iterable[Stranding]:
    """By what runs and what waits now."""
    demands = [_amounts(entry.demand) for view in nodes for entry in view.allocation.placed]
    demands += [_waiting(view) for view in workloads if view.state.state is State.PENDING]
    shape = np.percentile(demands, SHAPE_QUANTILE, axis=0, method="nearest") if demands else None
    for site in sorted({view.node.site for view in nodes}):
        own = [view for view in nodes if view.node.site == site and view.node.status is NodeStatus.READY]
        free = np.array(
            [np.maximum(np.array(_amounts(view.node.capacity)) - _used(view), 0) for view in own],
            dtype=np.int64,
        ).reshape(len(own), len(RESOURCES))
        lost = None if shape is None else float(stranded(free, np.asarray(shape, dtype=np.int64)).sum())
        yield Stranding(site, float(free[:, 0].sum()) / 1000.0, lost)


def _amounts(amount: Capacity) -> list[int]:
    return [getattr(amount, name) for name in RESOURCES]


def _waiting(view: WorkloadView) -> list[int]:
    demand = view.job.demand
    cpu, link = round(demand.cpu * 1000), int(-(-demand.bandwidth_mbps // 1))
    return [cpu, demand.memory_mib, demand.storage_mib, link]
