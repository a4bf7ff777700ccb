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
        self._pool = np.concatenate([own["pool"], own["pool.bias"][None]])
        self._node = _beside(own["node.in"].T, np.zeros_like(own["node.bias"]))
        self._site = own["site.in"]
        self._heads = np.concatenate([own["node.whole"], own["site.whole"], own["defer.in"]], axis=1)
        self._heads_bias = np.concatenate([own["node.bias"], own["site.bias"], own["defer.bias"]])
        self._node_out, self._site_out = own["node.out"][:, 0], own["site.out"][:, 0]
        self._defer_out = own["defer.out"][:, 0]
        self._node_shift, self._defer_shift = (float(one) for one in own["out.bias"])
        self._width = len(own["mid"])
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
            return Scored(bids - gap, base, nodes[:-1], context[:-1])

    def _base(self, standing: Standing) -> Floats:
        if self.tuned is not None:
            return standing.by_rule(self.tuned)
        return np.asarray(self.base(standing.view, np), dtype=np.float64)

    def _forward(self, nodes: Singles, context: Singles, offers: Offers) -> Singles:
        """The residual [N + 1] for rows `nodes` [F + 1, N] and `context` [C + 1]; `learned.residual` in this layout."""
        width, count = self._width, nodes.shape[1]
        if self._rows[0].shape[1] != count:
            self._rows = self._buffers(count)
        first, second, node = self._rows
        self._in[:, -1] = context @ self._in_context
        np.matmul(self._in, nodes, out=first[:-1])
        np.maximum(first[:-1], 0.0, out=first[:-1])
        np.matmul(self._mid, first, out=second[:-1])
        np.maximum(second[:-1], 0.0, out=second[:-1])
        weighted = offers.member * nodes[_FEASIBLE]
        weighted[1] = nodes[_PRESENT]
        sums = weighted @ second.T  # the last column: how many nodes
        means = sums[:, :-1] / np.maximum(sums[:, -1:], 1.0)
        whole = np.concatenate((means[0], means[1], context)) @ self._pool
        heads = np.maximum(whole, 0.0) @ self._heads
        heads += self._heads_bias
        self._node[:, -1] = heads[:width]
        np.matmul(self._node, second, out=node)
        np.maximum(node, 0.0, out=node)
        site = means[2:] @ self._site
        site += heads[width : 2 * width]
        offered = np.maximum(site, 0.0) @ self._site_out
        offered += self._node_shift
        bids = np.empty(count + 1, dtype=np.float32)
        np.add(self._node_out @ node, offered[offers.group], out=bids[:-1])
        bids[-1] = np.maximum(heads[2 * width :], 0.0) @ self._defer_out + self._defer_shift
        np.tanh(bids, out=bids)
        bids *= learned.REACH
        return bids

    def _gaps(self, standing: Standing, base: Floats) -> Floats:
        """[N + 1] how far below its favourite the rule puts each column, in logits."""
        known = base if isfinite(np.add.reduce(base)) else np.where(np.isfinite(base), base, -1e30)
        gap = np.where(standing.mask, known, -1e30).max() - known
        gap *= self._sharp
        np.maximum(gap, 0.0, out=gap)
        return np.asarray(np.minimum(gap, learned.GAP_MAX, out=gap))

    def _buffers(self, count: int) -> tuple[Singles, Singles, Singles]:
        """For N nodes; rows that are never written stay ones."""
        first, second = np.ones((2, self._width + 1, count), dtype=np.float32)
        return first, second, np.empty((self._width, count), dtype=np.float32)


def _beside(array: Singles, column: Singles) -> Singles:
    return np.ascontiguousarray(np.concatenate([array, column[:, None]], axis=1))


def _tuned(weights: learned.Weights) -> Tuned | None:
    """The rule below the model in a sheet's parts, if it is one of those; knobs as decimals before float32."""
    if "base.linear" in weights:
        return None
    name = learned.RULE_NAMES[int(np.asarray(weights["base.rule"]).argmax())]
    money, reserve, headroom = (
        float(str(one)) for one in np.asarray(weights["base.knobs"], dtype=np.float32)
    )
    return tuned_of(name, Knobs(money=money, reserve=reserve, headroom=headroom))
