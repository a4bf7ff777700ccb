"""The learned part: a small ensemble of networks from 17 features to log ratio and speeds of nine codecs.

Evaluated with NumPy alone in some 25 µs. Values are natural logs, in blocks of nine in the order of
`codecs.CODECS` without `none`: raw/packed, packing seconds a byte, unpacking seconds a byte, on the
reference host. The files are those of every model here (`dwcp.models.artefact`); what the selector knows beside
its weights (margins, the reference host's speeds) are arrays like them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from dwcp.compression import features
from dwcp.compression.codecs import CODECS
from dwcp.compression.errors import ModelInvalid
from dwcp.compression.feedback import Spread
from dwcp.models import artefact
from dwcp.models.artefact import Array, Artefact, Golden, Made, ModelRefused

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

NAME = "compression-selector"
NAMES = tuple(codec.name for codec in CODECS[1:])  # `none` needs no prediction
PACKERS = len(NAMES)
VALUES = 3 * PACKERS
RATIO, PACK, UNPACK = (slice(part * PACKERS, (part + 1) * PACKERS) for part in range(3))
RATIO_MIN = 0.98  # below that a block is stored

SCHEMA = artefact.schema_of((*features.NAMES, f"version {features.VERSION}", *NAMES))
# name of each tensor: its dimensions; N nets, F features, H hidden, V values, R rows of the bank, L rates in bit/s and
# S sizes in bytes of `gain`, C codecs, D packing and unpacking in bytes/s, U one
SHAPES = {
    "w1": "NFH", "b1": "NH", "w2": "NHH", "b2": "NH", "w3": "NHV", "b3": "NV",
    "x_mean": "F", "x_scale": "F", "x_low": "F", "x_high": "F",
    "y_mean": "V", "y_scale": "V", "y_low": "V", "y_high": "V",
    "sigma": "VV", "bank": "RV", "bank_log2_size": "R", "bank_weight": "R",
    "gain": "LS", "margins": "L", "rates": "L", "sizes": "S", "rho": "U", "speeds": "CD",
}  # fmt: skip
_GOLDEN_ROWS = 8
_GOLDEN_DIGITS = 6  # so that the manifest is the same on any processor


@dataclass(frozen=True)
class Model:
    """A model at work. `tensors` are float64, finite and of the right shapes; `digest` names it."""

    tensors: dict[str, Matrix]
    digest: str = ""

    def predict(self, vector: Vector) -> Vector:
        """`[VALUES]` from `[COUNT]` features; inputs and outputs clipped to the range of the training data."""
        t = self.tensors
        x = np.minimum(np.maximum(vector, t["x_low"]), t["x_high"])
        x = (x - t["x_mean"]) * self._x_inverse
        hidden = np.maximum(x @ t["w1"] + t["b1"], 0.0)  # [N, H]
        hidden = np.maximum(np.matmul(hidden[:, None, :], t["w2"])[:, 0] + t["b2"], 0.0)
        y = np.matmul(hidden[:, None, :], t["w3"])[:, 0].mean(axis=0) + self._b3_mean
        return np.asarray(np.minimum(np.maximum(y * t["y_scale"] + t["y_mean"], t["y_low"]), t["y_high"]))

    def strange(self, vector: Vector) -> bool:
        """Whether features lie far outside what was trained on: then the table answers."""
        return bool((np.abs(vector - self._middle) > self._reach).any())

    @cached_property
    def spread(self) -> Spread:
        return Spread(self.tensors["sigma"], float(self.tensors["rho"][0]))

    @cached_property
    def speeds(self) -> dict[str, tuple[float, float]]:
        """The reference host's calibration: bytes/s of packing and unpacking."""
        rows = self.tensors["speeds"].tolist()
        return {codec.name: (pack, unpack) for codec, (pack, unpack) in zip(CODECS, rows, strict=True)}

    @cached_property
    def _x_inverse(self) -> Vector:
        return 1.0 / self.tensors["x_scale"]

    @cached_property
    def _b3_mean(self) -> Vector:
        return np.asarray(self.tensors["b3"].mean(axis=0))

    @cached_property
    def _middle(self) -> Vector:
        return (self.tensors["x_low"] + self.tensors["x_high"]) / 2

    @cached_property
    def _reach(self) -> Vector:
        """Half the trained range and a half more."""
        return 0.75 * (self.tensors["x_high"] - self.tensors["x_low"]) + 1e-6


def digest(data: bytes) -> str:
    return blake3(data).hexdigest()


def make(
    tensors: Mapping[str, Matrix], *, trained_on: Mapping[str, str], figures: Mapping[str, float]
) -> Made:
    """The files of a model; equal inputs give equal bytes. `trained_on`: digests; `figures`: what was measured."""
    weights = {name: np.asarray(tensors[name], np.float32) for name in SHAPES}
    names = "".join(digest(weights[name].tobytes()) for name in sorted(weights))
    low, high = weights["x_low"].tolist(), weights["x_high"].tolist()
    return artefact.make(
        name=NAME,
        version=digest(names.encode())[:12],
        schema=SCHEMA,
        weights=weights,
        bounds=dict(zip(features.NAMES, zip(low, high, strict=True), strict=True)),
        trained_on=trained_on,
        figures=figures,
        golden=_golden(weights),
    )


def load(made: Made) -> tuple[Model, Artefact]:
    """The model and its facts, after every check. Raises `ModelInvalid`."""
    try:
        found = artefact.load(made, name=NAME, schema=SCHEMA, forward=forward)
    except ModelRefused as exc:
        raise ModelInvalid(str(exc)) from exc
    return of(found), found


def of(found: Artefact) -> Model:
    """The model of an artefact that was loaded before. Raises `ModelInvalid`."""
    return Model(_tensors(found.weights), found.digest)


def forward(weights: Mapping[str, Array], rows: Array) -> Array:
    """[rows, F] to [rows, V]: what golden vectors are checked with. Raises `ValueError` for other tensors."""
    try:
        learned = Model(_tensors(weights))
    except ModelInvalid as exc:
        raise ValueError(str(exc)) from exc
    return np.stack([learned.predict(row.astype(np.float64)) for row in rows])


def _golden(weights: Mapping[str, Array]) -> tuple[Golden, ...]:
    """Points between the lowest and the highest features of training, the ends included."""
    low, high = (np.asarray(weights[name], np.float64) for name in ("x_low", "x_high"))
    rows = np.array([low + (high - low) * step / (_GOLDEN_ROWS - 1) for step in range(_GOLDEN_ROWS)])
    rows = rows.round(_GOLDEN_DIGITS)
    outputs = forward(weights, rows).round(_GOLDEN_DIGITS)
    return tuple(
        Golden(tuple(row), tuple(out)) for row, out in zip(rows.tolist(), outputs.tolist(), strict=True)
    )


def _tensors(raw: Mapping[str, Array]) -> dict[str, Matrix]:
    if set(raw) != set(SHAPES):
        raise ModelInvalid(f"the model has other tensors than {', '.join(SHAPES)}")
    sizes = {"F": features.COUNT, "V": VALUES, "C": len(CODECS), "D": 2, "U": 1}
    for name, dimensions in SHAPES.items():
        shape = raw[name].shape
        fits = len(shape) == len(dimensions) and all(
            sizes.setdefault(letter, size) == size and size > 0
            for letter, size in zip(dimensions, shape, strict=True)
        )
        if not fits or not np.isfinite(raw[name]).all():
            raise ModelInvalid(f"the model's tensor {name} has a wrong shape or values that are no numbers")
    return {name: raw[name].astype(np.float64) for name in SHAPES}
