"""Which trained model is deployed where no folder is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dwcp.cli import trained
from dwcp.cli.trained import NoTrainedModel, files_of
from dwcp.runtime.layout import Layout

NAME = "compression-selector"


def write(folder: Path, stem: tuple[str, str], text: bytes, *, age_s: int) -> None:
    """A model that was written `age_s` seconds before the others' zero."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in stem:
        (folder / name).write_bytes(text)
        os.utime(folder / name, (1_000_000 - age_s, 1_000_000 - age_s))


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A checkout that ships a model whose files are the youngest of all, as after `git clone`."""
    monkeypatch.setattr(trained, "CHECKOUT", tmp_path / "checkout")
    shipped = tmp_path / "checkout/src/dwcp/compression/artefacts"
    write(shipped, (f"{NAME}.json", f"{NAME}.safetensors"), b"shipped", age_s=0)
    return Layout(tmp_path / "state")


def test_what_was_trained_here_goes_before_the_release(layout: Layout, tmp_path: Path) -> None:
    """Goal: an upgrade does not hide a trained model. Method: older files beside the release's; then a newer one."""
    assert files_of(layout, NAME, None).manifest == b"shipped"
    pair = ("manifest.json", "weights.safetensors")
    write(tmp_path / "checkout/.dwcp/models" / NAME, pair, b"first", age_s=100)
    assert files_of(layout, NAME, None).weights == b"first"
    write(layout.root / "models" / NAME, pair, b"second", age_s=50)
    assert files_of(layout, NAME, None).manifest == b"second"


def test_a_named_folder_alone_counts(layout: Layout, tmp_path: Path) -> None:
    """Goal: no other model in the place of the one that was named. Method: an empty folder, half a model."""
    (tmp_path / "mine").mkdir()
    for _ in range(2):
        with pytest.raises(NoTrainedModel, match="mine"):
            files_of(layout, NAME, tmp_path / "mine")
        (tmp_path / "mine/manifest.json").write_bytes(b"half")
