"""A trained model with its layer of products searched anew, and the two files that hold it.

Searched on training windows, judged on validation windows paired with the same model without the layer, and kept only
where the interval excludes 0. NumPy only. Pure: what is measured by a clock comes in as figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from dwcp.allocation.env.episode import Array
from dwcp.allocation.env.rollout import rollout, total
from dwcp.allocation.env.view import Scores
from dwcp.allocation.env.weights import WEIGHTS
from dwcp.allocation.fleet import Floats
from dwcp.allocation.learn import courses
from dwcp.allocation.learn.config import Config
from dwcp.allocation.learn.courses import Course
from dwcp.allocation.learn.fleets import Tried
from dwcp.allocation.learn.search import Plan, search
from dwcp.allocation.learn.trainer import feature_bounds
from dwcp.allocation.policies import evidence, learned
from dwcp.allocation.policies.guarded import NODES
from dwcp.allocation.policies.learned import Inputs, Weights
from dwcp.models import artefact
from dwcp.models.artefact import Artefact, Golden, Made

TOGETHER = 76  # windows side by side: more costs memory and caches
GOLDEN_MAX = 6


class Refined(NamedTuple):
    """What a search came to. [W] validation windows, dollars."""

    weights: dict[str, Array]  # with the layer that was kept: what was found, or nothing
    before: Floats  # [W] without a layer
    after: Floats  # [W] with what was found, kept or not
    seen: list[Inputs]  # decisions on training windows as the kept model meets them

    @property
    def kept(self) -> bool:
        _low, high = evidence.normal(self.after - self.before)
        return high < 0


def refine(weights: Weights, plan: Plan, told: Callable[[str], None]) -> Refined:
    """Searches, judges and keeps or drops. ValueError: the windows asked for leave the splits."""
    base, like = learned.base_policy(weights), _like(plan)
    course = courses.training(0, plan.windows, base=base, like=like)
    quiet = {**weights, **learned.nothing_searched()}
    loud = {**weights, **search(plan, course, quiet, told)}
    exam = courses.validation(plan.validation, base=base, like=like)
    before, after = (_costs(exam, learned.scorer(one)) for one in (quiet, loud))
    found = Refined(loud, before, after, [])
    low, high = evidence.normal(after - before)
    told(
        f"{(after - before).mean():+.3f} $ per window [{low:+.3f}, {high:+.3f}] on {exam.windows} for validation"
    )
    kept = loud if found.kept else quiet
    return found._replace(weights=kept, seen=_seen(course, kept, base))


def remade(
    model: Artefact, found: Refined, plan: Plan, *, command: str, seconds: float, tried: Tried
) -> Made:
    """`model` with the refined weights: ranges grow by what was seen, golden vectors and trials of fleets are new."""
    old = model.manifest
    difference = found.after - found.before
    low, high = evidence.normal(difference)
    figures = {name: value for name, value in old.figures.items() if not name.startswith("nodes_")}
    figures |= tried.figures | {
        "refined_windows": float(len(difference)),
        "refined_generations": float(plan.generations),
        "refined_before": float(found.before.mean()),
        "refined_difference": float(difference.mean()),
        "refined_low": low,
        "refined_high": high,
        "refined_kept": float(found.kept),
        "refine_seconds": seconds,
    }
    return artefact.make(
        name=old.name,
        version=f"{old.version.split('-refined')[0]}-refined-{plan.seed}",
        schema=learned.SCHEMA,
        weights=found.weights,
        bounds=_wider(old.bounds, found.seen + tried.seen, tried.nodes),
        trained_on={**old.trained_on, "refined by": command},
        figures=figures,
        golden=_golden(found),
    )


def _wider(
    old: Mapping[str, tuple[float, float]], seen: list[Inputs], nodes: int
) -> dict[str, tuple[float, float]]:
    new = feature_bounds(seen)
    found = {
        name: (min(low, new[name][0]), max(high, new[name][1]))
        for name, (low, high) in old.items()
        if name in new
    }
    most = max(nodes, max(each.nodes.shape[-2] for each in seen))
    return found | {NODES: (old[NODES][0], float(most))}


def _golden(found: Refined) -> tuple[Golden, ...]:
    widest = found.seen[0].nodes.shape[-2]
    rows = np.concatenate([learned.flat(each) for each in found.seen if each.nodes.shape[-2] == widest])
    rows = rows[:: max(1, len(rows) // GOLDEN_MAX)][:GOLDEN_MAX]
    answers = learned.forward(found.weights, rows)
    return tuple(
        Golden(tuple(given.tolist()), tuple(float(one) for one in answer))
        for given, answer in zip(rows, answers, strict=True)
    )


def _costs(exam: Course, score: Scores) -> Floats:
    parts = [exam.part(slice(at, at + TOGETHER)) for at in range(0, exam.windows, TOGETHER)]
    return np.concatenate([total(rollout(one.episodes, one.states, score), WEIGHTS) for one in parts])


def _seen(course: Course, weights: Weights, base: Scores) -> list[Inputs]:
    sharpness = np.asarray(weights["base.sharpness"])
    views = courses.sampled(course, learned.scorer(weights), every=20, windows=course.windows)
    return [learned.observe(view, base(view, np), sharpness, np) for view in views]


def _like(plan: Plan) -> Config:
    return Config(seed=plan.seed, stale=plan.stale, jobs=plan.jobs, warm_jobs=plan.warm_jobs)
