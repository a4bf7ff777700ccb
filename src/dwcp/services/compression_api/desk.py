"""Where questions are answered: asks whoever decides now, notes the decision, counts, and shows why."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import msgspec

from dwcp import __version__
from dwcp.compression import codecs
from dwcp.compression.table import BLOCK_BYTES, Estimate
from dwcp.runtime.http import Refusal
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.compression_api import asking
from dwcp.services.compression_api.deciding import Ask, Decided
from dwcp.services.compression_api.outcomes import Outcome, Outcomes
from dwcp.services.compression_api.stage import Stage

_SHOWN = 5  # of the ranking
_TIMINGS = 1000
_AGAINST = ("none", "zstd-3")


class Desk:
    """Answers questions by the stage's models and keeps what was decided until its outcome is known."""

    def __init__(self, stage: Stage, outcomes: Outcomes, *, telemetry: Telemetry) -> None:
        self.stage = stage
        self.outcomes = outcomes
        self._telemetry = telemetry
        self.answered = 0
        self._chosen: Counter[tuple[str, str]] = Counter()
        self._took_us: deque[float] = deque(maxlen=_TIMINGS)

    def answer(self, ask: Ask) -> dict[str, Any]:
        """One decision as values that JSON takes; estimates are written with the names of their fields."""
        decided, took_us = self.decide(ask)
        return {
            "decision_id": self.outcomes.note(ask, decided),
            "codec": decided.codec.name,
            "level": decided.codec.level,
            "block_bytes": BLOCK_BYTES,
            "tier": decided.tier,
            "reason": decided.reason,
            "objective": ask.objective,
            "predicted": decided.chosen,
            "ranked": decided.rows[:_SHOWN],
            "bin": decided.bin,
            "calibration": self.outcomes.measured.host,
            "model": self.stage.incumbent.digest or "none",
            "selection_us": round(took_us, 1),
            "version": __version__,
        }

    def decide(self, ask: Ask) -> tuple[Decided, float]:
        """The decision and its microseconds, counted."""
        started_ns = time.perf_counter_ns()
        decided = self.stage.decide(ask)
        took_s = (time.perf_counter_ns() - started_ns) / 1e9
        self.answered += 1
        self._chosen[decided.codec.name, decided.tier] += 1
        self._took_us.append(took_s * 1e6)
        count = self._telemetry.count
        count(
            "dwcp_compression_predictions_total",
            codec=decided.codec.name,
            tier=decided.tier,
            objective=ask.objective.value,
        )
        self._telemetry.observe("dwcp_compression_selection_seconds", took_s, tier=decided.tier)
        best = decided.chosen.total_s
        for row in decided.rows:
            if row.codec in _AGAINST and row.total_s > best:
                count("dwcp_compression_predicted_saved_seconds_total", row.total_s - best, against=row.codec)
        return decided, took_s * 1e6

    def batch(self, items: Sequence[msgspec.Raw]) -> list[dict[str, Any]]:
        """An answer or an error for each item, in order."""
        return [self._one(item) for item in items]

    def _one(self, item: msgspec.Raw) -> dict[str, Any]:
        try:
            return self.answer(asking.of_json(item))
        except Refusal as refusal:
            return {"error": {"code": refusal.code, "detail": refusal.detail}}

    def explain(self, ask: Ask) -> dict[str, Any]:
        """The decision with everything it rests on; not noted, so it takes no outcome."""
        decided, took_us = self.decide(ask)
        best = decided.rows[0]
        return {
            "codec": decided.codec.name,
            "tier": decided.tier,
            "reason": decided.reason,
            "bin": decided.bin,
            "features": dict(decided.features),
            "sample_bytes": len(ask.sample),
            "every_codec": decided.rows,
            "slowest_stage": _slowest(decided.chosen),
            "behind_best_s": round(decided.chosen.total_s - best.total_s, 6),
            "calibration": {"host": self.outcomes.measured.host, "scales": self.outcomes.scales()},
            "model": self.stage.describe(),
            "selection_us": round(took_us, 1),
        }

    def simulate(self, asked: asking.WhatIf) -> dict[str, Any]:
        """One sample over several bandwidths."""
        ask = asking.of_question(asked)
        rates = asked.bandwidths_bps or tuple(10 ** (6 + step / 2) for step in range(9))
        answers = []
        for rate_bps in rates:
            decided, _ = self.decide(_at(ask, rate_bps))
            row = msgspec.structs.asdict(decided.chosen)
            answers.append({"bandwidth_bps": rate_bps, "tier": decided.tier, **row})
        return {"total_size": ask.total_size, "answers": answers}

    def report(self, outcome: Outcome) -> dict[str, Any]:
        """Takes what a decision came to. Raises `Refusal`."""
        renewed = self.outcomes.report(outcome)
        if renewed is not None:
            self.stage.recalibrate(renewed)
        return {"decision_id": outcome.decision_id, "recalibrated": renewed is not None}

    def algorithms(self) -> list[dict[str, Any]]:
        speeds = self.stage.calibration.speeds
        return [
            {
                "name": codec.name,
                "wire": codec.wire,
                "level": codec.level,
                "ratio": codec.ratio,
                "compress_bytes_per_s": round(speeds[codec.name].pack_bps),
                "decompress_bytes_per_s": round(speeds[codec.name].unpack_bps),
            }
            for codec in codecs.CODECS
        ]

    def model(self, *, refused: int) -> dict[str, Any]:
        """What answers rest on: from the artefact, the calibration and the counters of this process. `refused`:
        decisions for which there was no capacity."""
        calibration = self.outcomes.measured
        return {
            **self.stage.describe(),
            "version": __version__,
            "calibration": {
                "host": calibration.host,
                "seconds": calibration.seconds,
                "complete": calibration.complete,
                "scales": self.outcomes.scales(),
            },
            "ratios": "aggregates of a reference corpus of 160 MB; speeds measured on this host",
            "live": {
                "decisions": self.answered,
                "refused": refused,
                "by_codec_and_tier": {" ".join(key): count for key, count in sorted(self._chosen.items())},
                **self._selection(),
                "outcomes_reported": self.outcomes.reported,
                "outcomes_awaited": self.outcomes.waiting,
            },
        }

    def _selection(self) -> dict[str, float]:
        """Of the latest decisions, microseconds of the wall; 0 before the first."""
        taken = sorted(self._took_us)
        shares = {"selection_us_p50": 0.5, "selection_us_p99": 0.99}
        return {
            name: round(taken[int(share * len(taken))], 1) if taken else 0.0 for name, share in shares.items()
        }


def _at(ask: Ask, rate_bps: float) -> Ask:
    return Ask(
        ask.total_size,
        rate_bps,
        sample=ask.sample,
        allowed=ask.allowed,
        objective=ask.objective,
        limit=ask.limit,
        rtt_s=ask.rtt_s,
        stream_id=ask.stream_id,
    )


def _slowest(row: Estimate) -> str:
    stages = {"compress": row.compress_s, "send": row.send_s, "decompress": row.decompress_s}
    return max(stages, key=lambda stage: stages[stage])
