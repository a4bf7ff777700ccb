"""The critic: twins, any order of nodes, and linear in the action."""

from __future__ import annotations

import numpy as np
import pytest

from dwcp.allocation.policies.learned import CONTEXT, NODE, Inputs

jax = pytest.importorskip("jax", reason="pip install 'dwcp[train]' brings JAX")

ROWS, NODES = 5, 7


def inputs(seed: int) -> Inputs:
    rng = np.random.default_rng(seed)
    nodes = rng.random((ROWS, NODES, len(NODE))).astype(np.float32)
    nodes[..., NODE.index("feasible")] = rng.random((ROWS, NODES)) < 0.7
    nodes[..., NODE.index("present")] = 1.0
    return Inputs(nodes, rng.random((ROWS, len(CONTEXT))).astype(np.float32))


def test_the_actor_begins_as_nothing() -> None:
    """Goal: training starts at the rule. Method: the residual of fresh weights is 0 everywhere."""
    from dwcp.allocation.learn.networks import init_actor
    from dwcp.allocation.policies.learned import residual

    found = residual(init_actor(jax.random.PRNGKey(3)), inputs(0), jax.numpy)

    assert float(abs(found).max()) == 0.0


def test_the_critic_is_blind_to_order() -> None:
    """Goal: any number of nodes in any order. Method: permute nodes and action together; Q stays."""
    from dwcp.allocation.learn.networks import init_critic, twin

    critic, seen = init_critic(jax.random.PRNGKey(0), 16), inputs(1)
    order = np.random.default_rng(2).permutation(NODES)
    both = np.append(order, NODES)
    known = np.random.default_rng(3).random((ROWS, NODES + 1)).astype(np.float32)
    action = np.eye(NODES + 1, dtype=np.float32)[[0, 3, 7, 2, 5]]

    plain = twin(critic, seen, known, action)
    moved = twin(critic, Inputs(seen.nodes[:, order], seen.context), known[:, both], action[:, both])

    assert plain.shape == (2, ROWS)
    np.testing.assert_allclose(plain, moved, rtol=1e-4, atol=1e-5)
    assert float(abs(plain[0] - plain[1]).max()) > 1e-3, "twins are copies"


def test_the_value_is_linear_in_the_action() -> None:
    """Goal: the straight-through gradient is exact. Method: Q of a mixture is the mixture of Qs."""
    from dwcp.allocation.learn.networks import init_critic, twin

    critic, seen = init_critic(jax.random.PRNGKey(0), 16), inputs(4)
    known = np.zeros((ROWS, NODES + 1), dtype=np.float32)
    first, second = (np.eye(NODES + 1, dtype=np.float32)[[place] * ROWS] for place in (1, 4))

    mixed = twin(critic, seen, known, 0.3 * first + 0.7 * second)

    parts = 0.3 * twin(critic, seen, known, first) + 0.7 * twin(critic, seen, known, second)
    np.testing.assert_allclose(mixed, parts, rtol=1e-4, atol=1e-5)
