"""The search after the gradient: the layer of products, by evolution strategies on whole windows.

A discounted critic prices a refusal badly: its gain comes hours later, as room for others. Whole windows price it
exactly. The network stays as it is. Each generation plays pairs of opposite candidates on the same windows (common
random numbers) and takes an Adam step along the estimated slope; Salimans et al. 2017, mirrored after Brockhoff
et al. 2010. What comes out is the mean of the last steps. NumPy only: many candidates side by side are several times
as fast there as in JAX.

Dimensions: K candidates, D = SIZE numbers, W windows. Costs in dollars.
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
from dwcp.allocation.policies import learned
from dwcp.allocation.policies.learned import KINDS, REASONS, Weights, crowding, observe, reasons

SIZE = KINDS * REASONS
SPREAD = 0.3  # of candidates around the middle, in logits: the layer starts where the network left off
STEP = 0.4  # of the spread, falling to a fifth of that
MOMENTUM, SQUARES, KEEP = 0.9, 0.97, 0.9


@dataclass(frozen=True, slots=True)
class Plan:
    """One search. Windows of all loads from the training split, and those of validation that judge what was found."""

    seed: int = 0
    stale: bool = True  # half of the windows with partial information
    windows: int = 96
    validation: int = 304
    jobs: int = 600  # measured workloads per window
    warm_jobs: int = 200
    generations: int = 24
    pairs: int = 10  # of opposite candidates per generation
    sitting: int = 16  # windows per generation


class Climb(NamedTuple):
    """Where a search stands."""

    at: Floats  # [D]
    momentum: Floats
    squares: Floats
    mean: Floats  # [D] of the last steps


def unpacked(found: Floats) -> dict[str, Array]:
    """[D] as the model's arrays."""
    return {"admit": found.astype(np.float32)}


def candidates(weights: Weights, found: Floats, windows: int) -> Scores:
    """`found` [K, D] side by side on the model `weights`: window w of a run goes by row w // windows."""
    base, sharpness = learned.base_policy(weights), np.asarray(weights["base.sharpness"], dtype=np.float32)

    def scores(view: View, xp: Any) -> Array:
        inputs = observe(view, base(view, xp), sharpness, np)
        bids = learned.logits(weights, inputs, np)
        told = reasons(inputs.context, *crowding(inputs, np), np)
        bids[:, -1] += (told * found[view.row // windows]).sum(-1)
        return bids

    return scores


def search(plan: Plan, course: Course, weights: Weights, told: Callable[[str], None]) -> dict[str, Array]:
    """The arrays found in `plan.generations` on top of the model `weights`; nothing at all in none."""
    if not plan.generations:
        return unpacked(np.zeros(SIZE))
    quiet = {**weights, **learned.nothing_searched()}
    start = costs(
        course, np.arange(course.windows), candidates(quiet, np.zeros((1, SIZE)), course.windows), 1
    )[0]

    def lost(found: Floats, picked: Ints) -> Floats:
        cost = costs(course, picked, candidates(quiet, found, len(picked)), len(found))
        return np.asarray(((cost - start[picked]) / (start[picked] + start.mean())).mean(axis=1))

    return unpacked(climbed(plan, course.windows, lost, told))


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
        share = f"{200 * found[-1]:+.2f} % from the model without it on its windows"
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
