"""A placer for tests: random weights, labelled so, in the form that the registry takes."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
from blake3 import blake3

from dwcp.allocation import heuristics
from dwcp.allocation.policies import learned
from dwcp.allocation.policies.linear import FEATURE_MAX
from dwcp.allocation.policies.rules import Knobs
from dwcp.models import artefact
from dwcp.models.artefact import Golden, Made

LABEL = "random-weights-for-tests"


def weights(seed: int = 0, *, wide: int = 16, rule: str = "balance") -> dict[str, Any]:
    """Arrays of the shipped shapes on a blind rule."""
    rng = np.random.default_rng(seed)
    nodes, context = len(learned.NODE), len(learned.CONTEXT)
    shapes = {
        "in.nodes": (nodes, wide), "in.context": (context, wide), "mid": (wide, wide),
        "pool": (2 * wide + context, wide), "node.in": (wide, wide), "node.whole": (wide, wide),
        "site.in": (wide, wide), "site.whole": (wide, wide), "defer.in": (wide, wide),
        "node.out": (wide, 1), "site.out": (wide, 1), "defer.out": (wide, 1), "in.bias": (wide,), "mid.bias": (wide,),
        "pool.bias": (wide,), "node.bias": (wide,), "site.bias": (wide,), "defer.bias": (wide,), "out.bias": (2,),
    }  # fmt: skip
    found = {
        name: (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)
        for name, shape in shapes.items()
    }
    return found | learned.base_weights(rule, Knobs(money=1.0), sharpness=20.0)


def made(
    seed: int = 0,
    *,
    nodes: tuple[int, int] = (1, 4096),
    schema: str = learned.SCHEMA,
    wide: int = 16,
    arrays: dict[str, Any] | None = None,
    tuned: bool = False,
) -> Made:
    """The two files; `tuned`: on the rule that serves without a model.

    Every feature value counts as seen in training, fleets from `nodes[0]` to `nodes[1]` too.
    """
    own = weights(seed, wide=wide) if arrays is None else arrays
    if tuned:
        name = heuristics.DEFAULT.removesuffix("+")
        entry = heuristics.TABLE.entries(heuristics.LOAD, stale=False)[name]
        own = own | learned.base_weights(name, Knobs(**entry.knobs), sharpness=1.0)
    rng = np.random.default_rng(seed)
    row = rng.random(3 * len(learned.NODE) + len(learned.CONTEXT)).astype(np.float32)[None, :]
    golden = Golden(tuple(row[0].tolist()), tuple(learned.forward(own, row)[0].tolist()))
    ranges = dict.fromkeys((*learned.NODE, *learned.CONTEXT), (-FEATURE_MAX, FEATURE_MAX))
    return artefact.make(
        name=learned.NAME,
        version=f"{LABEL}-{seed}",
        schema=schema,
        weights=own,
        bounds=ranges | {"nodes": (float(nodes[0]), float(nodes[1]))},
        trained_on={"nothing": LABEL},
        figures={},
        golden=(golden,),
    )


def repacked(made: Made, arrays: dict[str, Any]) -> Made:
    """The same manifest over other arrays, its digests in order: only a look at the numbers can tell."""
    packed = safetensors.numpy.save({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)})
    manifest = msgspec.json.decode(made.manifest)
    manifest["weights"] = blake3(packed).hexdigest()
    return Made(msgspec.json.encode(manifest), packed)
