"""Offers: what a node's site and link make of a workload's data. Nodes share them, so sites bid as one by offer.

Shapes: N nodes, K offers, W workloads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dwcp.allocation.fleet import Floats

Singles = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp]

MERGED_MAX = 64  # ways to merge that are kept
OFFERS_MAX = 64  # kinds for which one product is quicker than sorting


@dataclass(frozen=True, slots=True)
class Offers:
    """Who makes which: `member` [2 + K, N], two rows of ones for "all" and then one-hot; the offer of each node [N]."""

    member: Singles
    group: Rows
    _merged: dict[tuple[int, ...], Offers] = field(
        default_factory=dict
    )  # by the first offer that equals each

    @classmethod
    def of(cls, group: Rows, count: int) -> Offers:
        member = np.ones((2 + count, len(group)), dtype=np.float32)
        np.equal(group, np.arange(count)[:, None], out=member[2:], casting="unsafe")
        return cls(member, group)

    def told_apart(self, *facts: Floats) -> list[Offers]:
        """For each workload [W] these offers by `facts`, each [W, K]: what differs in general may be equal for one.

        All have as many rows as these; nobody makes the offers that are left over."""
        same: Any = True  # [W, K, K]
        for fact in facts:
            one = fact.astype(np.float32)
            same = same & (one[:, :, None] == one[:, None, :])
        return [self._merge(tuple(first)) for first in same.argmax(axis=2).tolist()]

    def _merge(self, first: tuple[int, ...]) -> Offers:
        """`first`: of each offer the first that equals it."""
        found = self._merged.get(first)
        if found is None:
            count = len(first)
            if first == tuple(range(count)):
                return self
            found = Offers.of(np.array(first, dtype=np.intp)[self.group], count)
            if len(self._merged) < MERGED_MAX:
                self._merged[first] = found
        return found


def offers_of(nodes: Singles) -> Offers:
    """The offers in the features `nodes` [3, N] that make one."""
    key = np.ascontiguousarray(nodes.T).view([("", np.float32)] * len(nodes))[:, 0]
    kinds, group = np.unique(key, return_inverse=True)
    return Offers.of(np.asarray(group, dtype=np.intp), len(kinds))
