"""Runs a policy through windows, from a common warm snapshot, and adds up what it cost."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dwcp.allocation.env.episode import ARRIVE, TENANTS, Episode, State
from dwcp.allocation.env.reference import Reference
from dwcp.allocation.env.view import Scores
from dwcp.allocation.env.weights import COMPONENTS, CostWeights
from dwcp.allocation.fleet import Floats, Ints


class Outcome(NamedTuple):
    """W windows."""

    costs: Floats  # [W, C] of the measured part, unweighted dollars (strand, mig: cores)
    counts: Ints  # [W, 5] placed, lost, deferred, conflicts, killed
    used_integral: Floats  # [W, R] resource-seconds in use over the measured part
    refused: Floats  # [W, G, 2] measured workloads never placed, and all, by the groups of `group_names`


def warm(episode: Episode, policy: Scores) -> State:
    """The state before the first measured event, reached under `policy`: the common snapshot.

    The windows must agree on where they begin to be measured; a shorter warm-up is padded with
    events that do nothing.
    """
    env = Reference.at(episode)
    for event in range(_measured_from(episode)):
        env.commit(env.begin(event), policy)
    env.state.counts[:] = 0
    env.state.lost[:] = 0.0
    return env.state


def rollout(episode: Episode, state: State, policy: Scores) -> Outcome:
    """The measured events under `policy`, from a copy of `state`."""
    env = Reference.at(episode, state)
    windows = len(episode.capacity)
    total = np.zeros((windows, len(COMPONENTS)))
    integral = np.zeros((windows, episode.capacity.shape[2]))
    for event in range(_measured_from(episode), episode.event_time.shape[1]):
        before = env.state.now.copy()
        held = env.state.used.sum(axis=1)
        env.commit(env.begin(event), policy)
        integral += held * (env.state.now - before)[:, None]
        total += env.cost
    env.finish()
    return Outcome(total + env.cost, env.state.counts, integral, refusals(episode, env.state))


def group_names(sites: int) -> list[str]:
    """[G]: who could be treated unfairly. Size is cores, in tenths of the window's workloads by rank."""
    kinds = (("priority", 3), ("size", 10), ("tenant", TENANTS), ("origin", sites))
    return [f"{kind}-{number}" for kind, count in kinds for number in range(count)]


def refusals(episode: Episode, state: State) -> Floats:
    """[W, G, 2]: counts of measured workloads never placed, and of all, by group."""
    windows = len(episode.arrival)
    sites = episode.transfer_s.shape[2]
    found = np.zeros((windows, len(group_names(sites)), 2))
    for window in range(windows):
        since = int(episode.measured_from[window])
        arrived = episode.event_arg[window, since:][episode.event_kind[window, since:] == ARRIVE]
        order = np.argsort(np.argsort(episode.demand[window, arrived, 0], kind="stable"))
        groups = (
            episode.priority[window, arrived],
            3 + order * 10 // max(len(arrived), 1),
            13 + episode.tenant[window, arrived],
            13 + TENANTS + episode.origin[window, arrived],
        )
        never = state.node[window, arrived] < 0
        for group in groups:
            found[window, :, 0] += np.bincount(group, weights=never, minlength=found.shape[1])
            found[window, :, 1] += np.bincount(group, minlength=found.shape[1])
    return found


def total(outcome: Outcome, weights: CostWeights, components: tuple[str, ...] = COMPONENTS) -> Floats:
    """[W] dollars: the weighted sum of `components`."""
    sums = np.zeros(len(outcome.costs))
    for column, name in enumerate(COMPONENTS):
        if name in components:
            sums += getattr(weights, name) * outcome.costs[:, column]
    return sums


def _measured_from(episode: Episode) -> int:
    starts = np.unique(episode.measured_from)
    if len(starts) != 1:
        raise ValueError("windows begin to be measured at different events: pad them before stacking")
    return int(starts[0])
