"""The reference environment: capacity is never exceeded, books balance, costs are what they say."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from tests.unit.allocation import worlds

from dwcp.allocation.env.episode import DEFERRED, KILLED, LOST, NEVER, PLACED, Episode
from dwcp.allocation.env.reference import ENERGY, MIG, SLA, WAN, Reference, first_state
from dwcp.allocation.env.rollout import group_names, rollout, total, warm
from dwcp.allocation.env.view import Scores
from dwcp.allocation.env.weights import BOUNDED, COMPONENTS, WEIGHTS, sensitivities
from dwcp.allocation.traces.windows import WindowImpossible


def check_books(env: Reference) -> None:
    """0 ≤ used ≤ capacity, and used = Σ demand of what runs, computed anew."""
    state, episode = env.state, env.episode
    assert (state.used >= 0).all()
    assert (state.used <= episode.capacity).all()
    again = np.zeros_like(state.used)
    rows, jobs = np.nonzero(state.end < NEVER)
    np.add.at(again, (rows, state.node[rows, jobs]), episode.demand[rows, jobs])
    np.testing.assert_array_equal(state.used, again)
    assert state.alive[rows, state.node[rows, jobs]].all(), "a dead node runs something"
    np.testing.assert_array_equal(state.queued, (state.waiting < NEVER).sum(axis=1))


def hammer(episode: Episode, score: Scores) -> int:
    """Runs all events with the books checked after each; the number of decisions offered."""
    env, decisions = Reference.at(episode), 0
    for event in range(episode.event_time.shape[1]):
        job = env.begin(event)
        env.commit(job, score)
        decisions += int((job >= 0).sum())
        check_books(env)
    return decisions


def storm(steps: int) -> None:
    done, seed = 0, 0
    while done < steps:
        name = ("g1", "g2", "g5")[seed % 3]
        gossip_s = (0, 300)[seed // 3 % 2]
        score = (worlds.hostile, worlds.random_bids)[seed // 6 % 2]
        seed += 1
        with contextlib.suppress(
            WindowImpossible
        ):  # one of a burst's windows has no length: the next seed's have
            done += hammer(
                worlds.small(
                    name=name, seed=seed - 1, count=64, load=1.3, measured=200, gossip_s=gossip_s, faults=30.0
                ),
                score,
            )
    assert seed <= steps // 100 + 20, "windows were left out by the dozen"


def test_capacity_is_never_exceeded() -> None:
    """Goal: no bids overfill a node. Method: 10^5 hostile and random decisions with failures, stale views
    and partitions; after each step the books are computed anew."""
    storm(100_000)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_capacity_is_never_exceeded_in_a_million() -> None:
    """Goal and method as above, 10^6 decisions."""
    storm(1_000_000)


def test_every_workload_has_one_fate() -> None:
    """Goal: nothing vanishes. Method: at the end each arrival was placed or lost; kills add fates."""
    episode = worlds.small(load=1.2, faults=10.0)
    env = Reference.at(episode)
    for event in range(episode.event_time.shape[1]):
        env.commit(env.begin(event), worlds.random_bids)
    env.finish()

    arrivals = (episode.event_kind == 1).sum(axis=1)
    counts = env.state.counts
    np.testing.assert_array_equal(counts[:, PLACED] + counts[:, LOST], arrivals + counts[:, KILLED])
    assert counts[:, LOST].min() > 0
    assert counts[:, DEFERRED].min() > 0


def test_costs_follow_from_the_log() -> None:
    """Goal: costs cannot drift from what was done. Method: recompute them from the log of placements."""
    episode = worlds.small(load=0.9, faults=0.0, count=2)
    env = Reference.at(episode)
    env.log = []
    spent = np.zeros_like(env.cost)
    for event in range(episode.event_time.shape[1]):
        env.commit(env.begin(event), worlds.random_bids)
        spent += env.cost
    env.finish()
    spent += env.cost

    wan, energy = np.zeros(2), np.zeros(2)
    lost = episode.value.sum(axis=1)
    for window, job, node, _now in env.log:
        site = episode.node_site[window, node]
        wan[window] += episode.wan_usd[window, job, site]
        hours = episode.duration[window, job] / 3600
        energy[window] += episode.demand[window, job, 0] / 1000 * hours * episode.node_usd[window, node]
        lost[window] -= episode.value[window, job]

    np.testing.assert_allclose(spent[:, WAN], wan, rtol=1e-9)
    np.testing.assert_allclose(spent[:, ENERGY], energy, rtol=1e-9)
    np.testing.assert_allclose(spent[:, SLA], lost, rtol=1e-9, atol=1e-6)
    assert (spent[:, MIG] == 0).all()


def test_refusals_add_up() -> None:
    """Goal: nobody is starved unseen. Method: each kind of group holds every measured workload once, and each
    refusal; an overfull window refuses some."""
    episode = worlds.small(load=1.3, measured=150)
    found = rollout(episode, first_state(episode), worlds.random_bids).refused.sum(axis=0)

    names = group_names(3)
    assert len(names) == len(found)
    for kind in ("priority", "size", "tenant", "origin"):
        own = [at for at, name in enumerate(names) if name.startswith(kind)]
        assert found[own, 1].sum() == 3 * 150
        assert found[own, 0].sum() == found[:3, 0].sum() > 0


def test_stale_views_make_conflicts_and_fresh_ones_none() -> None:
    """Goal: full information never conflicts; old information does. Method: count both."""
    conflicts = {}
    for gossip_s in (0, 1800):
        episode = worlds.small(load=1.3, gossip_s=gossip_s, measured=300, count=4)
        outcome = rollout(episode, first_state(episode)._replace(), worlds.random_bids)
        conflicts[gossip_s] = int(outcome.counts[:, 3].sum())

    assert conflicts[0] == 0
    assert conflicts[1800] > 0


def test_rollouts_are_paired_and_repeatable() -> None:
    """Goal: policies meet the same stream. Method: two runs from one snapshot are equal, and leave it alone."""
    episode = worlds.small()
    snapshot = warm(episode, worlds.random_bids)
    kept = [array.copy() for array in snapshot]

    first = rollout(episode, snapshot, worlds.random_bids)
    second = rollout(episode, snapshot, worlds.random_bids)

    np.testing.assert_array_equal(first.costs, second.costs)
    for before, after in zip(kept, snapshot, strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_total_is_the_weighted_sum() -> None:
    """Goal: one cost. Method: by hand, all components and the bounded ones; sensitivities are ½ and 2."""
    episode = worlds.small()
    outcome = rollout(episode, first_state(episode), worlds.random_bids)

    by_hand = sum(getattr(WEIGHTS, name) * outcome.costs[:, at] for at, name in enumerate(COMPONENTS))
    np.testing.assert_allclose(total(outcome, WEIGHTS), by_hand)
    assert (total(outcome, WEIGHTS, BOUNDED) != total(outcome, WEIGHTS)).all()
    assert len(sensitivities()) == 1 + 2 * len(COMPONENTS)
    assert sensitivities()["wan-half"].wan == WEIGHTS.wan / 2
