"""A model's bids for B decisions, fast: the same numbers as `learned.scorer`, laid out for few decisions at a time.

Features are rows of [B, F + 1, N], so that every operation runs over contiguous memory; the last row is ones, and
biases are columns of the weights. Nodes with equal offers are pooled by one product. Products are made decision by
decision, so a decision's numbers do not depend on its company. A test compares it with `learned.scorer` on random
scenes. A `Scorer` is used by one thread at a time.

Every placement changes the context (how full the fleet is, the workload's share of what is free) and often the rule's
favourite, and both are inputs of every node's first layer: so no row's score outlives a placement.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np

from dwcp.allocation.env.view import Scores
from dwcp.allocation.fleet import Floats
from dwcp.allocation.policies import admission, learned
from dwcp.allocation.policies.linear import DEFER_FEATURES, FEATURES
from dwcp.allocation.policies.rules import Knobs
from dwcp.allocation.serving.offers import Rows, Singles
from dwcp.allocation.serving.sheet import Standing, Tuned, tuned_of

_GAP, _FEASIBLE, _PRESENT = (learned.NODE.index(name) for name in ("gap", "feasible", "present"))
_DEFER_GAP = learned.CONTEXT.index("defer-gap")
_FACTS = [
    learned.CONTEXT.index(name)
    for name in ("best-effort", "sensitive", "log-predicted", "log-worth", "defer-slack", "defer-full")
]
_CROWDING = [learned.NODE.index("filled-max"), _FEASIBLE, _PRESENT]


@dataclass(frozen=True, slots=True)
class Scored:
    """Bids and the rule's own scores below them, both [N + 1]; `nodes` [F, N] and `context` [C] as the model saw.

    Of B decisions each has B before these.
    """

    bids: Floats
    base: Floats
    nodes: Singles
    context: Singles
    whole: bool  # every node is present

    def one(self, rank: int) -> Scored:
        """That decision's; for keeping."""
        return Scored(
            self.bids[rank].copy(),
            self.base[rank].copy(),
            self.nodes[rank],
            self.context[rank].copy(),
            self.whole,
        )


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
        self._linear = own.get("base.linear")
        self._admit = own["base.admit"] if self._linear is not None and own["base.admit"].any() else None
        self._buffers = _Buffers(self._in, self._node, 1, 1)

    def score(self, standing: Standing, base: Floats | None = None) -> Scored:
        """`base` [B, N + 1]: the base rule's scores where the caller has them. What overflows stays as it is."""
        with np.errstate(all="ignore"):
            sheet, nodes = standing.sheet, standing.fill()
            context = standing.context()
            if base is None:
                base = self._base(standing, nodes, context)
            gap = self._gaps(standing, base)
            nodes[:, _GAP] = gap[:, :-1]
            if not sheet.roster.whole:
                nodes[:, _GAP] *= sheet.roster.present
            context[:, _DEFER_GAP] = gap[:, -1]
            if sheet.alike:
                member, group = sheet.offered[0][standing.part], sheet.offered[1][standing.part]
            else:
                offers = sheet.offers[standing.place]
                member, group = offers.member[None], offers.group[None]
            bids = self._forward(nodes, context, member, group)
            return Scored(bids - gap, base, nodes[:, :-1], context[:, :-1], sheet.roster.whole)

    def below(self, standing: Standing) -> Floats:
        """[B, N + 1] the scores of the rule alone."""
        with np.errstate(all="ignore"):
            if self._linear is None:
                return self._by_rule(standing)
            return self._base(standing, standing.fill(), standing.context())

    def _base(self, standing: Standing, nodes: Singles, context: Singles) -> Floats:
        """`learned.base_policy` here."""
        if self._linear is None:
            return self._by_rule(standing)
        found = np.empty(standing.mask.shape)
        found[:, :-1] = np.matmul(self._linear[: len(FEATURES)], nodes[:, : len(FEATURES)])
        waits = context[:, : len(DEFER_FEATURES)] * self._linear[len(FEATURES) :]
        found[:, -1] = np.add.reduce(waits, axis=1)
        if self._admit is not None:
            found[:, -1] += self._admitting(self._admit, nodes, context)
        return found

    def _by_rule(self, standing: Standing) -> Floats:
        if self.tuned is not None:
            return standing.by_rule(self.tuned)
        return np.array(
            [self.base(standing.view(rank), np) for rank in range(len(standing.mask))], dtype=np.float64
        )

    def _forward(self, nodes: Singles, context: Singles, member: Singles, group: Rows) -> Singles:
        """The residual [B, N + 1] for rows `nodes` [B, F + 1, N] and `context` [B, C + 1]; `learned.residual` here.

        `member` [B, 2 + K, N] and `group` [B, N]: who makes which offer.
        """
        width, (count, _rows, size) = self._width, nodes.shape
        own = self._buffers_for(count, size)
        context = context[:, None]  # as rows: each decision is a product of its own
        own.into[:, :, -1] = np.matmul(context, self._in_context)[:, 0]
        np.matmul(own.into, nodes, out=own.first_own)
        np.maximum(own.first_own, own.zeros, out=own.first_own)
        np.matmul(self._mid, own.first, out=own.second_own)
        np.maximum(own.second_own, own.zeros, out=own.second_own)
        weighted = member * nodes[:, _FEASIBLE, None]
        weighted[:, 1] = nodes[:, _PRESENT]
        means = np.matmul(weighted, own.second.transpose(0, 2, 1))  # sums; the last column: of how many nodes
        means /= np.maximum(means[:, :, -1:], 1.0)
        pooled = np.concatenate((means[:, :2].reshape(count, 1, -1), context), axis=2)
        whole = np.matmul(pooled, self._pool)
        heads = np.matmul(np.maximum(whole, 0.0, out=whole), self._heads)
        own.onto[:, :, -1] = heads[:, 0, :width]
        np.matmul(own.onto, own.second, out=own.node)
        np.maximum(own.node, own.zeros, out=own.node)
        site = np.matmul(means[:, 2:], self._site)
        site += heads[:, :, width : 2 * width]
        offered = np.matmul(np.maximum(site, 0.0, out=site), self._site_out)
        offered += self._node_shift
        bids = np.empty((count, size + 1), dtype=np.float32)
        first = np.arange(0, offered.size, offered.shape[1])[:, None]
        np.add(np.matmul(self._node_out, own.node), offered.take(group + first), out=bids[:, :-1])
        np.matmul(np.maximum(heads[:, 0, 2 * width :], 0.0)[:, None], self._defer_out, out=bids[:, -1:])
        bids[:, -1] += self._defer_shift
        np.tanh(bids, out=bids)
        bids *= learned.REACH
        return bids

    @staticmethod
    def _admitting(admit: Singles, nodes: Singles, context: Singles) -> Singles:
        """[B] what `admit` makes waiting worth; `admission.admitting` here."""
        sums = np.add.reduce(nodes[:, _CROWDING], axis=2)
        sums /= np.maximum(sums[:, 2:], 1.0)
        known = [context[:, column] for column in _FACTS]
        told = admission.products(admission.Facts._make([*known, sums[:, 0], sums[:, 1]]), np)
        told *= admit
        return np.asarray(np.add.reduce(told, axis=1))

    def _buffers_for(self, count: int, size: int) -> _Buffers:
        own = self._buffers
        if size != own.node.shape[2] or count > len(own.node):
            own = self._buffers = _Buffers(self._in, self._node, count, size)
        return own if count == len(own.node) else own.part(count)

    def _gaps(self, standing: Standing, base: Floats) -> Floats:
        """[B, N + 1] how far below its favourite the rule puts each column, in logits."""
        known = base if isfinite(np.add.reduce(base, axis=None)) else np.where(np.isfinite(base), base, -1e30)
        gap = np.maximum.reduce(np.where(standing.mask, known, -1e30), axis=1, keepdims=True) - known
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


class _Buffers:
    """For B decisions on N nodes: weights with a column of each decision's own, both hidden layers with a row of ones
    and without it, the node's head. Zeros: the larger of two arrays costs a quarter of that of an array and a number.
    """

    __slots__ = ("first", "first_own", "into", "node", "onto", "second", "second_own", "zeros")

    def __init__(self, into: Singles, onto: Singles, count: int, size: int) -> None:
        width = len(into)
        self.into, self.onto = np.repeat(into[None], count, axis=0), np.repeat(onto[None], count, axis=0)
        self.first, self.second = np.ones((2, count, width + 1, size), dtype=np.float32)
        self.first_own, self.second_own = self.first[:, :-1], self.second[:, :-1]
        self.node = np.empty((count, width, size), dtype=np.float32)
        self.zeros = np.zeros((1, width, size), dtype=np.float32)

    def part(self, count: int) -> _Buffers:
        """The first `count` of them."""
        found = object.__new__(_Buffers)
        for name in self.__slots__:
            setattr(found, name, getattr(self, name)[:count])
        return found


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
