"""A learned model as two files: a manifest, and plain arrays that cannot run code when loaded.

    manifest.json         what the model is, what it was trained on, how it measured, how to test it
    weights.safetensors   its arrays

The manifest names the digest of the weights, so the digest of the manifest names the model.
Loading proves more than integrity: shapes, finite numbers, and that golden inputs still give
golden outputs. Pure: bytes in, bytes out; `runtime.registry` keeps the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import safetensors.numpy
from blake3 import blake3
from numpy.typing import NDArray
from safetensors import SafetensorError

from dwcp.consensus.core.errors import CoreError
from dwcp.consensus.core.machine import Signer
from dwcp.consensus.crypto import signatures

FORMAT = 1
WEIGHTS_BYTES_MAX = 64 << 20
MANIFEST_BYTES_MAX = 1 << 20
GOLDEN_TOLERANCE = 1e-5  # absolute and relative: another machine's BLAS adds in another order
_CONTEXT = b"dwcp/model/v1\0"

Array = NDArray[np.floating]
Forward = Callable[[Mapping[str, Array], Array], Array]  # weights, rows × inputs -> rows × outputs


class ModelRefused(CoreError):
    """The model cannot be used: what it replaces stays in use, and the next fallback after that."""


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input and what the model answered to it where it was made."""

    inputs: tuple[float, ...]
    outputs: tuple[float, ...]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `manifest.json` says. Digests are BLAKE3, hexadecimal.

    `schema` is the digest of the features' names, order and transforms: a program whose
    features differ refuses the model. `bounds` are the lowest and highest value of each
    feature in training: outside them the model was never tested. `trained_on` names every
    input of the training run by its digest; `figures` are results that the run measured.
    """

    name: str
    version: str
    schema: str
    weights: str
    shapes: dict[str, tuple[int, ...]]
    bounds: dict[str, tuple[float, float]]
    trained_on: dict[str, str]
    figures: dict[str, float]
    golden: tuple[Golden, ...]
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Artefact:
    """A model that passed every check of `load`. `digest` names it, hexadecimal."""

    digest: str
    manifest: Manifest
    weights: Mapping[str, Array]

    def outside(self, features: Mapping[str, float]) -> tuple[str, ...]:
        """The features whose value lies outside what the model saw in training."""
        return tuple(
            name
            for name, (low, high) in self.manifest.bounds.items()
            if name in features and not low <= features[name] <= high
        )


@dataclass(frozen=True, slots=True)
class Made:
    """The two files of a model."""

    manifest: bytes
    weights: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)


def digest_of(manifest: bytes) -> str:
    """The name of the model whose manifest this is."""
    return blake3(manifest).hexdigest()


def schema_of(features: tuple[str, ...]) -> str:
    """The digest of a feature list; a transform that changes is a new feature name."""
    return blake3("\n".join(features).encode()).hexdigest()


def make(
    *,
    name: str,
    version: str,
    schema: str,
    weights: Mapping[str, Array],
    bounds: Mapping[str, tuple[float, float]],
    trained_on: Mapping[str, str],
    figures: Mapping[str, float],
    golden: tuple[Golden, ...],
) -> Made:
    """The files of a model; equal inputs give equal bytes."""
    arrays = {key: np.ascontiguousarray(weights[key]) for key in sorted(weights)}
    packed = safetensors.numpy.save(arrays)
    manifest = Manifest(
        name=name,
        version=version,
        schema=schema,
        weights=blake3(packed).hexdigest(),
        shapes={key: array.shape for key, array in arrays.items()},
        bounds={key: bounds[key] for key in sorted(bounds)},
        trained_on=dict(sorted(trained_on.items())),
        figures=dict(sorted(figures.items())),
        golden=golden,
    )
    text = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"
    return Made(text, packed)


def load(made: Made, *, name: str, schema: str, forward: Forward) -> Artefact:
    """The model, after every check; raises `ModelRefused` with the first that fails."""
    manifest = _manifest(made.manifest)
    _require(manifest.name == name, f"it is a model of {manifest.name}, not of {name}")
    _require(
        manifest.schema == schema, "it was trained on other features than this program computes: train again"
    )
    _require(len(made.weights) <= WEIGHTS_BYTES_MAX, f"its weights exceed {WEIGHTS_BYTES_MAX} bytes")
    _require(blake3(made.weights).hexdigest() == manifest.weights, "its weights do not match its manifest")
    weights = _arrays(made.weights, manifest)
    _check_golden(manifest, weights, forward)
    return Artefact(made.digest, manifest, weights)


def sign(manifest: bytes, signer: Signer) -> bytes:
    """This installation's word that it admitted the model."""
    return signer.sign(_CONTEXT + manifest)


def signature_holds(manifest: bytes, signature: bytes, public: bytes) -> bool:
    return signatures.verify(public, _CONTEXT + manifest, signature)


def _manifest(data: bytes) -> Manifest:
    _require(len(data) <= MANIFEST_BYTES_MAX, f"its manifest exceeds {MANIFEST_BYTES_MAX} bytes")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ModelRefused(f"its manifest cannot be read: {exc}") from exc
    _require(manifest.format == FORMAT, f"this program reads model format {FORMAT}, not {manifest.format}")
    return manifest


def _arrays(data: bytes, manifest: Manifest) -> dict[str, Array]:
    try:
        arrays = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, KeyError) as exc:
        raise ModelRefused(f"its weights cannot be read: {exc}") from exc
    shapes = {key: array.shape for key, array in arrays.items()}
    _require(shapes == manifest.shapes, "its arrays are not those that its manifest lists")
    for key, array in arrays.items():
        _require(array.dtype.kind == "f", f"its array {key} is not of floating point")
        _require(bool(np.isfinite(array).all()), f"its array {key} holds numbers that are not finite")
    return arrays


def _check_golden(manifest: Manifest, weights: Mapping[str, Array], forward: Forward) -> None:
    _require(bool(manifest.golden), "it has no golden vectors to be tested by")
    inputs = np.array([each.inputs for each in manifest.golden], dtype=np.float64)
    expected = np.array([each.outputs for each in manifest.golden], dtype=np.float64)
    try:
        answered = forward(weights, inputs)
    except (ValueError, KeyError, IndexError) as exc:
        raise ModelRefused(f"its arrays do not fit this program: {exc}") from exc
    _require(answered.shape == expected.shape, "its outputs are not those of its golden vectors")
    close = np.allclose(answered, expected, rtol=GOLDEN_TOLERANCE, atol=GOLDEN_TOLERANCE)
    _require(bool(close), "it does not answer its golden inputs as it did where it was made")


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ModelRefused(f"the model is refused: {sentence}")
