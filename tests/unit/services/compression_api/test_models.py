"""The life of a model in the service: gates, canary, a verdict from paired trials, and the way back."""

from __future__ import annotations

import asyncio
import base64
import itertools
from pathlib import Path

import httpx
import pytest
from tests.unit.services.compression_api import scene
from tests.unit.services.compression_api.scene import KEY, OCTETS, LinearFamily, Service, service

from dwcp.compression.calibration import reference_blocks
from dwcp.models.artefact import Made
from dwcp.models.lifecycle import PASS_MS
from dwcp.models.shadow import Verdict
from dwcp.runtime.registry import Registry
from dwcp.services.compression_api.deciding import Ask
from dwcp.services.compression_api.routes import PREDICT_PATH
from dwcp.services.compression_api.stage import in_canary

# Words of a Zipf-like vocabulary: at 1 Mbit/s bz2-9 is 8 % sooner there than the table's brotli-5,
# at 10 Gbit/s nothing is sooner than no codec. Both hold on any machine by large factors of CPU.
TEXT = reference_blocks()[0][:20_000]
SOUND = "bz2-9"


async def _deploy(running: Service, made: Made, *, dry_run: bool = False) -> httpx.Response:
    files = {"manifest": made.manifest, "weights": made.weights}
    upload = {name: base64.b64encode(content).decode() for name, content in files.items()}
    return await running.ask("POST", "/api/v1/models/deploy", json={**upload, "dry_run": dry_run})


async def _canary(running: Service, pct: int, *, dry_run: bool = False) -> httpx.Response:
    return await running.ask("POST", "/api/v1/models/canary", json={"pct": pct, "dry_run": dry_run})


async def _drive(running: Service, *, until: Verdict, rate_bps: str = "1000000") -> None:
    """Questions of many streams, until the registry has the verdict. Pairs that come while one is priced are let go:
    on a busy machine few of the questions count."""
    for at in itertools.count():
        assert at < 30_000, running.stage.evaluation()
        headers = {**OCTETS, "X-Bandwidth-Bps": rate_bps, "X-Stream-Id": str(at), "X-Total-Size": "1000000"}
        answer = await running.ask("POST", PREDICT_PATH, content=TEXT, headers=headers)
        assert answer.status_code == 200
        await asyncio.sleep(0)
        if any(word.verdict is until for word in running.stage.state.words.values()):
            return


async def _deployed(running: Service, made: Made) -> None:
    """All the way, through a canary that passes."""
    assert (await _deploy(running, made)).status_code == 200
    assert (await _canary(running, 10)).status_code == 200
    await _drive(running, until=Verdict.PASS)
    assert (await _canary(running, 100)).status_code == 200


def test_from_staging_to_everybody_and_back(tmp_path: Path) -> None:
    """Goal: the whole life. Method: a sound model; each step is refused before its time."""

    async def main() -> None:
        async with service(tmp_path, family=LinearFamily()) as running:
            assert (await _canary(running, 10)).status_code == 409
            staged = (await _deploy(running, scene.model(always=SOUND))).json()
            refused = await _canary(running, 100)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "gate_closed")
            assert "not been evaluated" in refused.json()["error"]["detail"]
            assert (await _canary(running, 10)).json()["models"]["roles"]["canary"] == staged["digest"]
            await _drive(running, until=Verdict.PASS)
            assert (await _canary(running, 100)).json()["models"]["roles"]["active"] == staged["digest"]
            answer = (await running.ask("POST", PREDICT_PATH, content=TEXT, headers=OCTETS)).json()
            assert (answer["tier"], answer["model"]) == ("model", staged["digest"])
            assert (await running.ask("GET", "/api/v1/model/info")).json()["figures"] == {
                "regret_gmean": 0.05
            }
            assert (await running.ask("POST", "/api/v1/models/rollback", json={})).status_code == 200
            answer = (await running.ask("POST", PREDICT_PATH, content=TEXT, headers=OCTETS)).json()
            assert answer["tier"] == "table"

    asyncio.run(main())


def test_a_worse_model_is_withdrawn_by_itself(tmp_path: Path) -> None:
    """Goal: harm ends without an operator. Method: a model that never compresses, on a slow link."""

    async def main() -> None:
        async with service(tmp_path, family=LinearFamily()) as running:
            digest = (await _deploy(running, scene.model(always="none"))).json()["digest"]
            await _canary(running, 50)
            await _drive(running, until=Verdict.FAIL)
            assert (running.stage.candidate, running.stage.state.canary) == (None, "")
            assert running.stage.registry is not None
            assert running.stage.registry.state().words[digest].verdict is Verdict.FAIL
            refused = await _canary(running, 10)
            assert (refused.status_code, "failed" in refused.json()["error"]["detail"]) == (409, True)

    asyncio.run(main())


def test_a_pass_is_of_one_digest_and_does_not_keep(tmp_path: Path) -> None:
    """Goal: 100 % needs a fresh pass of the same digest. Method: another model after the pass; then a day."""

    async def main() -> None:
        async with service(tmp_path, family=LinearFamily()) as running:
            await _deploy(running, scene.model(always=SOUND))
            await _canary(running, 10)
            await _drive(running, until=Verdict.PASS)
            await _deploy(running, scene.model(always=SOUND, version="2"))
            assert (await _canary(running, 100)).status_code == 409
            await _deploy(running, scene.model(always=SOUND))
            running.clock.advance(PASS_MS + 1)
            late = await _canary(running, 100)
            assert (late.status_code, "older" in late.json()["error"]["detail"]) == (409, True)

    asyncio.run(main())


def test_a_promoted_model_that_turns_out_worse_is_undone(tmp_path: Path) -> None:
    """Goal: the model before is kept warm. Method: after a promotion the model's own choice becomes the
    slowest one (the link is now fast, where a model that believes in one slow codec does harm)."""

    async def main() -> None:
        async with service(tmp_path, family=LinearFamily()) as running:
            made = scene.model(always=SOUND)
            await _deploy(running, made)
            await _canary(running, 10)
            await _drive(running, until=Verdict.PASS)
            assert (await _canary(running, 100)).status_code == 200
            assert running.stage.incumbent.digest == made.digest
            await _drive(running, until=Verdict.FAIL, rate_bps="10000000000")
            assert running.stage.incumbent.digest == ""
            assert running.stage.state.active == ""

    asyncio.run(main())


def test_a_model_that_raises_costs_no_answer(tmp_path: Path) -> None:
    """Goal: a broken model is refused at the gate. Method: one that fails on every question."""

    async def main() -> None:
        async with service(tmp_path, family=LinearFamily()) as running:
            answer = await _deploy(running, scene.model(fails=True))
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "model_refused")
            assert running.stage.registry is not None
            assert running.stage.registry.digests() == ()

    asyncio.run(main())


def test_faults_after_the_gate_are_answered_by_the_table(tmp_path: Path) -> None:
    """Goal: a canary that begins to fail is out, and every question has an answer. Method: put a failing
    model into the registry behind the gate's back; the watcher's refresh takes it."""

    async def main() -> None:
        async with service(tmp_path, family=LinearFamily()) as running:
            stage = running.stage
            assert stage.registry is not None
            digest = stage.registry.admit(scene.model(fails=True), signer=KEY).digest
            stage.registry.change(lambda state: state.stage(digest).start_canary(99))
            await stage.refresh()
            await _drive(running, until=Verdict.FAIL)
            assert stage.candidate is None

    asyncio.run(main())


@pytest.mark.parametrize("damage", ["manifest", "weights", "schema", "name"])
def test_gates_refuse_what_is_not_sound(tmp_path: Path, damage: str) -> None:
    """Goal: nothing unsound is admitted. Method: damage one thing; the registry stays empty."""
    made = scene.model(always=SOUND)
    changed = {
        "manifest": Made(made.manifest[:-5], made.weights),
        "weights": Made(made.manifest, made.weights[:-1] + b"\1"),
        "schema": Made(made.manifest.replace(b'"schema": "', b'"schema": "0'), made.weights),
        "name": Made(made.manifest.replace(b"compression-selector", b"other"), made.weights),
    }[damage]

    async def main() -> None:
        async with service(tmp_path, family=LinearFamily()) as running:
            answer = await _deploy(running, changed)
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "model_refused")
            assert (await running.ask("GET", "/api/v1/models")).json()["models"] == []

    asyncio.run(main())


def test_worse_figures_than_the_active_model_close_the_gate(tmp_path: Path) -> None:
    """Goal: staging is for models that measured no worse. Method: more regret than what serves, by a point."""

    async def main() -> None:
        async with service(tmp_path, family=LinearFamily()) as running:
            await _deployed(running, scene.model(always=SOUND, regret=0.05))
            worse = await _deploy(running, scene.model(always=SOUND, version="2", regret=0.06))
            assert (worse.status_code, "worse" in worse.json()["error"]["detail"]) == (409, True)
            better = await _deploy(running, scene.model(always=SOUND, version="3", regret=0.04))
            assert better.json()["checks"]["active_regret_gmean"] == 0.05

    asyncio.run(main())


def test_dry_runs_change_nothing(tmp_path: Path) -> None:
    """Goal: a plan and nothing else. Method: each step dry; the state is as before."""

    async def main() -> None:
        async with service(tmp_path, family=LinearFamily()) as running:
            assert (await _deploy(running, scene.model(always=SOUND), dry_run=True)).json()["did"] == "staged"
            assert running.stage.registry is not None
            assert running.stage.registry.digests() == ()
            await _deploy(running, scene.model(always=SOUND))
            before = running.stage.registry.state()
            assert (await _canary(running, 10, dry_run=True)).status_code == 200
            assert running.stage.registry.state() == before
            assert running.stage.candidate is None

    asyncio.run(main())


def test_a_tampered_model_does_not_serve_and_is_said(tmp_path: Path) -> None:
    """Goal: a damaged file never decides. Method: change one byte of the active model's weights, start again."""

    async def first() -> str:
        async with service(tmp_path, family=LinearFamily()) as running:
            await _deployed(running, scene.model(always=SOUND))
            return running.stage.state.active

    digest = asyncio.run(first())
    path = tmp_path / "models" / "compression-selector" / digest / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    (tmp_path / "tokens.json").unlink()

    async def second() -> None:
        async with service(tmp_path, family=LinearFamily()) as running:
            answer = (await running.ask("POST", PREDICT_PATH, content=TEXT, headers=OCTETS)).json()
            assert answer["tier"] == "table"
            assert digest[:12] in (await running.ask("GET", "/api/v1/models")).json()["trouble"]

    asyncio.run(second())


def test_a_change_by_another_process_is_seen(tmp_path: Path) -> None:
    """Goal: the state file is the truth. Method: another registry object changes it; a refresh adopts it."""

    async def main() -> None:
        async with service(tmp_path, family=LinearFamily()) as running:
            other = Registry(tmp_path / "models", LinearFamily.kind, public=KEY.public)
            digest = other.admit(scene.model(always=SOUND), signer=KEY).digest
            other.change(lambda state: state.stage(digest).start_canary(20))
            await running.stage.refresh()
            assert running.stage.candidate is not None
            assert running.stage.candidate.digest == digest
            other.state_file.write_text("damaged")
            await running.stage.refresh()
            assert "state" in running.stage.trouble
            assert running.stage.candidate is not None

    asyncio.run(main())


def test_without_a_family_the_table_answers_and_says_so(tmp_path: Path) -> None:
    """Goal: a release without a model is whole. Method: deploy is refused with a sentence."""

    async def main() -> None:
        async with service(tmp_path) as running:
            refused = await _deploy(running, scene.model(always=SOUND))
            assert (refused.status_code, "no learned selector" in refused.text) == (409, True)
            listed = (await running.ask("GET", "/api/v1/models")).json()
            assert (listed["models"], listed["otherwise"]) == ([], "the table")
            assert (await running.ask("GET", "/api/v1/models/abc")).status_code == 409

    asyncio.run(main())


def test_the_share_of_a_canary_is_what_was_asked_and_sticks() -> None:
    """Goal: 10 % is 10 %, and a stream keeps its side. Method: ten thousand ids, each asked twice."""
    asks = [Ask(1, 1e6, stream_id=f"stream-{number}") for number in range(10_000)]
    first = [in_canary(ask, 10) for ask in asks]

    assert 880 <= sum(first) <= 1120  # four standard deviations
    assert first == [in_canary(ask, 10) for ask in asks]
    assert all(in_canary(ask, 30) for ask, chosen in zip(asks, first, strict=True) if chosen)
