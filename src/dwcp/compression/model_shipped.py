"""The model that ships with this release, and the files it is made from."""

from __future__ import annotations

from importlib.resources import files

from dwcp.compression import model
from dwcp.compression.corpus_heldout import BlockList
from dwcp.compression.errors import ModelInvalid
from dwcp.compression.model import Model
from dwcp.models.artefact import Artefact, Made

MANIFEST = "compression-selector.json"
WEIGHTS = "compression-selector.safetensors"
MEASUREMENTS = "measurements.json.zst"
HELD_OUT = "held-out-blocks.bin"
# The model of this release: training for the release writes the line anew, a test compares it with the files.
DIGEST = "c9fe6bbae41b4b3361c0f3b1b50e11e645dfc9d07c62e479f5b5f3f0fecf5d8b"
_FOLDER = files("dwcp.compression") / "artefacts"


def shipped() -> Model:
    """Raises `ModelInvalid` where a file is missing, damaged or of another release."""
    return facts()[0]


def facts() -> tuple[Model, Artefact]:
    """The model, and what its manifest says of it. Raises `ModelInvalid`."""
    loaded = model.load(made())
    if loaded[0].digest != DIGEST:
        raise ModelInvalid("the model of this installation is not this release's: install it again")
    return loaded


def made() -> Made:
    """The two files as they are."""
    return Made(artefact(MANIFEST), artefact(WEIGHTS))


def held_out() -> BlockList:
    return BlockList.decode(artefact(HELD_OUT))


def artefact(name: str) -> bytes:
    try:
        return (_FOLDER / name).read_bytes()
    except OSError as exc:
        raise ModelInvalid(f"{name} is missing from this installation: install it again") from exc
