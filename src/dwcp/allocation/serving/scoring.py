"""A model's bids for one decision, fast: the same numbers as `learned.scorer`, laid out for one decision at a time.

Features are rows of a [F, N] buffer, so that every operation runs over contiguous memory; what a node's offer makes
of the workload is computed per offer; nodes with equal offers are pooled by one product. A test compares it with
`learned.scorer` on random scenes. A `Scorer` is used by one thread at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dwcp.allocation.env.view import Scores, View
from dwcp.allocation.fleet import Floats
from dwcp.allocation.policies import learned
from dwcp.allocation.policies.linear import FEATURES
from dwcp.allocation.policies.rules import WORTH_FLOOR

Singles = npt.NDArray[np.float32]

_PLAIN = len(FEATURES)  # features that the linear scorer shares; gap, feasible, present follow
_GAP, _FEASIBLE, _PRESENT = (learned.NODE.index(name) for name in ("gap", "feasible", "present"))
_LOCAL, _WAN, _LATE = (learned.NODE.index(name) for name in ("local", "wan", "late"))
_OFFER = [_LOCAL, _WAN, _LATE]
OFFERS_MAX = 64  # kinds for which one product is quicker than sorting


Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Offers:
    """What a roster knows of its offers for good: one-hot [K, N], the offer of each node [N], a node of each [K]."""

    member: Singles
    group: Rows
    first: Rows

    @classmethod
    def of(cls, group: Rows, count: int) -> Offers:
        member = (group == np.arange(count)[:, None]).astype(np.float32)
        return cls(member, group, np.asarray(member.argmax(axis=1) if count else group[:0], dtype=np.intp))

    def told_apart(self, nodes: Singles) -> tuple[Singles, Rows]:
        """As `_offers`: what differs in general may be equal for one workload."""
        kinds = nodes[:, self.first][_OFFER].T.tolist()
        numbers: dict[tuple[float, ...], int] = {}
        merged = [numbers.setdefault(tuple(kind), len(numbers)) for kind in kinds]
        if len(numbers) == len(merged):
            return self.member, self.group
        table = np.zeros((len(numbers), len(merged)), dtype=np.float32)
        table[merged, np.arange(len(merged))] = 1.0
        return table @ self.member, np.array(merged, dtype=np.intp)[self.group]


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
        self._linear = (
            np.asarray(weights["base.linear"], dtype=np.float64) if "base.linear" in weights else None
        )
        own = {name: np.asarray(array, dtype=np.float32) for name, array in weights.items()}
        self._sharp = float(own["base.sharpness"][0])
        self._in = np.ascontiguousarray(own["in.nodes"].T)
        self._in_context, self._in_bias = own["in.context"], own["in.bias"]
        self._mid, self._mid_bias = np.ascontiguousarray(own["mid"].T), own["mid.bias"][:, None]
        self._pool, self._pool_bias = own["pool"], own["pool.bias"]
        self._node = np.ascontiguousarray(own["node.in"].T)
        self._site = own["site.in"]
        self._heads = np.concatenate([own["node.whole"], own["site.whole"], own["defer.in"]], axis=1)
        self._heads_bias = np.concatenate([own["node.bias"], own["site.bias"], own["defer.bias"]])
        self._node_out, self._site_out = own["node.out"][:, 0], own["site.out"][:, 0]
        self._defer_out, self._shift = own["defer.out"][:, 0], own["out.bias"]
        self._width = len(self._mid)

    def score(self, view: View, base: Floats | None = None, offers: Offers | None = None) -> Scored:
        """`base` [N + 1]: the base rule's scores, and `offers` of these nodes, where the caller has them.
        Numbers that overflow stay as they are."""
        with np.errstate(all="ignore"):
            nodes = self._features(view)
            if base is None:
                base = self._rule(view, nodes)
            gap = self._gaps(view, base)
            single = np.empty((len(learned.NODE), nodes.shape[1]), dtype=np.float32)
            single[:_PLAIN] = nodes
            present = view.capacity[:, 0] > 0
            single[_GAP] = gap[:-1]
            single[_FEASIBLE] = view.mask[:-1] & present
            single[_PRESENT] = present
            np.clip(single, -learned.FEATURE_MAX, learned.FEATURE_MAX, out=single)
            if not present.all():
                single *= present
            context = self._context(view, float(gap[-1]))
            return Scored(self.forward(single, context, offers), base, single, context)

    def forward(self, nodes: Singles, context: Singles, offers: Offers | None = None) -> Floats:
        """Bids [N + 1] for features `nodes` [F, N] and `context` [C]; `learned.logits` in this layout."""
        width, count = self._width, nodes.shape[1]
        embedded = self._in @ nodes
        embedded += (context @ self._in_context + self._in_bias)[:, None]
        np.maximum(embedded, 0.0, out=embedded)
        embedded = self._mid @ embedded
        embedded += self._mid_bias
        np.maximum(embedded, 0.0, out=embedded)
        feasible, present = nodes[_FEASIBLE], nodes[_PRESENT]
        member, group = _offers(nodes) if offers is None else offers.told_apart(nodes)
        weighted = np.empty((2 + len(member), count), dtype=np.float32)
        weighted[0], weighted[1] = feasible, present
        np.multiply(member, feasible, out=weighted[2:])
        sums = weighted @ embedded.T
        sums /= np.maximum(np.add.reduce(weighted, axis=1), 1.0)[:, None]
        whole = np.concatenate([sums[0], sums[1], context]) @ self._pool + self._pool_bias
        np.maximum(whole, 0.0, out=whole)
        heads = whole @ self._heads + self._heads_bias
        node = self._node @ embedded
        node += heads[:width, None]
        np.maximum(node, 0.0, out=node)
        site = np.maximum(sums[2:] @ self._site + heads[width : 2 * width], 0.0) @ self._site_out
        bids = np.empty(count + 1, dtype=np.float32)
        bids[:-1] = self._node_out @ node + site[group] + self._shift[0]
        bids[-1] = np.maximum(heads[2 * width :], 0.0) @ self._defer_out + self._shift[1]
        found = learned.REACH * np.tanh(bids)
        found[:-1] -= nodes[_GAP]
        found[-1] -= context[learned.CONTEXT.index("defer-gap")]
        return np.asarray(found, dtype=np.float64)

    def _features(self, view: View) -> Floats:
        """[16, N] in the order of `FEATURES`, as `linear.features` computes them."""
        capacity, free = view.capacity.T, view.free.T
        found = np.empty((_PLAIN, capacity.shape[1]))
        after = found[:4]
        np.subtract(capacity, free, out=after)
        after += view.demand[:, None]
        after /= np.maximum(capacity, 1.0)
        after *= capacity > 0
        cpu = np.maximum(capacity[0], 1.0)
        worth = max(float(view.worth), WORTH_FLOOR)
        after.max(axis=0, out=found[4])
        mean, square = np.add.reduce(after) * 0.25, np.add.reduce(after * after) * 0.25
        found[5] = 1.0 - 2.0 * mean + square
        np.sqrt(np.maximum(square - mean * mean, 0.0), out=found[6])
        found[7] = view.demand[0] / cpu
        found[8] = cpu / max(float(cpu.max()), 1.0)
        found[9] = view.local
        np.log1p(view.wan / worth, out=found[10])
        np.log1p(view.energy / worth * 10.0, out=found[11])
        found[12] = view.late * ((float(view.priority) + 1.0) / 3.0)
        np.log1p(np.maximum(view.predicted_s - view.exit_in_s, 0.0) / 600.0, out=found[13])
        found[13] /= 4.0
        found[14] = free[0] >= cpu
        found[15] = view.age_s / 600.0
        return found

    def _rule(self, view: View, nodes: Floats) -> Floats:
        if self._linear is None:
            return np.asarray(self.base(view, np), dtype=np.float64)
        found = np.empty(nodes.shape[1] + 1)
        found[:-1] = self._linear[:_PLAIN] @ nodes
        found[-1] = float(self._linear[_PLAIN:] @ np.array(_defer_features(view)))
        return found

    def _gaps(self, view: View, base: Floats) -> Floats:
        known = np.where(np.isfinite(base), base, -1e30)
        best = np.where(view.mask, known, -1e30).max()
        return np.asarray(np.clip((best - known) * self._sharp, 0.0, learned.GAP_MAX))

    def _context(self, view: View, defer_gap: float) -> Singles:
        free = max(float(view.free[:, 0] @ view.mask[:-1]), 1.0)
        priority = int(view.priority)
        found = [
            *_defer_features(view),
            defer_gap,
            float(view.mask[-1]),
            *(float(priority == one) for one in range(3)),
            math.log1p(float(view.predicted_s) / 60.0) / 8.0,
            math.log1p(max(float(view.worth), 0.0) * 10.0) / 3.0,
            min(float(view.demand[0]) / free, 1.0),
        ]
        return np.clip(np.array(found, dtype=np.float32), -learned.FEATURE_MAX, learned.FEATURE_MAX)


def _defer_features(view: View) -> list[float]:
    """As `linear.defer_features`."""
    full = 1.0 - float(view.free[:, 0].sum()) / max(float(view.capacity[:, 0].sum()), 1.0)
    priority = int(view.priority)
    slack = math.log1p(max(float(view.slack_s), 0.0) / 60.0) / 5.0
    low = (2 - priority) / 2.0
    return [1.0, slack, math.log1p(int(view.queued)) / 5.0, priority / 2.0, full, full * low]


def _offers(nodes: Singles) -> tuple[Singles, Rows]:
    """Which nodes make which offer, [G, N] one-hot, and the offer of each node [N]."""
    key = np.ascontiguousarray(nodes[[_LOCAL, _WAN, _LATE]].T).view([("", np.float32)] * 3)[:, 0]
    kinds, group = np.unique(key, return_inverse=True)
    return (group == np.arange(len(kinds))[:, None]).astype(np.float32), group
