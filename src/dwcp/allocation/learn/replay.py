"""A ring of transitions as arrays; floats of features are kept in half precision, which their range allows."""

from __future__ import annotations

from typing import Any, NamedTuple

from dwcp.allocation.env.episode import Array
from dwcp.allocation.learn.collect import Transitions

_HALF = ("seen", "truth", "next_seen", "next_truth", "bids")


class Ring(NamedTuple):
    """`rows` are `Transitions` [size, ...]; `count` of all that were ever put, int32."""

    rows: Transitions
    count: Array


def empty(like: Transitions, size: int) -> Ring:
    """Room for `size` rows shaped as those of `like` [K, ...]."""
    import jax
    import jax.numpy as jnp

    packed = _packed(like)
    rows = jax.tree.map(lambda array: jnp.zeros((size, *array.shape[1:]), array.dtype), packed)
    return Ring(rows, jnp.asarray(0, jnp.int32))


def put(ring: Ring, found: Transitions) -> Ring:
    """The valid rows of `found`, over the oldest."""
    import jax
    import jax.numpy as jnp

    size = len(ring.rows.action)
    order = jnp.cumsum(found.valid) - 1
    place = jnp.where(found.valid, (ring.count + order) % size, size)
    rows = jax.tree.map(
        lambda have, new: have.at[place].set(new.astype(have.dtype), mode="drop"), ring.rows, _packed(found)
    )
    return Ring(rows, ring.count + found.valid.sum().astype(jnp.int32))


def sample(ring: Ring, key: Array, batch: int) -> Transitions:
    """[batch, ...] drawn evenly with replacement, features back in single precision."""
    import jax
    import jax.numpy as jnp

    size = len(ring.rows.action)
    picked = jax.random.randint(key, (batch,), 0, jnp.clip(ring.count, 1, size))
    return _unpacked(jax.tree.map(lambda array: array[picked], ring.rows))


def _packed(found: Transitions) -> Transitions:
    return _cast(found, "float16")


def _unpacked(found: Transitions) -> Transitions:
    return _cast(found, "float32")


def _cast(found: Transitions, kind: str) -> Transitions:
    import jax

    cast: dict[str, Any] = {
        name: jax.tree.map(lambda array: array.astype(kind), getattr(found, name)) for name in _HALF
    }
    return found._replace(**cast)
