"""A small linear model for tests: three inputs, two outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dwcp.models import artefact
from dwcp.models.artefact import Array, Golden, Made

FEATURES = ("entropy", "ratio", "size")
SCHEMA = artefact.schema_of(FEATURES)
NAME = "test-model"


def forward(weights: Mapping[str, Array], rows: Array) -> Array:
    answered: Array = rows @ weights["w"] + weights["b"]
    return answered


def made(*, seed: int = 1, **changes: object) -> Made:
    """A model's files; `changes` replace what `artefact.make` is given."""
    rng = np.random.default_rng(seed)
    weights = {"w": rng.normal(size=(3, 2)).astype(np.float32), "b": np.zeros(2, dtype=np.float32)}
    inputs = rng.normal(size=(4, 3))
    golden = tuple(
        Golden(tuple(map(float, row)), tuple(map(float, out)))
        for row, out in zip(inputs, forward(weights, inputs), strict=True)
    )
    fields: dict[str, object] = {
        "name": NAME,
        "version": "1",
        "schema": SCHEMA,
        "weights": weights,
        "bounds": {"entropy": (0.0, 8.0), "ratio": (0.5, 100.0)},
        "trained_on": {"table": "00" * 32},
        "figures": {"regret": 0.04},
        "golden": golden,
    }
    return artefact.make(**{**fields, **changes})  # type: ignore[arg-type]
