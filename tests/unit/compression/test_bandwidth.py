"""The rate estimator: it follows a link, is not fooled by bursts, and notices another link."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression.bandwidth import RateEstimator

MIB = 1 << 20


def _fed(estimator: RateEstimator, bps: float, times: int) -> RateEstimator:
    for _ in range(times):
        estimator.delivered(MIB, seconds=8 * MIB / bps)
    return estimator


def test_before_anything_was_delivered_the_prior_counts() -> None:
    """The prior, and the word that it rests on nothing."""
    rate = RateEstimator(5e6).rate

    assert (rate.bps, rate.samples) == (5e6, 0)


@settings(deadline=None)
@given(bps=st.floats(1e5, 1e10), prior=st.floats(1e5, 1e10))
def test_a_steady_link_is_known_after_two_deliveries(bps: float, prior: float) -> None:
    """Whatever was believed before."""
    assert _fed(RateEstimator(prior), bps, 2).rate.bps == pytest.approx(bps, rel=1e-6)


def test_a_link_that_changes_tenfold_is_followed_within_two_deliveries() -> None:
    """100 to 10 Mbit/s in mid-stream, and back."""
    estimator = _fed(RateEstimator(1e8), 1e8, 20)

    assert _fed(estimator, 1e7, 2).rate.bps == pytest.approx(1e7, rel=0.01)
    assert _fed(estimator, 1e8, 2).rate.bps == pytest.approx(1e8, rel=0.01)


def test_one_burst_is_not_believed() -> None:
    """A delivery at 50 times the rate (a buffer took it) leaves the estimate within a tenth."""
    estimator = _fed(RateEstimator(1e7), 1e7, 10)
    estimator.delivered(MIB, seconds=8 * MIB / 5e8)
    estimator.delivered(MIB, seconds=8 * MIB / 1e7)

    assert estimator.rate.bps == pytest.approx(1e7, rel=0.35)


def test_half_of_the_deliveries_slow_guards_the_average() -> None:
    """Two speeds in turn: the estimate is at most twice the low quartile."""
    estimator = RateEstimator(1e7)
    for _ in range(8):
        _fed(estimator, 3e7, 1)
        _fed(estimator, 1e7, 1)

    assert estimator.rate.bps <= 2e7 * 1.001
    assert estimator.rate.spread > 0.5


def test_what_cannot_be_a_rate_teaches_nothing() -> None:
    """Small pieces measure the round trip; clocks that stand still measure nothing."""
    estimator = RateEstimator(1e6)
    for size, seconds in ((100, 1.0), (MIB, 0.0), (MIB, -1.0), (MIB, math.inf), (MIB, math.nan)):
        estimator.delivered(size, seconds=seconds)

    assert estimator.rate.samples == 0
    with pytest.raises(ValueError, match="above 0"):
        RateEstimator(0)
