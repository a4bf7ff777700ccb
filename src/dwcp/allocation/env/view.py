"""What a policy may see of one decision, and nothing of the future.

Shapes have the leading dimensions of the environment that made them: [A] decisions in the reference, none in
JAX. N nodes and one column more, the last, for "defer". Everything is float64 (JAX: float32) unless said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dwcp.allocation.env.episode import Array


class View(NamedTuple):
    """The controller of the workload's own site decides; of other sites it knows what it was told."""

    free: Array  # [N, R] as seen; a dead node has none
    capacity: Array  # [N, R]
    demand: Array  # [R]
    mask: Array  # [N + 1] bool: feasible as seen; the last: deferring is allowed
    local: Array  # [N] bool: at the data's site
    wan: Array  # [N] dollars for shipping the data
    energy: Array  # [N] dollars for the predicted run
    late: Array  # [N] share of the waiting budget that is used when it starts there, 0 … 1
    worth: Array  # [] contract value at priority 1, by the predicted run, dollars
    priority: Array  # [] 0 best effort, 1 batch, 2 latency-sensitive
    predicted_s: Array  # []
    slack_s: Array  # [] until the last start
    exit_in_s: Array  # [N] until the node is predicted to be empty
    age_s: Array  # [N] of what is known of the node
    queued: Array  # [] workloads waiting
    last: Array  # [] int: node of the last placement, -1
    coin: Array  # [N] in [0, 1): reproducible noise of this decision, for randomised rules
    row: Array  # [] int: which of the windows side by side; so that tuning tries many candidates in one run


Scores = Callable[[View, Any], Array]
"""A policy: (view, numpy or jax.numpy) -> [N + 1], higher is better; masked columns are ignored."""


def coins(job: Array, now: Array, nodes: Array, xp: Any) -> Array:
    """[..., N] in [0, 1): a hash of workload, time and node, the same in both environments."""
    mixed = (job * 7919 + now * 104729)[..., None].astype(xp.uint32) + nodes.astype(xp.uint32) * xp.uint32(
        2654435761
    )
    for shift, factor in ((16, 0x45D9F3B), (15, 0x846CA68B), (16, 1)):
        mixed = (mixed ^ (mixed >> xp.uint32(shift))) * xp.uint32(factor)
    return (mixed >> xp.uint32(8)) / 2.0**24
