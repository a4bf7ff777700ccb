"""Rolling mixed-integer program: workloads that arrive together are placed together, by HiGHS.

At every new instant the arrivals of that instant (a batch arrives at once) are assigned at least price, given what
is free now; the answers are then used one by one. Capacity left over has a shadow price, so that a plan does not
take the scarce node for nothing. It decides with full information only. `highspy` is an optional extra.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dwcp.allocation.env.episode import ARRIVE, Array, Episode
from dwcp.allocation.env.reference import Reference
from dwcp.allocation.env.view import View
from dwcp.allocation.env.weights import WEIGHTS
from dwcp.allocation.fleet import Floats, Ints
from dwcp.allocation.policies.rules import RULES, WORTH_FLOOR, Knobs, policy, price

BATCH_MAX = 32
SECONDS_MAX = 0.5  # per program; the best assignment found by then is used
TIE = 1e-3  # weight of the rule's own score, which decides among equal prices


class RollingMilp:
    """A policy with a memory: bound to one `Reference`, whose events tell it what arrives together."""

    def __init__(self, env: Reference, knobs: Knobs) -> None:
        self._env = env
        self._fallback = policy(RULES["balance"], knobs)
        self._plan: dict[tuple[int, int], int] = {}  # (window, workload) -> node

    def decide(self, job: Ints, event: int) -> None:
        """Commits event number `event`; to be called instead of `Reference.commit`."""
        for window in np.nonzero(job >= 0)[0].tolist():
            if (window, int(job[window])) not in self._plan:
                self._replan(window, int(job[window]), event)
        rows = np.nonzero(job >= 0)[0]

        def scores(view: View, xp: Any) -> Array:
            found = self._fallback(view, xp)
            for at, window in enumerate(rows.tolist()):
                node = self._plan.pop((window, int(job[window])), -1)
                if node >= 0 and at < len(found):
                    found[at, node] = 1e6
            return found

        self._env.commit(job, scores)

    def _replan(self, window: int, job: int, event: int) -> None:
        jobs = arriving(self._env.episode, window, job, event)
        if len(jobs) < 2:
            return
        rows = np.full(len(jobs), window)
        view = self._env.view(rows, jobs)
        chosen = assign(view, self._fallback(view, np)[:, :-1])
        for workload, node in zip(jobs.tolist(), chosen.tolist(), strict=True):
            self._plan[window, workload] = node


def arriving(episode: Episode, window: int, job: int, event: int) -> Ints:
    """`job` and the workloads that arrive at the same instant in later events."""
    now = episode.event_time[window, event]
    later = slice(event, event + 2 * BATCH_MAX)
    same = (episode.event_time[window, later] == now) & (episode.event_kind[window, later] == ARRIVE)
    found = episode.event_arg[window, later][same]
    others = found[found != job]
    return np.asarray(np.concatenate([[job], others])[:BATCH_MAX], dtype=np.int64)


def assign(view: View, scores: Floats) -> Ints:
    """[A] the node of each workload, -1: none. All see the same machines, as they arrive together."""
    import highspy

    count, nodes = scores.shape
    worth = np.maximum(view.worth, WORTH_FLOOR)[:, None]
    factor = np.array([0.3, 1.0, 3.0])[view.priority][:, None]
    gain = WEIGHTS.sla * worth * factor - price(view, np) + TIE * worth * scores
    solver = highspy.Highs()
    solver.setOptionValue("log_to_console", False)
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("time_limit", SECONDS_MAX)
    model = highspy.HighsLp()
    model.num_col_ = count * nodes
    model.col_cost_ = -np.where(view.mask[:, :-1], gain, 0.0).ravel()
    model.col_lower_ = np.zeros(count * nodes)
    model.col_upper_ = view.mask[:, :-1].astype(np.float64).ravel()
    model.integrality_ = [highspy.HighsVarType.kInteger] * (count * nodes)
    limits = view.free[0].T.ravel()  # [R * N]
    columns = np.arange(count * nodes).reshape(count, nodes)
    index, value, starts = (
        [columns.ravel()],
        [np.ones(count * nodes)],
        list(range(0, count * nodes + 1, nodes)),
    )
    for resource in range(view.demand.shape[1]):
        unit = max(float(view.demand[:, resource].max()), 1.0)
        limits[resource * nodes : (resource + 1) * nodes] /= unit
        for node in range(nodes):
            index.append(columns[:, node])
            value.append(view.demand[:, resource] / unit)
            starts.append(starts[-1] + count)
    model.num_row_ = count + len(limits)
    model.row_lower_ = np.full(model.num_row_, -highspy.kHighsInf)
    model.row_upper_ = np.concatenate([np.ones(count), np.maximum(limits, 0.0)])
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.array(starts)
    model.a_matrix_.index_, model.a_matrix_.value_ = np.concatenate(index), np.concatenate(value)
    solver.passModel(model)
    solver.run()
    solution = np.array(solver.getSolution().col_value).reshape(-1, nodes)
    if len(solution) != count:
        return np.full(count, -1, dtype=np.int64)
    return np.where(solution.max(axis=1) > 0.5, solution.argmax(axis=1), -1).astype(np.int64)
