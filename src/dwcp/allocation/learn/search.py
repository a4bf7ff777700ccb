"""The search before the gradient: what waiting is worth, by evolution strategies on whole windows.

A discounted critic prices a refusal badly: its gain comes hours later, as room for others. Whole windows price it
exactly. Each generation plays pairs of opposite candidates on the same windows (common random numbers) and takes an
Adam step along the estimated slope; Salimans et al. 2017, mirrored after Brockhoff et al. 2010. What comes out is the
mean of the last steps. NumPy only: many candidates side by side are several times as fast there as in JAX.

Dimensions: K candidates, D = admission.SIZE numbers, W windows. Costs in dollars.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dwcp.allocation.env.episode import Array, State, rows
from dwcp.allocation.env.rollout import rollout, total
from dwcp.allocation.env.view import Scores, View
from dwcp.allocation.env.weights import WEIGHTS
from dwcp.allocation.fleet import Floats, Ints
from dwcp.allocation.learn.courses import Course
from dwcp.allocation.policies import evidence
from dwcp.allocation.policies.admission import SIZE, facts, products

SPREAD = 0.35  # of candidates around the middle, in the scorer's own units
STEP = 0.4  # of the spread, falling to a fifth of that
MOMENTUM, SQUARES, KEEP = 0.9, 0.97, 0.9
TOGETHER = 76  # windows side by side when judging: more costs memory and caches


@dataclass(frozen=True, slots=True)
class Plan:
    """One search."""

    seed: int
    generations: int
    pairs: int  # of opposite candidates per generation
    sitting: int  # windows per generation


class Judged(NamedTuple):
    """What a search came to on validation windows, paired by window. Dollars per window."""

    found: Floats  # [D]
    before: float
    difference: float
    low: float
    high: float

    @property
    def kept(self) -> bool:
        return self.high < 0


class Climb(NamedTuple):
    """Where a search stands."""

    at: Floats  # [D]
    momentum: Floats
    squares: Floats
    mean: Floats  # [D] of the last steps


def candidates(scorer: Scores, found: Floats, windows: int) -> Scores:
    """`found` [K, D] side by side below `scorer`: window w of a run goes by row w // windows."""

    def scores(view: View, xp: Any) -> Array:
        bids = np.array(scorer(view, xp))
        bids[:, -1] += (products(facts(view, np), np) * found[view.row // windows]).sum(-1)
        return bids

    return scores


def search(plan: Plan, course: Course, scorer: Scores, told: Callable[[str], None]) -> Floats:
    """[D] found in `plan.generations` below `scorer`; zeros in none."""
    if not plan.generations:
        return np.zeros(SIZE)
    start = costs(
        course, np.arange(course.windows), candidates(scorer, np.zeros((1, SIZE)), course.windows), 1
    )[0]

    def lost(found: Floats, picked: Ints) -> Floats:
        cost = costs(course, picked, candidates(scorer, found, len(picked)), len(found))
        return np.asarray(((cost - start[picked]) / (start[picked] + start.mean())).mean(axis=1))

    return climbed(plan, course.windows, lost, told)


def judged(found: Floats, exam: Course, scorer: Scores) -> Judged:
    """On validation windows, against `scorer` without it."""
    before, after = (
        np.concatenate(
            [
                costs(exam, picked, candidates(scorer, one[None], len(picked)), 1)[0]
                for at in range(0, exam.windows, TOGETHER)
                for picked in [np.arange(at, min(at + TOGETHER, exam.windows))]
            ]
        )
        for one in (np.zeros(SIZE), found)
    )
    return Judged(
        found, float(before.mean()), float((after - before).mean()), *evidence.normal(after - before)
    )


def climbed(
    plan: Plan, windows: int, lost: Callable[[Floats, Ints], Floats], told: Callable[[str], None]
) -> Floats:
    """[D] where the descent of `lost` ends: ([K, D], [S] which windows) -> [K], half a share of the cost without it."""
    climb = Climb(*(np.zeros(SIZE) for _part in Climb._fields))
    rng = np.random.default_rng([plan.seed, 11])
    order: list[int] = []
    for number in range(plan.generations):
        while len(order) < plan.sitting:
            order += rng.permutation(windows).tolist()
        picked, order = np.array(order[: plan.sitting]), order[plan.sitting :]
        drawn = rng.standard_normal((plan.pairs, SIZE))
        shifts = np.concatenate([drawn, -drawn]) * SPREAD
        found = lost(np.concatenate([climb.at + shifts, climb.at[None]]), picked)
        climb = stepped(climb, slope(drawn, found[:-1]), number, plan.generations)
        share = f"{200 * found[-1]:+.2f} % from the rule without it on its windows"
        told(f"generation {number + 1} of {plan.generations}: {share}")
    return climb.mean


def slope(drawn: Floats, lost: Floats) -> Floats:
    """[D] in units of the spread, from the costs of candidates at +drawn and then at −drawn."""
    apart = lost[: len(drawn)] - lost[len(drawn) :]
    return np.asarray((apart[:, None] * drawn).mean(axis=0) / (apart.std() + 1e-9))


def stepped(climb: Climb, slope: Floats, number: int, count: int) -> Climb:
    """One step of Adam downhill."""
    momentum = MOMENTUM * climb.momentum + (1.0 - MOMENTUM) * slope
    squares = SQUARES * climb.squares + (1.0 - SQUARES) * slope**2
    length = STEP * max(0.2, 1.0 - number / count) * SPREAD
    size = np.sqrt(squares / (1.0 - SQUARES ** (number + 1))) + 1e-8
    at = climb.at - length * momentum / (1.0 - MOMENTUM ** (number + 1)) / size
    return Climb(at, momentum, squares, KEEP * climb.mean + (1.0 - KEEP) * at if number else at)


def costs(course: Course, picked: Ints, side_by_side: Scores, count: int) -> Floats:
    """[K, W] dollars of `count` candidates on the same windows `picked`."""
    copies = np.tile(picked, count)
    state = State(*(array[copies] for array in course.states))
    outcome = rollout(rows(course.episodes, copies), state, side_by_side)
    return np.asarray(total(outcome, WEIGHTS).reshape(count, len(picked)))
