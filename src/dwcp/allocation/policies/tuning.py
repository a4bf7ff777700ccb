"""Tunes every rule with the same number of environment steps, on training streams alone.

Rules have three knobs and are searched at random; the linear scorer has a weight per feature and is searched by
the cross-entropy method. Randomness is the caller's generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dwcp.allocation.env.episode import Episode, State, rows
from dwcp.allocation.env.rollout import rollout, total
from dwcp.allocation.env.view import Scores
from dwcp.allocation.env.weights import WEIGHTS, CostWeights
from dwcp.allocation.fleet import Floats, Ints
from dwcp.allocation.policies.linear import linears, start
from dwcp.allocation.policies.rules import Knobs, Rule, policies

ELITE = 0.25
NOISE = 0.4
TOGETHER = 16  # candidates side by side in one run
SPREAD_LEAST, SPREAD_SHARE = 0.3, 0.25  # of a rotating search's first candidates: absolute, and of the weight
FLOOR = 0.4  # of that spread stays, falling to 0
KEPT = 0.6  # of a generation's elite in the next mean and spread
LAST_MEANS = 3  # of a rotating search, tried on the whole course


@dataclass(frozen=True, slots=True)
class Course:
    """Training windows with their warm snapshot; a trial is one rollout over all of them."""

    episode: Episode
    state: State
    weights: CostWeights = WEIGHTS

    @property
    def windows(self) -> int:
        return len(self.episode.capacity)

    def part(self, wanted: Ints) -> Course:
        """Those windows alone."""
        state = State(*(array[wanted] for array in self.state))
        return Course(rows(self.episode, wanted), state, self.weights)

    def costs(self, candidates: Scores, count: int) -> Floats:
        """[count] mean dollars per window of candidates that run side by side (`rules.policies`, `linear.linears`)."""
        copies = np.tile(np.arange(self.windows), count)
        side_by_side = State(*(array[copies] for array in self.state))
        outcome = rollout(rows(self.episode, copies), side_by_side, candidates)
        return np.asarray(total(outcome, self.weights).reshape(count, self.windows).mean(axis=1))


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best candidate, what it cost on the course, and how many trials it took."""

    value: Knobs | Floats
    cost: float
    trials: int

    @property
    def described(self) -> dict[str, float] | list[float]:
        """For a report: the knobs by name, or the weights."""
        if isinstance(self.value, Knobs):
            knobs = self.value
            return {"money": knobs.money, "reserve": knobs.reserve, "headroom": knobs.headroom}
        return [round(float(weight), 4) for weight in self.value]


def draw(rng: np.random.Generator, *, stale: bool) -> Knobs:
    """A trial of the knobs: prices over three decades, reserve and headroom often 0."""
    return Knobs(
        money=float(10 ** rng.uniform(-2, 1)),
        reserve=float(rng.choice([0.0, 0.0, rng.uniform(0.0, 0.6)])),
        headroom=float(rng.choice([0.0, rng.uniform(0.0, 1.0)])) if stale else 0.0,
    )


def tune_rule(
    rule: Rule, course: Course, rng: np.random.Generator, *, trials: int, stale: bool = False
) -> Tuned:
    """Random search; the blind rule is the first trial, so tuning never makes it worse on the course."""
    candidates = [Knobs(), Knobs(money=1.0)][:trials]
    candidates += [draw(rng, stale=stale) for _trial in range(trials - len(candidates))]
    costs: list[float] = []
    for at in range(0, len(candidates), TOGETHER):
        some = candidates[at : at + TOGETHER]
        costs += course.costs(policies(rule, some, course.windows), len(some)).tolist()
    best = int(np.argmin(costs))
    return Tuned(candidates[best], costs[best], len(candidates))


def tune_linear(
    course: Course,
    rng: np.random.Generator,
    *,
    trials: int,
    sitting: int = 0,
    starts: list[Floats] | None = None,
) -> Tuned:
    """Cross-entropy method over `linear.WIDTH` weights.

    `starts` are tried beside the hand-written rule. With `sitting` above 0 a generation is played on as many windows,
    by turns: what is seen is noisier and steps go further; then `rotated` instead of `cross_entropy`.
    """
    offered = [start(), *(starts or [])]
    if sitting:

        def on(samples: Floats, picked: Ints) -> Floats:
            return course.part(picked).costs(linears(samples, len(picked)), len(samples))

        return rotated(on, course.windows, offered, rng, trials=trials, sitting=min(sitting, course.windows))

    def cost(samples: Floats) -> Floats:
        return course.costs(linears(samples, course.windows), len(samples))

    first = offered[int(np.argmin(cost(np.array(offered))))] if starts else offered[0]
    return cross_entropy(cost, first, rng, trials=trials)


def rotated(
    cost: Callable[[Floats, Ints], Floats],
    windows: int,
    offered: list[Floats],
    rng: np.random.Generator,
    *,
    trials: int,
    sitting: int,
) -> Tuned:
    """The cross-entropy method where a generation sees `sitting` of the windows, by turns; `cost` ([K, F], [S] which
    windows) -> [K]. A trial is one candidate on `sitting` windows; one on all of them counts as so many more.

    What was best on a few windows was lucky, so means are kept, not samples: at the end the last means and `offered`
    meet on all windows.
    """
    everything, whole = np.arange(windows), -(-windows // sitting)
    first = cost(np.array(offered), everything)
    mean = offered[int(np.argmin(first))]
    spread = SPREAD_LEAST + SPREAD_SHARE * np.abs(mean)
    generations = max(1, (trials - whole * (len(offered) + LAST_MEANS)) // TOGETHER)
    means: list[Floats] = []
    order: list[int] = []
    for number in range(generations):
        while len(order) < sitting:
            order += rng.permutation(windows).tolist()
        picked, order = np.array(order[:sitting]), order[sitting:]
        samples = mean + spread * rng.standard_normal((TOGETHER, len(mean)))
        samples[0] = mean
        elite = samples[np.argsort(cost(samples, picked))[: int(ELITE * TOGETHER) + 1]]
        mean = (1.0 - KEPT) * mean + KEPT * elite.mean(axis=0)
        floor = (SPREAD_LEAST + SPREAD_SHARE * np.abs(mean)) * FLOOR * (1.0 - (number + 1) / generations)
        spread = np.sqrt((1.0 - KEPT) * spread**2 + KEPT * elite.var(axis=0) + floor**2)
        means.append(mean)
    last = means[::-2][:LAST_MEANS]
    known = [*zip(first.tolist(), offered, strict=True)]
    known += zip(cost(np.array(last), everything).tolist(), last, strict=True)
    best = min(known, key=lambda one: one[0])
    return Tuned(best[1], best[0], generations * TOGETHER + whole * len(known))


def cross_entropy(
    cost: Callable[[Floats], Floats], mean: Floats, rng: np.random.Generator, *, trials: int
) -> Tuned:
    """Minimises `cost` ([K, F] -> [K]) in exactly `trials` evaluations; the best one seen wins.

    Szita and Lőrincz 2006, with noise that falls to 0.
    """
    size = max(6, min(TOGETHER, trials // 6))
    spread = np.full(len(mean), 1.0)
    best, best_cost, done = mean, float(cost(mean[None])[0]), 1
    while done < trials:
        count = min(size, trials - done)
        samples = mean + spread * rng.standard_normal((count, len(mean)))
        samples[0] = mean if done > 1 else samples[0]
        costs = cost(samples)
        done += count
        order = np.argsort(costs)
        if costs[order[0]] < best_cost:
            best, best_cost = samples[order[0]], float(costs[order[0]])
        elite = samples[order[: max(2, int(ELITE * count) + 1)]]
        mean = 0.3 * best + 0.7 * elite.mean(axis=0)
        noise = NOISE * (1 - done / trials)  # falls to 0: keeps the search from settling early
        spread = np.sqrt(elite.var(axis=0) + noise**2)
    return Tuned(best, best_cost, done)
