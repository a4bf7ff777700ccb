"""Feasibility: never learned, always enforced.

The mask says which nodes can take a workload and why the others cannot.
`choose` is the only way from scores to a node, so that no score, however
hostile, picks a masked one.
"""

from __future__ import annotations

import numpy as np

from dwcp.allocation.fleet import RESOURCES, Bools, Fleet, Floats, Ints
from dwcp.api.allocator import Mask, NodeState
from dwcp.api.workloads import NodeStatus

INFEASIBLE = -1e9


def feasible(fleet: Fleet, demand: Ints, *, site: str = "") -> Bools:
    """[N]: enough of every resource is free, the node takes work, and the site is the pinned one."""
    enough = (fleet.free >= demand).all(axis=1) if len(fleet.nodes) else np.zeros(0, dtype=np.bool_)
    open_to = np.array([not _closed(node, site) for node in fleet.nodes], dtype=np.bool_)
    return np.asarray(enough & open_to, dtype=np.bool_)


def reasons(fleet: Fleet, demand: Ints, row: int, *, site: str = "") -> tuple[Mask, ...]:
    """Everything that keeps the workload from node `row`; empty exactly where `feasible` is true."""
    free = fleet.free[row]
    short = tuple(
        Mask(reason=name, needed=int(demand[column]), free=max(0, int(free[column])))
        for column, name in enumerate(RESOURCES)
        if free[column] < demand[column]
    )
    return _closed(fleet.nodes[row], site) + short


def choose(scores: Floats, mask: Bools) -> int | None:
    """The feasible row of the highest score, the first of equals; None where no row is feasible.

    A score that is not finite is worth less than any other, and never more
    than a place at the end of the feasible ones.
    """
    if not mask.any():
        return None
    finite = np.where(np.isfinite(scores), scores, -np.inf)
    masked = np.where(mask, np.maximum(finite, INFEASIBLE / 2), INFEASIBLE)
    return int(np.argmax(masked))


def _closed(node: NodeState, site: str) -> tuple[Mask, ...]:
    """Reasons that no amount of free resources changes."""
    found: tuple[Mask, ...] = ()
    if node.status is not NodeStatus.READY:
        detail = "does not answer" if node.status is NodeStatus.DOWN else node.status.value
        found += (Mask(reason="status", detail=detail),)
    if site and node.site != site:
        found += (Mask(reason="site", detail=f"pinned to {site}, this is {node.site}"),)
    return found
