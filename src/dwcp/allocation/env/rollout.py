"""Runs a policy through windows, from a common warm snapshot, and adds up what it cost."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dwcp.allocation.env.episode import Episode, State
from dwcp.allocation.env.reference import Reference
from dwcp.allocation.env.view import Scores
from dwcp.allocation.env.weights import COMPONENTS, CostWeights
from dwcp.allocation.fleet import Floats, Ints


class Outcome(NamedTuple):
    """W windows."""

    costs: Floats  # [W, C] of the measured part, unweighted dollars (strand, mig: cores)
    counts: Ints  # [W, 5] placed, lost, deferred, conflicts, killed
    used_integral: Floats  # [W, R] resource-seconds in use over the measured part


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
    return Outcome(total + env.cost, env.state.counts, integral)


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
