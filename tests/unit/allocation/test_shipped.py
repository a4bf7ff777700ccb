"""The placer that ships with the release: it loads without JAX, and its card says what its manifest says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.unit.allocation.policies.test_learned import some_views

from dwcp.allocation import shipped
from dwcp.allocation.learn import card
from dwcp.allocation.policies import learned
from dwcp.allocation.policies.guarded import NODES
from dwcp.models.artefact import ModelRefused

CARD = Path(__file__).resolve().parents[3] / "docs" / "models" / "maddpg-placer.md"


def test_it_loads_and_decides() -> None:
    """Goal: an installation has a model that passes every check. Method: load; bid for real decisions."""
    model, view = shipped.shipped(), some_views()

    bids = learned.scorer(model.weights)(view, np)

    assert np.isfinite(bids).all()
    assert bids.shape == (len(view.worth), view.capacity.shape[1] + 1)
    assert model.manifest.name == "maddpg-placer"
    assert model.manifest.bounds[NODES][1] >= 16


def test_the_card_is_of_this_model() -> None:
    """Goal: docs quote the model that is shipped. Method: write the card anew and compare."""
    assert CARD.read_text() == card.write(shipped.shipped()), "copy card.md of the training run"


def test_it_was_never_worse_than_its_rule() -> None:
    """Goal: what ships passed validation. Method: the figures that training measured."""
    assert shipped.shipped().manifest.figures["validation_difference"] <= 0


def test_a_missing_file_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Goal: a damaged installation says so. Method: look for the files in an empty folder."""
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)

    with pytest.raises(ModelRefused, match="install it again"):
        shipped.shipped()


def test_serving_needs_no_jax() -> None:
    """Goal: JAX stays an extra for training. Method: load and decide in a process of its own; JAX is not there."""
    code = (
        "import sys; from dwcp.allocation.shipped import shipped; shipped(); sys.exit('jax' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
