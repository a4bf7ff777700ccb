"""GS-ST MATD3, the shipped algorithm: one segment of training as one compiled function of arrays.

`begin` makes a learner from a seed, `segment` plays and learns; both are pure, so that a learner written down and read
again goes on byte for byte. Order within a chunk: play, put into the ring, then `updates` critic steps with the actor
every second one and the targets after each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dwcp.allocation.env.episode import Array, Episode, State
from dwcp.allocation.learn import collect, losses, networks, replay
from dwcp.allocation.learn.collect import Play, Setting, Transitions
from dwcp.allocation.learn.config import Config


class Learner(NamedTuple):
    """Everything that a run carries."""

    actor: Any
    critic: Any
    slow_actor: Any
    slow_critic: Any
    actor_optimiser: Any
    critic_optimiser: Any
    ring: replay.Ring
    play: Play
    key: Array
    updates: Array  # int32, of the critic
    moments: Array  # [3] number, sum and sum of squares of the rewards seen


class Told(NamedTuple):
    """Means over a segment."""

    critic_loss: Array
    actor_loss: Array
    reward: Array  # dollars per decision
    decisions: Array  # in the segment


class Ground(NamedTuple):
    """A course on the device."""

    episodes: Episode
    states: State


def optimisers(config: Config) -> tuple[Any, Any]:
    import optax

    def made(norm: float, rate: float) -> Any:
        return optax.chain(optax.clip_by_global_norm(norm), optax.adam(rate))

    return made(config.actor_norm, config.actor_rate), made(config.critic_norm, config.critic_rate)


def begin(config: Config, ground: Ground, setting: Setting, *, start: int) -> Learner:
    """The learner of `config.seed` before its first chunk; `start` is the windows' first measured event."""
    import jax

    made = jax.jit(functools.partial(_begin, config, setting, start))
    learner: Learner = settled(made(ground, jax.random.PRNGKey(config.seed)))
    return learner


def repeated(chunk: Callable[[Any, None], tuple[Any, Told]], learner: Any, count: int) -> tuple[Any, Told]:
    """`count` chunks, and what they told: means, and decisions in all."""
    import jax

    learner, told = jax.lax.scan(chunk, learner, None, length=count)
    means = {name: part.mean() for name, part in told._asdict().items()}
    return learner, Told(**{**means, "decisions": told.decisions.sum()})


def settled(learner: Any) -> Any:
    """The same with every array's type fixed, so that the first segment compiles as the later ones do."""
    import jax
    import jax.numpy as jnp

    return jax.tree.map(lambda array: jnp.asarray(np.asarray(array)), learner)


def _begin(config: Config, setting: Setting, start: int, ground: Ground, seed_key: Array) -> Learner:
    import jax
    import jax.numpy as jnp

    key, actor_key, critic_key, window_key = jax.random.split(seed_key, 4)
    actor = networks.init_actor(actor_key, config.hidden)
    critic = networks.init_critic(critic_key, config.hidden)
    windows = jax.random.randint(window_key, (config.envs,), 0, ground.episodes.event_time.shape[0])
    play = collect.begin(ground.states, windows, start)
    shapes = jax.eval_shape(
        lambda: _play(config, ground, setting, start, actor, play, key, jnp.asarray(1.0))[1]
    )
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
    """`config.chunks` times: play, then learn. To be compiled with the first three arguments fixed."""

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
    share = learner.updates / max(config.updates_total * config.temperature_until, 1.0)
    fallen = jnp.clip(share, 0.0, 1.0) * (config.temperature - config.temperature_end)
    play, found = _play(
        config, ground, setting, start, learner.actor, learner.play, own, config.temperature - fallen
    )
    rewards = jnp.where(found.valid, found.reward, 0.0)
    moments = learner.moments + jnp.stack([found.valid.sum() * 1.0, rewards.sum(), (rewards**2).sum()])
    return learner._replace(play=play, key=key, moments=moments, ring=replay.put(learner.ring, found)), found


def learn(config: Config, learner: Learner, found: Transitions) -> tuple[Learner, Told]:
    """The updates of a chunk."""
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


def _play(
    config: Config,
    ground: Ground,
    setting: Setting,
    start: int,
    actor: Any,
    play: Play,
    key: Array,
    heat: Array,
) -> tuple[Play, Transitions]:
    import jax

    again, drawn = jax.random.split(key)
    play = collect.refill(ground.episodes, ground.states, play, again, start=start, events=config.events)
    columns = ground.episodes.capacity.shape[1] + 1
    noise = collect.noise(drawn, (config.events, config.envs, columns))
    act = collect.exploring(actor, heat, config.uniform)
    play, steps = collect.chunk(ground.episodes, play, noise, act, setting)
    return play, collect.transitions(
        steps, ahead=config.ahead, reach=config.reach, horizon_s=config.horizon_s
    )


def _update(config: Config, learner: Learner, scale: Array) -> tuple[Learner, tuple[Array, Array]]:
    import jax
    import optax

    key, draw, target_key, actor_key = jax.random.split(learner.key, 4)
    batch = replay.sample(learner.ring, draw, config.batch)
    wanted = losses.target(learner.slow_actor, learner.slow_critic, batch, target_key, scale)
    first, second = optimisers(config)
    loss, slope = jax.value_and_grad(losses.critic_loss)(learner.critic, batch, wanted, scale)
    change, critic_optimiser = second.update(slope, learner.critic_optimiser)
    critic = optax.apply_updates(learner.critic, change)

    def improve(_: None) -> Any:
        loss = functools.partial(losses.actor_loss, defer=config.learn_defer)
        gain, slope = jax.value_and_grad(loss)(learner.actor, critic, batch, actor_key, scale)
        change, optimiser = first.update(slope, learner.actor_optimiser)
        return optax.apply_updates(learner.actor, change), optimiser, gain

    due = (learner.updates % config.actor_every == 0) & (learner.updates >= config.actor_after)
    actor, actor_optimiser, gain = jax.lax.cond(
        due, improve, lambda _: (learner.actor, learner.actor_optimiser, 0.0 * loss), None
    )
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
