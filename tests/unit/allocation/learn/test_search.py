"""The search on whole windows: it finds what is planted, goes again the same way, and adds up as the model does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tests.unit.allocation.learn import grounds
from tests.unit.allocation.serving import placers

from dwcp.allocation.env.rollout import rollout, total
from dwcp.allocation.env.weights import WEIGHTS
from dwcp.allocation.fleet import Floats, Ints
from dwcp.allocation.learn import search
from dwcp.allocation.learn.search import Plan
from dwcp.allocation.policies import learned


def planted(at: Floats) -> Callable[[Floats, Ints], Floats]:
    """Losses with one optimum; every window adds what no candidate can change."""

    def lost(found: Floats, picked: Ints) -> Floats:
        apart = ((found - at) / search.SPREAD) ** 2
        return np.asarray(apart.mean(axis=1) + 0.01 * picked.mean())

    return lost


def model() -> dict[str, np.ndarray]:
    """A network that has its say, and no layer yet."""
    return placers.weights() | learned.nothing_searched()


def silent(_text: str) -> None:
    """Nobody listens."""


def test_it_finds_a_planted_optimum() -> None:
    """Goal: the descent descends in all its numbers. Method: an optimum one spread away; most of the loss goes."""
    at = search.SPREAD * np.where(np.arange(search.SIZE) % 2, 1.0, -1.0)
    lost, config = planted(at), Plan(generations=120, pairs=12, sitting=2)

    found = search.climbed(config, 8, lost, silent)

    none = np.zeros(1, dtype=np.int64)
    assert lost(found[None], none)[0] < 0.15 * lost(np.zeros((1, search.SIZE)), none)[0]


def test_a_seed_is_a_course_of_its_own() -> None:
    """Goal: the same command finds the same numbers. Method: real windows twice; another seed differs; every
    generation is told."""
    heard: list[str] = []
    found = [
        search.search(
            Plan(generations=2, pairs=2, sitting=2, seed=seed), grounds.course(), model(), heard.append
        )["admit"]
        for seed in (1, 1, 2)
    ]

    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0
    assert len(heard) == 6


def test_no_generations_find_nothing() -> None:
    """Goal: without a search the model begins as its rule. Method: none; layers of zeros, the model's shapes."""
    found = search.search(Plan(generations=0), grounds.course(), model(), silent)

    for name, array in learned.nothing_searched().items():
        np.testing.assert_array_equal(found[name], array)


def test_what_is_searched_is_what_is_served() -> None:
    """Goal: candidates side by side cost what the model with their layers costs. Method: two random candidates on
    the windows of a course, side by side and each as a model."""
    course, rng = grounds.course(stale=True), np.random.default_rng(5)
    found = rng.standard_normal((2, search.SIZE)) * search.SPREAD
    everything = np.arange(course.windows)

    beside = search.costs(course, everything, search.candidates(model(), found, course.windows), 2)

    for row, own in zip(beside, found, strict=True):
        alone = total(
            rollout(course.episodes, course.states, learned.scorer(model() | search.unpacked(own))), WEIGHTS
        )
        np.testing.assert_allclose(row, alone, rtol=1e-6)
