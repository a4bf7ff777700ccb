"""The learned part: a small ensemble of networks from 17 features to log ratio and speeds of nine codecs.

Evaluated with NumPy alone in some 25 µs. Values are natural logs, in blocks of nine in the order of
`codecs.CODECS` without `none`: raw/packed, packing seconds a byte, unpacking seconds a byte, on the
reference host. Weights are a safetensors file, everything else is in the manifest beside it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import safetensors
import safetensors.numpy
from blake3 import blake3
from numpy.typing import NDArray

from dwcp.compression import features
from dwcp.compression.codecs import CODECS
from dwcp.compression.errors import ModelInvalid
from dwcp.compression.feedback import Spread

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

SCHEMA = 1
NAMES = tuple(codec.name for codec in CODECS[1:])  # `none` needs no prediction
PACKERS = len(NAMES)
VALUES = 3 * PACKERS
RATIO, PACK, UNPACK = (slice(part * PACKERS, (part + 1) * PACKERS) for part in range(3))
RATIO_MIN = 0.98  # below that a block is stored

# name of each tensor: its dimensions; N nets, F features, H hidden, V values, R rows of the bank
SHAPES = {
    "w1": "NFH", "b1": "NH", "w2": "NHH", "b2": "NH", "w3": "NHV", "b3": "NV",
    "x_mean": "F", "x_scale": "F", "x_low": "F", "x_high": "F",
    "y_mean": "V", "y_scale": "V", "y_low": "V", "y_high": "V",
    "sigma": "VV", "bank": "RV", "bank_log2_size": "R", "gain": "LS",
}  # fmt: skip
_BYTES_MAX = 16 << 20


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model is, where it comes from, and how well it did; all of it is read from here, never known."""

    name: str
    schema: int
    features: tuple[str, ...]
    features_version: int
    codecs: tuple[str, ...]
    weights_digest: str  # BLAKE3 of the safetensors file
    table_digest: str  # of the measurement table it was trained on
    code_digest: str  # of the training code
    seed: int
    rho: float
    margin: float
    caution: float
    rates_bps: tuple[float, ...]  # L of `gain`
    sizes_bytes: tuple[int, ...]  # S of `gain`
    speeds: dict[str, tuple[float, float]]  # the reference host's calibration, bytes/s
    processor: str
    libraries: dict[str, str]
    training: dict[str, Any]  # counts and regret tables, for people: Any


@dataclass(frozen=True)
class Model:
    """A checked model. `tensors` are float64 and finite."""

    manifest: Manifest
    tensors: dict[str, Matrix]

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
        return Spread(self.tensors["sigma"], self.manifest.rho)

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


def encode_tensors(tensors: dict[str, Matrix]) -> bytes:
    """Float32 safetensors; equal tensors give equal bytes."""
    return safetensors.numpy.save({name: np.ascontiguousarray(tensors[name], np.float32) for name in SHAPES})


def digest(data: bytes) -> str:
    return blake3(data).hexdigest()


def load(manifest_json: bytes, weights: bytes) -> Model:
    """Checks digest, schema, names, shapes and values. Raises `ModelInvalid`."""
    try:
        manifest = msgspec.json.decode(manifest_json, type=Manifest)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ModelInvalid(f"the model's manifest cannot be read: {exc}") from exc
    ours = (SCHEMA, features.VERSION, features.NAMES, NAMES)
    theirs = (manifest.schema, manifest.features_version, manifest.features, manifest.codecs)
    if ours != theirs:
        raise ModelInvalid("the model was made for another release: its features or codecs differ")
    if len(weights) > _BYTES_MAX or digest(weights) != manifest.weights_digest:
        raise ModelInvalid("the model's weights are not the ones that its manifest names")
    return Model(manifest, _tensors(weights, manifest))


def _tensors(weights: bytes, manifest: Manifest) -> dict[str, Matrix]:
    try:
        raw = safetensors.numpy.load(weights)
    except (safetensors.SafetensorError, ValueError, KeyError, struct.error) as exc:
        raise ModelInvalid(f"the model's weights cannot be read: {exc}") from exc
    sizes = {"F": features.COUNT, "V": VALUES, "L": len(manifest.rates_bps), "S": len(manifest.sizes_bytes)}
    if set(raw) != set(SHAPES):
        raise ModelInvalid(f"the model has other tensors than {', '.join(SHAPES)}")
    for name, dimensions in SHAPES.items():
        shape = raw[name].shape
        fits = len(shape) == len(dimensions) and all(
            sizes.setdefault(letter, size) == size and size > 0
            for letter, size in zip(dimensions, shape, strict=True)
        )
        if not fits or not np.isfinite(raw[name]).all():
            raise ModelInvalid(f"the model's tensor {name} has a wrong shape or values that are no numbers")
    return {name: raw[name].astype(np.float64) for name in SHAPES}
