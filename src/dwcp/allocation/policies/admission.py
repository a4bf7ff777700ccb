"""Who waits although there is room: products of facts about a workload and its fleet, each with a weight.

A full fleet earns more with workloads whose core-hours are worth more, and a fleet of bursts keeps room for them. The
linear scorer's own features of waiting cannot say that: what a core-hour is worth is a matter of kind and length, and
what it may cost one of how full the fleet is. Weights are searched on whole windows (`learn.search`), since a refusal
pays hours later, and are in units of the scorer that they belong to. Allocation notes §1.3.

Leading dimensions are free; everything but `View`'s own arrays is [...].
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from dwcp.allocation.env.episode import Array
from dwcp.allocation.env.view import Scores, View
from dwcp.allocation.fleet import Floats
from dwcp.allocation.policies.linear import DEFER_FEATURES, FEATURE_MAX, defer_features
from dwcp.allocation.policies.rules import filled

KINDS = 3  # all workloads, best effort, latency-sensitive
REASONS = 10  # per kind, see `products`
SIZE = KINDS * REASONS
DAY = math.log1p(24 * 60) / 8.0  # `length` from which on a contract's value stops growing
_SLACK, _FULL = DEFER_FEATURES.index("defer-slack"), DEFER_FEATURES.index("defer-full")


class Facts(NamedTuple):
    """Of one decision. `tight` and `fits` are means over nodes, so that fleets of any size compare."""

    best_effort: Array  # 1 where it is
    sensitive: Array
    length: Array  # `log_predicted`
    worth: Array  # `log_worth`
    slack: Array  # as in `linear.defer_features`
    full: Array  # as there
    tight: Array  # how full the fullest resource of a node would be
    fits: Array  # which share of the nodes has room


def log_predicted(view: View, xp: Any) -> Array:
    return xp.log1p(view.predicted_s / 60.0) / 8.0


def log_worth(view: View, xp: Any) -> Array:
    return xp.log1p(xp.maximum(view.worth, 0.0) * 10.0) / 3.0


def facts(view: View, xp: Any) -> Facts:
    present = view.capacity[..., 0] > 0
    count = xp.maximum(present.sum(-1), 1.0)
    fullest = xp.clip(filled(view, xp).max(-1), -FEATURE_MAX, FEATURE_MAX)
    waiting = defer_features(view, xp)
    return Facts(
        best_effort=(view.priority == 0) * 1.0,
        sensitive=(view.priority == 2) * 1.0,
        length=log_predicted(view, xp),
        worth=log_worth(view, xp),
        slack=waiting[..., _SLACK],
        full=waiting[..., _FULL],
        tight=(fullest * present).sum(-1) / count,
        fits=(view.mask[..., :-1] & present).sum(-1) / count,
    )


def products(told: Facts, xp: Any) -> Array:
    """[..., SIZE] what speaks for waiting or against it, per kind of workload.

    The worth of a core-hour is the kind's price up to a day and falls with the length from there on: kind, `beyond` and
    their products with how full the fleet is let a full fleet ask for a higher worth.
    """
    one = xp.ones_like(told.length)
    beyond = xp.maximum(told.length - DAY, 0.0) * 4.0
    said = [one, told.length, told.full, beyond, told.worth, told.slack, told.tight, told.fits]
    said += [told.length * told.full, beyond * told.full]
    kinds = xp.stack([one, told.best_effort, told.sensitive], -1)
    found = kinds[..., :, None] * xp.stack(said, -1)[..., None, :]
    return found.reshape(*found.shape[:-2], SIZE)


def admitting(scorer: Scores, weights: Floats) -> Scores:
    """`scorer` with `weights` [SIZE] of the products added to its score of waiting. ValueError: they are others."""
    if weights.shape != (SIZE,) or not np.isfinite(weights).all():
        raise ValueError(f"weights of waiting: {SIZE} finite numbers are needed, got shape {weights.shape}")
    if not weights.any():
        return scorer

    def scores(view: View, xp: Any) -> Array:
        waits = products(facts(view, xp), xp) @ xp.asarray(weights)
        bids = scorer(view, xp)
        return xp.concatenate([bids[..., :-1], bids[..., -1:] + waits[..., None]], -1)

    return scores
