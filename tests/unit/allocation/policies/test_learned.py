"""The learned placer's forward pass: equal in NumPy and JAX, blind to order, and the rule itself while it is empty."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.allocation import worlds
from tests.unit.allocation.serving import placers

from dwcp.allocation.env.reference import Reference
from dwcp.allocation.env.rollout import rollout, warm
from dwcp.allocation.env.view import View
from dwcp.allocation.policies import learned
from dwcp.allocation.policies.linear import start
from dwcp.allocation.policies.rules import RULES, Knobs, policy

BASE = learned.base_weights("balance", Knobs(money=1.0), sharpness=20.0)


def trunk_weights(seed: int, *, zero: bool = False) -> dict[str, np.ndarray]:
    """Random weights of the shipped shapes, made without JAX."""
    found = placers.weights(seed)
    if zero:
        found |= {
            name: np.zeros_like(array)
            for name, array in found.items()
            if name.startswith(("node.out", "site.out", "defer.out", "out", "admit"))
        }
    return found


def some_views(count: int = 30) -> View:
    """[count] decisions of small windows with stale views, stacked."""
    episode = worlds.small(seed=3, count=count, gossip_s=300, load=1.1)
    env = Reference.at(episode)
    score = policy(RULES["balance"], Knobs(money=1.0))
    for event in range(episode.event_time.shape[1]):
        job = env.begin(event)
        if event > 120 and (job >= 0).sum() > count // 2:
            rows = np.nonzero(job >= 0)[0]
            return env.view(rows, job[rows])
        env.commit(job, score)
    raise AssertionError("no event asks all windows")


def observed(view: View) -> learned.Inputs:
    base = policy(RULES["balance"], Knobs(money=1.0))
    return learned.observe(view, base(view, np), BASE["base.sharpness"], np)


def test_numpy_and_jax_agree() -> None:
    """Goal: what is served is what was trained. Method: random weights, real decisions, both to 1e-5."""
    jax = pytest.importorskip("jax", reason="pip install 'dwcp[train]' brings JAX")
    weights, inputs = trunk_weights(1), observed(some_views())

    mine = learned.logits(weights, inputs, np)
    theirs = learned.logits(weights, jax.tree.map(jax.numpy.asarray, inputs), jax.numpy)

    assert mine.dtype == np.float32
    np.testing.assert_allclose(mine, np.asarray(theirs), rtol=1e-5, atol=1e-5)


def test_golden_rows_go_round() -> None:
    """Goal: golden vectors test the whole network. Method: flatten inputs, answer, compare with the direct way;
    a width that fits no number of nodes is refused."""
    weights, inputs = trunk_weights(2), observed(some_views())

    rows = learned.flat(inputs)

    np.testing.assert_allclose(learned.forward(weights, rows), learned.logits(weights, inputs, np), atol=1e-6)
    with pytest.raises(ValueError, match="no whole number"):
        learned.forward(weights, rows[:, :-1])


def test_an_empty_network_is_the_rule() -> None:
    """Goal: learning starts at the fallback. Method: a residual of 0 must choose as the rule does, to the dollar."""
    episode = worlds.small(seed=5, count=4, load=1.0)
    rule = policy(RULES["balance"], Knobs(money=1.0))
    state = warm(episode, rule)

    ours = rollout(episode, state, learned.scorer(trunk_weights(3, zero=True)))

    np.testing.assert_array_equal(ours.costs, rollout(episode, state, rule).costs)


def test_a_network_can_leave_the_rule() -> None:
    """Goal: the test above can fail. Method: random weights must choose differently somewhere."""
    episode = worlds.small(seed=5, count=4, load=1.0)
    state = warm(episode, policy(RULES["balance"], Knobs(money=1.0)))

    ours = rollout(episode, state, learned.scorer(trunk_weights(3)))
    rule = rollout(episode, state, policy(RULES["balance"], Knobs(money=1.0)))

    assert (ours.costs != rule.costs).any()


def test_order_of_nodes_does_not_matter() -> None:
    """Goal: any fleet in any order. Method: permute nodes; bids must permute alike."""
    weights, inputs = trunk_weights(4), observed(some_views())
    order = np.random.default_rng(0).permutation(inputs.nodes.shape[-2])

    shuffled = learned.logits(weights, learned.Inputs(inputs.nodes[:, order], inputs.context), np)

    plain = learned.logits(weights, inputs, np)
    np.testing.assert_allclose(shuffled[:, :-1], plain[:, order], atol=1e-5)
    np.testing.assert_allclose(shuffled[:, -1], plain[:, -1], atol=1e-5)


def test_empty_places_do_not_matter() -> None:
    """Goal: windows padded for training mean the same. Method: add nodes without capacity; bids stay."""
    weights, inputs = trunk_weights(4), observed(some_views())
    padding = np.zeros((len(inputs.nodes), 3, len(learned.NODE)), dtype=np.float32)

    padded = learned.Inputs(np.concatenate([inputs.nodes, padding], 1), inputs.context)

    found = learned.logits(weights, padded, np)
    plain = learned.logits(weights, inputs, np)
    np.testing.assert_allclose(np.delete(found, [-4, -3, -2], axis=1), plain, atol=1e-5)


def test_offers_by_sorting_are_offers_by_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a cluster of thousands is scored as a small one. Method: the quick way against the plain one."""
    weights, inputs = trunk_weights(6), observed(some_views())
    plain = learned.logits(weights, inputs, np)

    monkeypatch.setattr(learned, "PAIRWISE_NODES_MAX", 1)

    np.testing.assert_allclose(learned.logits(weights, inputs, np), plain, atol=1e-5)


def test_base_rules_are_part_of_the_weights() -> None:
    """Goal: the file says on which rule the residual stands. Method: both kinds come back; nonsense is refused."""
    view = some_views()
    tuned = learned.base_linear(start(), sharpness=1.0)
    both = {**trunk_weights(1), **BASE}

    assert learned.base_policy(both)(view, np).shape == (len(view.demand), 6)
    assert learned.base_policy(tuned)(view, np).shape == (len(view.demand), 6)
    with pytest.raises(ValueError, match="no base rule"):
        learned.base_policy({})
    with pytest.raises(ValueError, match="none that this program knows"):
        learned.base_policy({**BASE, "base.rule": np.zeros(3, dtype=np.float32)})
    with pytest.raises(ValueError, match="rules: "):
        learned.base_weights("no-such", Knobs(), sharpness=1.0)


def test_sharpness_brings_rules_to_one_scale() -> None:
    """Goal: exploration means the same for each rule. Method: scores times ten, sharpness a tenth."""
    view = some_views()
    rule = policy(RULES["best-fit-l2"])

    one = learned.sharpness_of(rule, [view])
    ten = learned.sharpness_of(lambda seen, xp: 10.0 * rule(seen, xp), [view])

    assert one > 0
    assert ten == pytest.approx(one / 10, rel=1e-6)
