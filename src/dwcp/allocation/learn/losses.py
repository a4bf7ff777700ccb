"""The losses of GS-ST MATD3: MADDPG with discrete actions by straight-through Gumbel-softmax, and TD3's repairs.

Sources: Lowe et al. 2017 (MADDPG), Fujimoto et al. 2018 (TD3), Jang et al. 2017 (Gumbel-softmax), allocation notes
§2.1. Pure functions of weights and a batch [K, ...].
"""

from __future__ import annotations

from typing import Any

from dwcp.allocation.env.episode import Array
from dwcp.allocation.learn.collect import Transitions
from dwcp.allocation.learn.networks import twin, value
from dwcp.allocation.policies.learned import Inputs, Weights, logits, mask_of, residual

HUBER = 5.0
TARGET_NOISE = 0.3
SOFTNESS = 0.5  # temperature of the relaxed action
RESIDUAL_WEIGHT = 1e-3  # on the mean square of the residual: what brings nothing stays with the rule


def masked(bids: Array, inputs: Inputs) -> Array:
    import jax.numpy as jnp

    return jnp.where(mask_of(inputs, jnp), bids, -1e9)


def one_hot(column: Array, width: int) -> Array:
    import jax

    return jax.nn.one_hot(column, width)


def target(actor: Weights, critic: Weights, batch: Transitions, key: Array, scale: Array) -> Array:
    """[K] n-step return, with the lesser of the target critics from where it looks on."""
    import jax

    bids = masked(logits(actor, batch.next_seen, _numpy()), batch.next_seen)
    bids = bids + TARGET_NOISE * jax.random.gumbel(key, bids.shape)
    chosen = one_hot(bids.argmax(-1), bids.shape[-1])
    future = twin(critic, batch.next_truth, batch.next_known * scale, chosen).min(0)
    return jax.lax.stop_gradient(batch.reward * scale + batch.discount * future)


def critic_loss(critic: Weights, batch: Transitions, wanted: Array, scale: Array) -> Array:
    """Huber, summed over the twins."""
    import optax

    action = one_hot(batch.action, batch.known.shape[-1])
    found = twin(critic, batch.truth, batch.known * scale, action)
    return optax.losses.huber_loss(found, wanted[None], delta=HUBER).mean(1).sum()


def actor_loss(
    actor: Weights, critic: Weights, batch: Transitions, key: Array, scale: Array, *, defer: bool
) -> Array:
    """−Q for the straight-through action, and the residual's regulariser.

    Without `defer` the actor learns to rank nodes alone, and waiting is the rule's choice. With it the lesser critic
    counts: a critic that is young takes waiting for free, as its price comes late, and one step of a shared bias
    makes all workloads wait.
    """
    import jax
    import jax.numpy as jnp

    xp = _numpy()
    bids = masked(logits(actor, batch.seen, xp), batch.seen)
    if not defer:
        bids = bids.at[..., -1].set(-1e9)
    noisy = (bids + jax.random.gumbel(key, bids.shape)) / SOFTNESS
    soft = jax.nn.softmax(noisy, -1)
    hard = one_hot(noisy.argmax(-1), noisy.shape[-1])
    relaxed = soft + jax.lax.stop_gradient(hard - soft)
    both = jax.lax.stop_gradient(dict(critic))
    if defer:
        gain = twin(both, batch.truth, batch.known * scale, relaxed).min(0)
    else:
        first = jax.tree.map(lambda array: array[0], both)
        gain = value(first, batch.truth, batch.known * scale, relaxed, xp)
    decidable = mask_of(batch.seen, xp)[..., : None if defer else -1].any(-1)
    kept = (residual(actor, batch.seen, xp) ** 2).mean()
    return -jnp.where(decidable, gain, 0.0).mean() + RESIDUAL_WEIGHT * kept


def polyak(slow: Any, quick: Any, keep: float) -> Any:
    """Each target array a step towards its original."""
    import jax

    return jax.tree.map(lambda old, new: keep * old + (1.0 - keep) * new, slow, quick)


def _numpy() -> Any:
    import jax.numpy as jnp

    return jnp
