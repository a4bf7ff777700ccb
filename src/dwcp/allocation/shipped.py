"""The placer that ships with this release, and how a model's two files are read back; needs no JAX."""

from __future__ import annotations

from importlib.resources import files

from dwcp.allocation.policies import learned
from dwcp.models import artefact
from dwcp.models.artefact import Artefact, Made, ModelRefused

MANIFEST, WEIGHTS = "maddpg-placer.json", "maddpg-placer.safetensors"
_FOLDER = files("dwcp.allocation") / "artefacts"


def shipped() -> Artefact:
    """Raises `ModelRefused` where a file is missing or damaged."""
    return load(Made(_read(MANIFEST), _read(WEIGHTS)))


def load(made: Made) -> Artefact:
    """The model after every check. Raises `ModelRefused`."""
    return artefact.load(made, name=learned.NAME, schema=learned.SCHEMA, forward=learned.forward)


def _read(name: str) -> bytes:
    try:
        return (_FOLDER / name).read_bytes()
    except OSError as fault:
        raise ModelRefused(f"{name} is missing from this installation: install it again") from fault
