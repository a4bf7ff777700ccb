"""How fast a link really is: delivered bytes over the time until they were acknowledged.

Two views of one history: an average that follows changes, and a low quartile that guards against believing
a burst. Pure: the caller says when things happened. A rate that is wrong by 2× costs as much as the whole
model gains (spec of the selector, §0.5), so the estimate also says how sure it is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

_HALF_LIFE_S = 2.0
_RECENT = 16
_SAMPLE_BYTES_MIN = 16 << 10  # smaller deliveries measure the round trip
_JUMP = 4.0  # two deliveries in a row this far off the average are a new link: the old history is forgotten
_GUARD = 0.5  # the average is not trusted above the low quartile divided by this


@dataclass(frozen=True, slots=True)
class Rate:
    """The estimate in bit/s; `spread` is the interquartile range over the median (0: steady)."""

    bps: float
    spread: float
    samples: int


class RateEstimator:
    """Follows one path. Starts from a prior, which the first deliveries replace."""

    def __init__(self, prior_bps: float) -> None:
        if not prior_bps > 0:
            raise ValueError(f"a link needs a rate above 0 bit/s, got {prior_bps}")
        self._prior_bps = prior_bps
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._bits = 0.0
        self._seconds = 0.0
        self._outliers: list[tuple[float, float]] = []

    def delivered(self, size_bytes: int, *, seconds: float) -> None:
        """`size_bytes` were on the wire for `seconds` until their acknowledgement, the link never idle.

        Nothing is learned from small deliveries or from clocks that stood still.
        """
        if size_bytes < _SAMPLE_BYTES_MIN or not seconds > 0 or not math.isfinite(seconds):
            return
        bits = 8.0 * size_bytes
        if self._is_outlier(bits / seconds):
            self._outliers.append((bits, seconds))
            if len(self._outliers) < 2:
                return
            pending, self._outliers = self._outliers, []
            self._forget()
            for each_bits, each_seconds in pending:
                self._take(each_bits, each_seconds)
            return
        pending, self._outliers = self._outliers, []
        for each_bits, each_seconds in pending:  # a single leap was noise, and counts as that
            self._take(each_bits, each_seconds)
        self._take(bits, seconds)

    @property
    def rate(self) -> Rate:
        if not self._recent:
            return Rate(self._prior_bps, 1.0, 0)
        ordered = sorted(self._recent)
        low, middle, high = (ordered[int(part * (len(ordered) - 1))] for part in (0.25, 0.5, 0.75))
        average = self._bits / self._seconds
        return Rate(min(average, low / _GUARD), (high - low) / middle, len(ordered))

    def _take(self, bits: float, seconds: float) -> None:
        keep = 0.5 ** (seconds / _HALF_LIFE_S)
        self._bits = self._bits * keep + bits
        self._seconds = self._seconds * keep + seconds
        self._recent.append(bits / seconds)

    def _is_outlier(self, bps: float) -> bool:
        if len(self._recent) < 2:
            return False
        average = self._bits / self._seconds
        return not average / _JUMP < bps < average * _JUMP

    def _forget(self) -> None:
        self._bits = self._seconds = 0.0
        self._recent.clear()
