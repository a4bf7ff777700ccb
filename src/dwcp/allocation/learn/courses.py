"""The windows that are trained and validated on, with the warm snapshot that each starts from.

Training windows are domain-randomised: worlds, loads, families of streams, and for partial information how old the
reports of other sites are and which sites are cut off. They come from the `train` split alone, validation windows
from `validation`, unless a user brings records of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dwcp.allocation.env.episode import Episode, State, rows
from dwcp.allocation.env.reference import Reference
from dwcp.allocation.env.rollout import warm
from dwcp.allocation.env.view import Scores, View
from dwcp.allocation.learn.config import Config
from dwcp.allocation.traces import splits
from dwcp.allocation.traces.jobs import Records, complete
from dwcp.allocation.traces.windows import Wanted, WindowImpossible, cut, together
from dwcp.allocation.traces.world import make_world

GOSSIP_S = (300, 0, 60, 0)  # how often sites report in training windows with partial information
CUT_MTBF_S = 43_200.0  # of a site's link in them
LOADS = (0.7, 0.85, 0.95, 1.1)
TRAIN_NODES = (8, 12, 16)
NODES_MAX = 16
SITES = 4


@dataclass(frozen=True, slots=True)
class Course:
    """[W, ...] windows padded to one size, and the states before their first measured event."""

    episodes: Episode
    states: State

    @property
    def windows(self) -> int:
        return len(self.episodes.capacity)

    @property
    def nodes(self) -> int:
        return int(self.episodes.capacity.shape[1])

    @property
    def stale(self) -> bool:
        return bool(np.asarray(self.episodes.gossip_s).any())

    @property
    def span(self) -> tuple[int, int]:
        """First measured event, and the number of events."""
        return int(self.episodes.measured_from[0]), int(self.episodes.event_time.shape[1])

    def part(self, wanted: slice) -> Course:
        return Course(rows(self.episodes, wanted), State(*(array[wanted] for array in self.states)))


def training(first: int, count: int, *, base: Scores, like: Config) -> Course:
    """Windows from number `first` of the training split. ValueError: they leave the split."""
    made: list[Episode] = []
    number = first
    while len(made) < count:
        made += _training_window(number, like)
        number += 1
    return started(together(made), base)


def validation(count: int, *, base: Scores, like: Config, each: int = 2) -> Course:
    """`each` windows of every validation world; loads and families take turns."""
    made: list[Episode] = []
    number = 0
    while len(made) < count:
        made += _validation_windows(number, each, like)
        number += 1
    return started(together(made[:count]), base)


def _training_window(number: int, like: Config) -> list[Episode]:
    """One window; none where a burst is all of it, which only short windows meet."""
    gossip = GOSSIP_S[number // 3 % len(GOSSIP_S)] if like.stale else 0
    wanted = Wanted(
        load=LOADS[number // 2 % len(LOADS)],
        measured=like.jobs,
        warm=like.warm_jobs,
        gossip_s=gossip,
        cut_mtbf_s=CUT_MTBF_S if gossip else 0.0,
    )
    nodes = TRAIN_NODES[number % len(TRAIN_NODES)]
    try:
        return [splits.training_window(number, wanted=wanted, nodes=nodes, sites=SITES, pad_nodes=NODES_MAX)]
    except WindowImpossible:
        return []


def _validation_windows(number: int, each: int, like: Config) -> list[Episode]:
    wanted = _wanted(LOADS[number % len(LOADS)], like, old=(number + number // len(LOADS)) % 2 == 0)
    name = sorted(splits.FAMILIES)[number % len(splits.FAMILIES)]
    records = splits.generated(name, "validation", number, count=6000 + like.warm_jobs + like.jobs * each)
    seed = splits.generator_seed("validation", number)
    try:
        world = splits.windows(records, count=each, seed=seed, wanted=wanted, nodes=12, sites=SITES)
    except WindowImpossible:
        return []
    return [Episode(*(array[at] for array in world)) for at in range(each)]


def of_records(
    records: Records,
    count: int,
    *,
    share: tuple[float, float],
    seed: int,
    base: Scores,
    load: float,
    like: Config,
) -> Course:
    """`count` windows that lie within a share of the records, on a world from `seed`.

    What arrived before the share may still run in it, as in life. Raises `WindowImpossible` where the share is too
    short for a window of `like`'s size.
    """
    wanted = _wanted(load, like)
    rng = np.random.default_rng([seed, 2])
    world = make_world(rng, nodes=12, sites=SITES)
    jobs = complete(records, rng, sites=SITES)
    first, last = (int(edge * len(records)) for edge in share)
    length = wanted.warm + wanted.measured
    if last - first < length:
        raise WindowImpossible(f"{last - first} workloads in a part of the records: a window needs {length}")
    starts = np.linspace(first, last - length, count).astype(np.int64)
    return started(together([cut(jobs, int(start), world, wanted, rng) for start in starts]), base)


def padded(course: Course, nodes: int) -> Course:
    """The same with places for nodes that are not there, so that courses of several fleets share one shape.

    ValueError: there are more than `nodes`.
    """
    more = nodes - course.nodes
    if more < 0:
        raise ValueError(f"{course.nodes} nodes do not fit into {nodes} places")
    axes = {"capacity": 1, "node_site": 1, "node_usd": 1}
    seen = {"used": 1, "alive": 1, "exit_at": 1, "seen_used": 2, "seen_alive": 2, "seen_at": 2}

    def pad(record: Any, wide: dict[str, int]) -> Any:
        changed = {}
        for name, axis in wide.items():
            array = np.asarray(getattr(record, name))
            widths = [(0, more if at == axis else 0) for at in range(array.ndim)]
            changed[name] = np.pad(array, widths)
        return record._replace(**changed)

    return Course(pad(course.episodes, axes), pad(course.states, seen))


def started(episodes: Episode, base: Scores) -> Course:
    return Course(episodes, warm(episodes, base))


def sampled(course: Course, policy: Scores, *, every: int = 40, windows: int = 8) -> list[View]:
    """Decisions of a course as a policy meets them: for scale, feature ranges and golden vectors."""
    some = course.part(slice(0, windows))
    env = Reference.at(some.episodes, some.states)
    found: list[View] = []
    for number, event in enumerate(range(*some.span)):
        job = env.begin(event)
        rows = np.nonzero(job >= 0)[0]
        if len(rows) and number % every in (0, 1):
            found.append(env.view(rows, job[rows]))
        env.commit(job, policy)
    return found


def _wanted(load: float, like: Config, *, old: bool = True) -> Wanted:
    """`old`: with partial information, where the run is about it at all."""
    return Wanted(
        load=load,
        measured=like.jobs,
        warm=like.warm_jobs,
        gossip_s=300 if like.stale and old else 0,
        cut_mtbf_s=CUT_MTBF_S if like.stale and old else 0.0,
    )
