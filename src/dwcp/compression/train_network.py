"""Training of one small network with NumPy: two hidden layers, ReLU, Adam, one seeded order of examples.

Dimensions: B rows of a batch, F features, H hidden, V values. Only products, sums, maxima and roots, so
that equal inputs give equal bits under one BLAS kernel with one thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = tuple[Array, Array, Array, Array, Array, Array]  # w1 b1 w2 b2 w3 b3


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how carefully."""

    hidden: int = 64
    steps: int = 4000
    batch: int = 64
    rate: float = 3e-3
    decay: float = 1e-4  # pulls weights towards zero
    huber: float = 1.0  # beyond so many deviations an error counts linearly


def fit(x: Array, y: Array, *, recipe: Recipe, seed: int) -> Weights:
    """`x` [rows, F] and `y` [rows, V], both standardised. Returns the average of the last fifth of the steps."""
    rng = np.random.default_rng(seed)
    weights = _start(rng, x.shape[1], recipe.hidden, y.shape[1])
    moments = [(np.zeros_like(each), np.zeros_like(each)) for each in weights]
    average = [np.zeros_like(each) for each in weights]
    tail = recipe.steps // 5
    for step in range(1, recipe.steps + 1):
        rows = rng.integers(0, len(x), recipe.batch)
        gradients = _gradients(weights, x[rows], y[rows], huber=recipe.huber)
        rate = recipe.rate * min(1.0, step / 100) * (1.0 - 0.9 * step / recipe.steps)
        _adam(weights, gradients, moments, rate=rate, decay=recipe.decay, step=step)
        if step > recipe.steps - tail:
            for mean, each in zip(average, weights, strict=True):
                mean += each / tail
    w1, b1, w2, b2, w3, b3 = average
    return w1, b1, w2, b2, w3, b3


def apply(weights: Weights, x: Array) -> Array:
    """[rows, F] to [rows, V]."""
    w1, b1, w2, b2, w3, b3 = weights
    hidden = np.maximum(x @ w1 + b1, 0.0)
    hidden = np.maximum(hidden @ w2 + b2, 0.0)
    return np.asarray(hidden @ w3 + b3)


def _start(rng: np.random.Generator, inputs: int, hidden: int, outputs: int) -> list[Array]:
    def layer(rows: int, columns: int) -> Array:
        return np.asarray(rng.standard_normal((rows, columns)) * np.sqrt(2.0 / rows))

    return [
        layer(inputs, hidden), np.zeros(hidden), layer(hidden, hidden), np.zeros(hidden),
        layer(hidden, outputs) * 0.3, np.zeros(outputs),
    ]  # fmt: skip


def _gradients(weights: list[Array], x: Array, y: Array, *, huber: float) -> list[Array]:
    w1, b1, w2, b2, w3, b3 = weights
    first = np.maximum(x @ w1 + b1, 0.0)
    second = np.maximum(first @ w2 + b2, 0.0)
    error = np.clip(second @ w3 + b3 - y, -huber, huber) / len(x)
    to_second = (error @ w3.T) * (second > 0)
    to_first = (to_second @ w2.T) * (first > 0)
    return [
        x.T @ to_first,
        to_first.sum(0),
        first.T @ to_second,
        to_second.sum(0),
        second.T @ error,
        error.sum(0),
    ]


def _adam(
    weights: list[Array],
    gradients: list[Array],
    moments: list[tuple[Array, Array]],
    *,
    rate: float,
    decay: float,
    step: int,
) -> None:
    """One step in place; decay is decoupled."""
    first_left, second_left = 1 - 0.9**step, 1 - 0.999**step
    for weight, gradient, (first, second) in zip(weights, gradients, moments, strict=True):
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient * gradient - second)
        weight -= rate * (first / first_left / (np.sqrt(second / second_left) + 1e-8) + decay * weight)
