"""What earlier blocks of a stream say about the next: a Gaussian update of the model's residuals.

The model's error on a block is a part that the stream shares and a part of the block's own:

    e = u + v,   u ~ N(m, P) kept along the stream,   v ~ N(0, (1−ρ)Σ)

Σ is the covariance of the errors that the model made out of fold, ρ the share that neighbours have in
common; both come with the model. Observing some of the 27 values of a block (say ratio and speed of one
codec) moves all others as far as their errors were correlated (spec of the selector, §1.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

_NOISE = 1e-4  # variance of a measurement's own error, log units²: 1 %
_SURPRISE = 4.0  # standard deviations at which content is said to have changed


@dataclass(frozen=True, slots=True)
class Spread:
    """Σ, [values, values], and ρ in [0, 1)."""

    sigma: Matrix
    rho: float


@dataclass(frozen=True, slots=True)
class Belief:
    """Mean and covariance of the model's error on the block at hand."""

    mean: Vector
    covariance: Matrix


class StreamErrors:
    """The errors of one stream. `fade` in [0, 1]: how much of what is known is forgotten at each block."""

    def __init__(self, spread: Spread, *, fade: float = 0.1) -> None:
        self.spread = spread
        self._fade = fade
        self._own = (1.0 - spread.rho) * spread.sigma
        self.reset()

    def reset(self) -> None:
        """Another content begins: back to what the model knows without the stream."""
        self._mean = np.zeros(len(self.spread.sigma))
        self._shared = self.spread.rho * self.spread.sigma
        self._fresh = True

    @property
    def fresh(self) -> bool:
        """Whether nothing was observed since the beginning."""
        return self._fresh

    def belief(self) -> Belief:
        """About the error on the next block, before anything of it was seen."""
        return Belief(self._mean, self._shared + self._own)

    def observe(self, places: Sequence[int], errors: Vector) -> None:
        """Keeps what a block's values, seen now, say about the stream; once for each block."""
        at = list(places)
        prior = self._shared + self._own
        right = np.column_stack((errors - self._mean[at], self._shared[at]))
        solved = np.linalg.solve(self._seen(prior, at), right)
        gain = self._shared[:, at]
        self._mean = self._mean + gain @ solved[:, 0]
        self._shared = self._shared - gain @ solved[:, 1:]
        self._fresh = False

    def _seen(self, prior: Matrix, at: list[int]) -> Matrix:
        return prior[np.ix_(at, at)] + _NOISE * np.eye(len(at))

    def advance(self) -> None:
        """To the next block: knowledge fades towards the prior."""
        keep = 1.0 - self._fade
        self._mean = keep * self._mean
        self._shared = keep * self._shared + (1 - keep) * self.spread.rho * self.spread.sigma

    def surprising(self, places: Sequence[int], errors: Vector) -> bool:
        """Whether an observation lies outside what the stream made likely: the content has changed."""
        at = list(places)
        variance = np.diag(self._shared + self._own)[at] + _NOISE
        return bool((np.abs(np.asarray(errors) - self._mean[at]) > _SURPRISE * np.sqrt(variance)).any())
