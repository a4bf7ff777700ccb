"""How much work is taken at once: more than that is refused before it costs anything, and nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dwcp.runtime.http import Refusal
from dwcp.runtime.telemetry import Telemetry

_BURST_S = 0.25  # of the rated load may arrive at one moment


@dataclass(slots=True)
class Bucket:
    """Tokens: `per_s` come in, `most` are kept. A decision takes one."""

    per_s: float
    most: float
    level: float
    at_s: float = 0.0

    def take(self, wanted: float, *, now_s: float) -> float:
        """0 where it is taken; else the seconds until it could be. What exceeds `most` is taken from a
        full bucket and paid off afterwards, so that a batch is never refused for ever."""
        self.level = min(self.most, self.level + (now_s - self.at_s) * self.per_s)
        self.at_s = now_s
        needed = min(wanted, self.most)
        if self.level >= needed:
            self.level -= wanted
            return 0.0
        return (needed - self.level) / self.per_s


class Admission:
    """Rated decisions a second, and streams side by side. `clock` tells monotonic seconds."""

    def __init__(
        self, *, rated_per_s: float, streams_max: int, clock: Callable[[], float], telemetry: Telemetry
    ) -> None:
        most = max(1.0, rated_per_s * _BURST_S)
        self._bucket = Bucket(rated_per_s, most, most, clock())
        self._clock = clock
        self._streams_max = streams_max
        self._streams = 0
        self._telemetry = telemetry
        self.refused = 0  # decisions that were asked for above the rate

    def decisions(self, count: int = 1) -> None:
        """Raises `Refusal` 429 with `Retry-After` where the rated load is exceeded."""
        wait_s = self._bucket.take(count, now_s=self._clock())
        if wait_s:
            self.refused += count
            self._refuse("rate", "more questions than this service is rated for", wait_s)

    def __enter__(self) -> None:
        """Takes a place for a stream; raises `Refusal` 429 where all are taken."""
        if self._streams >= self._streams_max:
            self._refuse("streams", f"{self._streams_max} streams are open already", 1.0)
        self._streams += 1
        self._telemetry.gauge("dwcp_compression_streams_open", self._streams)

    def __exit__(self, *exc: object) -> None:
        self._streams -= 1
        self._telemetry.gauge("dwcp_compression_streams_open", self._streams)

    def _refuse(self, reason: str, detail: str, wait_s: float) -> None:
        self._telemetry.count("dwcp_compression_overload_total", reason=reason)
        seconds = max(1, math.ceil(wait_s))
        raise Refusal(429, "overloaded", f"{detail}: ask again in {seconds} s", {"Retry-After": str(seconds)})
