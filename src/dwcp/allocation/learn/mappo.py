"""MAPPO, the on-policy rival: the same actor, a centralised state value, clipped updates. Yu et al. 2022.

The policy that acts and is corrected is softmax(bids / HEAT); a chunk of events is one batch. Advantages are those of
GAE with discounts per time, over decisions; costs of events between two decisions count for the former.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from dwcp.allocation.env.episode import Array
from dwcp.allocation.learn import collect, losses, networks
from dwcp.allocation.learn.collect import Act, Play, Setting, Steps
from dwcp.allocation.learn.config import Config
from dwcp.allocation.learn.matd3 import Ground, Told, optimisers, repeated, settled
from dwcp.allocation.policies.learned import Inputs, logits, mask_of

HEAT = 0.25
CLIP = 0.2
LAMBDA = 0.95
ENTROPY = 1e-3


class Learner(NamedTuple):
    """Everything that a run carries."""

    actor: Any
    critic: Any
    actor_optimiser: Any
    critic_optimiser: Any
    play: Play
    key: Array
    updates: Array
    moments: Array  # [3] of the decisions' rewards


class Lessons(NamedTuple):
    """[K, ...] one chunk's decisions with what is to be learned of them."""

    seen: Inputs
    truth: Inputs
    action: Array
    likelihood: Array  # log, when it was taken
    advantage: Array
    worth: Array  # the value to be predicted, scaled
    valid: Array
    reward: Array


def begin(config: Config, ground: Ground, setting: Setting, *, start: int) -> Learner:
    """The learner of `config.seed` before its first chunk; `start` is the windows' first measured event."""
    import jax

    made = jax.jit(functools.partial(_begin, config, setting, start))
    learner: Learner = settled(made(ground, jax.random.PRNGKey(config.seed)))
    return learner


def _begin(config: Config, setting: Setting, start: int, ground: Ground, seed_key: Array) -> Learner:  # noqa: ARG001  one signature for all
    import jax
    import jax.numpy as jnp

    key, actor_key, critic_key, window_key = jax.random.split(seed_key, 4)
    actor = networks.init_actor(actor_key, config.hidden)
    critic = networks.init_value(critic_key, config.hidden)
    windows = jax.random.randint(window_key, (config.envs,), 0, ground.episodes.event_time.shape[0])
    first, second = optimisers(config)
    return Learner(
        actor=actor,
        critic=critic,
        actor_optimiser=first.init(actor),
        critic_optimiser=second.init(critic),
        play=collect.begin(ground.states, windows, start),
        key=key,
        updates=jnp.asarray(0, jnp.int32),
        moments=jnp.zeros(3),
    )


def segment(
    config: Config, setting: Setting, start: int, learner: Learner, ground: Ground
) -> tuple[Learner, Told]:
    """`config.chunks` times: play, then learn from what was played."""

    def chunk(learner: Learner, _: None) -> tuple[Learner, Told]:
        learner, lessons = gather(config, setting, start, learner, ground)
        return learn(config, learner, lessons)

    return repeated(chunk, learner, config.chunks)


def gather(
    config: Config, setting: Setting, start: int, learner: Learner, ground: Ground
) -> tuple[Learner, Lessons]:
    """A chunk under the present policy, with advantages."""
    import jax
    import jax.numpy as jnp

    key, again, drawn = jax.random.split(learner.key, 3)
    play = collect.refill(
        ground.episodes, ground.states, learner.play, again, start=start, events=config.events
    )
    columns = ground.episodes.capacity.shape[1] + 1
    noise = collect.noise(drawn, (config.events, config.envs, columns))
    play, steps = collect.chunk(ground.episodes, play, noise, sampling(learner.actor), setting)
    rewards = jnp.where(steps.decided, -steps.cost, 0.0)
    moments = learner.moments + jnp.stack([steps.decided.sum() * 1.0, rewards.sum(), (rewards**2).sum()])
    scale = 1.0 / jnp.sqrt(jnp.maximum(moments[2] / jnp.maximum(moments[0], 1.0), 1e-8))
    values = networks.state_value(learner.critic, steps.truth, jnp)
    advantage, valid = advantages(steps, values, scale, config.horizon_s)
    lessons = Lessons(
        seen=steps.seen,
        truth=steps.truth,
        action=steps.action,
        likelihood=log_likelihood(learner.actor, steps.seen, steps.action),
        advantage=advantage,
        worth=advantage + values,
        valid=valid,
        reward=rewards,
    )
    flat: Lessons = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), lessons)
    return learner._replace(play=play, key=key, moments=moments), flat


def advantages(steps: Steps, values: Array, scale: Array, horizon_s: float) -> tuple[Array, Array]:
    """[T, B] by GAE, backwards; and where a later decision of the chunk was there to look on from."""
    import jax
    import jax.numpy as jnp

    def back(
        carry: tuple[Array, ...], now: tuple[Array, ...]
    ) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
        value_after, advantage_after, owed, time_after, known = carry
        value, cost, time, decided = now
        fade = jnp.exp(-(time_after - time) / horizon_s)
        gathered = fade * owed - cost * scale  # what this event and those up to the next decision brought
        reached = fade * value_after
        delta = gathered + reached - value
        advantage = delta + LAMBDA * fade * advantage_after
        after = (
            jnp.where(decided, value, reached),
            jnp.where(decided, advantage, fade * advantage_after),
            jnp.where(decided, 0.0, gathered),
            time,
            known | decided,
        )
        return after, (advantage, decided & known)

    nothing = jnp.zeros(values.shape[1])
    first = (nothing, nothing, nothing, steps.time[-1], nothing > 0)
    given = (values, steps.cost, steps.time, steps.decided)
    _, (advantage, valid) = jax.lax.scan(back, first, given, reverse=True)
    return jnp.where(valid, advantage, 0.0), valid


def learn(config: Config, learner: Learner, lessons: Lessons) -> tuple[Learner, Told]:
    """`config.updates` minibatches of the chunk."""
    import jax
    import jax.numpy as jnp

    count = jnp.maximum(lessons.valid.sum(), 1)
    mean = lessons.advantage.sum() / count
    spread = jnp.sqrt((jnp.where(lessons.valid, lessons.advantage - mean, 0.0) ** 2).sum() / count + 1e-8)
    lessons = lessons._replace(advantage=(lessons.advantage - mean) / spread)
    learner, (critic_loss, actor_loss) = jax.lax.scan(
        lambda each, _: _update(config, each, lessons), learner, None, length=config.updates
    )
    return learner, Told(critic_loss.mean(), actor_loss.mean(), lessons.reward.sum() / count, count)


def _update(config: Config, learner: Learner, lessons: Lessons) -> tuple[Learner, tuple[Array, Array]]:
    import jax
    import optax

    key, draw = jax.random.split(learner.key)
    picked = jax.random.randint(draw, (config.batch,), 0, len(lessons.action))
    batch = jax.tree.map(lambda array: array[picked], lessons)
    first, second = optimisers(config)
    loss, slope = jax.value_and_grad(critic_loss)(learner.critic, batch)
    change, critic_optimiser = second.update(slope, learner.critic_optimiser)
    gain, actor_slope = jax.value_and_grad(actor_loss)(learner.actor, batch)
    actor_change, actor_optimiser = first.update(actor_slope, learner.actor_optimiser)
    learner = learner._replace(
        actor=optax.apply_updates(learner.actor, actor_change),
        critic=optax.apply_updates(learner.critic, change),
        actor_optimiser=actor_optimiser,
        critic_optimiser=critic_optimiser,
        key=key,
        updates=learner.updates + 1,
    )
    return learner, (loss, gain)


def critic_loss(critic: Any, batch: Lessons) -> Array:
    import jax.numpy as jnp
    import optax

    found = networks.state_value(critic, batch.truth, jnp)
    each = optax.losses.huber_loss(found, batch.worth, delta=losses.HUBER)
    return jnp.where(batch.valid, each, 0.0).mean()


def actor_loss(actor: Any, batch: Lessons) -> Array:
    """The clipped surrogate, minus a little entropy."""
    import jax
    import jax.numpy as jnp

    chances = jax.nn.log_softmax(_policy(actor, batch.seen), -1)
    taken = jnp.take_along_axis(chances, batch.action[..., None], -1)[..., 0]
    ratio = jnp.exp(jnp.clip(taken - batch.likelihood, -10.0, 10.0))
    clipped = jnp.clip(ratio, 1.0 - CLIP, 1.0 + CLIP)
    gain = jnp.minimum(ratio * batch.advantage, clipped * batch.advantage)
    entropy = -(jnp.exp(chances) * jnp.where(chances > -1e6, chances, 0.0)).sum(-1)
    return -jnp.where(batch.valid, gain + ENTROPY * entropy, 0.0).mean()


def log_likelihood(actor: Any, seen: Inputs, action: Array) -> Array:
    import jax
    import jax.numpy as jnp

    chances = jax.nn.log_softmax(_policy(actor, seen), -1)
    return jnp.take_along_axis(chances, action[..., None], -1)[..., 0]


def sampling(actor: Any) -> Act:
    """Draws from the policy, by Gumbel's trick."""
    import jax.numpy as jnp

    return lambda inputs, noise: logits(actor, inputs, jnp) / HEAT - jnp.log(-jnp.log(noise))


def _policy(actor: Any, seen: Inputs) -> Array:
    import jax.numpy as jnp

    return jnp.where(mask_of(seen, jnp), logits(actor, seen, jnp) / HEAT, -1e9)
