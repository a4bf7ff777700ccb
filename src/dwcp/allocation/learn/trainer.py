"""A whole run: segments, validation after each, the best actor kept, early stop, a learner that can be written down.

The best is chosen by cost on validation windows, paired with the base rule on the same windows; never by what training
itself earned. `run` is a generator, so that its caller owns clock, files and patience of people.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dwcp.allocation.env import fast
from dwcp.allocation.env.view import Scores
from dwcp.allocation.env.weights import WEIGHTS
from dwcp.allocation.fleet import Floats
from dwcp.allocation.learn import canonical, collect, mappo, matd3, validate
from dwcp.allocation.learn.collect import Act, Setting
from dwcp.allocation.learn.config import Config
from dwcp.allocation.learn.courses import Course
from dwcp.allocation.learn.matd3 import Ground
from dwcp.allocation.policies import evidence, learned


class Point(NamedTuple):
    """One segment of the learning curve."""

    updates: int
    decisions: int
    cost: float  # dollars per validation window
    difference: float  # of that from the base rule's, paired mean
    low: float  # its 95 % interval
    high: float
    critic_loss: float
    actor_loss: float
    reward: float


class Standing(NamedTuple):
    """What a run carries from segment to segment; `learner` and `best` are trees of arrays."""

    learner: Any
    best: Any
    best_cost: float
    best_at: int
    points: tuple[Point, ...]


class Algorithm(NamedTuple):
    """How one algorithm plugs in."""

    begin: Callable[..., Any]
    segment: Callable[..., Any]
    gather: Callable[..., Any]
    learn: Callable[..., Any]
    bids: Callable[[Any], Act]  # of an actor, without noise


ALGORITHMS: dict[str, Algorithm] = {
    "matd3": Algorithm(matd3.begin, matd3.segment, matd3.gather, matd3.learn, collect.greedy),
    "mappo": Algorithm(mappo.begin, mappo.segment, mappo.gather, mappo.learn, collect.greedy),
    "canonical": Algorithm(
        canonical.begin, canonical.segment, canonical.gather, canonical.learn, canonical.greedy
    ),
}


@dataclass(slots=True)
class Trainer:
    """Everything compiled and on the device for one configuration."""

    config: Config
    setting: Setting
    start: int
    ground: Ground
    exam: Ground
    rule_cost: Floats  # [W] of the base rule on the validation windows
    first: Any  # the learner before its first segment
    compiled: Callable[..., Any]
    judge: Callable[..., Floats]

    def fresh(self) -> Standing:
        """Before the first segment; the rule itself is the best so far, where the first actor is the rule."""
        is_rule = self.config.algorithm != "canonical"
        cost = float(self.rule_cost.mean()) if is_rule else float("inf")
        return Standing(self.first, self.first.actor, cost, -1, ())

    def run(self, standing: Standing) -> Iterator[Standing]:
        """After every segment what stands, until the last one or until patience ends."""
        while not finished(self.config, standing):
            learner, told = self.compiled(standing.learner, self.ground)
            cost = self.judge(learner.actor, *self.exam)
            standing = judged(standing, learner, told, cost, self.rule_cost)
            yield standing


def prepare(config: Config, course: Course, exam: Course, base: Scores, sharpness: float) -> Trainer:
    """ValueError: the courses were cut differently. Needs the extra `train`."""
    import jax

    if course.nodes < exam.nodes and config.algorithm == "canonical":
        raise ValueError("canonical MADDPG cannot change the number of nodes: validate on as many as trained")
    stale = course.stale or exam.stale
    setting = Setting(base, np.array([sharpness], dtype=np.float32), stale, WEIGHTS)
    start, exam_start = course.span[0], exam.span[0]
    algorithm = ALGORITHMS[config.algorithm]
    ground = Ground(fast.device(course.episodes), fast.device(course.states))
    judged_on = Ground(fast.device(exam.episodes), fast.device(exam.states))
    judge = validate.evaluator(algorithm.bids, setting, start=exam_start)
    first = algorithm.begin(config, ground, setting, start=start)
    if config.algorithm == "canonical":
        rule_cost = validate.rule_costs(base, *judged_on, setting, start=exam_start)
    else:
        rule_cost = judge(
            first.actor, *judged_on
        )  # a residual of 0 is the rule, and nothing is compiled twice
    return Trainer(
        config=config,
        setting=setting,
        start=start,
        ground=ground,
        exam=judged_on,
        rule_cost=rule_cost,
        first=first,
        compiled=jax.jit(functools.partial(algorithm.segment, config, setting, start)),
        judge=judge,
    )


def judged(standing: Standing, learner: Any, told: Any, cost: Floats, rule_cost: Floats) -> Standing:
    """The standing after one more segment."""
    difference = cost - rule_cost
    low, high = evidence.normal(difference)
    before = standing.points[-1].decisions if standing.points else 0
    point = Point(
        updates=int(learner.updates),
        decisions=before + int(told.decisions),
        cost=float(cost.mean()),
        difference=float(difference.mean()),
        low=low,
        high=high,
        critic_loss=float(told.critic_loss),
        actor_loss=float(told.actor_loss),
        reward=float(told.reward),
    )
    points = (*standing.points, point)
    if point.cost < standing.best_cost:
        return Standing(learner, learner.actor, point.cost, len(points) - 1, points)
    return standing._replace(learner=learner, points=points)


def finished(config: Config, standing: Standing) -> bool:
    done = len(standing.points)
    return done >= config.segments or done - 1 - standing.best_at >= config.patience


def export(standing: Standing, base: dict[str, Any]) -> dict[str, Any]:
    """The best actor and its base rule as plain arrays, for serving; `base` from `learned.base_weights`."""
    return {name: np.asarray(array, dtype=np.float32) for name, array in standing.best.items()} | base


def feature_bounds(inputs: list[learned.Inputs]) -> dict[str, tuple[float, float]]:
    """Lowest and highest of each feature over nodes that are there."""
    nodes = np.concatenate([each.nodes.reshape(-1, len(learned.NODE)) for each in inputs])
    nodes = nodes[nodes[:, learned.NODE.index("present")] > 0]
    context = np.concatenate([each.context.reshape(-1, len(learned.CONTEXT)) for each in inputs])
    found = dict(
        zip(learned.NODE, zip(nodes.min(0).tolist(), nodes.max(0).tolist(), strict=True), strict=True)
    )
    ranges = zip(context.min(0).tolist(), context.max(0).tolist(), strict=True)
    return found | dict(zip(learned.CONTEXT, ranges, strict=True))
