"""Should one learn at all? Fits the candidates on a user's own records and recommends the simplest within ε.

The records are cut by time: first half to fit, then a fifth to choose, the rest to compare. Candidates from simple to
complex: the best of a few tuned rules, a linear scorer by the cross-entropy method, the learned policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dwcp.allocation.env.rollout import rollout, total
from dwcp.allocation.env.view import Scores
from dwcp.allocation.env.weights import WEIGHTS
from dwcp.allocation.fleet import Floats
from dwcp.allocation.learn import assemble, courses, trainer
from dwcp.allocation.learn.assemble import Base
from dwcp.allocation.learn.config import Config
from dwcp.allocation.learn.courses import Course
from dwcp.allocation.policies import evidence, learned, tuned, tuning
from dwcp.allocation.policies.rules import RULES, Knobs, policy
from dwcp.allocation.traces.jobs import Records

SEED = 40_000  # of worlds: beyond those of every split
FIT, CHOOSE = 0.5, 0.7  # shares of the records, in order of time
RULES_TRIED = ("balance", "best-fit-l2", "lifetime", "local-best-fit")
START = policy(RULES["balance"], Knobs(money=1.0))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked: the windows' load and kind, and how much effort the fits may take."""

    config: Config
    load: float = 0.95
    trials: int = 24
    windows: int = 24
    epsilon: float = 0.02  # a share of the cheapest one's cost


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate on the windows for comparison, dollars per window; the difference is from the cheapest."""

    name: str
    cost: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Advice:
    """`choice` is the simplest that costs at most ε more than the cheapest, at the interval's upper end."""

    choice: str
    rows: tuple[Row, ...]
    sentence: str


def joined(parts: list[Records]) -> Records:
    """Parts of one trace, in order of time, as one."""
    columns = ("arrival_s", "cpu_milli", "memory_mib", "duration_s", "batch")
    known = [part.priority for part in parts if part.priority is not None]
    return Records(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns},
        priority=np.concatenate(known) if len(known) == len(parts) else None,
    )


def advise(records: Records, plan: Plan, told: Callable[[str], None]) -> Advice:
    """Fits and compares; `told` hears what is being done. Raises `WindowImpossible` where the records are too few."""
    fit, choose, compare = _courses(records, plan)
    told("tuning rules and the linear scorer")
    rule, linear = simple(fit, plan)
    base = min((rule, linear), key=lambda one: _cost(choose, one.score))
    model = learn(fit, choose, base, plan, told)
    found = {
        rule.name: rule.score,
        tuned.LINEAR: linear.score,
        f"learned ({plan.config.algorithm})": model,
    }
    told("comparing on windows that no fit has seen")
    costs = {name: _costs(compare, score) for name, score in found.items()}
    return recommend(costs, plan.epsilon, block=_block(records, plan))


def simple(fit: Course, plan: Plan) -> tuple[Base, Base]:
    """The best tuned rule, and the linear scorer, with one budget each."""
    course = tuning.Course(fit.episodes, fit.states)
    tried = {
        name: tuning.tune_rule(
            RULES[name], course, np.random.default_rng([7, at]), trials=plan.trials, stale=fit.stale
        )
        for at, name in enumerate(RULES_TRIED)
    }
    name = min(tried, key=lambda one: tried[one].cost)
    steps = plan.trials * fit.windows * plan.config.jobs
    knobs = tried[name].value
    assert isinstance(knobs, Knobs)
    described = {"money": knobs.money, "reserve": knobs.reserve, "headroom": knobs.headroom}
    rule = assemble.make_base(name, tuned.Entry(cost=tried[name].cost, steps=steps, knobs=described), fit)
    weights = tuning.tune_linear(course, np.random.default_rng([7, 99]), trials=plan.trials)
    assert isinstance(weights.value, np.ndarray)
    entry = tuned.Entry(cost=weights.cost, steps=steps, weights=weights.value.tolist())
    return rule, assemble.make_base(tuned.LINEAR, entry, fit)


def learn(fit: Course, choose: Course, base: Base, plan: Plan, told: Callable[[str], None]) -> Scores:
    """The learned policy on top of `base`, best on the windows for choosing."""
    one = trainer.prepare(plan.config, fit, choose, base.score, base.sharpness)
    standing = one.fresh()
    for reached in one.run(standing):
        standing, point = reached, reached.points[-1]
        told(
            f"segment {len(standing.points)} of {plan.config.segments}: {point.difference:+.3f} $ per window "
            f"from {base.name} [{point.low:+.3f}, {point.high:+.3f}]"
        )
    return learned.scorer(trainer.export(standing, base.weights))


def recommend(costs: dict[str, Floats], epsilon: float, *, block: int) -> Advice:
    """`costs` [W] by name, simplest first, on the same windows."""
    means = {name: float(values.mean()) for name, values in costs.items()}
    cheapest = min(means, key=lambda name: means[name])
    seeds = np.zeros(len(costs[cheapest]), dtype=np.int64)
    rows = []
    for name, values in costs.items():
        difference, low, high = evidence.paired_difference(
            values, costs[cheapest], seeds=seeds, block=block, rng=np.random.default_rng(3)
        )
        rows.append(Row(name, means[name], difference, low, high))
    allowed = epsilon * abs(means[cheapest])
    chosen = next(row for row in rows if row.name == cheapest or row.high <= allowed)
    return Advice(chosen.name, tuple(rows), _sentence(chosen, rows, means[cheapest], epsilon))


def _sentence(chosen: Row, rows: list[Row], cheapest: float, epsilon: float) -> str:
    """What to use, and whether the windows show it."""
    if chosen.difference > 0:
        best = min(rows, key=lambda row: row.cost).name
        return (
            f"use {chosen.name}: it costs at most {chosen.high / abs(cheapest):.1%} more than {best}, "
            f"which is not worth its complexity below {epsilon:.1%}"
        )
    simpler = rows[: rows.index(chosen)]
    ties = [f"{row.name} (by {row.low:+.2f} to {row.high:+.2f} $)" for row in simpler if row.low <= 0]
    said = f"use {chosen.name}: it costs {chosen.cost:.2f} $ per window"
    if not ties:
        return said
    return (
        f"{said}; but these windows do not show that it is cheaper than {', '.join(ties)}, which is simpler: "
        "compare on more --windows before you decide"
    )


def _courses(records: Records, plan: Plan) -> tuple[Course, Course, Course]:
    """To fit, to choose and to compare; each on a world of its own."""
    config = plan.config
    edges = (0.0, FIT, CHOOSE, 1.0)
    sizes = (config.windows, config.validation, plan.windows)

    def made(number: int) -> Course:
        share = (edges[number], edges[number + 1])
        seed = SEED + config.seed * len(sizes) + number
        return courses.of_records(
            records, sizes[number], share=share, seed=seed, base=START, load=plan.load, like=config
        )

    return made(0), made(1), made(2)


def _block(records: Records, plan: Plan) -> int:
    """How many neighbouring windows overlap, for the bootstrap."""
    room = max(1.0, len(records) * (1 - CHOOSE) - plan.config.jobs - plan.config.warm_jobs)
    stride = max(1.0, room / plan.windows)
    return int(min(plan.windows, max(1.0, np.ceil((plan.config.jobs + plan.config.warm_jobs) / stride))))


def _costs(course: Course, score: Scores) -> Floats:
    return total(rollout(course.episodes, course.states, score), WEIGHTS)


def _cost(course: Course, score: Scores) -> float:
    return float(_costs(course, score).mean())
