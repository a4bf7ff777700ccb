"""Whether the data that a model sees is still the data it was tried on: population stability by feature.

PSI = Σ (p − q) · ln(p/q) over ten bins of equal share in the reference; below 0.1 nothing has changed,
above 0.25 it has. The reference is the first decisions after the model began to serve. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

REFERENCE = 1000  # decisions
WINDOW = 500
CHANGED = 0.25
_BINS = 10
_LEAST = 0.5  # added to every count, so that an empty bin is finite

Rows = NDArray[np.float64]


def psi(reference: NDArray[np.float64], recent: NDArray[np.float64]) -> float:
    """The index of one feature; both are samples, [n] and [m]. Values that a bin's edge repeats share a bin."""
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, _BINS + 1)[1:-1]))
    expected = _shares(reference, edges)
    found = _shares(recent, edges)
    return float(((found - expected) * np.log(found / expected)).sum())


def _shares(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1) + _LEAST
    return np.asarray(counts / counts.sum())


class Drift:
    """Collects features; says the indices each time a window is full. Bounded: one reference, one window."""

    def __init__(self, *, reference: int = REFERENCE, window: int = WINDOW) -> None:
        self._sizes = reference, window
        self._reference: list[tuple[float, ...]] = []
        self._recent: list[tuple[float, ...]] = []
        self._names: tuple[str, ...] = ()
        self.indices: dict[str, float] = {}

    def add(self, features: Mapping[str, float]) -> bool:
        """Takes the features of one decision; True when `indices` are new. Other names start anew."""
        names = tuple(features)
        if names != self._names:
            self._reference, self._recent, self._names, self.indices = [], [], names, {}
        reference, window = self._sizes
        if len(self._reference) < reference:
            self._reference.append(tuple(features.values()))
            return False
        self._recent.append(tuple(features.values()))
        if len(self._recent) < window:
            return False
        before, now = np.array(self._reference), np.array(self._recent)
        self._recent = []
        self.indices = {name: psi(before[:, at], now[:, at]) for at, name in enumerate(names)}
        return True

    @property
    def changed(self) -> tuple[str, ...]:
        """The features whose distribution has changed."""
        return tuple(name for name, index in self.indices.items() if index > CHANGED)
