"""The JAX environment does what the reference does: placements exactly, costs to 1e-5."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from tests.unit.allocation import worlds

from dwcp.allocation.env.episode import NEVER, Episode, State
from dwcp.allocation.env.reference import Reference, first_state
from dwcp.allocation.env.view import Scores
from dwcp.allocation.traces.windows import together

jax = pytest.importorskip("jax", reason="pip install 'dwcp[train]' brings JAX")

EXACT = (
    "used",
    "alive",
    "cut",
    "node",
    "end",
    "waiting",
    "retry_at",
    "remaining",
    "since",
    "last",
    "queued",
    "counts",
)
POLICIES = {"hostile": worlds.hostile, "random": worlds.random_bids}


@functools.cache
def compiled(policy: str, stale: bool):
    from dwcp.allocation.env import fast

    return jax.jit(
        jax.vmap(
            lambda episode, state, events: fast.scan(episode, state, events, POLICIES[policy], stale=stale),
            in_axes=(0, 0, None),
        )
    )


def reference_costs(episode: Episode, score: Scores) -> tuple[Reference, np.ndarray]:
    env = Reference.at(episode)
    costs = []
    for event in range(episode.event_time.shape[1]):
        env.commit(env.begin(event), score)
        costs.append(env.cost.copy())
    return env, np.stack(costs, axis=1)


@pytest.mark.parametrize(
    ("policy", "gossip_s"),
    [
        ("random", 0),
        ("hostile", 300),
        pytest.param("hostile", 0, marks=pytest.mark.soak),
        pytest.param("random", 300, marks=pytest.mark.soak),
    ],
)
def test_both_environments_agree(policy: str, gossip_s: int) -> None:
    """Goal: what is trained on is what is measured. Method: the same bids, NaN and infinite ones among
    them, through both, with failures and partitions; compare every placement and every cost."""
    from dwcp.allocation.env import fast

    episode = together(
        [
            worlds.one(
                worlds.small(seed=seed, name=name, load=load, gossip_s=gossip_s, faults=20.0, count=1), 0
            )
            for seed in range(4)
            for name, load in (("g1", 1.1), ("g2", 0.6), ("g5", 0.9))
        ]
    )
    env, costs = reference_costs(episode, POLICIES[policy])

    events = jax.numpy.arange(episode.event_time.shape[1])
    state, theirs = compiled(policy, gossip_s > 0)(
        fast.device(episode), fast.device(first_state(episode)), events
    )

    for name_ in EXACT:
        np.testing.assert_array_equal(getattr(env.state, name_), np.asarray(getattr(state, name_)), name_)
    np.testing.assert_allclose(np.asarray(theirs), costs, rtol=1e-5, atol=2e-4)
    np.testing.assert_allclose(np.asarray(theirs).sum(1), costs.sum(1), rtol=1e-5, atol=1e-3)
    _state, flushed = jax.vmap(fast.finish)(fast.device(episode), state)
    env.finish()
    np.testing.assert_allclose(np.asarray(flushed), env.cost, rtol=1e-5, atol=1e-3)
    assert env.state.counts[:, 0].min() > 20
    assert (env.state.counts.sum(axis=0)[[1, 2, 4]] > 0).all(), "nothing was lost, deferred or killed"


def test_quantities_that_do_not_fit_are_refused() -> None:
    """Goal: no silent wrap. Method: a demand above 2^31 must raise with its name."""
    from dwcp.allocation.env import fast

    episode = worlds.small(count=1)

    with pytest.raises(ValueError, match="demand: above"):
        fast.device(episode._replace(demand=episode.demand.astype(np.int64) + 2**33))


def test_a_state_makes_the_round_trip() -> None:
    """Goal: a warm snapshot of the reference starts the fast environment. Method: convert, compare."""
    from dwcp.allocation.env import fast

    state: State = fast.device(first_state(worlds.small(count=1)))

    assert int(state.end.max()) == NEVER
