"""The release's own selector in the service: packaged, checked, deployed, and answering by what it sees."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.unit.services.compression_api.scene import CALIBRATION, OCTETS, service

from dwcp.api import models as api
from dwcp.compression import model_shipped
from dwcp.compression.calibration import reference_blocks
from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.models import artefact
from dwcp.models.artefact import ModelRefused
from dwcp.models.shadow import Verdict
from dwcp.runtime.clock import ManualClock
from dwcp.services.compression_api.deciding import Ask, Objective
from dwcp.services.compression_api.learned_selector import SelectorFamily
from dwcp.services.compression_api.models import Models
from dwcp.services.compression_api.routes import PREDICT_PATH

FAMILY = SelectorFamily()
MANIFEST = model_shipped.artefact(model_shipped.MANIFEST)
WEIGHTS = model_shipped.artefact(model_shipped.WEIGHTS)


def test_packing_keeps_the_model_bit_by_bit() -> None:
    """Goal: the registry's form answers as the trainer's. Method: package, load with golden vectors, decide
    the same questions by both; the digest is the same each time."""
    made = FAMILY.package(MANIFEST, WEIGHTS)
    loaded = artefact.load(
        made, name=FAMILY.kind.name, schema=FAMILY.kind.schema, forward=FAMILY.kind.forward
    )
    ours, own = FAMILY.build(loaded, CALIBRATION), FAMILY.shipped(CALIBRATION)

    assert FAMILY.package(MANIFEST, WEIGHTS).digest == made.digest
    assert loaded.manifest.figures["regret_gmean_A"] < 0.1
    for raw in reference_blocks():
        for rate in (1e6, 1e8, 1e10):
            ask = Ask(1 << 26, rate, sample=raw)
            assert ours.decide(ask).rows == own.decide(ask).rows
            assert ours.decide(ask).codec is own.decide(ask).codec


def test_it_looks_where_that_pays_off() -> None:
    """Goal: data decides on slow links. Method: text and noise at 1 Mbit/s; a question without a sample."""
    own = FAMILY.shipped(CALIBRATION)
    text, _, _, noise = reference_blocks()
    on_text = own.decide(Ask(1 << 26, 1e6, sample=text))
    on_noise = own.decide(Ask(1 << 26, 1e6, sample=noise))

    assert (on_text.tier, on_noise.tier) == ("model", "model")
    assert on_text.chosen.ratio > 1.5 > on_noise.chosen.ratio
    assert own.decide(Ask(1 << 26, 1e6)).tier == "table"


@pytest.mark.parametrize("objective", list(Objective))
def test_every_objective_and_allowed_codecs(objective: Objective) -> None:
    """Goal: each answer keeps to what is allowed. Method: each objective with one codec allowed."""
    own = FAMILY.shipped(CALIBRATION)
    ask = Ask(
        1 << 26, 1e7, sample=reference_blocks()[0], allowed=frozenset({"lz4"}), objective=objective, limit=1.0
    )

    assert {row.codec for row in own.decide(ask).rows} == {"lz4", "none"}
    assert own.decide(ask).codec.name in {"lz4", "none"}


def test_damaged_files_are_refused() -> None:
    """Goal: a sentence. Method: weights cut, a manifest that is none."""
    for manifest, weights in ((MANIFEST, WEIGHTS[:-4]), (b"{}", WEIGHTS), (MANIFEST, b"")):
        with pytest.raises(ModelRefused):
            FAMILY.package(manifest, weights)


def test_without_its_own_files_the_table_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a damaged installation still answers, and says why. Method: the model's file has another name."""
    monkeypatch.setattr(model_shipped, "WEIGHTS", "gone.safetensors")

    async def main() -> None:
        async with service(tmp_path, family=FAMILY) as running:
            headers = {**OCTETS, "X-Bandwidth-Bps": "1000000"}
            answer = await running.ask("POST", PREDICT_PATH, content=b"again " * 2000, headers=headers)
            assert answer.json()["tier"] == "table"
            assert (await running.ask("GET", "/api/v1/models")).json()["otherwise"] == "the table"
            assert "gone.safetensors" in (await running.ask("GET", "/api/v1/model/info")).json()["detail"]

    asyncio.run(main())


def test_the_shipped_model_serves_and_is_deployed_like_any_other(tmp_path: Path) -> None:
    """Goal: the plug fits the whole life. Method: the service with the real family; its own model through
    staging and a canary, compared with itself, which passes."""

    async def main() -> None:
        async with service(tmp_path, family=FAMILY) as running:
            info = (await running.ask("GET", "/api/v1/model/info")).json()
            assert info["tier"] == "model"
            assert running.stage.otherwise == "the model that shipped"
            assert info["training"]["regret_gmean_A"] < 0.1
            models = Models(running.stage, SigningKey.from_seed(b"c" * 32), ManualClock())
            staged = await models.deploy(api.Upload(MANIFEST, WEIGHTS))
            assert 0 < staged.checks["selection_s_p50"] < 0.002
            await models.canary(api.Step(50))
            for number in range(1000):
                headers = {**OCTETS, "X-Stream-Id": str(number), "X-Bandwidth-Bps": "1000000"}
                sample = reference_blocks()[number % 4] if number < 4 else b"again " * 2000
                answer = await running.ask("POST", PREDICT_PATH, content=sample, headers=headers)
                assert answer.status_code == 200
                await asyncio.to_thread(len, sample)  # pairs are priced in threads: they get their turn
                if running.stage.state.words:
                    break
            assert running.stage.state.words[staged.digest].verdict is Verdict.PASS
            await models.canary(api.Step(100))
            assert running.stage.incumbent.digest == staged.digest

    asyncio.run(main())
