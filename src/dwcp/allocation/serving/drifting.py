"""Whether the workloads that a model is asked about are still those of its first decisions.

Where they are not, what was measured of it says nothing any more: where a feature of `MIX` is above `most` in two
windows in a row, the rule decides, and the model is asked in its shadow alone. It comes back when all of them are below
`CALM`: two marks, so that it does not go to and fro; two windows, since one batch of equal workloads fills a window.
How full the fleet is moves slowly, so that its windows differ though nothing has changed: those features are watched
and said, and the range of training guards them at each decision. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dwcp.models.drift import Drift

CALM = 0.2  # above: it is said
MOST = 0.3  # above: the rule decides
MIX = (
    "best-effort",
    "batch",
    "sensitive",
    "log-predicted",
    "log-worth",
)  # what arrives, whatever the fleet holds


@dataclass(slots=True)
class Drifting:
    """Takes the features of decisions. `most` 0: it is said, and the model decides on."""

    most: float = MOST
    drift: Drift = field(default_factory=Drift)
    far: dict[str, float] = field(default_factory=dict)  # why the rule decides; empty where the model may
    _high: frozenset[str] = frozenset()  # in the last window

    def add(self, features: Mapping[str, float]) -> bool:
        """The features of one decision as the model would have it; True when `indices` are new."""
        if not self.drift.add(features):
            return False
        mix = {name: self.indices[name] for name in MIX if name in self.indices} if self.most else {}
        high = frozenset(name for name, index in mix.items() if index > self.most)
        stays = {name for name, index in mix.items() if index > self.calm} if self.far else high & self._high
        self.far = {name: mix[name] for name in sorted(stays)}
        self._high = high
        return True

    @property
    def calm(self) -> float:
        """Below, a model that was benched comes back."""
        return min(CALM, self.most)

    @property
    def indices(self) -> dict[str, float]:
        return self.drift.indices

    @property
    def changed(self) -> tuple[str, ...]:
        """The features whose distribution has changed."""
        return tuple(name for name, index in self.indices.items() if index > CALM)

    def detail(self) -> str:
        """Why the rule decides; "" where the model may."""
        said = ", ".join(f"{name} {index:.2f}" for name, index in self.far.items())
        return said and (
            f"other workloads come than when the model began ({said}): the rule decides until each of these "
            f"indices is below {self.calm:g} again"
        )
