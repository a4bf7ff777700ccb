"""Two models side by side on live questions: both choices are tried on the sample and priced, off the path.

The subject is judged against the reference; a bounded queue takes what comes, and what is too much is left
out. The sample is really packed and unpacked by both codecs (thread time), priced on the asked link.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from dwcp.compression.calibration import Speed
from dwcp.compression.codecs import Codec
from dwcp.compression.table import price
from dwcp.models.shadow import Comparison, Verdict
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.compression_api.deciding import Ask, Decided, Decider

QUEUE_MAX = 64
FAULTS_MAX = 5  # a subject that fails so often is out
SLOW_S = 0.005  # so is one whose p99 of selecting is above this
_TIMINGS = 512
_TIMINGS_MIN = 200
_INSTANT_S = 1e-7


@dataclass(frozen=True, slots=True)
class Sampled:
    """A question, what one of the two decided, and who is still to be asked."""

    ask: Ask
    decided: Decided
    by_subject: bool


class Trial:
    """One comparison of two deciders. `verdict` is final once it is not inconclusive."""

    def __init__(self, subject: Decider, reference: Decider, *, telemetry: Telemetry) -> None:
        self.subject = subject
        self.reference = reference
        self.comparison = Comparison()
        self.faults = 0
        self._asked = self._decided = 0
        self._timings: deque[float] = deque(maxlen=_TIMINGS)
        self._waiting: asyncio.Queue[Sampled] = asyncio.Queue(QUEUE_MAX)
        self._telemetry = telemetry

    def offer(self, sampled: Sampled) -> None:
        """Never waits."""
        self._asked += 1
        self._decided += sampled.by_subject
        try:
            self._waiting.put_nowait(sampled)
        except asyncio.QueueFull:
            self._telemetry.count("dwcp_compression_shadow_skipped_total")

    def timed(self, seconds: float) -> None:
        self._timings.append(seconds)

    def fault(self) -> None:
        self.faults += 1

    @property
    def share_seen(self) -> float:
        """Of the questions that were offered, how many the subject has decided."""
        return self._decided / max(1, self._asked)

    @property
    def slow_p99_s(self) -> float:
        """0 before there are enough timings."""
        if len(self._timings) < _TIMINGS_MIN:
            return 0.0
        return sorted(self._timings)[int(0.99 * len(self._timings))]

    @property
    def verdict(self) -> Verdict:
        if self.faults >= FAULTS_MAX or self.slow_p99_s > SLOW_S:
            return Verdict.FAIL
        return self.comparison.verdict()

    async def run(self, judged: Callable[[Trial], None]) -> None:
        """Prices what was offered, one at a time, and tells `judged` after each; until cancelled."""
        while True:
            sampled = await self._waiting.get()
            try:
                mine, theirs = self._choices(sampled)
                costs = await asyncio.to_thread(costs_s, mine, theirs, sampled.ask)
            except Exception:  # noqa: BLE001  # a model's own fault: counted, never ours to fail by
                self.fault()
            else:
                self.comparison = self.comparison.add(*costs)
                self._telemetry.gauge("dwcp_compression_shadow_samples", self.comparison.samples)
                self._telemetry.gauge("dwcp_compression_shadow_regret_log", self.comparison.mean)
            judged(self)

    def _choices(self, sampled: Sampled) -> tuple[Codec, Codec]:
        """The subject's and the reference's; deciders are asked on the loop, they need not be thread-safe."""
        if sampled.by_subject:
            return sampled.decided.codec, self.reference.decide(sampled.ask).codec
        return self.subject.decide(sampled.ask).codec, sampled.decided.codec


def costs_s(mine: Codec, theirs: Codec, ask: Ask) -> tuple[float, float]:
    """Seconds of either choice; equal choices cost the same. Blocking, some ms."""
    if mine is theirs:
        return 1.0, 1.0
    return measured_s(mine, ask), measured_s(theirs, ask)


def measured_s(codec: Codec, ask: Ask) -> float:
    """What the codec costs on this link if all data is like the sample: packed and unpacked here, now."""
    raw = ask.sample
    started = time.thread_time()
    packed = codec.pack(raw)
    middle = time.thread_time()
    stored = len(packed) >= len(raw)
    if not stored:
        codec.unpack(packed, raw_size=len(raw))
    ended = time.thread_time()
    pack_s, unpack_s = max(middle - started, _INSTANT_S), max(ended - middle, _INSTANT_S)
    speed = Speed(len(raw) / pack_s, len(raw) / unpack_s)
    ratio = 1.0 if stored else len(raw) / len(packed)
    row = price(codec, ratio=ratio, speed=speed, rate_bps=ask.rate_bps, size_bytes=ask.total_size)
    return row.total_s + ask.rtt_s / 2
