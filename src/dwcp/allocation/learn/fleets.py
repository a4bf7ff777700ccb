"""How many nodes a model may serve: larger fleets than those of training are tried, against the rule below it.

A model learns on at most 16 nodes; what it says of 500 is a claim that has to be tried. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dwcp.allocation.env.view import Scores
from dwcp.allocation.learn.courses import Course, sampled
from dwcp.allocation.learn.judge import Asked, Compared, compare_on, length, windows_of
from dwcp.allocation.policies import learned
from dwcp.allocation.policies.learned import Inputs, Weights
from dwcp.allocation.traces import splits

COUNTS = (32, 100, 200, 500, 1000)
WORSE_MAX = 0.02  # of the rule's cost: the upper end of the interval must stay below; as `advise` counts it
WINDOWS, JOBS = 40, 400
TRACE, SPLIT, NUMBER = "g2", "validation", 99


class Tried(NamedTuple):
    """`nodes` is the largest fleet on which the model was no worse; `seen` are inputs met there."""

    nodes: int
    seen: list[Inputs]
    figures: dict[str, float]


NOT_TRIED = Tried(0, [], {})


def tried(weights: Weights, told: Callable[[str], None], counts: tuple[int, ...] = COUNTS) -> Tried:
    """Fleets in rising order, until one shows that the model may be worse than its rule."""
    rule, ours = learned.base_policy(weights), learned.scorer(weights)
    found = NOT_TRIED
    for count in counts:
        asked = Asked(windows=WINDOWS, jobs=JOBS, nodes=count)
        records = splits.generated(TRACE, SPLIT, NUMBER, count=length(WINDOWS, JOBS))
        course = windows_of(records, asked, rule)
        row = compare_on(course, rule, ours, count)
        told(_sentence(row))
        if row.high > WORSE_MAX * row.rule:
            break
        found = Tried(count, [*found.seen, *_seen(course, weights, rule)], found.figures | _figures(row))
    return found


def _seen(course: Course, weights: Weights, rule: Scores) -> list[Inputs]:
    sharpness = np.asarray(weights["base.sharpness"])
    return [
        learned.observe(view, rule(view, np), sharpness, np)
        for view in sampled(course, rule, every=8, windows=2)
    ]


def _figures(row: Compared) -> dict[str, float]:
    return {f"nodes_{row.nodes}_{name}": getattr(row, name) for name in ("rule", "difference", "low", "high")}


def _sentence(row: Compared) -> str:
    return (
        f"{row.nodes} nodes: {row.model:.2f} $ per window, {row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}] "
        "from the rule"
    )
