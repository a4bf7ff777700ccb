"""A linear scorer over named features, and the features themselves, which every learned policy shares.

The cheap rival that a learned policy has to beat: tuned by the cross-entropy method with as many environment
steps as any other rule (`tuning`). Features are ratios, so that any number of nodes and any sizes will do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dwcp.allocation.env.episode import Array
from dwcp.allocation.env.view import Scores, View
from dwcp.allocation.fleet import Floats
from dwcp.allocation.policies.rules import WORTH_FLOOR, filled

FEATURES = (
    "filled-cpu", "filled-memory", "filled-storage", "filled-bandwidth", "filled-max", "filled-l2", "unbalanced",
    "demand-cpu", "size", "local", "wan", "energy", "late", "extends", "empty", "age",
)  # fmt: skip
FEATURE_MAX = 8.0  # what is further out is as good as there
DEFER_FEATURES = ("defer", "defer-slack", "defer-queue", "defer-priority", "defer-full", "defer-reserve")


def features(view: View, xp: Any) -> Array:
    """[..., N, F] in the order of `FEATURES`; roughly in −2 … 4, and cut at ±`FEATURE_MAX`."""
    after = filled(view, xp)
    capacity = xp.maximum(view.capacity[..., 0], 1.0)
    worth = xp.maximum(view.worth, WORTH_FLOOR)[..., None]
    extends = xp.log1p(xp.maximum(view.predicted_s[..., None] - view.exit_in_s, 0.0) / 600.0)
    columns = [
        *(after[..., resource] for resource in range(4)),
        after.max(-1),
        ((1.0 - after) ** 2).mean(-1),
        after.std(-1),
        view.demand[..., None, 0] / capacity,
        capacity / xp.maximum(capacity.max(-1), 1.0)[..., None],
        view.local * 1.0,
        xp.log1p(view.wan / worth),
        xp.log1p(view.energy / worth * 10.0),
        view.late * (view.priority[..., None] + 1.0) / 3.0,
        extends / 4.0,
        (view.free[..., 0] >= capacity) * 1.0,
        view.age_s / 600.0,
    ]
    return xp.clip(xp.stack(columns, -1), -FEATURE_MAX, FEATURE_MAX)


def defer_features(view: View, xp: Any) -> Array:
    """[..., D] in the order of `DEFER_FEATURES`."""
    capacity = xp.maximum(view.capacity[..., 0].sum(-1), 1.0)
    full = 1.0 - view.free[..., 0].sum(-1) / capacity
    slack = xp.log1p(xp.maximum(view.slack_s, 0.0) / 60.0) / 5.0
    one = xp.ones_like(slack)
    low = (2 - view.priority) * one / 2.0
    queue = xp.log1p(view.queued * one) / 5.0
    return xp.stack([one, slack, queue, view.priority * one / 2.0, full, full * low], -1)


WIDTH = len(FEATURES) + len(DEFER_FEATURES)


def linear(weights: Floats) -> Scores:
    """`weights` [WIDTH]: the node's features, then those of deferring."""
    if weights.shape != (WIDTH,) or not np.isfinite(weights).all():
        raise ValueError(f"weights: {WIDTH} finite numbers are needed, got shape {weights.shape}")
    node, defer = weights[: len(FEATURES)], weights[len(FEATURES) :]

    def scores(view: View, xp: Any) -> Array:
        bids = features(view, xp) @ xp.asarray(node)
        waits = defer_features(view, xp) @ xp.asarray(defer)
        return xp.concatenate([bids, waits[..., None]], -1)

    return scores


def linears(weights: Floats, windows: int) -> Scores:
    """`weights` [K, WIDTH] side by side: window w of a run goes by row w // windows. NumPy only."""

    def scores(view: View, xp: Any) -> Array:
        own = weights[view.row // windows]
        bids = (features(view, xp) @ own[:, : len(FEATURES), None])[..., 0]
        waits = (defer_features(view, xp) * own[:, len(FEATURES) :]).sum(-1)
        return xp.concatenate([bids, waits[:, None]], -1)

    return scores


def start() -> Floats:
    """The hand-written rule as weights: balance, minus the prices, and a reserve for higher priorities.

    The reserve defers best effort above three quarters of the CPU in use, batch above seven eighths.
    """
    named = {"unbalanced": -1.0, "wan": -2.0, "energy": -1.0, "late": -2.0, "filled-l2": -0.3}
    named |= {"defer": -16.5, "defer-full": 20.0, "defer-priority": -5.0}
    return np.array([named.get(name, 0.0) for name in (*FEATURES, *DEFER_FEATURES)])
