"""Feedback: the Gaussian update against the textbook, and along a stream."""

from __future__ import annotations

import numpy as np
import pytest

from dwcp.compression.feedback import Spread, StreamErrors

SIGMA = np.array([[0.04, 0.03, 0.0], [0.03, 0.04, 0.0], [0.0, 0.0, 0.09]])


def test_one_value_moves_what_it_is_correlated_with() -> None:
    """Conditional mean and variance of a bivariate normal, by hand."""
    errors = StreamErrors(Spread(SIGMA, 1.0), fade=0.0)
    errors.observe([0], np.array([0.2]))
    belief = errors.belief()

    assert belief.mean[1] == pytest.approx(0.03 / 0.04 * 0.2, rel=0.01)
    assert belief.covariance[1, 1] == pytest.approx(0.04 - 0.03**2 / 0.04, rel=0.02)
    assert belief.mean[2] == 0.0
    assert belief.covariance[2, 2] == pytest.approx(0.09)


def test_the_stream_keeps_the_shared_part_only() -> None:
    """ρ = 0: neighbours teach nothing; ρ near 1: nearly all."""
    kept = {}
    for rho in (0.0, 0.5, 0.95):
        errors = StreamErrors(Spread(SIGMA, rho), fade=0.0)
        errors.observe([0], np.array([0.2]))
        kept[rho] = errors.belief().mean[0]

    assert kept[0.0] == pytest.approx(0.0)
    assert kept[0.5] == pytest.approx(0.1, rel=0.01)
    assert kept[0.95] == pytest.approx(0.19, rel=0.01)


def test_many_equal_observations_converge() -> None:
    """The belief comes to what is seen again and again, and is surer of it."""
    errors = StreamErrors(Spread(SIGMA, 0.5), fade=0.0)
    for _ in range(60):
        errors.observe([0, 1, 2], np.array([0.2, 0.1, -0.3]))
        errors.advance()

    assert errors.belief().mean == pytest.approx([0.2, 0.1, -0.3], abs=0.02)
    assert np.diag(errors.belief().covariance).max() < 0.09


def test_knowledge_fades_back_to_the_prior() -> None:
    """Without observations, the mean returns to zero and the covariance to Σ."""
    errors = StreamErrors(Spread(SIGMA, 0.5), fade=0.2)
    errors.observe([0], np.array([0.3]))
    for _ in range(80):
        errors.advance()

    assert errors.belief().mean == pytest.approx([0, 0, 0], abs=1e-6)
    assert errors.belief().covariance == pytest.approx(SIGMA, abs=1e-6)


def test_covariances_stay_symmetric_and_positive() -> None:
    """A hundred random updates of random parts: no eigenvalue below zero."""
    rng = np.random.default_rng(1)
    errors = StreamErrors(Spread(SIGMA, 0.7))
    for _ in range(100):
        places = sorted(rng.choice(3, int(rng.integers(1, 4)), replace=False).tolist())
        errors.observe(places, rng.normal(0, 0.3, len(places)))
        errors.advance()
        covariance = errors.belief().covariance

        assert np.allclose(covariance, covariance.T, atol=1e-12)
        assert np.linalg.eigvalsh((covariance + covariance.T) / 2).min() > 0


def test_other_content_is_a_surprise_and_can_be_forgotten() -> None:
    """Five deviations off is one, one is not; after `reset` the stream is as at its beginning."""
    errors = StreamErrors(Spread(SIGMA, 0.5))

    assert errors.fresh
    assert not errors.surprising([0], np.array([0.2]))
    assert errors.surprising([0], np.array([1.0]))
    errors.observe([0], np.array([1.0]))
    assert not errors.fresh
    errors.reset()
    assert errors.fresh
    assert errors.belief().mean.tolist() == [0, 0, 0]
