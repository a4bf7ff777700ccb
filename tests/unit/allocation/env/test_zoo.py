"""The PettingZoo wrapper keeps PettingZoo's own rules and our costs."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.allocation import worlds

from dwcp.allocation.env.episode import rows

pytest.importorskip("pettingzoo", reason="pip install 'dwcp[train]' brings PettingZoo")


def test_a_window_is_played_to_its_end() -> None:
    """Goal: other learners can use it. Method: random bids until the end; rewards are the negative cost."""
    from dwcp.allocation.env.zoo import parallel_env

    env = parallel_env(worlds.small(count=1, measured=60, warm=10, load=1.2))
    observations, _infos = env.reset(seed=1)
    rng, rewards = np.random.default_rng(0), []
    while env.agents:
        for agent in env.agents:
            assert env.observation_space(agent).contains(observations[agent])
        bids = {agent: rng.uniform(-4, 4, env.action_space(agent).shape) for agent in env.agents}
        observations, reward, _terminated, _truncated, _infos = env.step(bids)
        assert len(set(reward.values())) == 1, "the reward is shared"
        rewards.append(reward["site-0"])

    assert len(rewards) > 60
    assert sum(rewards) < 0
    assert np.isfinite(rewards).all()


def test_two_windows_are_refused() -> None:
    """Goal: a wrong shape is a sentence. Method: give two windows."""
    from dwcp.allocation.env.zoo import parallel_env

    with pytest.raises(ValueError, match="takes one"):
        parallel_env(worlds.small(count=2))
    parallel_env(rows(worlds.small(count=2), slice(0, 1)))
