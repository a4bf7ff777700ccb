"""What a policy costs on windows, compiled: for early stop, and paired with the rule that it stands on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from dwcp.allocation.env import fast
from dwcp.allocation.env.episode import Array, Episode, State
from dwcp.allocation.env.view import Scores
from dwcp.allocation.fleet import Floats
from dwcp.allocation.learn.collect import Act, Setting, cost_vector
from dwcp.allocation.policies.learned import observe


def costs(episodes: Episode, states: State, score: Scores, *, setting: Setting, start: int) -> Array:
    """[W] weighted dollars of the measured events; to be compiled by the caller."""
    import jax
    import jax.numpy as jnp

    prices = jnp.asarray(cost_vector(setting.weights))
    events = jnp.arange(start, episodes.event_time.shape[1])

    def window(episode: Episode, state: State) -> Array:
        def one(carry: tuple[State, Array], event: Array) -> tuple[tuple[State, Array], None]:
            state, total = carry
            state, cost = fast.step(episode, state, event, score, stale=setting.stale)
            return (state, total + (cost * prices).sum()), None

        (state, total), _ = jax.lax.scan(one, (state, jnp.zeros(())), events)
        return total + (fast.finish(episode, state)[1] * prices).sum()

    return jax.vmap(window)(episodes, states)


def of_act(act: Act, setting: Setting) -> Scores:
    """Bids without noise as a policy."""

    def scores(view: Any, xp: Any) -> Array:
        inputs = observe(view, setting.base(view, xp), setting.sharpness, xp)
        return act(inputs, xp.zeros(inputs.nodes.shape[-2] + 1))

    return scores


def evaluator(
    bids: Callable[[Any], Act], setting: Setting, *, start: int
) -> Callable[[Any, Episode, State], Floats]:
    """Compiled once: (weights, episodes, states) -> [W]."""
    import jax

    compiled = jax.jit(
        lambda weights, episodes, states: costs(
            episodes, states, of_act(bids(weights), setting), setting=setting, start=start
        )
    )

    def run(weights: Any, episodes: Episode, states: State) -> Floats:
        return np.asarray(compiled(weights, episodes, states), dtype=np.float64)

    return run


def rule_costs(rule: Scores, episodes: Episode, states: State, setting: Setting, *, start: int) -> Floats:
    """[W] of a rule without learning, in the same environment."""
    import jax

    run = jax.jit(functools.partial(costs, score=rule, setting=setting, start=start))
    return np.asarray(run(episodes, states), dtype=np.float64)
