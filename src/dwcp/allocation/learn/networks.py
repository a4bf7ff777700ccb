"""Initial weights of actor and critic, and the critic's value of an action.

Both share the trunk of `policies.learned`. The critic sees the truth: real lifetimes, fresh state of every site.
Its value is linear in the action, Q(s, x) = V(s) + Σ x_j A_j(s) − what the placement is known to cost. For one-hot x
that loses no function of the notes' §1.5 form (pool ⊕ chosen embedding), and the straight-through gradient
∂Q/∂x_j = A_j is exact. A_j is in units of the workload's contract. Permutation-invariant, any N.
"""

from __future__ import annotations

from typing import Any

from dwcp.allocation.env.episode import Array
from dwcp.allocation.policies.learned import CONTEXT, HIDDEN, NODE, Inputs, Weights, trunk

CRITICS = 2
UNIT, UNIT_LEAST = 0.3, 0.01  # of the contract; dollars that the smallest counts as
_LOG_WORTH = CONTEXT.index("log-worth")
DEFER_DOUBT = -1.0  # a fresh critic's view of waiting, in those units beside the contract


def init_actor(key: Array, hidden: int = HIDDEN) -> dict[str, Array]:
    """The last layers are 0, so that the residual begins as nothing."""
    import jax.numpy as jnp

    weights = _init_trunk(key, hidden)
    return weights | {name: jnp.zeros_like(weights[name]) for name in ("node.out", "site.out", "defer.out")}


def init_critic(key: Array, hidden: int = HIDDEN) -> dict[str, Array]:
    """Twins side by side: every array has a leading [2]."""
    import jax

    return dict(jax.vmap(lambda one: _init_value(one, hidden))(jax.random.split(key, CRITICS)))


def value(weights: Weights, truth: Inputs, known: Array, action: Array, xp: Any) -> Array:
    """[...] Q of one critic. `action` [..., N + 1] one-hot or relaxed; `known` [..., N + 1] reward known beforehand."""
    heads = trunk(weights, truth, xp)
    state = (heads.whole @ weights["value.out"])[..., 0] + weights["value.bias"][0]
    return state + ((heads.columns * _unit(truth, xp) + known) * action).sum(-1)


def _unit(truth: Inputs, xp: Any) -> Array:
    """[..., 1] what an advantage is measured in: dollars of the contract at priority 1, so that an error which is small
    beside a large workload's contract does not decide about small ones."""
    told = truth.context[..., _LOG_WORTH : _LOG_WORTH + 1]
    return UNIT * (xp.expm1(3.0 * told) / 10.0 + UNIT_LEAST)


def twin(weights: Weights, truth: Inputs, known: Array, action: Array) -> Array:
    """[2, ...] both critics."""
    import jax
    import jax.numpy as jnp

    return jax.vmap(lambda one: value(one, truth, known, action, jnp))(weights)


def state_value(weights: Weights, truth: Inputs, xp: Any) -> Array:
    """[...] V alone, for the on-policy rival."""
    heads = trunk(weights, truth, xp)
    return (heads.whole @ weights["value.out"])[..., 0] + weights["value.bias"][0]


def init_value(key: Array, hidden: int = HIDDEN) -> dict[str, Array]:
    """One critic without its twin."""
    return _init_value(key, hidden)


def _init_value(key: Array, hidden: int) -> dict[str, Array]:
    import jax
    import jax.numpy as jnp

    trunk_key, own = jax.random.split(key)
    out = 0.1 * jax.random.normal(own, (hidden, 1)) / hidden**0.5
    weights = _init_trunk(trunk_key, hidden)
    columns = jnp.array([0.0, DEFER_DOUBT])
    return weights | {"value.out": out, "value.bias": jnp.zeros(1), "out.bias": columns}


def _init_trunk(key: Array, hidden: int) -> dict[str, Array]:
    """He initialisation; what shares an output shares its variance."""
    import jax
    import jax.numpy as jnp

    wide, context, nodes = hidden, len(CONTEXT), len(NODE)
    shapes = {
        "in.nodes": (nodes, wide), "in.context": (context, wide), "mid": (wide, wide),
        "pool": (2 * wide + context, wide), "node.in": (wide, wide), "node.whole": (wide, wide),
        "site.in": (wide, wide), "site.whole": (wide, wide), "defer.in": (wide, wide),
        "node.out": (wide, 1), "site.out": (wide, 1), "defer.out": (wide, 1),
    }  # fmt: skip
    sizes = [height * width for height, width in shapes.values()]
    drawn = jax.random.normal(key, (sum(sizes),))  # one draw: a compiled generator per array costs seconds
    found, at = {}, 0
    for (name, shape), size in zip(shapes.items(), sizes, strict=True):
        scale = (0.1 if name.endswith("out") else 1.0) / shape[0] ** 0.5
        found[name] = drawn[at : at + size].reshape(shape) * scale
        at += size
    biases = ("in.bias", "mid.bias", "pool.bias", "node.bias", "site.bias", "defer.bias")
    return found | {name: jnp.zeros(wide) for name in biases} | {"out.bias": jnp.zeros(2)}
