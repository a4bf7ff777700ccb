"""The shipped model: sound, quick to refuse what is not, and as good as its manifest says."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from dwcp.compression import calibration, features, model, model_shipped, oracle, train_data
from dwcp.compression.corpus_generated import generate
from dwcp.compression.errors import ModelInvalid
from dwcp.compression.model import PACK, RATIO, SHAPES, VALUES
from dwcp.models.artefact import Made

MADE = model_shipped.made()
MIB = 1 << 20


def _ratio(raw: bytes, name: str) -> float:
    logs = model_shipped.shipped().predict(features.extract(raw))
    return float(np.exp(logs[RATIO][model.NAMES.index(name)]))


def test_it_predicts_what_it_should_roughly() -> None:
    """Noise does not shrink, prose shrinks two- to fourfold, stronger codecs shrink more and take longer."""
    noise = generate("gen-random", seed=77, size=MIB)
    prose = generate("gen-prose", seed=77, size=MIB)
    logs = model_shipped.shipped().predict(features.extract(prose))

    assert _ratio(noise, "zstd-3") < 1.1
    assert 1.6 < _ratio(prose, "zstd-3") < 5
    assert _ratio(prose, "xz-6") > _ratio(prose, "lz4")
    assert logs[PACK][model.NAMES.index("xz-6")] > logs[PACK][model.NAMES.index("lz4")] + 3


def test_its_errors_on_its_own_table_are_small() -> None:
    """Median error of the ratios on the rows that it was trained on; a broken evaluator would show."""
    data = train_data.arrays(oracle.unpack_table(model_shipped.artefact(model_shipped.MEASUREMENTS)).rows)
    shipped = model_shipped.shipped()

    errors = np.array([shipped.predict(x) for x in data.x]) - data.y

    assert np.median(np.abs(errors[:, RATIO])) < 0.12
    assert np.median(np.abs(errors[:, PACK])) < 0.25


def test_any_features_give_numbers_within_the_trained_range() -> None:
    """Far out, in the middle, at infinity: clipped, finite."""
    shipped = model_shipped.shipped()
    for value in (0.0, 1e9, -1e9, np.inf):
        logs = shipped.predict(np.full(features.COUNT, value))

        assert logs.shape == (VALUES,)
        assert (logs >= shipped.tensors["y_low"] - 1e-9).all()
        assert (logs <= shipped.tensors["y_high"] + 1e-9).all()
    assert shipped.strange(np.full(features.COUNT, 1e9))
    assert not shipped.strange(features.extract(generate("gen-log", seed=5, size=MIB)))


def test_another_seed_of_every_generated_kind_is_not_strange() -> None:
    """What is like the training data is not called strange."""
    shipped = model_shipped.shipped()

    strange = [
        shipped.strange(features.extract(generate(kind, seed=99, size=MIB)))
        for kind in ("gen-csv", "gen-json", "gen-image8", "gen-records", "gen-random")
    ]

    assert not any(strange)


def _changed(**changes: object) -> bytes:
    return msgspec.json.encode({**json.loads(MADE.manifest), **changes})


def _with(tensors: dict[str, np.ndarray[Any, Any]]) -> Made:  # Any: float32 arrays of any shape
    """The shipped manifest over other arrays, so that only what the selector itself asks for is wrong."""
    weights = safetensors.numpy.save(tensors)
    shapes = {name: value.shape for name, value in tensors.items()}
    return Made(_changed(weights=model.digest(weights), shapes=shapes), weights)


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        (b"{", "cannot be read"),
        (_changed(unknown=1), "cannot be read"),
        (_changed(schema="0" * 64), "other features"),
        (_changed(name="another"), "another"),
        (_changed(weights="0" * 64), "do not match"),
        (_changed(golden=[]), "golden"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(manifest: bytes, sentence: str) -> None:
    """Damage, another release and foreign weights, each with its sentence."""
    with pytest.raises(ModelInvalid, match=sentence):
        model.load(Made(manifest, MADE.weights))


def test_weights_of_wrong_shapes_or_values_are_refused() -> None:
    """A missing tensor, a cut one, one with a NaN, and bytes that are no safetensors, under right digests."""
    tensors = safetensors.numpy.load(MADE.weights)
    missing = {name: value for name, value in tensors.items() if name != "w2"}
    cut = {**tensors, "w2": tensors["w2"][:, :-1]}
    wrong = {**tensors, "b1": np.full_like(tensors["b1"], np.nan)}
    for made in (_with(missing), _with(cut), _with(wrong), Made(_changed(weights=model.digest(b"x")), b"x")):
        with pytest.raises(ModelInvalid):
            model.load(made)


def test_weights_that_answer_otherwise_are_refused() -> None:
    """Goal: golden vectors tell a model from its like. Method: one bias moved, all digests right."""
    tensors = safetensors.numpy.load(MADE.weights)

    with pytest.raises(ModelInvalid, match="golden"):
        model.load(_with({**tensors, "b3": tensors["b3"] + 0.01}))


def test_the_artefact_belongs_together() -> None:
    """The manifest names this table; its reference speeds are of the codecs that travel."""
    shipped, facts = model_shipped.facts()

    table = model.digest(model_shipped.artefact(model_shipped.MEASUREMENTS))
    assert facts.manifest.trained_on["measurements"] == table
    assert set(shipped.speeds) == set(calibration.measure(host="x", budget_s=0.01).speeds)
    assert set(SHAPES) == set(shipped.tensors)


def test_the_pinned_digest_is_the_shipped_models() -> None:
    """Goal: code and files change together. Method: the constant against the manifest's digest; after training,
    `models/compression_selector.py --shipped` writes it."""
    assert model_shipped.made().digest == model_shipped.DIGEST


def test_another_model_in_the_place_of_the_shipped_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a sound model is not enough, it has to be this release's. Method: another pin."""
    monkeypatch.setattr(model_shipped, "DIGEST", "0" * 64)

    with pytest.raises(ModelInvalid, match="install it again"):
        model_shipped.shipped()


def test_no_training_file_shares_a_block_with_the_corpora() -> None:
    """The list is there and is not empty; that it is applied is tested with the corpus."""
    assert len(model_shipped.held_out()) > 20_000


def test_a_missing_artefact_is_a_sentence() -> None:
    """An incomplete installation says what to do."""
    with pytest.raises(ModelInvalid, match="install it again"):
        model_shipped.artefact("nothing")
