"""What choices came to, on its way to the compression service: real counters there, nothing held up here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from tests.unit.services.compression_api.scene import service

from dwcp.compression import codecs
from dwcp.compression.calibration import Calibration, Speed
from dwcp.compression.table import Table
from dwcp.runtime.choosing import TableChooser
from dwcp.runtime.choosing_learned import Chosen
from dwcp.runtime.clock import ManualClock
from dwcp.runtime.http import Health, Verdict
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.agent.__main__ import late_chooser
from dwcp.services.agent.outcomes import FEEDBACK_PATH, PREDICT_PATH, Outcomes

TEXT = b"words and numbers %d\n" * 20_000


def _chosen(codec: str, *, pack_s: float = 0.01) -> Chosen:
    return Chosen(codec, "race", TEXT, len(TEXT) // 9, 0.0002, 0.1, pack_s, 50 << 20, 2e6)


def _metrics(telemetry: Telemetry) -> str:
    return telemetry.exposition().decode()


@pytest.mark.parametrize("codec", ["bz2-9", "brotli-5", "lz4", "none"])
def test_the_service_counts_real_outcomes(tmp_path: Path, codec: str) -> None:
    """Goal: whatever was sent, its outcome is taken. Method: the service itself, one pack of each codec."""

    async def main() -> None:
        async with service(tmp_path) as running:
            outcomes = Outcomes(running.client, "http://c", telemetry=Telemetry("a", version="0"))
            assert await outcomes.report(_chosen(codec)) in {"agrees", "differs"}
            live = (await running.client.get("http://c/api/v1/model/info")).json()["live"]
            assert live["outcomes_reported"] == 1
            if codec != "none":
                assert codec in running.desk.outcomes.scales()

    asyncio.run(main())


def _posts(answers: Callable[[httpx.Request], httpx.Response]) -> str:
    """The result of one report to a service that answers so."""

    async def main() -> str:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answers)) as client:
            outcomes = Outcomes(client, "http://c", telemetry=Telemetry("a", version="0"))
            return await outcomes.report(_chosen("lz4"))

    return asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(429, json={}),
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, json={"codec": 7, "decision_id": []}),
        httpx.Response(200, content=b"[" * 100_000),
        httpx.Response(200, json={"codec": "x" * 1000, "decision_id": "1"}),
    ],
)
def test_a_service_that_answers_anything_costs_nothing(answer: httpx.Response) -> None:
    """Goal: no error leaves. Method: answers that no service of ours gives."""
    assert _posts(lambda _: answer) == "failed"


def test_an_outcome_is_of_the_codec_that_was_sent() -> None:
    """Goal: no outcome is reported for another codec's decision. Method: a service that always wants xz-6."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, json={"codec": "xz-6", "decision_id": "1"})

    assert _posts(answer) == "differs"
    assert asked == [PREDICT_PATH, PREDICT_PATH]
    assert FEEDBACK_PATH not in asked


def test_a_silent_service_holds_one_pack_and_delays_nothing() -> None:
    """Goal: bounded, and telling returns at once. Method: a service that never answers, a thousand packs."""
    telemetry = Telemetry("a", version="0")
    reached = 0

    async def never(_: httpx.Request) -> httpx.Response:
        nonlocal reached
        reached += 1
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(never)) as client:
            outcomes = Outcomes(client, "http://c", telemetry=telemetry)
            running = asyncio.create_task(outcomes.run(pause_s=0, silence_s=0))
            for _ in range(1000):
                outcomes.told(_chosen("lz4"))
                await asyncio.sleep(0)
            assert reached == 1
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
    assert 'dwcp_ship_choices_total{codec="lz4",tier="race"} 1000.0' in _metrics(telemetry)


def test_packs_are_told_of_one_after_another() -> None:
    """Goal: the loop goes on after a failure and after a success. Method: fail, then agree, then count."""
    telemetry = Telemetry("a", version="0")
    modes = [500, 200, 200, 200]
    done = asyncio.Event()

    def answer(_: httpx.Request) -> httpx.Response:
        if len(modes) == 1:  # the second pack is asked about: the first one's result is known
            done.set()
        return httpx.Response(modes.pop(0), json={"codec": "lz4", "decision_id": "1"})

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            outcomes = Outcomes(client, "http://c", telemetry=telemetry)
            running = asyncio.create_task(outcomes.run(pause_s=0, silence_s=0))
            while not done.is_set():
                outcomes.told(_chosen("lz4", pack_s=0.0))
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
    assert 'dwcp_agent_choices_compared_total{result="failed"} 1.0' in _metrics(telemetry)
    assert 'dwcp_agent_choices_compared_total{result="agrees"} 1.0' in _metrics(telemetry)


@dataclass
class Said:
    """A process as far as the choice needs one: telemetry, health, and what was logged."""

    telemetry: Telemetry = field(default_factory=lambda: Telemetry("a", version="0"))
    health: Health = field(default_factory=lambda: Health("a", version="0", clock=ManualClock()))
    logged: list[str] = field(default_factory=list)

    @property
    def log(self) -> Said:
        return self

    def warning(self, event: str, *, error: str) -> None:
        self.logged.append(f"{event} {error}")


@pytest.mark.parametrize("trouble", ["", "the weights are damaged: install it again"])
def test_who_chooses_is_said(trouble: str) -> None:
    """Goal: log, metrics and health tell where the table has to do. Method: a first pack with and without, and
    before it, when nothing is known and nothing is loaded."""
    speeds = {codec.name: Speed(1e8, 1e8) for codec in codecs.CODECS}
    said = Said()
    late = late_chooser(
        said,  # type: ignore[arg-type]
        lambda: TableChooser(Table(Calibration("x", 0.0, speeds)), trouble=trouble),
    )
    before = said.health.report()["checks"]["codecs"]
    asyncio.run(late.begin().pack(TEXT, stream_id=bytes(16), index=0, left_bytes=len(TEXT), rate_bps=1e6))

    found = said.health.report()["checks"]["codecs"]
    assert (before["verdict"], before["basis"]) == (Verdict.OK, "nothing was sent yet")
    assert found["verdict"] is (Verdict.WARN if trouble else Verdict.OK)
    assert found["basis"] == (f"table: {trouble}" if trouble else "table")
    assert f"dwcp_ship_selector_learned {0.0 if trouble else 1.0}" in _metrics(said.telemetry)
    assert said.logged == ([f"selector.not_loaded {trouble}"] if trouble else [])
