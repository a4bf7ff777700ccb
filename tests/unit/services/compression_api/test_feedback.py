"""Outcomes: one for each decision, bounded, and no liar moves the calibration far."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
from tests.unit.services.compression_api.scene import CALIBRATION, SPEEDS, service

from dwcp.compression.table import Table
from dwcp.runtime.http import Refusal
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.compression_api import outcomes as module
from dwcp.services.compression_api.deciding import Ask, TableDecider
from dwcp.services.compression_api.outcomes import Outcome, Outcomes
from dwcp.services.compression_api.routes import FEEDBACK_PATH, MODEL_PATH, PREDICT_PATH

QUESTION = {"total_size": 1 << 26, "link": {"bandwidth_bps": 1e8}}


def test_outcomes_move_the_host_speeds_and_the_answers(tmp_path: Path) -> None:
    """Goal: a host that turns out slower is believed. Method: report a tenth of the speed until the answer
    changes; each decision takes one outcome."""

    async def main() -> None:
        async with service(tmp_path) as running:
            first = (await running.ask("POST", PREDICT_PATH, json=QUESTION)).json()
            for _ in range(60):
                answer = (await running.ask("POST", PREDICT_PATH, json=QUESTION)).json()
                if answer["codec"] != first["codec"]:
                    break
                report = {
                    "decision_id": answer["decision_id"],
                    "raw_bytes": 1 << 26,
                    "packed_bytes": 1 << 25,
                    "compress_s": (1 << 26) / SPEEDS[first["codec"]].pack_bps * 10,
                    "send_s": 2.5,
                }
                assert (await running.ask("POST", FEEDBACK_PATH, json=report)).status_code == 200
                assert (await running.ask("POST", FEEDBACK_PATH, json=report)).status_code == 404
            model = (await running.ask("GET", MODEL_PATH)).json()

            assert answer["codec"] != first["codec"]
            assert 0.25 <= model["calibration"]["scales"][first["codec"]][0] < 0.8
            assert model["live"]["outcomes_reported"] > 0

    asyncio.run(main())


@pytest.mark.parametrize("seconds", [1e-9, 1e7])
def test_a_liar_moves_nothing_beyond_a_factor_of_four(seconds: float) -> None:
    """Goal: a bound holds for absurd reports. Method: two hundred of them either way."""
    outcomes = Outcomes(CALIBRATION, telemetry=Telemetry("t", version="0"))
    decider = TableDecider(Table(CALIBRATION))
    ask = Ask(1 << 26, 1e8)
    for _ in range(200):
        name = outcomes.note(ask, decider.decide(ask))
        outcomes.report(Outcome(name, 1 << 26, 1, compress_s=seconds, decompress_s=seconds))

    for pair in outcomes.scales().values():
        assert all(1 / 4.001 < scale < 4.001 for scale in pair)


def test_old_decisions_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: bounded memory. Method: a store for three, four decisions, the first is unknown."""
    monkeypatch.setattr(module, "DECISIONS_MAX", 3)
    outcomes = Outcomes(CALIBRATION, telemetry=Telemetry("t", version="0"))
    decider = TableDecider(Table(CALIBRATION))
    names = [outcomes.note(Ask(5, 1e6), decider.decide(Ask(5, 1e6))) for _ in range(4)]

    with pytest.raises(Refusal):
        outcomes.report(Outcome(names[0], 1, 1))
    outcomes.report(Outcome(names[3], 1, 1))
    assert outcomes.waiting == 2


def test_a_small_move_does_not_make_the_table_anew() -> None:
    """Goal: reports are cheap. Method: a report of the very speed that was measured."""
    outcomes = Outcomes(CALIBRATION, telemetry=Telemetry("t", version="0"))
    ask = Ask(1 << 20, 1e6)
    decided = TableDecider(Table(CALIBRATION)).decide(ask)
    seconds = (1 << 20) / SPEEDS[decided.codec.name].pack_bps

    assert outcomes.report(Outcome(outcomes.note(ask, decided), 1 << 20, 1, compress_s=seconds)) is None
    assert math.isclose(outcomes.scales()[decided.codec.name][0], 1.0, rel_tol=1e-6)


def test_strangers_cannot_report(tmp_path: Path) -> None:
    """Goal: outcomes change state, so they need a token. Method: the same request without one."""

    async def main() -> None:
        async with service(tmp_path) as running:
            del running.client.headers["Authorization"]
            assert (await running.ask("POST", PREDICT_PATH, json=QUESTION)).status_code == 200
            assert (await running.ask("POST", FEEDBACK_PATH, json={})).status_code == 401

    asyncio.run(main())
