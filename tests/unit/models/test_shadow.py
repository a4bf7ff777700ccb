"""Paired comparison: right about equal and different models, at every look."""

from __future__ import annotations

import numpy as np
import pytest

from dwcp.models.shadow import SAMPLES_MIN, Comparison, Verdict


def run(shift: float, *, seed: int, samples: int = 3000, noise: float = 0.1) -> list[Verdict]:
    """The verdict after each sample; the candidate costs exp(shift) as much."""
    rng = np.random.default_rng(seed)
    state, verdicts = Comparison(), []
    for x in rng.normal(shift, noise, samples):
        state = state.add(float(np.exp(x)), 1.0)
        verdicts.append(state.verdict())
    return verdicts


def test_a_worse_candidate_fails_before_a_pass_would_be_possible() -> None:
    """Goal: harm is short. Method: 10 % worse; the first failing verdict comes within the minimum."""
    verdicts = run(0.1, seed=1)

    assert verdicts.index(Verdict.FAIL) < SAMPLES_MIN
    assert Verdict.PASS not in verdicts


def test_a_better_candidate_passes_only_after_the_minimum() -> None:
    """Goal: luck of a few samples promotes nothing. Method: 5 % better; look after each sample."""
    verdicts = run(-0.05, seed=2)

    assert set(verdicts[: SAMPLES_MIN - 1]) == {Verdict.INCONCLUSIVE}
    assert verdicts[-1] is Verdict.PASS


def test_an_equal_candidate_is_seldom_called_worse_however_often_one_looks() -> None:
    """Goal: looking after every sample keeps the error rate. Method: 200 equal canaries, 1,000 looks each."""
    failed = sum(Verdict.FAIL in run(0.0, seed=seed, samples=1000) for seed in range(200))

    assert failed <= 10, "5 % of 200"


def test_too_little_difference_stays_unknown() -> None:
    """Goal: unknown is not a pass. Method: equal within the margin, noise that hides it."""
    assert run(0.0, seed=3, noise=2.0)[-1] is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cost_that_is_no_cost_is_refused(cost: float) -> None:
    """Goal: one broken sample cannot decide. Method: zero, negative, not a number, infinite."""
    with pytest.raises(ValueError, match="positive and finite"):
        Comparison().add(cost, 1.0)
