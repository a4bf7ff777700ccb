"""The codec selector as a family: its trained files in the registry's form, and its decisions as answers.

The trainer's manifest has what the registry's has no field for (margins, the reference host's speeds, regret
tables), so it travels whole, as one more array: its bytes as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from dwcp.compression import codecs, costs_predicted, features, model, model_shipped
from dwcp.compression.calibration import Calibration
from dwcp.compression.costs import Goal, Link, Objective, Stages, Terms
from dwcp.compression.errors import ModelInvalid
from dwcp.compression.model import Manifest, Model
from dwcp.compression.selector import SEGMENT_BYTES, Selector, Tier
from dwcp.compression.table import Estimate
from dwcp.models import artefact
from dwcp.models.artefact import Array, Artefact, Golden, Made, ModelRefused
from dwcp.runtime.registry import Kind
from dwcp.services.compression_api.deciding import Ask, Decided, ranked
from dwcp.services.compression_api.learned import NAME

TRAINER_MANIFEST = "trainer_manifest"  # [bytes] float32
_SCHEMA = artefact.schema_of((*features.NAMES, f"version {features.VERSION}", *model.NAMES))
_GOLDEN_ROWS = 8
_FEATURES_EVERY = 16  # decisions for one look at the features: they cost as much as the decision
_PLACES = {codec.name: place for place, codec in enumerate(codecs.CODECS)}


class SelectorFamily:
    """Models of `dwcp.compression.model`."""

    kind = Kind(NAME, _SCHEMA, lambda weights, rows: forward(weights, rows))

    def package(self, manifest: bytes, weights: bytes) -> Made:
        """Raises `ModelRefused` for what the selector itself would not load."""
        try:
            loaded = model.load(manifest, weights)
            arrays = dict(safetensors.numpy.load(weights))
        except (ModelInvalid, SafetensorError, ValueError) as exc:
            raise ModelRefused(f"the model is refused: {exc}") from exc
        facts = loaded.manifest
        arrays[TRAINER_MANIFEST] = np.frombuffer(manifest, np.uint8).astype(np.float32)
        low, high = loaded.tensors["x_low"], loaded.tensors["x_high"]
        return artefact.make(
            name=NAME,
            version=facts.weights_digest[:12],
            schema=_SCHEMA,
            weights=arrays,
            bounds={name: (float(low[at]), float(high[at])) for at, name in enumerate(features.NAMES)},
            trained_on={"measurements": facts.table_digest, "code": facts.code_digest},
            figures=_figures(facts.training),
            golden=_golden(arrays),
        )

    def build(self, found: Artefact, calibration: Calibration) -> SelectorDecider:
        return SelectorDecider(_model(found.weights), calibration, digest=found.digest)

    def shipped(self, calibration: Calibration) -> SelectorDecider:
        """Raises `ModelRefused` where this installation's own files are damaged."""
        try:
            own = model_shipped.shipped()
        except ModelInvalid as exc:
            raise ModelRefused(f"the model is refused: {exc}") from exc
        return SelectorDecider(own, calibration, digest=own.manifest.weights_digest)


class SelectorDecider:
    """A selector on this host, one question at a time: no race, no memory of streams."""

    def __init__(self, learned: Model, calibration: Calibration, *, digest: str) -> None:
        self.digest = digest
        speeds = {name: (speed.pack_bps, speed.unpack_bps) for name, speed in calibration.speeds.items()}
        self._selector = Selector(learned, speeds=speeds)
        self._overhead_s = calibration.block_overhead_s
        self._asked = 0

    def decide(self, ask: Ask) -> Decided:
        """By the model where a look pays off, by its table where not; without a sample by the table."""
        block = max(1, min(ask.total_size, SEGMENT_BYTES))
        blocks = max(1.0, ask.total_size / SEGMENT_BYTES)
        shared = blocks if ask.sample else 0.0  # nothing to look at: the gate stays shut
        link = Link(ask.rate_bps, latency_s=ask.rtt_s / 2, block_overhead_s=self._overhead_s)
        goal = Goal(Objective(ask.objective.value), ask.limit / blocks)
        terms = Terms(link, goal=goal, allowed=frozenset(_PLACES[name] for name in ask.allowed))
        looked = self._selector.decide(ask.sample, terms=terms, size=block, shared_blocks=shared)
        parts = looked.prospect.parts if looked.prospect else self._typical(block, link)
        rows = ranked(_rows(parts, looked.seconds, block, ask.total_size), ask)
        seen = self._features(ask.sample, block) if looked.tier is not Tier.TABLE else {}
        return Decided(looked.codec, rows, looked.tier.value, looked.reason, None, seen)

    def describe(self) -> dict[str, Any]:
        """Everything from the artefact."""
        facts = self._selector.model.manifest
        return {
            "model": facts.weights_digest[:12],
            "tier": Tier.MODEL.value,
            "trained_on": {"measurements": facts.table_digest, "code": facts.code_digest},
            "margin": facts.margin,
            "processor": facts.processor,
            "libraries": facts.libraries,
            "training": facts.training,
            "accuracy": None,  # labels are not what it is good at; the regret tables are in `training`
        }

    def _typical(self, block: int, link: Link) -> Stages:
        return costs_predicted.stages_of(self._selector.typical, block, link=link, scale=self._selector.scale)

    def _features(self, sample: bytes, block: int) -> Mapping[str, float]:
        self._asked += 1
        if self._asked % _FEATURES_EVERY:
            return {}
        values = features.extract(sample, total_bytes=block).tolist()
        return dict(zip(features.NAMES, values, strict=True))


def forward(weights: Mapping[str, Array], rows: Array) -> Array:
    """[rows, features] to [rows, values], as `Model.predict` does it."""
    learned = _model(weights)
    return np.stack([learned.predict(row.astype(np.float64)) for row in rows])


def _model(weights: Mapping[str, Array]) -> Model:
    try:
        text = weights[TRAINER_MANIFEST].astype(np.uint8).tobytes()
        facts = msgspec.json.decode(text, type=Manifest)
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ValueError(f"it does not hold its trainer's manifest: {exc}") from exc
    return Model(facts, {name: np.asarray(weights[name], np.float64) for name in model.SHAPES})


def _golden(arrays: Mapping[str, Array]) -> tuple[Golden, ...]:
    """Points between the lowest and the highest features of training, the ends included."""
    low, high = (np.asarray(arrays[name], np.float64) for name in ("x_low", "x_high"))
    rows = np.array([low + (high - low) * step / (_GOLDEN_ROWS - 1) for step in range(_GOLDEN_ROWS)])
    outputs = forward(arrays, rows)
    return tuple(
        Golden(tuple(map(float, row)), tuple(map(float, out))) for row, out in zip(rows, outputs, strict=True)
    )


def _figures(training: Mapping[str, Any]) -> dict[str, float]:
    """Regrets by protocol, as shares: what the deployment's gate compares."""
    found: dict[str, float] = {}
    for name, protocol in training.get("protocols", {}).items():
        told = protocol.get("policies", {}).get("model", {})
        found |= {f"regret_{key}_{name}": told[key] / 100 for key in ("gmean", "p95") if key in told}
    return found


def _rows(parts: Stages, seconds: Array, block: int, total: int) -> tuple[Estimate, ...]:
    """The whole payload's, from one block's: stages overlap in bulk, so times add up by blocks."""
    times = total / block
    columns = (parts.compress, parts.send, parts.decompress, parts.sent_bytes, seconds)
    table = np.stack(columns, axis=-1).tolist()
    return tuple(
        Estimate(codec.name, block / sent, compress * times, send * times, decompress * times, whole * times)
        for codec, (compress, send, decompress, sent, whole) in zip(codecs.CODECS, table, strict=True)
    )
