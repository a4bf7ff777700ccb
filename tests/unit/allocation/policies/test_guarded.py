"""The guarded model: it decides where it was tried and nowhere else, and both are counted."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.allocation.policies.test_learned import observed, some_views, trunk_weights

from dwcp.allocation import shipped
from dwcp.allocation.learn.trainer import feature_bounds
from dwcp.allocation.policies import guarded, learned
from dwcp.allocation.policies.guarded import NODES, Tally
from dwcp.models import artefact
from dwcp.models.artefact import Artefact


def model(bounds: dict[str, tuple[float, float]], weights: dict[str, np.ndarray] | None = None) -> Artefact:
    """Random weights, labelled as such: no training stands behind them."""
    weights = trunk_weights(7) if weights is None else weights
    row = learned.flat(observed(some_views()))[:1]
    answer = learned.forward(weights, row)[0]
    made = artefact.make(
        name=learned.NAME,
        version="random",
        schema=learned.SCHEMA,
        weights=weights,
        bounds=bounds,
        trained_on={},
        figures={},
        golden=(artefact.Golden(tuple(row[0].tolist()), tuple(float(one) for one in answer)),),
    )
    return shipped.load(made)


def test_inside_its_ranges_the_model_decides() -> None:
    """Goal: the share is measured, not claimed. Method: ranges of the very decisions; bids are the model's."""
    view, tally = some_views(), Tally()
    found = model(feature_bounds([observed(view)]) | {NODES: (1.0, 16.0)})

    bids = guarded.guarded(found, tally)(view, np)

    np.testing.assert_array_equal(bids, learned.scorer(found.weights)(view, np))
    assert (tally.share, tally.decisions) == (1.0, len(bids))


@pytest.mark.parametrize("changed", ["wan", "log-predicted", NODES])
def test_outside_them_the_rule_does(changed: str) -> None:
    """Goal: nothing untried is decided by the model. Method: cut one range of a node's feature, of the decision's,
    and of the number of nodes, so that some decisions fall out; those get the rule's bids, the others the model's."""
    view, tally = some_views(), Tally()
    seen = observed(view)
    bounds = feature_bounds([seen]) | {NODES: (1.0, 16.0)}
    low, high = bounds[changed]
    bounds[changed] = (low, low + 0.3 * (high - low)) if changed != NODES else (1.0, 4.0)
    found = model(bounds)

    bids = guarded.guarded(found, tally)(view, np)

    trusted = guarded.inside(seen, bounds)
    rule = learned.base_policy(found.weights)(view, np)
    assert not trusted.all()
    np.testing.assert_array_equal(bids[~trusted], rule[~trusted])
    np.testing.assert_array_equal(bids[trusted], learned.scorer(found.weights)(view, np)[trusted])
    assert tally.model == trusted.sum()
    assert tally.share < 1.0


def test_no_decisions_are_no_share() -> None:
    """Goal: an idle model is not said to decide everything. Method: a fresh tally."""
    assert Tally().share == 0.0
