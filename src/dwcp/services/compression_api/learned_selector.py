"""The codec selector as a family: its models are the registry's kind, its decisions become answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from dwcp.compression import codecs, costs_predicted, features, model, model_shipped
from dwcp.compression.calibration import Calibration
from dwcp.compression.costs import Goal, Link, Objective, Stages, Terms
from dwcp.compression.errors import ModelInvalid
from dwcp.compression.model import Model
from dwcp.compression.selector import SEGMENT_BYTES, Selector, Tier
from dwcp.compression.table import Estimate
from dwcp.models.artefact import Array, Artefact, Made, Manifest, ModelRefused
from dwcp.runtime.registry import Kind
from dwcp.services.compression_api.deciding import Ask, Decided, ranked
from dwcp.services.compression_api.deciding import Objective as Asked
from dwcp.services.compression_api.learned import NAME

_FEATURES_EVERY = 16  # decisions for one whose features are watched for drift
_TERMS_MAX = 256  # many callers ask about few links
_PLACES = {codec.name: place for place, codec in enumerate(codecs.CODECS)}


class SelectorFamily:
    """Models of `dwcp.compression.model`."""

    kind = Kind(NAME, model.SCHEMA, model.forward)

    def package(self, manifest: bytes, weights: bytes) -> Made:
        """Raises `ModelRefused` for what the selector itself would not load."""
        made = Made(manifest, weights)
        with _refusing():
            model.load(made)
        return made

    def build(self, found: Artefact, calibration: Calibration) -> SelectorDecider:
        with _refusing():
            return SelectorDecider(model.of(found), calibration, manifest=found.manifest)

    def shipped(self, calibration: Calibration) -> SelectorDecider:
        """Raises `ModelRefused` where this installation's own files are damaged."""
        with _refusing():
            own, facts = model_shipped.facts()
        return SelectorDecider(own, calibration, manifest=facts.manifest)


@contextmanager
def _refusing() -> Iterator[None]:
    """`ModelInvalid` as the registry says it."""
    try:
        yield
    except ModelInvalid as exc:
        raise ModelRefused(str(exc)) from exc


class SelectorDecider:
    """A selector on this host, one question at a time: no race, no memory of streams."""

    def __init__(self, learned: Model, calibration: Calibration, *, manifest: Manifest) -> None:
        self.digest = learned.digest
        self._manifest = manifest
        speeds = {name: (speed.pack_bps, speed.unpack_bps) for name, speed in calibration.speeds.items()}
        self._selector = Selector(learned, speeds=speeds)
        self._overhead_s = calibration.block_overhead_s
        self._asked = 0
        self._terms = lru_cache(_TERMS_MAX)(self._make_terms)

    def decide(self, ask: Ask) -> Decided:
        """By the model where a look pays off, by its table where not; without a sample by the table."""
        block = max(1, min(ask.total_size, SEGMENT_BYTES))
        blocks = max(1.0, ask.total_size / SEGMENT_BYTES)
        shared = blocks if ask.sample else 0.0  # nothing to look at: the gate stays shut
        terms = self._terms(ask.rate_bps, ask.rtt_s, ask.objective, ask.limit / blocks, ask.allowed)
        looked = self._selector.decide(ask.sample, terms=terms, size=block, shared_blocks=shared)
        parts = looked.prospect.parts if looked.prospect else self._typical(block, terms.link)
        rows = ranked(_rows(parts, looked.seconds, block, ask.total_size), ask)
        seen = self._features(looked.vector) if looked.vector is not None else {}
        return Decided(looked.codec, rows, looked.tier.value, looked.reason, None, seen)

    def describe(self) -> dict[str, Any]:
        """Everything from the artefact."""
        learned, manifest = self._selector.model, self._manifest
        rates = learned.tensors["rates"].tolist()
        margins = learned.tensors["margins"].tolist()
        return {
            "model": self.digest[:12],
            "tier": Tier.MODEL.value,
            "trained_on": manifest.trained_on,
            "margins": {
                f"{rate / 1e6:.0f}": round(margin, 4) for rate, margin in zip(rates, margins, strict=True)
            },
            "training": manifest.figures,
            "accuracy": None,  # labels are not what it is good at; the regrets are in `training`
        }

    def _make_terms(
        self, rate_bps: float, rtt_s: float, objective: Asked, limit: float, allowed: frozenset[str]
    ) -> Terms:
        link = Link(rate_bps, latency_s=rtt_s / 2, block_overhead_s=self._overhead_s)
        places = frozenset(_PLACES[name] for name in allowed)
        return Terms(link, goal=Goal(Objective(objective.value), limit), allowed=places)

    def _typical(self, block: int, link: Link) -> Stages:
        return costs_predicted.stages_of(self._selector.typical, block, link=link, scale=self._selector.scale)

    def _features(self, vector: Array) -> Mapping[str, float]:
        self._asked += 1
        if self._asked % _FEATURES_EVERY:
            return {}
        return dict(zip(features.NAMES, vector.tolist(), strict=True))


def _rows(parts: Stages, seconds: Array, block: int, total: int) -> tuple[Estimate, ...]:
    """The whole payload's, from one block's: stages overlap in bulk, so times add up by blocks."""
    times = total / block
    columns = (
        block / parts.sent_bytes, parts.compress * times, parts.send * times, parts.decompress * times, seconds * times
    )  # fmt: skip
    return tuple(map(Estimate, _PLACES, *(column.tolist() for column in columns)))
