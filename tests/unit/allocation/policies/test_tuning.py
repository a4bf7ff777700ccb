"""Tuning the linear scorer on few windows at a time."""

from __future__ import annotations

import numpy as np
from tests.unit.allocation import worlds

from dwcp.allocation.env.rollout import warm
from dwcp.allocation.fleet import Floats, Ints
from dwcp.allocation.policies import tuning
from dwcp.allocation.policies.linear import WIDTH, linears, start
from dwcp.allocation.policies.rules import RULES, Knobs, policy

WINDOWS = 12


class Valley:
    """Windows that agree about the optimum and differ in how dear they are; counts what was played."""

    def __init__(self, at: Floats) -> None:
        self.at = at
        self.played = 0
        self.dear = np.random.default_rng(3).uniform(0.0, 50.0, WINDOWS)

    def cost(self, samples: Floats, picked: Ints) -> Floats:
        self.played += len(samples) * len(picked)
        apart = ((samples - self.at) ** 2).sum(axis=1)
        return np.asarray(apart + self.dear[picked].mean())


def test_it_finds_a_planted_optimum_and_counts_its_steps() -> None:
    """Goal: a rotating search is a search, and its budget is what it says. Method: a valley far from where it
    starts; four fifths of the way are gone, and the trials are the windows played, in sittings of four."""
    valley = Valley(np.linspace(-2.0, 2.0, 6))

    best = tuning.rotated(
        valley.cost, WINDOWS, [np.zeros(6)], np.random.default_rng(1), trials=600, sitting=4
    )

    assert best.cost - valley.dear.mean() < 0.04 * (valley.at**2).sum()
    assert best.trials * 4 == valley.played
    assert best.trials <= 600


def test_the_best_of_what_was_offered_is_never_lost() -> None:
    """Goal: tuning goes on from a table and never makes it worse. Method: the optimum is among the offered."""
    valley = Valley(np.ones(4))

    best = tuning.rotated(
        valley.cost,
        WINDOWS,
        [np.zeros(4), np.ones(4)],
        np.random.default_rng(1),
        trials=60,
        sitting=4,
    )

    np.testing.assert_array_equal(best.value, np.ones(4))


def test_a_part_of_a_course_costs_what_it_cost() -> None:
    """Goal: windows are played alone as beside others. Method: each window's cost, weighted, is the whole's; and the
    same seed finds the same weights."""
    episode = worlds.small(count=3, measured=40)
    course = tuning.Course(episode, warm(episode, policy(RULES["balance"], Knobs(money=1.0))))
    samples = np.stack([start(), np.zeros(WIDTH)])

    parts = [course.part(np.array([window])).costs(linears(samples, 1), 2) for window in range(3)]

    np.testing.assert_allclose(np.mean(parts, axis=0), course.costs(linears(samples, 3), 2))
    first, again = (
        tuning.tune_linear(course, np.random.default_rng(4), trials=30, sitting=1, starts=[np.zeros(WIDTH)])
        for _time in range(2)
    )
    np.testing.assert_array_equal(first.value, again.value)
    assert first.trials >= 3 * 5
