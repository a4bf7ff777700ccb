"""Canonical MADDPG, for reproduction: an actor and a critic of its own for every agent. Lowe et al. 2017, §4.1.

Agents are nodes, and one more for deferring. Agent i's actor sees its own row and bids in −1 … 1; its critic sees the
rows and bids of all, so its input grows with N, its cost with N², and the number of nodes is fixed in training. The
other agents' bids come from replay when agent i improves. No rule below, no twin, no pooling: this is the comparison,
not the product. Batch sizes, rates and the ring are those of the run's configuration.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from dwcp.allocation.env.episode import Array
from dwcp.allocation.learn import collect, losses, replay
from dwcp.allocation.learn.collect import Act, Play, Setting, Transitions
from dwcp.allocation.learn.config import Config
from dwcp.allocation.learn.matd3 import Ground, Told, optimisers, repeated, settled
from dwcp.allocation.policies.learned import CONTEXT, NODE, Inputs

OWN = len(NODE) + len(CONTEXT)
NOISE = 0.3  # standard deviation on bids while exploring


class Learner(NamedTuple):
    """Everything that a run carries; weights have a leading [agents]."""

    actor: Any
    critic: Any
    slow_actor: Any
    slow_critic: Any
    actor_optimiser: Any
    critic_optimiser: Any
    ring: replay.Ring
    play: Play
    key: Array
    updates: Array
    moments: Array


def rows_of(inputs: Inputs) -> Array:
    """[..., N + 1, OWN] what each agent sees; the last, which defers, has no node."""
    import jax.numpy as jnp

    none = jnp.zeros_like(inputs.nodes[..., :1, :])
    nodes = jnp.concatenate([inputs.nodes, none], -2)
    shared = jnp.broadcast_to(inputs.context[..., None, :], (*nodes.shape[:-1], len(CONTEXT)))
    return jnp.concatenate([nodes, shared], -1)


def bids_of(actor: Any, rows: Array) -> Array:
    """[..., A] each agent's bid from its own row [..., A, OWN] and its own weights [A, ...]."""
    import jax
    import jax.numpy as jnp

    moved = jnp.moveaxis(rows, -2, 0)
    found = jax.vmap(_dense)(actor, moved)
    return jnp.tanh(jnp.moveaxis(found[..., 0], 0, -1))


def values_of(critic: Any, rows: Array, bids: Array) -> Array:
    """[A, K] every agent's Q of the joint rows [K, A, OWN] and bids: [K, A], or [A, K, A] where each has its own."""
    import jax
    import jax.numpy as jnp

    flat = rows.reshape(len(rows), -1)

    def one(weights: Any, joint: Array) -> Array:
        return _dense(weights, jnp.concatenate([flat, joint], -1))[..., 0]

    return jax.vmap(one, in_axes=(0, 0 if bids.ndim == 3 else None))(critic, bids)


def begin(config: Config, ground: Ground, setting: Setting, *, start: int) -> Learner:
    """The learner of `config.seed` before its first chunk; `start` is the windows' first measured event."""
    import jax

    made = jax.jit(functools.partial(_begin, config, setting, start))
    learner: Learner = settled(made(ground, jax.random.PRNGKey(config.seed)))
    return learner


def _begin(config: Config, setting: Setting, start: int, ground: Ground, seed_key: Array) -> Learner:
    import jax
    import jax.numpy as jnp

    agents = ground.episodes.capacity.shape[1] + 1
    key, actor_key, critic_key, window_key = jax.random.split(seed_key, 4)
    actor = jax.vmap(lambda one: _init(one, OWN, config.hidden))(jax.random.split(actor_key, agents))
    wide = agents * (OWN + 1)
    critic = jax.vmap(lambda one: _init(one, wide, config.hidden))(jax.random.split(critic_key, agents))
    windows = jax.random.randint(window_key, (config.envs,), 0, ground.episodes.event_time.shape[0])
    play = collect.begin(ground.states, windows, start)
    shapes = jax.eval_shape(lambda: _play(config, ground, setting, start, actor, play, key)[1])
    ring = replay.empty(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), config.ring)
    first, second = optimisers(config)
    return Learner(
        actor=actor,
        critic=critic,
        slow_actor=actor,
        slow_critic=critic,
        actor_optimiser=first.init(actor),
        critic_optimiser=second.init(critic),
        ring=ring,
        play=play,
        key=key,
        updates=jnp.asarray(0, jnp.int32),
        moments=jnp.zeros(3),
    )


def segment(
    config: Config, setting: Setting, start: int, learner: Learner, ground: Ground
) -> tuple[Learner, Told]:
    """`config.chunks` times: play, then learn."""

    def chunk(learner: Learner, _: None) -> tuple[Learner, Told]:
        learner, found = gather(config, setting, start, learner, ground)
        return learn(config, learner, found)

    return repeated(chunk, learner, config.chunks)


def gather(
    config: Config, setting: Setting, start: int, learner: Learner, ground: Ground
) -> tuple[Learner, Transitions]:
    """The environment's and the actors' part of a chunk."""
    import jax
    import jax.numpy as jnp

    key, own = jax.random.split(learner.key)
    play, found = _play(config, ground, setting, start, learner.actor, learner.play, own)
    rewards = jnp.where(found.valid, found.reward, 0.0)
    moments = learner.moments + jnp.stack([found.valid.sum() * 1.0, rewards.sum(), (rewards**2).sum()])
    return learner._replace(play=play, key=key, moments=moments, ring=replay.put(learner.ring, found)), found


def learn(config: Config, learner: Learner, found: Transitions) -> tuple[Learner, Told]:
    """The updates of a chunk, all agents at once."""
    import jax
    import jax.numpy as jnp

    count, total, squares = learner.moments
    mean = total / jnp.maximum(count, 1.0)
    scale = 1.0 / jnp.sqrt(jnp.maximum(squares / jnp.maximum(count, 1.0) - mean**2, 1e-8))
    learner, (critic_loss, actor_loss) = jax.lax.scan(
        lambda each, _: _update(config, each, scale), learner, None, length=config.updates
    )
    decisions = found.valid.sum()
    reward = jnp.where(found.valid, found.reward, 0.0).sum() / jnp.maximum(decisions, 1)
    return learner, Told(critic_loss.mean(), actor_loss.mean(), reward, decisions)


def greedy(actor: Any) -> Act:
    """The policy without noise."""
    return lambda inputs, _noise: bids_of(actor, rows_of(inputs))


def _play(
    config: Config, ground: Ground, setting: Setting, start: int, actor: Any, play: Play, key: Array
) -> tuple[Play, Transitions]:
    import jax

    again, drawn = jax.random.split(key)
    play = collect.refill(ground.episodes, ground.states, play, again, start=start, events=config.events)
    columns = ground.episodes.capacity.shape[1] + 1
    noise = NOISE * jax.random.normal(drawn, (config.events, config.envs, columns))
    play, steps = collect.chunk(
        ground.episodes, play, noise, lambda inputs, own: bids_of(actor, rows_of(inputs)) + own, setting
    )
    return play, collect.transitions(
        steps, ahead=config.ahead, reach=config.reach, horizon_s=config.horizon_s
    )


def _update(config: Config, learner: Learner, scale: Array) -> tuple[Learner, tuple[Array, Array]]:
    import jax
    import optax

    key, draw = jax.random.split(learner.key)
    batch = replay.sample(learner.ring, draw, config.batch)
    first, second = optimisers(config)
    loss, slope = jax.value_and_grad(critic_loss)(learner.critic, learner, batch, scale)
    change, critic_optimiser = second.update(slope, learner.critic_optimiser)
    critic = optax.apply_updates(learner.critic, change)
    gain, actor_slope = jax.value_and_grad(actor_loss)(learner.actor, critic, batch)
    actor_change, actor_optimiser = first.update(actor_slope, learner.actor_optimiser)
    actor = optax.apply_updates(learner.actor, actor_change)
    learner = learner._replace(
        actor=actor,
        critic=critic,
        slow_actor=losses.polyak(learner.slow_actor, actor, config.keep),
        slow_critic=losses.polyak(learner.slow_critic, critic, config.keep),
        actor_optimiser=actor_optimiser,
        critic_optimiser=critic_optimiser,
        key=key,
        updates=learner.updates + 1,
    )
    return learner, (loss, gain)


def critic_loss(critic: Any, learner: Learner, batch: Transitions, scale: Array) -> Array:
    """y_i = r + γ Q_i'(o', μ'(o')); the team has one reward."""
    import jax
    import optax

    after = rows_of(batch.next_seen)
    future = values_of(learner.slow_critic, after, bids_of(learner.slow_actor, after))
    wanted = jax.lax.stop_gradient(batch.reward * scale + batch.discount * future)
    found = values_of(critic, rows_of(batch.seen), batch.bids)
    return optax.losses.huber_loss(found, wanted, delta=losses.HUBER).mean(1).sum()


def actor_loss(actor: Any, critic: Any, batch: Transitions) -> Array:
    """−Q_i where agent i bids anew and the others as replayed."""
    import jax
    import jax.numpy as jnp

    rows = rows_of(batch.seen)
    fresh = bids_of(actor, rows)
    agents = fresh.shape[-1]
    mine = jnp.eye(agents, dtype=bool)[:, None, :]
    joint = jnp.where(mine, fresh[None], batch.bids[None])
    fixed = jax.tree.map(jax.lax.stop_gradient, critic)
    return -values_of(fixed, rows, joint).mean(1).sum() + losses.RESIDUAL_WEIGHT * (fresh**2).mean()


def _init(key: Array, inputs: int, hidden: int) -> dict[str, Array]:
    import jax
    import jax.numpy as jnp

    first, second, third = jax.random.split(key, 3)
    return {
        "w1": jax.random.normal(first, (inputs, hidden)) / inputs**0.5, "b1": jnp.zeros(hidden),
        "w2": jax.random.normal(second, (hidden, hidden)) / hidden**0.5, "b2": jnp.zeros(hidden),
        "w3": 0.1 * jax.random.normal(third, (hidden, 1)) / hidden**0.5, "b3": jnp.zeros(1),
    }  # fmt: skip


def _dense(weights: Any, inputs: Array) -> Array:
    import jax.numpy as jnp

    hidden = jnp.maximum(inputs @ weights["w1"] + weights["b1"], 0.0)
    hidden = jnp.maximum(hidden @ weights["w2"] + weights["b2"], 0.0)
    return hidden @ weights["w3"] + weights["b3"]
