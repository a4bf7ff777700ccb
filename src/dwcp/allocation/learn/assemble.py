"""From a finished run to a model file, and the tuned rule that a run stands on.

Pure: what is measured by a clock comes in as figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dwcp.allocation.env.view import Scores, View
from dwcp.allocation.learn.config import Config
from dwcp.allocation.learn.courses import Course
from dwcp.allocation.learn.trainer import Standing, export, feature_bounds
from dwcp.allocation.policies import learned, tuned
from dwcp.allocation.policies.rules import Knobs
from dwcp.models import artefact

GOLDEN_MAX = 6
LOAD = 0.95  # at which the base rule is chosen
NODES = "nodes"  # the name under which a manifest bounds the number of nodes


@dataclass(frozen=True, slots=True)
class Base:
    """A tuned rule: by name, as a policy, and as arrays of a model file."""

    name: str
    score: Scores
    weights: dict[str, Any]

    @property
    def sharpness(self) -> float:
        return float(self.weights["base.sharpness"][0])


def best_entry(table: tuned.Table, *, stale: bool) -> tuple[str, tuned.Entry]:
    """The cheapest of all tuned policies at load 0.95; the hand-written rule where none was tuned."""
    entries = table.entries(LOAD, stale=stale)
    if not entries:
        return "balance", tuned.Entry(cost=0.0, steps=0, knobs={"money": 1.0})
    return min(entries.items(), key=lambda item: item[1].cost)


def make_base(name: str, entry: tuned.Entry, course: Course | None = None) -> Base:
    """The rule with the scale that a course gives it; without one the scale is 1. ValueError: no such rule."""
    weights = _arrays(name, entry, 1.0)
    score = learned.base_policy(weights)
    if course is None:
        return Base(name, score, weights)
    sharpness = learned.sharpness_of(score, sample_views(course, score))
    return Base(name, score, _arrays(name, entry, sharpness))


def make(
    standing: Standing,
    *,
    config: Config,
    base: Base,
    views: list[View],
    trained_on: Mapping[str, str],
    figures: Mapping[str, float],
    nodes: tuple[int, int],
) -> artefact.Made:
    """The model's two files; `views` give feature ranges and golden inputs, `nodes` the fleets it was tried on."""
    weights = export(standing, base.weights)
    seen = [learned.observe(view, base.score(view, np), weights["base.sharpness"], np) for view in views]
    bounds = feature_bounds(seen) | {NODES: (float(nodes[0]), float(nodes[1]))}
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
        figures={**figures, **run_figures(standing, config)},
        golden=golden,
    )


def run_figures(standing: Standing, config: Config) -> dict[str, float]:
    """What the run itself measured; differences are from the base rule, dollars per validation window."""
    found: dict[str, float] = {"seed": config.seed, "stale": float(config.stale)}
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


def load(made: artefact.Made) -> artefact.Artefact:
    """The model after every check. Raises `ModelRefused`."""
    return artefact.load(made, name=learned.NAME, schema=learned.SCHEMA, forward=learned.forward)


def sample_views(course: Course, base: Scores, *, every: int = 40, windows: int = 8) -> list[View]:
    """Some decisions of a course as the base rule meets them: for scale, feature ranges and golden vectors."""
    from dwcp.allocation.env.reference import Reference

    some = course.part(slice(0, windows))
    env = Reference.at(some.episodes, some.states)
    found: list[View] = []
    for number, event in enumerate(range(*some.span)):
        job = env.begin(event)
        rows = np.nonzero(job >= 0)[0]
        if len(rows) and number % every in (0, 1):
            found.append(env.view(rows, job[rows]))
        env.commit(job, base)
    return found


def _arrays(name: str, entry: tuned.Entry, sharpness: float) -> dict[str, Any]:
    if name == tuned.LINEAR:
        return learned.base_linear(np.array(entry.weights), sharpness=sharpness)
    return learned.base_weights(name, Knobs(**entry.knobs), sharpness=sharpness)
