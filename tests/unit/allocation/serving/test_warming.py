"""A model's first decisions are made before anybody asks."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.allocation.serving import placers

from dwcp.allocation import shipped
from dwcp.allocation.fleet import Floats
from dwcp.allocation.heuristics import DEFAULT
from dwcp.allocation.serving.ahead import TOGETHER_MAX
from dwcp.allocation.serving.chain import Served
from dwcp.allocation.serving.scene import Terrain
from dwcp.allocation.serving.scoring import Scored, Scorer
from dwcp.allocation.serving.sheet import Standing
from dwcp.allocation.serving.warming import FLEET, warm


class Noting(Scorer):
    """Notes how many workloads and nodes it scores at once."""

    shapes: set[tuple[int, int]]

    def score(self, standing: Standing, base: Floats | None = None) -> Scored:
        self.shapes.add((len(standing.mask), len(standing.scene.open)))
        return super().score(standing, base)


def noting(**more: object) -> tuple[Served, set[tuple[int, int]]]:
    served = Served(shipped.load(placers.made(**more)))  # type: ignore[arg-type]
    served.scorer.__class__ = Noting
    served.scorer.shapes = set()  # type: ignore[attr-defined]
    return served, served.scorer.shapes  # type: ignore[attr-defined]


def test_every_shape_of_a_batch_is_scored_once_on_both_fleets() -> None:
    """Goal: no shape is met for the first time when the deadline counts. Method: a scorer that notes what it is
    asked; a model of the shipped kind."""
    served, shapes = noting(tuned=True)
    warm(served, policy=DEFAULT, terrain=Terrain())
    low, high = served.nodes
    sizes = {max(low, 1), min(high, FLEET)}
    assert shapes == {(count, size) for count in range(1, TOGETHER_MAX + 1) for size in sizes}


@pytest.mark.parametrize("policy", ["cem-linear", "local-site-first", DEFAULT])
def test_any_rule_and_any_model_can_be_warmed(policy: str) -> None:
    """Goal: what decides one at a time is warmed too, and a broken model keeps no allocator from starting. Method:
    rules that are not taken apart; a model whose weights are not finite."""
    served, shapes = noting()
    warm(served, policy=policy, terrain=Terrain())
    assert shapes
    broken = Served(shipped.load(placers.made()))
    broken.scorer._mid[:] = np.nan
    warm(broken, policy=policy, terrain=Terrain())
