"""Compares a model with the rule that it stands on, on windows of a trace, for any number of nodes. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dwcp.allocation.env.rollout import rollout, total, warm
from dwcp.allocation.env.view import Scores
from dwcp.allocation.env.weights import WEIGHTS
from dwcp.allocation.learn.courses import Course
from dwcp.allocation.policies import evidence, learned
from dwcp.allocation.traces import splits
from dwcp.allocation.traces.jobs import Records
from dwcp.allocation.traces.windows import Wanted
from dwcp.models.artefact import Artefact

WARM_JOBS = 200
SEED = 50_000
STALE = {"gossip_s": 300, "cut_mtbf_s": 43_200.0}


@dataclass(frozen=True, slots=True)
class Asked:
    """How the windows are cut."""

    load: float = 0.95
    stale: bool = False
    windows: int = 12
    nodes: int = 12
    jobs: int = 600


class Compared(NamedTuple):
    """Dollars per window; the difference is the model's minus the rule's, with its 95 % interval."""

    nodes: int
    rule: float
    model: float
    difference: float
    low: float
    high: float
    placed: float  # workloads per window that the model placed


def length(windows: int, jobs: int) -> int:
    """How many workloads of a generator such a comparison wants."""
    return 8_000 + windows * (jobs + WARM_JOBS)


def compare(model: Artefact, records: Records, asked: Asked) -> Compared:
    """Both from one warm snapshot per window. ValueError: no such windows can be cut."""
    rule, ours = learned.base_policy(model.weights), learned.scorer(model.weights)
    return compare_on(windows_of(records, asked, rule), rule, ours, asked.nodes)


def windows_of(records: Records, asked: Asked, rule: Scores) -> Course:
    """The windows, warmed up under the rule."""
    more = STALE if asked.stale else {}
    wanted = Wanted(load=asked.load, measured=asked.jobs, warm=WARM_JOBS, **more)  # type: ignore[arg-type]  # two known keys
    episode = splits.windows(
        records, count=asked.windows, seed=SEED, wanted=wanted, nodes=asked.nodes, sites=4
    )
    return Course(episode, warm(episode, rule))


def compare_on(course: Course, rule: Scores, ours: Scores, nodes: int) -> Compared:
    theirs, mine = (rollout(course.episodes, course.states, one) for one in (rule, ours))
    costs, own = total(theirs, WEIGHTS), total(mine, WEIGHTS)
    seeds = np.zeros(len(costs), dtype=np.int64)
    found = evidence.paired_difference(own, costs, seeds=seeds, block=1, rng=np.random.default_rng(5))
    placed = float(mine.counts[:, 0].mean())
    return Compared(nodes, float(costs.mean()), float(own.mean()), *found, placed)
