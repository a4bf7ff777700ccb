"""The learned placer's forward pass, one text for NumPy (serving, measuring) and JAX (training).

Agents are sites that share one network: a node's own score and its site's bid add up to a residual on a tuned rule,
so that a network of zeros is the rule itself. A linear scorer below it may have searched weights of who waits, `admit`
(`admission`). Allocation notes §1.1 to §1.3 and §2.2. A site is
recognised by the offer it makes for this workload (where the data is, what shipping costs, when it would start): sites
with equal offers bid as one. Feasibility is not decided here.

Dimensions: N nodes, F = len(NODE), C = len(CONTEXT), H hidden; leading dimensions are free. float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dwcp.allocation.env.episode import Array
from dwcp.allocation.env.view import Scores, View
from dwcp.allocation.fleet import Floats
from dwcp.allocation.policies import admission
from dwcp.allocation.policies.linear import (
    DEFER_FEATURES,
    FEATURE_MAX,
    FEATURES,
    WIDTH,
    defer_features,
    features,
    linear,
)
from dwcp.allocation.policies.rules import RULES, Knobs, policy
from dwcp.models import artefact

NAME = "maddpg-placer"
NODE = (*FEATURES, "gap", "feasible", "present")
CONTEXT = (
    *DEFER_FEATURES, "defer-gap", "defer-allowed", "best-effort", "batch", "sensitive", "log-predicted", "log-worth",
    "share",
)  # fmt: skip
HIDDEN = 64
GAP_MAX = 6.0  # a node that the rule likes least is this far below its favourite, in logits
REACH = 4.0  # the residual's range: enough to move any node past the favourite
PAIRWISE_NODES_MAX = 64  # above, offers are grouped by sorting instead of by comparing all pairs
_OFFER = [NODE.index(name) for name in ("local", "wan", "late")]
_FEASIBLE, _PRESENT, _GAP = (NODE.index(name) for name in ("feasible", "present", "gap"))
_DEFER_GAP = CONTEXT.index("defer-gap")
_DEFER_ALLOWED = CONTEXT.index("defer-allowed")
RULE_NAMES = tuple(sorted(RULES))
SCHEMA = artefact.schema_of(
    (*NODE, *CONTEXT, *RULE_NAMES, f"gap {GAP_MAX}", f"reach {REACH}", f"admit below {admission.SIZE}")
)

Weights = Mapping[str, Array]


class Inputs(NamedTuple):
    """What the network sees of one decision."""

    nodes: Array  # [..., N, F]
    context: Array  # [..., C]


class Heads(NamedTuple):
    """What the shared trunk says."""

    columns: Array  # [..., N + 1] one number per node, and one for deferring
    whole: Array  # [..., H] the decision as a whole, for a value


def base_weights(rule: str, knobs: Knobs, *, sharpness: float) -> dict[str, Array]:
    """A tuned rule as arrays, so that the model's file holds all of it. ValueError: no such rule."""
    if rule not in RULES:
        raise ValueError(f"rule {rule[:40]!r}; rules: {', '.join(RULE_NAMES)}")
    picked = np.array([name == rule for name in RULE_NAMES], dtype=np.float32)
    turned = np.array([knobs.money, knobs.reserve, knobs.headroom], dtype=np.float32)
    return {"base.rule": picked, "base.knobs": turned, "base.sharpness": _scalar(sharpness)}


def base_linear(weights: Floats, *, sharpness: float, admit: Floats | None = None) -> dict[str, Array]:
    """The same for a tuned linear scorer; `admit` [admission.SIZE] in its own units."""
    waits = np.zeros(admission.SIZE) if admit is None else admit
    return {
        "base.linear": np.asarray(weights, dtype=np.float32),
        "base.admit": np.asarray(waits, dtype=np.float32),
        "base.sharpness": _scalar(sharpness),
    }


def base_policy(weights: Weights) -> Scores:
    """The rule that the residual is added to. ValueError: the arrays name none."""
    if "base.linear" in weights:
        own, admit = (np.asarray(weights[f"base.{name}"], dtype=np.float64) for name in ("linear", "admit"))
        return admission.admitting(linear(own), admit)
    if "base.rule" not in weights or "base.knobs" not in weights:
        raise ValueError("the model names no base rule")
    picked = np.asarray(weights["base.rule"])
    if picked.shape != (len(RULE_NAMES),) or picked.sum() != 1.0:
        raise ValueError("the model's base rule is none that this program knows")
    money, reserve, headroom = (float(knob) for knob in np.asarray(weights["base.knobs"]))
    knobs = Knobs(money=money, reserve=reserve, headroom=headroom)
    return policy(RULES[RULE_NAMES[int(picked.argmax())]], knobs)


def observe(view: View, base: Array, sharpness: Array, xp: Any) -> Inputs:
    """Features, and how far below its favourite the rule (`base` [..., N + 1]) puts each column."""
    known = xp.where(xp.isfinite(base), base, -1e30)
    best = xp.where(view.mask, known, -1e30).max(-1)
    gap = xp.clip((best[..., None] - known) * sharpness, 0.0, GAP_MAX)
    present = view.capacity[..., 0] > 0
    nodes = xp.concatenate(
        [
            features(view, xp),
            xp.stack([gap[..., :-1], view.mask[..., :-1] & present, present * 1.0], -1),
        ],
        -1,
    )
    nodes = xp.where(present[..., None], xp.clip(nodes, -FEATURE_MAX, FEATURE_MAX), 0.0)
    one = xp.ones_like(view.predicted_s)
    free = xp.maximum((view.free[..., 0] * view.mask[..., :-1]).sum(-1), 1.0)
    more = [
        gap[..., -1],
        view.mask[..., -1] * one,
        *((view.priority == priority) * one for priority in range(3)),
        admission.log_predicted(view, xp),
        admission.log_worth(view, xp),
        xp.minimum(view.demand[..., 0] / free, 1.0),
    ]
    context = xp.concatenate([defer_features(view, xp), xp.stack(more, -1)], -1)
    context = xp.clip(context, -FEATURE_MAX, FEATURE_MAX)
    return Inputs(nodes.astype(xp.float32), context.astype(xp.float32))


def mask_of(inputs: Inputs, xp: Any) -> Array:
    """[..., N + 1] bool: the mask that was observed."""
    defer = inputs.context[..., _DEFER_ALLOWED:][..., :1]
    return xp.concatenate([inputs.nodes[..., _FEASIBLE], defer], -1) > 0.5


def trunk(weights: Weights, inputs: Inputs, xp: Any) -> Heads:
    """Per node an embedding, pooled over the feasible and over all; then node score, site bid and defer head."""
    nodes, context = inputs
    feasible, present = nodes[..., _FEASIBLE], nodes[..., _PRESENT]
    first = nodes @ weights["in.nodes"] + (context @ weights["in.context"] + weights["in.bias"])[..., None, :]
    embedded = _relu(_relu(first, xp) @ weights["mid"] + weights["mid.bias"], xp)
    pooled = xp.concatenate([_mean(embedded, feasible, xp), _mean(embedded, present, xp), context], -1)
    whole = _relu(pooled @ weights["pool"] + weights["pool.bias"], xp)
    node = (
        embedded @ weights["node.in"] + (whole @ weights["node.whole"] + weights["node.bias"])[..., None, :]
    )
    offers = _by_offer(embedded, nodes, xp)
    site = offers @ weights["site.in"] + (whole @ weights["site.whole"] + weights["site.bias"])[..., None, :]
    scores = _relu(node, xp) @ weights["node.out"] + _relu(site, xp) @ weights["site.out"]
    waits = _relu(whole @ weights["defer.in"] + weights["defer.bias"], xp) @ weights["defer.out"]
    shift = weights["out.bias"]
    columns = xp.concatenate([scores[..., 0] + shift[0], waits + shift[1]], -1)
    return Heads(columns, whole)


def residual(weights: Weights, inputs: Inputs, xp: Any) -> Array:
    """[..., N + 1] in −REACH … REACH: what was learned on top of the rule."""
    return REACH * xp.tanh(trunk(weights, inputs, xp).columns)


def logits(weights: Weights, inputs: Inputs, xp: Any) -> Array:
    """[..., N + 1] bids, not yet masked."""
    gap = xp.concatenate([inputs.nodes[..., _GAP], inputs.context[..., _DEFER_GAP : _DEFER_GAP + 1]], -1)
    return residual(weights, inputs, xp) - gap


def scorer(weights: Weights) -> Scores:
    """The learned policy as any other. ValueError: the arrays name no base rule."""
    base = base_policy(weights)
    own = {name: np.asarray(array, dtype=np.float32) for name, array in weights.items()}

    def scores(view: View, xp: Any) -> Array:
        return logits(own, observe(view, base(view, xp), own["base.sharpness"], xp), xp)

    return scores


def forward(weights: Weights, rows: Array) -> Array:
    """[K, N * F + C] -> [K, N + 1]: the bids for flattened inputs, in which golden vectors are written.

    ValueError: the width fits no number of nodes.
    """
    count, over = divmod(rows.shape[1] - len(CONTEXT), len(NODE))
    if over or count < 1:
        raise ValueError(f"{rows.shape[1]} inputs are no whole number of nodes")
    base_policy(weights)
    given = np.asarray(rows, dtype=np.float32)
    nodes = given[:, : count * len(NODE)].reshape(-1, count, len(NODE))
    return np.asarray(logits(weights, Inputs(nodes, given[:, count * len(NODE) :]), np))


def flat(inputs: Inputs) -> Floats:
    """[K, N * F + C]: the reverse of what `forward` reads."""
    nodes = np.asarray(inputs.nodes, dtype=np.float64)
    context = np.asarray(inputs.context, dtype=np.float64)
    return np.concatenate([nodes.reshape(len(nodes), -1), context], axis=1)


def sharpness_of(base: Scores, views: list[View], *, gap: float = 2.0) -> float:
    """The factor that puts the rule's second choice `gap` logits below its first, at the median.

    Scores of rules differ in scale by orders of magnitude; exploration and residual need one scale.
    """
    found: list[float] = []
    for view in views:
        scores = np.where(view.mask[..., :-1], np.asarray(base(view, np))[..., :-1], np.nan)
        rows = scores.reshape(-1, scores.shape[-1])
        rows = np.sort(rows[np.isfinite(rows).sum(-1) >= 2], axis=-1)  # NaN last
        last = np.isfinite(rows).sum(-1)
        at = np.arange(len(rows))
        found += (rows[at, last - 1] - rows[at, last - 2]).tolist()
    positive = [one for one in found if one > 0]
    return gap / float(np.median(positive)) if positive else 1.0


assert len(FEATURES) + len(DEFER_FEATURES) == WIDTH


def _scalar(value: float) -> Array:
    return np.array([value], dtype=np.float32)


def _relu(values: Array, xp: Any) -> Array:
    return xp.maximum(values, 0.0)


def _mean(embedded: Array, counted: Array, xp: Any) -> Array:
    """[..., H] over the nodes that count; 0 where none does."""
    total = (embedded * counted[..., None]).sum(-2)
    return total / xp.maximum(counted.sum(-1), 1.0)[..., None]


def _by_offer(embedded: Array, nodes: Array, xp: Any) -> Array:
    """[..., N, H]: for each node the mean over the feasible nodes with the same offer."""
    if xp is np and nodes.shape[-2] > PAIRWISE_NODES_MAX:
        return _by_offer_sorted(embedded, nodes)
    offers, feasible = nodes[..., _OFFER], nodes[..., _FEASIBLE]
    same = (offers[..., :, None, :] == offers[..., None, :, :]).all(-1) * feasible[..., None, :]
    return same @ embedded / xp.maximum(same.sum(-1), 1.0)[..., None]


def _by_offer_sorted(embedded: Array, nodes: Array) -> Array:
    """The same in O(N log N): a cluster of thousands has few offers."""
    shape, count = embedded.shape, nodes.shape[-2]
    found = []
    for rows, features_ in zip(
        embedded.reshape(-1, *shape[-2:]), nodes.reshape(-1, count, len(NODE)), strict=True
    ):
        # Three columns become one number without loss: each is ranked first.
        ranks = [np.unique(features_[:, column], return_inverse=True)[1] for column in _OFFER]
        number = (ranks[0] * count + ranks[1]) * count + ranks[2]
        kinds, group = np.unique(number, return_inverse=True)
        member = (group[None, :] == np.arange(len(kinds))[:, None]) * features_[:, _FEASIBLE]
        means = member @ rows / np.maximum(member.sum(-1), 1.0)[:, None]
        found.append(means[group])
    return np.stack(found).reshape(shape)
