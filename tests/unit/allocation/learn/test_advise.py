"""Advice, pictures and settings: what needs no training."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from tests.unit.allocation.learn import grounds

from dwcp.allocation import shipped
from dwcp.allocation.learn import advise, assemble, curves
from dwcp.allocation.learn.config import Config, profile
from dwcp.allocation.learn.fleets import Tried
from dwcp.allocation.learn.trainer import Point, Standing
from dwcp.allocation.policies import learned, tuned
from dwcp.allocation.traces import splits
from dwcp.models.artefact import Made, ModelRefused


def costs(*means: float, spread: float = 1.0) -> dict[str, np.ndarray]:
    shared = np.random.default_rng(0).normal(0, 20, 60)  # windows differ more than policies
    own = np.random.default_rng(1).normal(0, spread, (len(means), 60))
    return {
        name: 100 + mean + shared + noise
        for name, mean, noise in zip(("rule", "linear", "learned"), means, own, strict=True)
    }


def test_the_simplest_within_epsilon_is_advised() -> None:
    """Goal: a saving that is not worth it is not advised. Method: known means, and epsilons on both sides."""
    close = advise.recommend(costs(1.0, 0.5, 0.0), 0.02, block=3)
    strict = advise.recommend(costs(5.0, 4.0, 0.0), 0.02, block=3)
    middle = advise.recommend(costs(9.0, 0.5, 0.0), 0.02, block=3)

    assert (close.choice, middle.choice, strict.choice) == ("rule", "linear", "learned")
    assert "not worth" in close.sentence
    assert all(row.low <= row.difference <= row.high for row in close.rows)


def test_uncertainty_is_no_saving_and_no_safety() -> None:
    """Goal: the interval decides, not the mean. Method: the same means with much noise: the rule's upper end is
    above epsilon, so the cheapest stays."""
    noisy = advise.recommend(costs(1.0, 1.0, 0.0, spread=30.0), 0.02, block=3)

    assert noisy.choice == min(noisy.rows, key=lambda row: row.cost).name
    assert "do not show" in noisy.sentence
    assert "do not show" not in advise.recommend(costs(9.0, 8.0, 0.0), 0.02, block=3).sentence


def test_parts_of_a_trace_become_one() -> None:
    """Goal: the user's whole trace is used. Method: cut and join; equal columns."""
    whole = splits.generated("g2", "dev", 0, count=200)

    again = advise.joined([whole.part(0, 50), whole.part(50, 200)])

    np.testing.assert_array_equal(again.arrival_s, whole.arrival_s)
    np.testing.assert_array_equal(again.batch, whole.batch)
    assert len(again) == 200


def points(count: int) -> tuple[Point, ...]:
    return tuple(
        Point(100 * at, 900 * at, 50.0 - at, -1.0 - at, -2.0 - at, -0.5 - at, 1.0 / (at + 1), -0.1, -2.0)
        for at in range(count)
    )


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_picture_is_a_picture(count: int) -> None:
    """Goal: curves open in a browser. Method: parse the SVG; a polyline per panel with a point per segment."""
    text = curves.picture(points(count), title="a < b", rule_cost=51.0)

    root = ET.fromstring(text)
    lines = root.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 3
    assert [len(line.attrib["points"].split()) for line in lines] == [count] * 3


def test_a_run_becomes_a_model_that_loads() -> None:
    """Goal: the registry's checks pass on what training writes, and fail on what was changed. Method: a standing
    with random arrays; make, load, score; then a flipped byte."""
    from tests.unit.allocation.policies.test_learned import some_views, trunk_weights

    view = some_views()
    base = assemble.make_base("balance", tuned.Entry(cost=1.0, steps=1, knobs={"money": 1.0}))
    named = ("base.", "admit")  # the rule's, and what only a search on whole windows finds
    actor = {name: array for name, array in trunk_weights(5).items() if not name.startswith(named)}
    standing = Standing(None, actor, 46.0, 4, points(5))

    made = assemble.make(
        standing, config=Config(seed=3), base=base, views=[view], trained_on={"train": "00"}, figures={"x": 1.0},
        tried=Tried(16, [], {"nodes_16_rule": 2.0}),
    )  # fmt: skip
    found = shipped.load(made)

    assert found.manifest.figures["validation_difference"] == pytest.approx(-5.0)
    assert found.manifest.trained_on["base"] == "balance"
    assert found.outside({"nodes": 17.0, "wan": found.manifest.bounds["wan"][0]}) == ("nodes",)
    np.testing.assert_allclose(
        learned.scorer(found.weights)(view, np),
        learned.scorer({**actor, **base.weights})(view, np),
        atol=1e-6,
    )
    with pytest.raises(ModelRefused):
        shipped.load(Made(made.manifest, made.weights[:-4] + b"\0\0\0\1"))


def test_the_base_is_the_cheapest_on_validation() -> None:
    """Goal: the residual stands on the best rule, not on the one that was lucky in tuning. Method: a table in which
    the rule that never places was cheapest in tuning; offered are each load's best, once, and the hand-written rule;
    chosen is the one that costs least on windows."""
    sunk = tuned.Entry(cost=1.0, steps=1, knobs={"money": 0.0, "reserve": 10.0, "headroom": 0.0})
    entries = {"tetris": sunk, "balance": tuned.Entry(cost=4.0, steps=1, knobs={"money": 1.0})}
    table = tuned.Table(
        sets={
            name: tuned.Tunings(command="", entries=entries)
            for name in ("stale-0.95", "fresh-0.95", "fresh-0.7")
        }
    )

    offered = assemble.candidates(table, stale=True)
    name, entry = assemble.best_entry(offered, grounds.exam())

    assert sorted(one for one, _entry in offered) == ["balance", "tetris"]
    assert (name, entry.knobs) == ("balance", {"money": 1.0})
    assert assemble.candidates(tuned.Table(sets={}), stale=False) == [assemble.HAND_WRITTEN]


def test_settings_are_checked() -> None:
    """Goal: a bad setting is a sentence that names it. Method: one of each kind."""
    with pytest.raises(ValueError, match="profile 'x'"):
        profile("x")
    with pytest.raises(ValueError, match="no such setting of training: colour"):
        profile("dev", colour=1)
    with pytest.raises(ValueError, match="batch: 0"):
        profile("dev", batch=0)
    with pytest.raises(ValueError, match="algorithm 'ppo'"):
        profile("dev", algorithm="ppo")
    with pytest.raises(ValueError, match="ahead"):
        profile("dev", ahead=200)
    with pytest.raises(ValueError, match="ring"):
        profile("dev", ring=10)
