"""Feasibility: never learned, always enforced.

The mask says which nodes can take a workload and why the others cannot.
`choose` is the only way from scores to a node, so that no score, however
hostile, picks a masked one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dwcp.allocation.fleet import RESOURCES, Bools, Fleet, Floats, Ints
from dwcp.api.allocator import Mask, NodeState
from dwcp.api.workloads import NodeStatus

INFEASIBLE = -1e9


def feasible(fleet: Fleet, demand: Ints, *, site: str = "") -> Bools:
    """[N]: enough of every resource is free, the node takes work, and the site is the pinned one."""
    open_to = np.array([not _closed(node, site) for node in fleet.nodes], dtype=np.bool_)
    return np.asarray(enough(fleet.free, demand) & open_to, dtype=np.bool_)


def enough(free: Any, demand: Any) -> Any:
    """[..., N]: every resource of `demand` [..., R] fits into `free` [..., N, R].

    NumPy or JAX arrays (`Any`: JAX is not installed where placements are served); the environments
    and the server have this one rule.
    """
    return (free >= demand[..., None, :]).all(axis=-1)


def choose_rows(scores: Any, mask: Any, xp: Any = np) -> Any:
    """[...]: the unmasked column of the highest score, the first of equals; -1 where none is unmasked.

    `scores` and `mask` are [..., N], of NumPy or, with `xp=jax.numpy`, of JAX. A score that is not finite
    is worth less than any other, and never more than a place at the end of the feasible ones.
    """
    finite = xp.where(xp.isfinite(scores), scores, INFEASIBLE / 2)
    masked = xp.where(mask, xp.maximum(finite, INFEASIBLE / 2), INFEASIBLE)
    return xp.where(mask.any(axis=-1), xp.argmax(masked, axis=-1), -1)


def choose_column(scores: Floats, mask: Bools) -> int:
    """`choose_rows` for one decision: quick where the best score is an ordinary number, the same everywhere."""
    masked = np.where(mask, scores, -np.inf)
    column = int(masked.argmax())
    best = masked[column]
    if INFEASIBLE / 2 < best < np.inf:  # false for NaN, which argmax puts first
        return column
    return int(choose_rows(scores, mask))


def reasons(fleet: Fleet, demand: Ints, row: int, *, site: str = "") -> tuple[Mask, ...]:
    """Everything that keeps the workload from node `row`; empty exactly where `feasible` is true."""
    free = fleet.capacity[row] - fleet.used[row]
    short = tuple(
        Mask(reason=name, needed=int(demand[column]), free=max(0, int(free[column])))
        for column, name in enumerate(RESOURCES)
        if free[column] < demand[column]
    )
    return _closed(fleet.nodes[row], site) + short


def choose(scores: Floats, mask: Bools) -> int | None:
    """`choose_rows` for one workload; None where no row is feasible."""
    row = int(choose_rows(scores, mask)) if len(mask) else -1
    return None if row < 0 else row


def _closed(node: NodeState, site: str) -> tuple[Mask, ...]:
    """Reasons that no amount of free resources changes."""
    found: tuple[Mask, ...] = ()
    if node.status is not NodeStatus.READY:
        detail = "does not answer" if node.status is NodeStatus.DOWN else node.status.value
        found += (Mask(reason="status", detail=detail),)
    if site and node.site != site:
        found += (Mask(reason="site", detail=f"pinned to {site}, this is {node.site}"),)
    return found
