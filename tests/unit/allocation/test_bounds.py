"""Bounds are below everything that any policy does, and not trivially so."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.allocation import worlds
from tests.unit.allocation.policies.test_rules import a_view

from dwcp.allocation.env.reference import Reference
from dwcp.allocation.env.rollout import rollout, total, warm
from dwcp.allocation.env.weights import BOUNDED, WEIGHTS
from dwcp.allocation.policies.rules import RULES, Knobs, policy

pytest.importorskip("highspy", reason="pip install 'dwcp[train]' brings HiGHS")


@pytest.mark.parametrize("gossip_s", [0, 600])
@pytest.mark.parametrize("load", [0.5, 0.9, 1.3])
def test_no_policy_beats_the_bound(load: float, gossip_s: int) -> None:
    """Goal: it is a bound. Method: several policies with many failures and partitions; all cost more."""
    from dwcp.allocation.bounds import lower_bound

    episode = worlds.small(load=load, gossip_s=gossip_s, faults=10.0, count=4, measured=150)
    snapshot = warm(episode, worlds.random_bids)
    bounds = np.array([lower_bound(episode, snapshot, window) for window in range(4)])

    for candidate in (
        policy(RULES["balance"], Knobs(money=1.0)),
        policy(RULES["lifetime"], Knobs(money=3.0)),
        worlds.hostile,
    ):
        costs = total(rollout(episode, snapshot, candidate), WEIGHTS, BOUNDED)
        assert (bounds <= costs + 1e-6).all()
    assert (bounds > 0).all()


def test_the_bound_is_met_where_nothing_is_scarce() -> None:
    """Goal: the bound is no empty one. Method: at a low load without failures a policy by price comes near."""
    from dwcp.allocation.bounds import lower_bound

    episode = worlds.small(load=0.15, faults=0.0, count=3)
    snapshot = warm(episode, worlds.random_bids)
    by_price = policy(RULES["first-fit"], Knobs(money=1e6))

    costs = total(rollout(episode, snapshot, by_price), WEIGHTS, BOUNDED)
    bounds = np.array([lower_bound(episode, snapshot, window) for window in range(3)])

    assert bounds.sum() > 0.5 * costs.sum()


def test_a_batch_is_packed_as_a_whole() -> None:
    """Goal: the program sees the batch. Method: a large and a small workload; only one order fits both."""
    from dwcp.allocation.policies.milp import assign

    pair = a_view()
    pair = type(pair)(*(np.repeat(array, 2, axis=0) for array in pair))
    free = np.repeat(np.array([[[50.0] * 4, [20.0] * 4, [0.0] * 4]]), 2, axis=0)
    demand = np.array([[20.0] * 4, [50.0] * 4])
    mask = np.array([[True, True, False, True], [True, False, False, True]])
    pair = pair._replace(
        free=free, demand=demand, mask=mask, wan=np.zeros((2, 3)), worth=np.array([1.0, 1.0])
    )

    assert assign(pair, np.zeros((2, 3))).tolist() == [1, 0]


def test_the_rolling_program_keeps_the_books() -> None:
    """Goal: a plan is advice too. Method: a window decided by it; capacity holds, workloads are placed."""
    from dwcp.allocation.policies.milp import RollingMilp

    env = Reference.at(worlds.small(count=2, measured=60, load=1.1))
    planner = RollingMilp(env, Knobs(money=1.0))
    for event in range(env.episode.event_time.shape[1]):
        planner.decide(env.begin(event), event)
        assert (env.state.used <= env.episode.capacity).all()

    assert env.state.counts[:, 0].min() > 20
