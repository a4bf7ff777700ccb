"""Drift: the same data is no drift, other data is, and nothing grows without end."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dwcp.models.drift import CHANGED, Drift, psi


def test_the_index_by_hand() -> None:
    """Goal: the formula. Method: a reference of ten equal bins, all recent values in the first of them."""
    reference = np.arange(1000.0)
    recent = np.zeros(500)
    first, rest = 500.5 / 505, 0.5 / 505  # half a count is added to each bin
    shares = (np.bincount(np.repeat(np.arange(10), 100)) + 0.5) / 1005
    expected = sum((q - p) * np.log(q / p) for p, q in zip(shares, [first] + [rest] * 9, strict=True))

    assert abs(psi(reference, recent) - expected) < 0.05


def test_the_same_data_is_stable_and_other_data_is_not() -> None:
    """Goal: the verdict. Method: a window of the reference's distribution, then one that is shifted."""
    rng = np.random.default_rng(1)
    drift = Drift(reference=1000, window=500)
    said = [drift.add({"a": value, "b": 3.0}) for value in rng.normal(size=1500)]
    assert (said.count(True), drift.changed) == (1, ())
    assert drift.indices["b"] < 0.001

    for value in rng.normal(loc=1.5, size=500):
        drift.add({"a": value, "b": 3.0})
    assert drift.changed == ("a",)
    assert drift.indices["a"] > CHANGED


def test_another_model_begins_anew() -> None:
    """Goal: features of two models are never compared. Method: other names after a full reference."""
    drift = Drift(reference=2, window=2)
    for value in range(4):
        drift.add({"a": float(value)})
    assert drift.indices
    drift.add({"b": 1.0})
    assert drift.indices == {}


@given(st.lists(st.floats(-1e6, 1e6), min_size=20, max_size=60), st.lists(st.floats(-1e6, 1e6), min_size=5))
def test_the_index_is_finite_and_never_negative(reference: list[float], recent: list[float]) -> None:
    """Goal: any data has an index. Method: repeated values, few values, far values."""
    index = psi(np.array(reference), np.array(recent))

    assert np.isfinite(index)
    assert index >= -1e-12
