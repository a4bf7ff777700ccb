"""A model's bids for one decision, fast: the same numbers as `learned.scorer`, laid out for one decision at a time.

Features are rows of a [F + 1, N] buffer, so that every operation runs over contiguous memory; the last row is ones,
and biases are columns of the weights. Nodes with equal offers are pooled by one product. A test compares it with
`learned.scorer` on random scenes. A `Scorer` is used by one thread at a time.

Every placement changes the context (how full the fleet is, the workload's share of what is free) and often the rule's
favourite, and both are inputs of every node's first layer: so no row's score outlives a placement.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np

from dwcp.allocation.env.view import Scores
from dwcp.allocation.fleet import Floats
from dwcp.allocation.policies import learned
from dwcp.allocation.policies.rules import Knobs
from dwcp.allocation.serving.offers import Offers, Singles
from dwcp.allocation.serving.sheet import Standing, Tuned, tuned_of

_GAP, _FEASIBLE, _PRESENT = (learned.NODE.index(name) for name in ("gap", "feasible", "present"))


@dataclass(frozen=True, slots=True)
class Scored:
    """Bids and the rule's own scores below them, both [N + 1]; `nodes` [F, N] and `context` [C] as the model saw."""

    bids: Floats
    base: Floats
    nodes: Singles
    context: Singles
    whole: bool  # every node is present


class Scorer:
    """One model's weights at work. ValueError: the arrays name no base rule. KeyError: an array is missing."""

    def __init__(self, weights: learned.Weights) -> None:
        self.base: Scores = learned.base_policy(weights)
        self.tuned = _tuned(weights)
        own = {name: np.asarray(array, dtype=np.float32) for name, array in weights.items()}
        self._sharp = float(own["base.sharpness"][0])
        self._in = _beside(
            own["in.nodes"].T, np.zeros_like(own["in.bias"])
        )  # the last column: each decision's own
        self._in_context = np.concatenate([own["in.context"], own["in.bias"][None]])
        self._mid = _beside(own["mid"].T, own["mid.bias"])
        self._width = len(own["mid"])
        self._pool = self._pooling(own)
        self._node = _beside(own["node.in"].T, np.zeros_like(own["node.bias"]))
        self._site = _below(
            own["site.in"]
        )  # a mean's last number says that there was something to take it of
        heads = np.concatenate([own["node.whole"], own["site.whole"], own["defer.in"]], axis=1)
        biases = np.concatenate([own["node.bias"], own["site.bias"], own["defer.bias"]])
        self._heads = np.concatenate([heads, biases[None]])
        self._node_out, self._site_out = own["node.out"][:, 0], own["site.out"][:, 0]
        self._defer_out = own["defer.out"][:, 0]
        self._node_shift, self._defer_shift = (float(one) for one in own["out.bias"])
        self._rows = self._buffers(1)

    def score(self, standing: Standing, base: Floats | None = None) -> Scored:
        """`base` [N + 1]: the base rule's scores where the caller has them. Numbers that overflow stay as they are."""
        with np.errstate(all="ignore"):
            if base is None:
                base = self._base(standing)
            nodes = standing.fill()
            gap = self._gaps(standing, base)
            nodes[_GAP] = gap[:-1]
            if not standing.sheet.roster.whole:
                nodes[_GAP] *= standing.sheet.roster.present
            context = standing.context(float(gap[-1]))
            bids = self._forward(nodes, context, standing.sheet.offers[standing.place])
            return Scored(bids - gap, base, nodes[:-1], context[:-1], standing.sheet.roster.whole)

    def _base(self, standing: Standing) -> Floats:
        if self.tuned is not None:
            return standing.by_rule(self.tuned)
        return np.asarray(self.base(standing.view, np), dtype=np.float64)

    def _forward(self, nodes: Singles, context: Singles, offers: Offers) -> Singles:
        """The residual [N + 1] for rows `nodes` [F + 1, N] and `context` [C + 1]; `learned.residual` in this layout."""
        width, count = self._width, nodes.shape[1]
        if self._rows[0].shape[1] != count:
            self._rows = self._buffers(count)
        first, second, node, first_own, second_own = self._rows
        self._in[:, -1] = context.dot(self._in_context)
        np.dot(self._in, nodes, out=first_own)
        np.maximum(first_own, 0.0, out=first_own)
        np.dot(self._mid, first, out=second_own)
        np.maximum(second_own, 0.0, out=second_own)
        weighted = offers.member * nodes[_FEASIBLE]
        weighted[1] = nodes[_PRESENT]
        means = weighted.dot(second.T)  # sums; the last column: of how many nodes
        means /= np.maximum(means[:, -1:], 1.0)
        whole = np.concatenate((means[:2].ravel(), context)).dot(self._pool)
        heads = np.maximum(whole, 0.0, out=whole).dot(self._heads)
        self._node[:, -1] = heads[:width]
        np.dot(self._node, second, out=node)
        np.maximum(node, 0.0, out=node)
        site = means[2:].dot(self._site)
        site += heads[width : 2 * width]
        offered = np.maximum(site, 0.0, out=site).dot(self._site_out)
        offered += self._node_shift
        bids = np.empty(count + 1, dtype=np.float32)
        np.add(self._node_out.dot(node), offered.take(offers.group), out=bids[:-1])
        bids[-1] = np.maximum(heads[2 * width :], 0.0).dot(self._defer_out) + self._defer_shift
        np.tanh(bids, out=bids)
        bids *= learned.REACH
        return bids

    def _gaps(self, standing: Standing, base: Floats) -> Floats:
        """[N + 1] how far below its favourite the rule puts each column, in logits."""
        known = base if isfinite(np.add.reduce(base)) else np.where(np.isfinite(base), base, -1e30)
        gap = np.maximum.reduce(np.where(standing.mask, known, -1e30)) - known
        gap *= self._sharp
        np.maximum(gap, 0.0, out=gap)
        return np.asarray(np.minimum(gap, learned.GAP_MAX, out=gap))

    def _pooling(self, own: learned.Weights) -> Singles:
        """[2 (H + 1) + C + 1, P + 1] for both means with their last numbers and the context; its last output is 1."""
        width, pool = self._width, own["pool"]
        parts = (
            *(_below(pool[start : start + width]) for start in (0, width)),
            pool[2 * width :],
            own["pool.bias"][None],
        )
        found = np.concatenate(parts)
        one = np.zeros(len(found), dtype=np.float32)
        one[-1] = 1.0
        return _beside(found, one)

    def _buffers(self, count: int) -> tuple[Singles, Singles, Singles, Singles, Singles]:
        """For N nodes, both hidden layers with a row of ones, the node's head, and both layers without that row."""
        first, second = np.ones((2, self._width + 1, count), dtype=np.float32)
        return first, second, np.empty((self._width, count), dtype=np.float32), first[:-1], second[:-1]


def _beside(array: Singles, column: Singles) -> Singles:
    return np.ascontiguousarray(np.concatenate([array, column[:, None]], axis=1))


def _below(array: Singles) -> Singles:
    """With a row of zeros."""
    return np.concatenate([array, np.zeros_like(array[:1])])


def _tuned(weights: learned.Weights) -> Tuned | None:
    """The rule below the model in a sheet's parts, if it is one of those; knobs as decimals before float32."""
    if "base.linear" in weights:
        return None
    name = learned.RULE_NAMES[int(np.asarray(weights["base.rule"]).argmax())]
    money, reserve, headroom = (
        float(str(one)) for one in np.asarray(weights["base.knobs"], dtype=np.float32)
    )
    return tuned_of(name, Knobs(money=money, reserve=reserve, headroom=headroom))
