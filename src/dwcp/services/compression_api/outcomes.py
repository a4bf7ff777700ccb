"""What became of decisions: kept for a while, compared with what was predicted, turned into calibration.

Bounded: the oldest decisions are forgotten. An outcome moves the speed of one codec a little, and never
beyond a factor of four of what was measured: a liar among the reporters slows transfers, nothing more.
"""

from __future__ import annotations

import math
import secrets
from collections import OrderedDict
from typing import Annotated

import msgspec
from msgspec import Meta

from dwcp.api.workloads import Shape
from dwcp.compression.calibration import Calibration, Speed
from dwcp.compression.table import CPU_SHARE
from dwcp.runtime.http import Refusal
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.compression_api.deciding import Ask, Decided

DECISIONS_MAX = 20_000
_WEIGHT = 0.1  # of one outcome
_SCALE_MAX = math.log(4)
_REBUILD = 0.05  # a table is made anew when a scale has moved by so much

Bytes = Annotated[int, Meta(ge=1, le=2**50)]
Seconds = Annotated[float, Meta(gt=0, le=1e7)]


class Outcome(Shape, frozen=True):
    """What a decision came to. Seconds of CPU for the codec, of the wall for sending; absent: not known."""

    decision_id: Annotated[str, Meta(max_length=64)]
    raw_bytes: Bytes
    packed_bytes: Bytes
    compress_s: Seconds | None = None
    decompress_s: Seconds | None = None
    send_s: Seconds | None = None


class Noted(msgspec.Struct, frozen=True, gc=False):
    """What was predicted: seconds for `size` bytes, the rate in bit/s. Thousands are kept: the collector of
    garbage need not look at them."""

    codec: str
    size: int
    ratio: float
    compress_s: float
    decompress_s: float
    rate_bps: float


class Outcomes:
    """Decisions that wait for their outcome, and the speeds that outcomes have shown."""

    def __init__(self, calibration: Calibration, *, telemetry: Telemetry) -> None:
        self.measured = calibration
        self._telemetry = telemetry
        self._prefix = secrets.token_hex(4)
        self._count = 0
        self._waiting: OrderedDict[str, Noted] = OrderedDict()
        self._scales: dict[str, tuple[float, float]] = {}
        self._built: dict[str, tuple[float, float]] = {}
        self.reported = 0

    def note(self, ask: Ask, decided: Decided) -> str:
        """Keeps a decision; returns its id."""
        self._count += 1
        name = f"{self._prefix}-{self._count:x}"
        row = decided.chosen
        self._waiting[name] = Noted(
            row.codec, ask.total_size, row.ratio, row.compress_s, row.decompress_s, ask.rate_bps
        )
        if len(self._waiting) > DECISIONS_MAX:
            self._waiting.popitem(last=False)
        return name

    def report(self, outcome: Outcome) -> Calibration | None:
        """Takes an outcome; answers with a new calibration where it has moved enough.

        Raises `Refusal` 404 for a decision that is unknown, too old or already reported.
        """
        noted = self._waiting.pop(outcome.decision_id, None)
        if noted is None:
            self._telemetry.count("dwcp_compression_feedback_total", result="unknown")
            raise Refusal(
                404, "unknown_decision", f"no decision {outcome.decision_id!r} waits for its outcome"
            )
        self._telemetry.count("dwcp_compression_feedback_total", result="taken")
        self.reported += 1
        self._compare("ratio", outcome.raw_bytes / outcome.packed_bytes, noted.ratio)
        if outcome.send_s:
            self._compare("bandwidth", outcome.packed_bytes * 8 / outcome.send_s, noted.rate_bps)
        self._learn(noted, outcome)
        return self._rebuilt()

    def scales(self) -> dict[str, tuple[float, float]]:
        """Factors on packing and unpacking speed by codec, where outcomes were reported."""
        return {
            name: (math.exp(pack), math.exp(unpack)) for name, (pack, unpack) in sorted(self._scales.items())
        }

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def _compare(self, what: str, actual: float, predicted: float) -> None:
        if predicted > 0:
            self._telemetry.observe(
                "dwcp_compression_residual_log", abs(math.log(actual / predicted)), what=what
            )

    def _learn(self, noted: Noted, outcome: Outcome) -> None:
        if noted.codec == "none":
            return
        speed = self.measured.speeds[noted.codec]
        pack, unpack = self._scales.get(noted.codec, (0.0, 0.0))
        if outcome.compress_s:
            self._compare_stage("compress", outcome.compress_s, noted.compress_s, noted, outcome)
            pack = _moved(pack, outcome.raw_bytes / outcome.compress_s, speed.pack_bps)
        if outcome.decompress_s:
            self._compare_stage("decompress", outcome.decompress_s, noted.decompress_s, noted, outcome)
            unpack = _moved(unpack, outcome.raw_bytes / outcome.decompress_s, speed.unpack_bps)
        self._scales[noted.codec] = (pack, unpack)
        self._telemetry.gauge("dwcp_compression_calibration_scale", math.exp(pack), codec=noted.codec)

    def _compare_stage(
        self, what: str, actual_s: float, predicted_s: float, noted: Noted, outcome: Outcome
    ) -> None:
        """Predictions are of the wall with a share of a core, outcomes of CPU: compared for a byte of CPU."""
        if noted.size:
            self._compare(what, actual_s / outcome.raw_bytes, predicted_s * CPU_SHARE / noted.size)

    def _rebuilt(self) -> Calibration | None:
        moved = any(
            max(abs(new - old) for new, old in zip(scale, self._built.get(name, (0.0, 0.0)), strict=True))
            > _REBUILD
            for name, scale in self._scales.items()
        )
        if not moved:
            return None
        self._built = dict(self._scales)
        speeds = dict(self.measured.speeds)
        for name, (pack, unpack) in self._built.items():
            measured = speeds[name]
            speeds[name] = Speed(measured.pack_bps * math.exp(pack), measured.unpack_bps * math.exp(unpack))
        return msgspec.structs.replace(self.measured, speeds=speeds)


def _moved(scale: float, actual_bps: float, measured_bps: float) -> float:
    wanted = math.log(actual_bps / measured_bps)
    moved = scale + _WEIGHT * (max(-_SCALE_MAX, min(_SCALE_MAX, wanted)) - scale)
    return max(-_SCALE_MAX, min(_SCALE_MAX, moved))
