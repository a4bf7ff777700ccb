"""The model that ships with this release, and the files it is made from."""

from __future__ import annotations

from importlib.resources import files

from dwcp.compression import model
from dwcp.compression.corpus_heldout import BlockList
from dwcp.compression.errors import ModelInvalid
from dwcp.compression.model import Model

MANIFEST = "compression-selector.json"
WEIGHTS = "compression-selector.safetensors"
MEASUREMENTS = "measurements.json.zst"
HELD_OUT = "held-out-blocks.bin"
_FOLDER = files("dwcp.compression") / "artefacts"


def shipped() -> Model:
    """Raises `ModelInvalid` where a file is missing or damaged."""
    return model.load(artefact(MANIFEST), artefact(WEIGHTS))


def held_out() -> BlockList:
    return BlockList.decode(artefact(HELD_OUT))


def artefact(name: str) -> bytes:
    try:
        return (_FOLDER / name).read_bytes()
    except OSError as exc:
        raise ModelInvalid(f"{name} is missing from this installation: install it again") from exc
