"""From a finished run to a model file, and the tuned rule that a run stands on.

Pure: what is measured by a clock comes in as figures.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dwcp.allocation.env.rollout import rollout, total
from dwcp.allocation.env.view import Scores, View
from dwcp.allocation.env.weights import WEIGHTS
from dwcp.allocation.learn.config import Config
from dwcp.allocation.learn.courses import LOADS, Course, sampled
from dwcp.allocation.learn.fleets import NOT_TRIED, Tried
from dwcp.allocation.learn.search import Judged
from dwcp.allocation.learn.trainer import Standing, export, feature_bounds
from dwcp.allocation.policies import learned, tuned
from dwcp.allocation.policies.guarded import NODES
from dwcp.allocation.policies.rules import Knobs
from dwcp.models import artefact

GOLDEN_MAX = 6
PER_LOAD = 2  # of the cheapest on training streams, tried on validation windows
ALWAYS = ("local-best-fit", tuned.LINEAR)  # tried too, at whatever place
CHOOSING = 12  # validation windows on which the rule below is chosen
HAND_WRITTEN = ("balance", tuned.Entry(cost=0.0, steps=0, knobs={"money": 1.0}))


@dataclass(frozen=True, slots=True)
class Base:
    """A tuned rule: by name, as a policy, and as arrays of a model file."""

    name: str
    score: Scores
    weights: dict[str, Any]

    @property
    def sharpness(self) -> float:
        return float(self.weights["base.sharpness"][0])


def candidates(table: tuned.Table, *, stale: bool) -> list[tuple[str, tuned.Entry]]:
    """The cheapest tuned policies of every load, each once; the hand-written rule beside them. `stale`: those for
    partial information too, as such a run learns both."""
    found = [HAND_WRITTEN]
    for load, old in itertools.product(LOADS, (False, True) if stale else (False,)):
        entries = sorted(table.entries(load, stale=old).items(), key=lambda item: item[1].cost)
        chosen = entries[:PER_LOAD] + [item for item in entries[PER_LOAD:] if item[0] in ALWAYS]
        known = [(name, entry.knobs, entry.weights) for name, entry in found]
        found += [item for item in chosen if (item[0], item[1].knobs, item[1].weights) not in known]
    return found


def best_entry(offered: list[tuple[str, tuned.Entry]], exam: Course) -> tuple[str, tuned.Entry]:
    """The cheapest on validation windows of all loads: one rule has to serve them all, and what was cheap on a few
    windows of training need not be cheap on others."""
    some = exam.part(slice(0, CHOOSING))
    costs = [_cost(make_base(name, entry).score, some) for name, entry in offered]
    return offered[int(np.argmin(costs))]


def _cost(score: Scores, exam: Course) -> float:
    return float(total(rollout(exam.episodes, exam.states, score), WEIGHTS).mean())


def make_base(name: str, entry: tuned.Entry, course: Course | None = None) -> Base:
    """The rule with the scale that a course gives it; without one the scale is 1. ValueError: no such rule."""
    weights = _arrays(name, entry, 1.0)
    score = learned.base_policy(weights)
    if course is None:
        return Base(name, score, weights)
    sharpness = learned.sharpness_of(score, sampled(course, score))
    return Base(name, score, _arrays(name, entry, sharpness))


def with_waiting(base: Base, judged: Judged) -> Base:
    """The linear scorer with what was searched, where validation keeps it. The scale stays: it is that of nodes."""
    if not judged.kept:
        return base
    linear = np.asarray(base.weights["base.linear"], dtype=np.float64)
    weights = learned.base_linear(linear, sharpness=base.sharpness, admit=judged.found)
    return Base(f"{base.name} with searched waiting", learned.base_policy(weights), weights)


def make(
    standing: Standing,
    *,
    config: Config,
    base: Base,
    views: list[View],
    trained_on: Mapping[str, str],
    figures: Mapping[str, float],
    tried: Tried = NOT_TRIED,
) -> artefact.Made:
    """The model's two files; `views` give feature ranges and golden inputs, `tried` the fleets beyond training."""
    weights = export(standing, base.weights)
    seen = [learned.observe(view, base.score(view, np), weights["base.sharpness"], np) for view in views]
    most = max(tried.nodes, max(each.nodes.shape[-2] for each in seen))
    bounds = feature_bounds([*seen, *tried.seen]) | {NODES: (1.0, float(most))}
    rows = np.concatenate([learned.flat(each) for each in seen])
    rows = rows[:: max(1, len(rows) // GOLDEN_MAX)][:GOLDEN_MAX]
    answers = learned.forward(weights, rows)
    golden = tuple(
        artefact.Golden(tuple(given.tolist()), tuple(float(one) for one in answer))
        for given, answer in zip(rows, answers, strict=True)
    )
    return artefact.make(
        name=learned.NAME,
        version=f"{config.algorithm}-{config.seed}",
        schema=learned.SCHEMA,
        weights=weights,
        bounds=bounds,
        trained_on={**trained_on, "base": base.name},
        figures={**figures, **tried.figures, **run_figures(standing, config)},
        golden=golden,
    )


def run_figures(standing: Standing, config: Config) -> dict[str, float]:
    """What the run itself measured; differences are from the base rule, dollars per validation window."""
    found: dict[str, float] = {
        "seed": config.seed,
        "stale": float(config.stale),
        "validation_windows": config.validation,
    }
    if not standing.points:
        return found
    last = standing.points[-1]
    found |= {"updates": last.updates, "decisions": last.decisions}
    best = standing.points[standing.best_at] if standing.best_at >= 0 else None
    return found | {
        "validation_cost": best.cost if best else standing.best_cost,
        "validation_difference": best.difference
        if best
        else 0.0,  # nothing learned beat the rule: it is the rule
        "validation_difference_low": best.low if best else 0.0,
        "validation_difference_high": best.high if best else 0.0,
    }


def search_figures(judged: Judged | None, config: Config) -> dict[str, float]:
    """What the search before came to, dollars per validation window; nothing where none was made."""
    if judged is None:
        return {}
    return {
        "generations": config.generations,
        "searched_before": judged.before,
        "searched_difference": judged.difference,
        "searched_low": judged.low,
        "searched_high": judged.high,
        "searched_kept": float(judged.kept),
    }


def _arrays(name: str, entry: tuned.Entry, sharpness: float) -> dict[str, Any]:
    if name == tuned.LINEAR:
        return learned.base_linear(np.array(entry.weights), sharpness=sharpness)
    return learned.base_weights(name, Knobs(**entry.knobs), sharpness=sharpness)
