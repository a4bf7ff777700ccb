"""The rules mean what their names say, and tuning keeps to its budget."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.allocation import worlds

from dwcp.allocation.env.reference import Reference
from dwcp.allocation.env.rollout import rollout, total, warm
from dwcp.allocation.env.view import View
from dwcp.allocation.env.weights import WEIGHTS
from dwcp.allocation.feasibility import choose_rows
from dwcp.allocation.policies import rules, tuning
from dwcp.allocation.policies.linear import (
    DEFER_FEATURES,
    FEATURES,
    defer_features,
    features,
    linear,
    linears,
    start,
)
from dwcp.allocation.policies.rules import RULES, Knobs, policy


def a_view(**more: object) -> View:
    """One decision over three nodes: half full, empty, nearly full; data at node 2's site."""
    capacity = np.full((1, 3, 4), 100.0)
    free = np.array([[[50.0] * 4, [100.0] * 4, [20.0] * 4]])
    view = View(
        free=free,
        capacity=capacity,
        demand=np.full((1, 4), 10.0),
        mask=np.array([[True, True, True, True]]),
        local=np.array([[False, False, True]]),
        wan=np.array([[0.3, 0.1, 0.0]]),
        energy=np.zeros((1, 3)),
        late=np.zeros((1, 3)),
        worth=np.array([0.1]),
        priority=np.array([1]),
        predicted_s=np.array([3600.0]),
        slack_s=np.array([600.0]),
        exit_in_s=np.array([[7200.0, 0.0, 60.0]]),
        age_s=np.zeros((1, 3)),
        queued=np.array([0]),
        last=np.array([1]),
        coin=np.array([[0.9, 0.2, 0.5]]),
        row=np.array([0]),
    )
    return view._replace(**more)


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("random", 0),
        ("first-fit", 0),
        ("next-fit", 1),
        ("best-fit-l1", 2),
        ("best-fit-l2", 2),
        ("worst-fit", 1),
        ("kube-default", 1),
        ("kube-most", 2),
        ("tetris", 1),
        ("nomad", 2),
        ("power-of-two", 0),
        ("local-best-fit", 2),
        ("local-kube", 2),
        ("lifetime", 0),
    ],
)
def test_each_rule_prefers_what_it_says(name: str, node: int) -> None:
    """Goal: a rival is the rule it is named for. Method: three nodes where the right answer is plain."""
    view = a_view()

    assert choose_rows(policy(RULES[name])(view, np), view.mask)[0] == node


def test_prices_reserve_and_headroom_change_the_choice() -> None:
    """Goal: the knobs work. Method: turn each until the choice changes."""
    view = a_view()
    by_worst = policy(RULES["worst-fit"], Knobs(money=10.0))(view, np)
    assert choose_rows(by_worst, view.mask)[0] == 2, "shipping is dear, the data is there"

    kept = policy(RULES["worst-fit"], Knobs(reserve=1.5))(view, np)
    assert choose_rows(kept, view.mask)[0] == 3, "kept for higher priorities: deferred"
    important = a_view(priority=np.array([2]))
    assert choose_rows(policy(RULES["worst-fit"], Knobs(reserve=1.5))(important, np), view.mask)[0] == 1

    old = a_view(age_s=np.array([[3600.0, 3600.0, 0.0]]))
    assert choose_rows(policy(RULES["worst-fit"], Knobs(headroom=0.95))(old, np), view.mask)[0] == 2


def test_every_rule_runs_in_the_environment() -> None:
    """Goal: no rule fails on real views. Method: run each; all place something, and they differ."""
    episode = worlds.small(count=2, measured=60)
    snapshot = warm(episode, policy(RULES["balance"]))

    costs = {
        name: float(total(rollout(episode, snapshot, policy(rule)), WEIGHTS).sum())
        for name, rule in RULES.items()
    }

    assert len(set(costs.values())) >= len(RULES) - 2
    assert np.isfinite(list(costs.values())).all()


def test_features_have_their_shape_and_are_finite() -> None:
    """Goal: learned policies see numbers. Method: features at every decision of a window."""
    env = Reference.at(worlds.small(count=2, gossip_s=300))
    for event in range(env.episode.event_time.shape[1]):
        job = env.begin(event)
        rows = np.nonzero(job >= 0)[0]
        if len(rows):
            view = env.view(rows, job[rows])
            nodes, defer = features(view, np), defer_features(view, np)
            assert nodes.shape == (len(rows), 5, len(FEATURES))
            assert defer.shape == (len(rows), len(DEFER_FEATURES))
            assert np.isfinite(nodes).all()
            assert np.abs(nodes).max() < 50
        env.commit(job, linear(start()))


def test_wrong_weights_are_refused() -> None:
    """Goal: NaN weights never score. Method: a NaN, and a wrong length."""
    with pytest.raises(ValueError, match="finite"):
        linear(np.full(len(start()), np.nan))
    with pytest.raises(ValueError, match="finite"):
        linear(np.zeros(3))


def test_cross_entropy_finds_a_minimum_within_its_budget() -> None:
    """Goal: the cheap learner learns, and pays for each trial. Method: a shifted bowl; count evaluations."""
    asked = []

    def bowl(weights: np.ndarray) -> np.ndarray:
        asked.append(len(weights))
        return ((weights - 1.5) ** 2).sum(axis=1)

    found = tuning.cross_entropy(bowl, np.zeros(4), np.random.default_rng(1), trials=200)

    assert found.cost < 0.2 < 9.0
    assert sum(asked) == found.trials == 200


def test_tuning_never_loses_to_the_blind_rule() -> None:
    """Goal: a tuned rival is at least the textbook's on the course. Method: few trials, compare."""
    episode = worlds.small(count=2, measured=60)
    course = tuning.Course(episode, warm(episode, policy(RULES["balance"])))

    found = tuning.tune_rule(RULES["worst-fit"], course, np.random.default_rng(0), trials=4)

    blind = total(rollout(episode, course.state, policy(RULES["worst-fit"])), WEIGHTS).mean()
    assert found.cost <= blind
    tuned = total(rollout(episode, course.state, policy(RULES["worst-fit"], found.value)), WEIGHTS).mean()
    assert abs(found.cost - tuned) < 1e-9, "side by side means the same as alone"
    assert found.trials == 4
    assert isinstance(found.value, rules.Knobs)


def test_linear_candidates_side_by_side_cost_what_they_cost_alone() -> None:
    """Goal: tuning measures what is used. Method: two weight vectors together, then each alone."""
    episode = worlds.small(count=2, measured=60)
    course = tuning.Course(episode, warm(episode, policy(RULES["balance"])))
    weights = np.stack([start(), start()[::-1]])

    together = course.costs(linears(weights, course.windows), 2)

    alone = [total(rollout(episode, course.state, linear(one)), WEIGHTS).mean() for one in weights]
    np.testing.assert_allclose(together, alone, rtol=1e-9)


def test_policies_abreast_cost_what_they_cost_alone() -> None:
    """Goal: the rival is chosen by true costs. Method: all rules in one run, then alone."""
    episode = worlds.small(count=2, measured=60)
    course = tuning.Course(episode, warm(episode, policy(RULES["balance"])))
    wanted = [policy(rule) for rule in RULES.values()]

    together = course.costs(rules.abreast(wanted, course.windows), len(wanted))

    alone = [total(rollout(episode, course.state, one), WEIGHTS).mean() for one in wanted]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
