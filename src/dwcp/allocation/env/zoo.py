"""The environment for other people's multi-agent learners: a PettingZoo `ParallelEnv`, one agent per site.

Each agent bids for its site's nodes; the bids of all together are one decision. For tests and comparisons: one
window, one decision at a time, 20 to 40 times slower than `fast`. PettingZoo and Gymnasium come with the `train`
extra and are imported inside the function.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dwcp.allocation.env.episode import Episode
from dwcp.allocation.env.reference import Reference
from dwcp.allocation.env.weights import COMPONENTS, WEIGHTS, CostWeights
from dwcp.allocation.policies.linear import DEFER_FEATURES, FEATURES, defer_features, features

BID_MAX = 4.0


class Game:
    """One window as a game of sites; what PettingZoo asks for, without PettingZoo."""

    metadata: dict[str, Any] = {"name": "dwcp_placement_v0", "render_modes": []}  # noqa: RUF012  its own form
    render_mode = None

    def __init__(self, episode: Episode, weights: CostWeights = WEIGHTS) -> None:
        if len(episode.capacity) != 1:
            raise ValueError(f"{len(episode.capacity)} windows: the wrapper takes one")
        sites = episode.transfer_s.shape[2]
        self._episode = episode
        self._price = np.array([getattr(weights, name) for name in COMPONENTS])
        self._event, self._spent = -1, 0.0
        self._env, self._job = Reference.at(episode), np.array([-1])
        self.possible_agents = [f"site-{number}" for number in range(sites)]
        self.agents: list[str] = []
        self.own = {
            agent: np.nonzero(episode.node_site[0] == number)[0]
            for number, agent in enumerate(self.possible_agents)
        }

    def width(self, agent: str) -> int:
        """Length of the agent's observation."""
        return len(self.own[agent]) * (len(FEATURES) + 1) + len(DEFER_FEATURES)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        """The window from its beginning; it is fixed, so the seed changes nothing."""
        del seed, options
        self.agents = list(self.possible_agents)
        self._env, self._event, self._spent = Reference.at(self._episode), -1, 0.0
        self._advance()
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
        """One decision: observations, rewards, terminations, truncations, infos."""
        if not self.agents:
            raise ValueError("the window is over: call reset()")
        bids = self._bids(actions)
        self._env.commit(self._job, lambda view, _xp: np.repeat(bids[None], len(view.mask), axis=0))
        self._pay()
        self._advance()
        agents, reward, over = self.agents, -self._spent, self._over
        self._spent = 0.0
        self.agents = [] if over else agents
        rewards, ends, cuts = (dict.fromkeys(agents, value) for value in (reward, False, over))
        return self._observe(), rewards, ends, cuts, {agent: {} for agent in agents}

    @property
    def _over(self) -> bool:
        return bool(self._event >= self._episode.event_time.shape[1])

    def _bids(self, actions: dict[str, Any]) -> Any:
        bids = np.full(self._episode.capacity.shape[1] + 1, -np.inf)
        for agent, nodes in self.own.items():
            bids[nodes] = np.asarray(actions[agent], dtype=np.float64)[:-1]
        home = self.possible_agents[int(self._episode.origin[0, self._job[0]])]
        bids[-1] = float(actions[home][-1])
        return bids

    def _pay(self) -> None:
        self._spent += float(self._env.cost[0] @ self._price)

    def _advance(self) -> None:
        """To the next decision; at the window's end what waits is lost."""
        while self._event + 1 < self._episode.event_time.shape[1]:
            self._event += 1
            self._job = self._env.begin(self._event)
            if self._job[0] >= 0:
                return  # what `begin` cost is in `cost` still, and is paid with the decision
            self._pay()
        self._event += 1
        self._env.finish()
        self._pay()

    def _observe(self) -> dict[str, Any]:
        if self._over:
            return {agent: np.zeros(self.width(agent), np.float32) for agent in self.possible_agents}
        view = self._env.view(np.array([0]), self._job)
        nodes, defer = features(view, np)[0], defer_features(view, np)[0]
        found = {}
        for agent, rows in self.own.items():
            parts = (nodes[rows].ravel(), view.mask[0][rows], defer)
            found[agent] = np.concatenate(parts).astype(np.float32)
        return found


def parallel_env(episode: Episode, *, weights: CostWeights = WEIGHTS) -> Any:
    """A `pettingzoo.ParallelEnv` over one window: `episode` stacked, with [W] = [1].

    Observation of an agent: its nodes' features and mask, and the features of deferring; float32. Action: a bid per
    node and one for deferring, −4 … 4; the site of the workload's data decides about deferring. Reward: minus the
    dollars since the last decision, the same for all.
    """
    from gymnasium.spaces import Box
    from pettingzoo import ParallelEnv

    class Placement(Game, ParallelEnv):  # type: ignore[misc]  # it has no type here
        """See `parallel_env`."""

        def __init__(self) -> None:
            Game.__init__(self, episode, weights)
            self._seen = {agent: Box(-np.inf, np.inf, (self.width(agent),), np.float32) for agent in self.own}
            self._bid = {
                agent: Box(-BID_MAX, BID_MAX, (len(nodes) + 1,), np.float32)
                for agent, nodes in self.own.items()
            }

        def observation_space(self, agent: str) -> Any:
            return self._seen[agent]

        def action_space(self, agent: str) -> Any:
            return self._bid[agent]

    return Placement()
