"""The search on whole windows: it finds what is planted, goes again the same way, and adds up as the model does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tests.unit.allocation.learn import grounds

from dwcp.allocation.env.rollout import rollout, total
from dwcp.allocation.env.weights import WEIGHTS
from dwcp.allocation.fleet import Floats, Ints
from dwcp.allocation.learn import search
from dwcp.allocation.learn.search import Plan
from dwcp.allocation.policies import learned
from dwcp.allocation.policies.admission import SIZE
from dwcp.allocation.policies.linear import linear, start


def planted(at: Floats) -> Callable[[Floats, Ints], Floats]:
    """Losses with one optimum; every window adds what no candidate can change."""

    def lost(found: Floats, picked: Ints) -> Floats:
        apart = ((found - at) / search.SPREAD) ** 2
        return np.asarray(apart.mean(axis=1) + 0.01 * picked.mean())

    return lost


def silent(_text: str) -> None:
    """Nobody listens."""


def test_it_finds_a_planted_optimum() -> None:
    """Goal: the descent descends in all its numbers. Method: an optimum one spread away; most of the loss goes."""
    at = search.SPREAD * np.where(np.arange(SIZE) % 2, 1.0, -1.0)
    lost, plan = planted(at), Plan(0, generations=120, pairs=12, sitting=2)

    found = search.climbed(plan, 8, lost, silent)

    none = np.zeros(1, dtype=np.int64)
    assert lost(found[None], none)[0] < 0.15 * lost(np.zeros((1, SIZE)), none)[0]


def test_a_seed_is_a_course_of_its_own() -> None:
    """Goal: the same command finds the same numbers. Method: real windows twice; another seed differs; every
    generation is told."""
    heard: list[str] = []
    found = [
        search.search(
            Plan(seed, generations=2, pairs=2, sitting=2), grounds.course(), linear(start()), heard.append
        )
        for seed in (1, 1, 2)
    ]

    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0
    assert len(heard) == 6


def test_no_generations_find_nothing() -> None:
    """Goal: without a search the scorer stays as it is. Method: none; zeros."""
    found = search.search(Plan(0, 0, 2, 2), grounds.course(), linear(start()), silent)

    np.testing.assert_array_equal(found, np.zeros(SIZE))


def test_what_is_searched_is_what_a_model_stands_on() -> None:
    """Goal: candidates side by side cost what the base policy with their weights costs. Method: two random candidates
    on the windows of a course, side by side and each as the arrays of a model."""
    course, rng = grounds.course(stale=True), np.random.default_rng(5)
    found = rng.standard_normal((2, SIZE)) * search.SPREAD
    everything = np.arange(course.windows)

    beside = search.costs(course, everything, search.candidates(linear(start()), found, course.windows), 2)

    for row, own in zip(beside, found, strict=True):
        arrays = learned.base_linear(start(), sharpness=1.0, admit=own)
        alone = total(rollout(course.episodes, course.states, learned.base_policy(arrays)), WEIGHTS)
        np.testing.assert_allclose(row, alone, rtol=1e-6)


def test_what_does_not_win_is_not_kept() -> None:
    """Goal: weights that make everybody wait are dropped, and nothing found changes nothing. Method: both judged."""
    course, scorer = grounds.course(), linear(start())

    worse = search.judged(np.full(SIZE, 9.0), course, scorer)
    same = search.judged(np.zeros(SIZE), course, scorer)

    assert worse.difference > 0
    assert not worse.kept
    assert same.difference == 0.0
    assert not same.kept
