"""Playing and counting: transitions against a plain loop, the ring against a list, chunks against the reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.unit.allocation.learn import grounds

from dwcp.allocation.env.rollout import rollout, total
from dwcp.allocation.env.weights import WEIGHTS
from dwcp.allocation.policies import learned

jax = pytest.importorskip("jax", reason="pip install 'dwcp[train]' brings JAX")

AHEAD, REACH, HORIZON_S = 3, 7, 600.0


def random_steps(seed: int, length: int = 20, windows: int = 3):
    """Steps whose inputs are their own number, so that it shows where each row came from."""
    from dwcp.allocation.learn.collect import Steps

    rng = np.random.default_rng(seed)
    number = np.arange(length * windows, dtype=np.float32).reshape(length, windows)
    inputs = learned.Inputs(number[..., None, None], number[..., None])
    return Steps(
        seen=inputs,
        truth=inputs,
        known=number[..., None],
        action=number.astype(np.int32),
        bids=number[..., None],
        decided=rng.random((length, windows)) < 0.5,
        time=np.sort(rng.integers(0, 3000, (length, windows)), axis=0).astype(np.int32),
        cost=rng.random((length, windows)).astype(np.float32),
    )


@pytest.mark.parametrize("seed", range(4))
def test_returns_against_a_plain_loop(seed: int) -> None:
    """Goal: n-step returns with discounts per time are right. Method: sum them decision by decision."""
    from dwcp.allocation.learn.collect import transitions

    steps = random_steps(seed)
    found = transitions(jax.tree.map(jax.numpy.asarray, steps), ahead=AHEAD, reach=REACH, horizon_s=HORIZON_S)
    length, windows = steps.decided.shape
    checked = 0
    for at in range(length):
        for window in range(windows):
            later = [place for place in range(at + AHEAD, length) if steps.decided[place, window]]
            ends = bool(later) and later[0] - at <= REACH
            row = at * windows + window
            assert bool(found.valid[row]) == (bool(steps.decided[at, window]) and ends)
            if not found.valid[row]:
                continue
            checked += 1
            passed = [
                (float(steps.time[place, window]) - float(steps.time[at, window])) / HORIZON_S
                for place in range(length)
            ]
            wanted = -sum(
                math.exp(-passed[place]) * float(steps.cost[place, window]) for place in range(at, later[0])
            )
            assert float(found.reward[row]) == pytest.approx(wanted, rel=1e-5)
            assert float(found.discount[row]) == pytest.approx(math.exp(-passed[later[0]]), rel=1e-5)
            assert float(found.next_known[row, 0]) == later[0] * windows + window
    assert checked > 5


def test_the_ring_keeps_the_newest() -> None:
    """Goal: no row is lost or kept too long. Method: put marked rows, some invalid, and look what is there."""
    from dwcp.allocation.learn import collect, replay

    ring, put = None, []
    for seed in range(4):
        steps = jax.tree.map(jax.numpy.asarray, random_steps(seed))
        found = collect.transitions(steps, ahead=AHEAD, reach=REACH, horizon_s=HORIZON_S)
        marked = found._replace(action=found.action + 1000 * seed)
        ring = replay.put(replay.empty(marked, 32) if ring is None else ring, marked)
        put += np.asarray(marked.action)[np.asarray(marked.valid)].tolist()

    assert ring is not None
    assert int(ring.count) == len(put) > 32
    assert sorted(np.asarray(ring.rows.action).tolist()) == sorted(put[-32:])
    drawn = replay.sample(ring, jax.random.PRNGKey(0), 64)
    assert set(np.asarray(drawn.action).tolist()) <= set(put[-32:])
    assert drawn.seen.nodes.dtype == np.float32


@pytest.mark.parametrize("stale", [False, True])
def test_validation_costs_what_the_reference_says(stale: bool) -> None:
    """Goal: early stop looks at the real cost. Method: an untrained actor, compiled, against the NumPy rollout."""
    from dwcp.allocation.env import fast
    from dwcp.allocation.learn import collect, networks, validate

    course = grounds.course(stale)
    setting = collect.Setting(grounds.BASE, grounds.SHARPNESS, stale)
    judge = validate.evaluator(collect.greedy, setting, start=course.span[0])
    actor = networks.init_actor(jax.random.PRNGKey(0), 8)

    found = judge(actor, fast.device(course.episodes), fast.device(course.states))

    expected = total(rollout(course.episodes, course.states, grounds.BASE), WEIGHTS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)


def test_windows_begin_anew_before_they_end() -> None:
    """Goal: no chunk runs past its window. Method: stand near the end; refill must move there and only there."""
    from dwcp.allocation.env import fast
    from dwcp.allocation.learn import collect

    course = grounds.course()
    start, last = course.span
    episodes, states = fast.device(course.episodes), fast.device(course.states)
    play = collect.begin(states, jax.numpy.asarray([0, 1]), start)
    play = play._replace(event=jax.numpy.asarray([last - 10, start + 5]))

    again = collect.refill(episodes, states, play, jax.random.PRNGKey(1), start=start, events=32)

    assert again.event.tolist() == [start, start + 5]
    assert int(again.window[1]) == 1
    np.testing.assert_array_equal(again.state.used[0], states.used[again.window[0]])
