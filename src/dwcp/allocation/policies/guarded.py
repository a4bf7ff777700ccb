"""A model that decides only where it was tried: elsewhere the rule that it stands on does, and both are counted.

What a server does for one decision (allocation notes §4, safety chain), for many windows at once. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dwcp.allocation.env.episode import Array
from dwcp.allocation.env.view import Scores, View
from dwcp.allocation.fleet import Bools, Floats
from dwcp.allocation.policies import learned
from dwcp.allocation.policies.learned import CONTEXT, NODE, Inputs
from dwcp.models.artefact import Artefact

NODES = "nodes"  # the name under which a manifest bounds the number of nodes
MARGIN = 0.25  # of a feature's range: what lies further outside was never tried
RANGE_MIN = 0.05


@dataclass(slots=True)
class Tally:
    """Decisions so far, and how many of them the model made."""

    decisions: int = 0
    model: int = 0

    @property
    def share(self) -> float:
        return self.model / self.decisions if self.decisions else 0.0


def guarded(model: Artefact, tally: Tally) -> Scores:
    """The model as a policy. ValueError: its arrays name no base rule."""
    weights = {name: np.asarray(array, dtype=np.float32) for name, array in model.weights.items()}
    base, limits = learned.base_policy(weights), model.manifest.bounds

    def scores(view: View, xp: Any) -> Array:
        rule = base(view, xp)
        inputs = learned.observe(view, rule, weights["base.sharpness"], xp)
        bids = learned.logits(weights, inputs, xp)
        trusted = inside(inputs, limits) & np.isfinite(bids).all(-1)
        tally.decisions += trusted.size
        tally.model += int(trusted.sum())
        return np.where(trusted[..., None], bids, rule)

    return scores


def inside(inputs: Inputs, limits: dict[str, tuple[float, float]]) -> Bools:
    """[...] whether the number of nodes and every feature lie where the model was tried; what `limits` lacks does
    not count."""
    present = inputs.nodes[..., NODE.index("present")] > 0
    low, high = _edges(limits, NODE)
    nodes = ((inputs.nodes >= low) & (inputs.nodes <= high)).all(-1) | ~present
    low, high = _edges(limits, CONTEXT)
    context = ((inputs.context >= low) & (inputs.context <= high)).all(-1)
    fewest, most = limits.get(NODES, (0.0, np.inf))
    count = present.sum(-1)
    return np.asarray(nodes.all(-1) & context & (count >= fewest) & (count <= most))


def _edges(limits: dict[str, tuple[float, float]], names: tuple[str, ...]) -> tuple[Floats, Floats]:
    found = np.array([limits.get(name, (-np.inf, np.inf)) for name in names])
    margin = MARGIN * np.maximum(found[:, 1] - found[:, 0], RANGE_MIN)
    return found[:, 0] - margin, found[:, 1] + margin
