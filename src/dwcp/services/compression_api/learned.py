"""The plug for a learned selector: what a family of models must offer to be deployed, tried and used."""

from __future__ import annotations

from typing import Protocol

from dwcp.compression.calibration import Calibration
from dwcp.models.artefact import Artefact, Made
from dwcp.runtime.registry import Kind
from dwcp.services.compression_api.deciding import Decider

NAME = "compression-selector"


class Family(Protocol):
    """Models that compute the same features. All methods are pure and may take some milliseconds."""

    @property
    def kind(self) -> Kind:
        """What the registry checks: name, schema, and the forward pass for golden vectors."""
        ...

    def package(self, manifest: bytes, weights: bytes) -> Made:
        """A trainer's two files in the registry's form. Raises `ModelRefused`."""
        ...

    def build(self, artefact: Artefact, calibration: Calibration) -> Decider:
        """The model at work on this host. Raises `ModelRefused`."""
        ...

    def shipped(self, calibration: Calibration) -> Decider | None:
        """The model that came with this release; None without one. Raises `ModelRefused`."""
        ...
