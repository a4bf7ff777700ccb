"""Where training leaves a model, and which one is the newest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dwcp.runtime.errors import RuntimeFault
from dwcp.runtime.layout import CHECKOUT, Layout

FILE_BYTES_MAX = 64 << 20


class NoTrainedModel(RuntimeFault):
    """There is no trained model to deploy: train one, or name its folder with `--version`."""


@dataclass(frozen=True, slots=True)
class Files:
    """A trained model as its trainer left it."""

    manifest: bytes
    weights: bytes


def files_of(layout: Layout, name: str, folder: Path | None) -> Files:
    """The model in `folder`, else the newest that was trained here, else the release's own.

    A release's files have the time of their checkout, so their age says nothing. Raises `NoTrainedModel`, naming
    where it looked.
    """
    trained, shipped = ((folder,), ()) if folder is not None else _places(layout, name)
    found = _all(trained, name) or _all(shipped, name)
    if not found:
        looked = ", ".join(map(str, (*trained, *shipped)))
        raise NoTrainedModel(f"no trained {name} in {looked}: train one, or name its folder with --version")
    manifest, weights = max(found, key=lambda pair: pair[0].stat().st_mtime_ns)
    return Files(_read(manifest), _read(weights))


def _all(places: tuple[Path, ...], name: str) -> list[tuple[Path, Path]]:
    return [pair for place in places for pair in _pairs(place, name)]


def _places(layout: Layout, name: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """What training wrote last, and what shipped with the release."""
    trained = (layout.root / "models" / name, CHECKOUT / ".dwcp" / "models" / name)
    layer = "allocation" if name == "maddpg-placer" else "compression"
    return trained, (CHECKOUT / "src" / "dwcp" / layer / "artefacts",)


def _pairs(folder: Path, name: str) -> list[tuple[Path, Path]]:
    names = ((f"{name}.json", f"{name}.safetensors"), ("manifest.json", "weights.safetensors"))
    pairs = [(folder / manifest, folder / weights) for manifest, weights in names]
    return [pair for pair in pairs if pair[0].is_file() and pair[1].is_file()]


def _read(path: Path) -> bytes:
    if path.stat().st_size > FILE_BYTES_MAX:
        raise NoTrainedModel(f"{path}: larger than {FILE_BYTES_MAX} bytes: it is no model of ours")
    return path.read_bytes()
