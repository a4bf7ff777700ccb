"""Model files: made alike, checked whole, refused with a sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.models.scene import NAME, SCHEMA, forward, made

from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.models import artefact
from dwcp.models.artefact import Artefact, Golden, Made, ModelRefused

KEY = SigningKey.from_seed(b"h" * 32)


def load(files: Made, *, name: str = NAME, schema: str = SCHEMA) -> Artefact:
    return artefact.load(files, name=name, schema=schema, forward=forward)


def test_a_model_is_made_alike_and_loads() -> None:
    """Goal: the same training gives the same digest. Method: make twice, load, compare."""
    first, again = made(), made()

    assert first == again
    assert load(first).digest == first.digest
    assert first.digest != made(seed=2).digest


def test_features_outside_training_are_named() -> None:
    """Goal: a program knows when a model was never tested on such input. Method: one inside, one outside."""
    model = load(made())

    assert model.outside({"entropy": 7.0, "ratio": 100.0, "size": 1e9}) == ()
    assert model.outside({"entropy": 8.1, "ratio": 0.4}) == ("entropy", "ratio")
    assert model.outside({"entropy": float("nan")}) == ("entropy",)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "other"}, "a model of other"),
        ({"schema": "ff"}, "trained on other features"),
        ({"weights": {"w": np.full((3, 2), np.nan, np.float32), "b": np.zeros(2, np.float32)}}, "not finite"),
        (
            {"weights": {"w": np.ones((3, 2), np.int64), "b": np.zeros(2, np.float32)}},
            "not of floating point",
        ),
        ({"weights": {"w": np.ones((5, 2), np.float32), "b": np.zeros(2, np.float32)}}, "do not fit"),
        ({"weights": {"v": np.ones((3, 2), np.float32)}}, "do not fit"),
        ({"golden": ()}, "no golden vectors"),
        ({"golden": (Golden((1.0, 1.0, 1.0), (5.0, 5.0)),)}, "does not answer its golden inputs"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(changes: dict[str, object], sentence: str) -> None:
    """Goal: nothing unfit is ever served. Method: one thing wrong at a time, each with its sentence."""
    with pytest.raises(ModelRefused, match=sentence):
        load(made(**changes))


@given(st.integers(0, 10_000), st.integers(1, 255), st.booleans())
def test_any_changed_byte_is_found(position: int, flip: int, in_weights: bool) -> None:
    """Goal: damage never becomes a decision. Method: flip one byte anywhere; refused, or another digest."""
    files = made()
    data = bytearray(files.weights if in_weights else files.manifest)
    data[position % len(data)] ^= flip
    changed = Made(files.manifest, bytes(data)) if in_weights else Made(bytes(data), files.weights)
    try:
        found = load(changed)
    except ModelRefused:
        return
    assert not in_weights
    assert found.digest != files.digest


def test_an_unknown_format_or_field_is_refused() -> None:
    """Goal: a later release's model is not half understood. Method: format 2, and a field more."""
    files = made()
    document = json.loads(files.manifest)
    for change in ({"format": 2}, {"extra": 1}):
        text = json.dumps({**document, **change}).encode()
        with pytest.raises(ModelRefused, match=r"format 1, not 2|cannot be read"):
            load(Made(text, files.weights))


def test_only_this_installations_signature_holds() -> None:
    """Goal: a model from elsewhere is not taken for an admitted one. Method: another key, another manifest."""
    files = made()
    signature = artefact.sign(files.manifest, KEY)

    assert artefact.signature_holds(files.manifest, signature, KEY.public)
    assert not artefact.signature_holds(made(seed=2).manifest, signature, KEY.public)
    assert not artefact.signature_holds(files.manifest, signature, SigningKey.from_seed(b"x" * 32).public)
