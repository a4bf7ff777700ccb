"""A lower bound on what any policy, even a clairvoyant one, must pay: a linear program solved by HiGHS.

It covers the components `weights.BOUNDED`. Nodes are pooled by site, placements are fractions, all arrivals and
durations are known: three relaxations, so the value is below the optimum. What the environment allows and the
program does not know is relaxed away as well, so that it stays a bound:

* a workload may start late: it occupies its site only from its last start to its earliest end;
* failures and partitions: a site keeps the capacity of failed nodes, and gets it a second time from their recovery on,
  because killed workloads still count here where they were placed first; what ran before the window leaves with
  its node;
* capacity is checked at some events only, chosen where it can matter.

It is a bound and no competitor. `highspy` is an optional extra and is imported inside the function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dwcp.allocation.env.episode import ARRIVE, FAIL, NEVER, RECOVER, Episode, State
from dwcp.allocation.env.weights import WEIGHTS, CostWeights
from dwcp.allocation.fleet import Floats, Ints

ROWS_AT = 48  # events at which capacity is checked
SECONDS_MAX = 60.0


class BoundUnknown(RuntimeError):
    """HiGHS did not solve the program in time: the window has no bound, and none is made up."""


@dataclass(frozen=True, slots=True)
class _Program:
    """One window: V = jobs x sites variables in 0 … 1, x[j, s] the share of j placed at s."""

    jobs: Ints  # [J'] numbers of the measured workloads
    price: Floats  # [J', S] dollars for placing, minus the dollars for losing it
    constant: Floats  # [J'] dollars for losing
    begins: Ints  # [J'] last start
    ends: Ints  # [J'] earliest end
    times: Ints  # [K]
    free: Floats  # [K, S, R] pooled capacity that warm workloads leave


def lower_bound(
    episode: Episode, state: State, window: int, weights: CostWeights = WEIGHTS, *, rows_at: int = ROWS_AT
) -> float:
    """Dollars of `BOUNDED` components in one window of a stacked episode, from its warm `state`.

    Raises `BoundUnknown`.
    """
    one = Episode(*(np.asarray(array)[window] for array in episode))
    warm = State(*(np.asarray(array)[window] for array in state))
    program = _program(one, warm, weights, rows_at)
    if not len(program.jobs):
        return 0.0
    return float(program.constant.sum() + _solve(program, one.demand))


def _program(episode: Episode, state: State, weights: CostWeights, rows_at: int) -> _Program:
    since = int(episode.measured_from)
    kinds, args = episode.event_kind[since:], episode.event_arg[since:]
    jobs = args[kinds == ARRIVE]
    cores, value = episode.demand[jobs, 0] / 1000.0, episode.value[jobs]
    sites = len(episode.transfer_s[0])
    cheapest = np.array([_least(episode.node_usd[episode.node_site == site]) for site in range(sites)])
    energy = (cores * episode.duration[jobs] / 3600.0)[:, None] * cheapest
    late = np.minimum(episode.transfer_s[jobs] / np.maximum(episode.budget_s[jobs], 1)[:, None], 1.0)
    placing = (
        weights.wan * episode.wan_usd[jobs] + weights.energy * energy + weights.wait * late * value[:, None]
    )
    losing = weights.sla * value
    begins = episode.arrival[jobs] + episode.budget_s[jobs]
    ends = episode.arrival[jobs] + episode.duration[jobs]
    times = _sample(episode.arrival[jobs], rows_at)
    free = _free(episode, state, times, sites)
    return _Program(jobs, placing - losing[:, None], losing, begins, ends, times, free)


def _least(values: Floats) -> float:
    return float(values.min()) if len(values) else np.inf


def _sample(arrival: Ints, rows_at: int) -> Ints:
    return np.unique(np.quantile(arrival, np.linspace(0, 1, rows_at)).astype(np.int64))


def _free(episode: Episode, state: State, times: Ints, sites: int) -> Floats:
    """[K, S, R]: capacity, with the allowance after recoveries, less what warm workloads surely hold."""
    at = np.arange(sites)[:, None] == episode.node_site
    free = np.repeat((at @ episode.capacity)[None].astype(np.float64), len(times), axis=0)
    since = int(episode.measured_from)
    failed: dict[int, int] = {}
    events = zip(
        episode.event_time[since:].tolist(),
        episode.event_kind[since:].tolist(),
        episode.event_arg[since:].tolist(),
        strict=True,
    )
    for time, kind, arg in events:
        if kind == FAIL:
            failed.setdefault(arg, time)
        if kind == RECOVER:
            free[times >= time, episode.node_site[arg]] += episode.capacity[arg]
    for job in np.nonzero(state.end < NEVER)[0].tolist():
        node = int(state.node[job])
        until = min(int(state.end[job]), failed.get(node, NEVER))
        free[times < until, episode.node_site[node]] -= episode.demand[job]
    return free


def _solve(program: _Program, demand: Ints) -> float:
    """Σ price·x at the optimum, at most 0. Raises `BoundUnknown`."""
    import highspy

    count, sites = program.price.shape
    upper = np.where(np.isfinite(program.price), 1.0, 0.0).ravel()
    model = highspy.HighsLp()
    model.num_col_ = count * sites
    model.col_cost_ = np.where(np.isfinite(program.price), program.price, 0.0).ravel()
    model.col_lower_, model.col_upper_ = np.zeros(count * sites), upper
    starts, index, value, limits = _rows(program, demand)
    model.num_row_ = len(limits)
    model.row_lower_, model.row_upper_ = np.full(len(limits), -highspy.kHighsInf), np.array(limits)
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_, model.a_matrix_.index_, model.a_matrix_.value_ = starts, index, value
    solver = highspy.Highs()
    solver.setOptionValue("log_to_console", False)
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("time_limit", SECONDS_MAX)
    solver.passModel(model)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise BoundUnknown(f"HiGHS: {solver.modelStatusToString(solver.getModelStatus())}")
    return float(solver.getInfo().objective_function_value)


def _rows(program: _Program, demand: Ints) -> tuple[Ints, Ints, Floats, list[float]]:
    """Row-wise matrix: one row per workload (at most whole), then per time, site and resource that can bind."""
    count, sites = program.price.shape
    index = [np.arange(count * sites)]
    value = [np.ones(count * sites)]
    starts = (np.arange(count + 1) * sites).tolist()
    limits = [1.0] * count
    for row, time in enumerate(program.times.tolist()):
        active = np.nonzero((program.begins <= time) & (time < program.ends))[0]
        wanted = demand[program.jobs[active]]
        for resource in range(wanted.shape[1]):
            unit = max(float(wanted[:, resource].max(initial=0)), 1.0)  # keeps coefficients near 1
            for site in range(sites):
                limit = max(float(program.free[row, site, resource]), 0.0)
                if wanted[:, resource].sum() > limit:
                    index.append(active * sites + site)
                    value.append(wanted[:, resource] / unit)
                    starts.append(starts[-1] + len(active))
                    limits.append(limit / unit)
    return np.array(starts), np.concatenate(index), np.concatenate(value), limits
