"""Drift takes the decision from the model where other workloads come, and gives it back when they are the old ones."""

from __future__ import annotations

import numpy as np
import pytest

from dwcp.allocation.policies import learned
from dwcp.allocation.serving.drifting import MIX, Drifting
from dwcp.models.drift import Drift


def told(drifting: Drifting, *windows: float, name: str = "log-predicted") -> list[bool]:
    """Whether the rule decides after each window of a feature that is moved by so many standard deviations."""
    rng, found = np.random.default_rng(3), []
    for shift in windows:
        while not drifting.add({name: float(rng.normal() + shift), "batch": 0.0}):
            pass
        found.append(bool(drifting.far))
    return found


def small(most: float = 0.3) -> Drifting:
    drifting = Drifting(most, Drift(reference=400, window=200))
    assert told(drifting, 0.0) == [False]
    return drifting


def test_two_windows_of_other_workloads_bench_it_and_calm_brings_it_back() -> None:
    """Goal: both marks and both windows. Method: 2 deviations twice, then 0.5 (between the marks), then 0."""
    drifting = small()
    assert told(drifting, 2.0, 2.0) == [False, True]
    assert "log-predicted" in drifting.detail()
    assert told(drifting, 0.5) == [True]
    assert drifting.calm < drifting.indices["log-predicted"] < drifting.most, "between the marks it stays out"
    assert told(drifting, 0.0) == [False]
    assert drifting.detail() == ""
    assert told(drifting, 0.5) == [False], "between the marks it stays in"


def test_one_odd_window_is_said_and_benches_nothing() -> None:
    """Goal: a batch of equal workloads is no drift. Method: odd windows with ordinary ones between them."""
    drifting = small()
    assert told(drifting, 2.0) == [False]
    assert drifting.changed == ("log-predicted",)
    assert told(drifting, 0.0, 2.0, 0.0) == [False, False, False]


def test_a_fuller_fleet_is_said_and_benches_nothing() -> None:
    """Goal: what moves slowly by itself is left to the range of training. Method: the same drift of another feature."""
    drifting = small()
    assert told(drifting, 3.0, 3.0, 3.0, name="defer-full") == [False] * 3
    assert told(drifting, 3.0, name="defer-full") == [False]


def test_it_can_be_said_alone() -> None:
    """Goal: the operator's choice. Method: mark 0."""
    drifting = small(most=0.0)
    assert told(drifting, 3.0, 3.0) == [False, False]
    assert drifting.changed == ("log-predicted",)


@pytest.mark.parametrize("name", MIX)
def test_the_mix_is_made_of_features_that_are_there(name: str) -> None:
    """Goal: a renamed feature is noticed here. Method: each name among the model's inputs."""
    assert name in learned.CONTEXT
