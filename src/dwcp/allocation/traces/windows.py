"""Cuts windows out of a trace and brings each to an exact load.

Load is realised demand integral / capacity over the measured part, of the resource that is scarcest. It is set by
stretching the time between arrivals; lifetimes, batches and order stay. A window has three parts: what was already
running when it begins (everything that arrived before and lives still), a warm-up under a common policy, and the
measured workloads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dwcp.allocation.env.episode import ARRIVE, CUT, FAIL, HEAL, NOTHING, RECOVER, RETRY, Episode, stack
from dwcp.allocation.fleet import Bools, Floats, Ints
from dwcp.allocation.traces.jobs import Jobs
from dwcp.allocation.traces.world import World

LOOKBACK = 20_000  # workloads before the window that may still run in it
ALIVE_BUDGET_S = 60
SECONDS_MAX = 2**26
_ORDER = {RECOVER: 0, HEAL: 1, FAIL: 2, CUT: 3, RETRY: 4, ARRIVE: 5}


class WindowImpossible(ValueError):
    """The trace is too short for such a window, or no stretch of it gives the load."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a window is cut."""

    load: float = 0.95
    measured: int = 1500
    warm: int = 300
    gossip_s: int = 0  # 0: full information
    node_mtbf_s: float = 20 * 86_400.0  # scaled up from 30 … 90 days, so that a window sees failures
    repair_s: float = 3600.0
    cut_mtbf_s: float = 0.0  # per site; 0: no partitions
    cut_s: float = 1200.0


def cut(jobs: Jobs, start: int, world: World, wanted: Wanted, rng: np.random.Generator) -> Episode:
    """The window whose warm-up begins with workload `start`. Raises `WindowImpossible`."""
    stop = start + wanted.warm + wanted.measured
    if start < 0 or stop > len(jobs):
        raise WindowImpossible(f"workloads {start} to {stop} of {len(jobs)}: the trace is too short")
    recent = jobs.only(np.arange(max(0, start - LOOKBACK), stop))
    first = min(start, LOOKBACK)
    recent = recent.only(np.nonzero(_fits_somewhere(recent, world))[0])
    first = min(first, len(recent) - wanted.warm - 1)
    gaps = recent.arrival_s - recent.arrival_s[first]
    stretch = _stretch(recent, gaps, first, world, wanted)
    placed = gaps * stretch
    alive = np.nonzero(placed[:first] + recent.duration_s[:first] > 0)[0]
    rows = np.concatenate([alive, np.arange(first, len(recent))])
    chosen = recent.only(rows).at(np.maximum(placed[rows], 0.0))
    left = np.where(rows < first, recent.duration_s[rows] + placed[rows], recent.duration_s[rows])
    return _episode(chosen, np.maximum(left, 1).astype(np.int64), len(alive), world, wanted, rng)


def together(episodes: list[Episode]) -> Episode:
    """[W, ...]: stacked so that all begin to be measured at the same event."""
    start = max(int(one.measured_from) for one in episodes)
    aligned = []
    for one in episodes:
        missing = start - int(one.measured_from)
        padding = np.zeros(missing, dtype=np.int64)
        aligned.append(
            one._replace(
                event_time=np.concatenate([padding, one.event_time]),
                event_kind=np.concatenate([padding + NOTHING, one.event_kind]),
                event_arg=np.concatenate([padding, one.event_arg]),
                measured_from=np.asarray(start),
            )
        )
    return stack(aligned)


def realised_load(episode: Episode) -> float:
    """What `cut` promises, computed anew from one window's arrays."""
    begin, end = _measured_span(episode)
    overlap = np.minimum(episode.arrival + episode.duration, end) - np.maximum(episode.arrival, begin)
    integral = (episode.demand * np.maximum(overlap, 0)[:, None]).sum(axis=0)
    return float((integral / (episode.capacity.sum(axis=0) * (end - begin))).max())


def _measured_span(episode: Episode) -> tuple[int, int]:
    times = episode.event_time[int(episode.measured_from) :]
    return int(times[0]), int(times[-1])


def _fits_somewhere(jobs: Jobs, world: World) -> Bools:
    fits = np.all(jobs.demand[:, None, :] <= world.capacity[None, :, :], axis=2)
    return np.asarray(np.any(fits, axis=1), dtype=np.bool_)


def _stretch(jobs: Jobs, gaps: Floats, first: int, world: World, wanted: Wanted) -> float:
    """The factor on time at which the measured part has the wanted load, by bisection."""
    share = jobs.demand / world.capacity.sum(axis=0)

    def load(factor: float) -> float:
        begins = gaps * factor
        span = begins[min(first + wanted.warm, len(gaps) - 1)], begins[-1]
        overlap = np.minimum(begins + jobs.duration_s, span[1]) - np.maximum(begins, span[0])
        return float((share * np.maximum(overlap, 0)[:, None]).sum(axis=0).max() / (span[1] - span[0]))

    low, high = 1e-3, 1e6
    if gaps[-1] <= gaps[min(first + wanted.warm, len(gaps) - 1)]:
        raise WindowImpossible("all of the window's workloads arrive at one instant")
    for _round in range(36):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if load(middle) > wanted.load else (low, middle)
    if abs(load(high) - wanted.load) > 0.02 * wanted.load:
        raise WindowImpossible(f"no stretch of time gives load {wanted.load}: the window is too short")
    return high


def _episode(
    jobs: Jobs, duration: Ints, alive: int, world: World, wanted: Wanted, rng: np.random.Generator
) -> Episode:
    arrival = jobs.arrival_s.astype(np.int64)
    if int(arrival[-1]) >= SECONDS_MAX:
        raise WindowImpossible("the window lasts more than two years: the load is too low for this trace")
    budget = jobs.budget_s.copy()
    budget[:alive] = ALIVE_BUDGET_S
    begin = int(arrival[min(alive + wanted.warm, len(arrival) - 1)])
    times, kinds, args = _events(arrival, alive, begin, world, wanted, rng)
    count = np.arange(len(jobs))
    megabits = jobs.data_gb[:, None] * 8000.0
    transfer = np.ceil(megabits / world.mbps[jobs.origin]).astype(np.int64)
    transfer[count, jobs.origin] = 0
    return Episode(
        capacity=world.capacity,
        node_site=world.node_site,
        node_usd=world.node_usd,
        transfer_s=transfer,
        wan_usd=jobs.data_gb[:, None] * world.price[jobs.origin],
        demand=jobs.demand,
        arrival=arrival,
        duration=duration,
        predicted=np.maximum(
            np.where(count < alive, np.minimum(jobs.predicted_s, 10**7), jobs.predicted_s), 30
        ),
        priority=jobs.priority,
        tenant=jobs.tenant,
        origin=jobs.origin,
        budget_s=budget,
        worth=jobs.worth,
        value=jobs.value,
        event_time=times,
        event_kind=kinds,
        event_arg=args,
        shape=np.percentile(jobs.demand, 75, axis=0).astype(np.int64),
        gossip_s=np.asarray(wanted.gossip_s),
        measured_from=np.asarray(alive + 2 * wanted.warm),
    )


def _events(
    arrival: Ints, alive: int, begin: int, world: World, wanted: Wanted, rng: np.random.Generator
) -> tuple[Ints, Ints, Ints]:
    """Warm-up events first, a chance for the waiting before each arrival; faults only in the measured part."""
    rows = [(0, ARRIVE, job) for job in range(alive)]
    for job in range(alive, len(arrival)):
        rows += [(int(arrival[job]), RETRY, 0), (int(arrival[job]), ARRIVE, job)]
    warm_end = alive + 2 * wanted.warm
    measured = rows[warm_end:] + _faults(begin, int(arrival[-1]), world, wanted, rng)
    measured.sort(key=lambda row: (row[0], row[2] if row[1] == ARRIVE else -1, _ORDER[row[1]]))
    table = np.array(rows[:warm_end] + _paired(measured), dtype=np.int64)
    return table[:, 0], table[:, 1], table[:, 2]


def _paired(events: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The chances of one instant are spread between its arrivals again, as sorting put them first."""
    chances = [event for event in events if event[1] == RETRY]
    others = [event for event in events if event[1] != RETRY]
    found: list[tuple[int, int, int]] = []
    for event in others:
        if event[1] == ARRIVE and chances:
            found.append(chances.pop(0))
        found.append(event)
    return found


def _faults(
    begin: int, end: int, world: World, wanted: Wanted, rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    plans = (
        (len(world.capacity), wanted.node_mtbf_s, wanted.repair_s, FAIL, RECOVER),
        (world.sites, wanted.cut_mtbf_s, wanted.cut_s, CUT, HEAL),
    )
    for count, between_s, lasting_s, down, up in plans:
        for which in range(count if between_s > 0 else 0):
            at = begin + rng.exponential(between_s)
            while at < end:
                back = at + 60 + rng.exponential(lasting_s)
                found += [(int(at), down, which)]
                if back < end:
                    found += [(int(back), up, which)]
                at = back + rng.exponential(between_s)
    return found
