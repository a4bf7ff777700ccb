"""How long a view may take: grows while views fail, shrinks while slots commit.

It holds no timer and reads no clock; it is told latencies and answers timeouts, in milliseconds.
"""

from __future__ import annotations

SAMPLES_MAX = 128  # latencies remembered
REVIEW_EVERY = 16  # commits between two looks at the 99th percentile
FLOOR_FACTOR = 4  # the floor is this many times the 99th percentile


class Pacemaker:
    """The adaptive view timeout.

    Invariant: `floor_ms ≤ timeout_ms ≤ cap_ms`, where the floor is the greater of
    `start_ms` and four times the 99th percentile of measured commits.
    """

    __slots__ = ("_cap_ms", "_latencies", "_next", "_start_ms", "floor_ms", "timeout_ms")

    def __init__(self, *, start_ms: int, cap_ms: int) -> None:
        self._start_ms = start_ms
        self._cap_ms = cap_ms
        self._latencies: list[int] = []
        self._next = 0
        self.floor_ms = start_ms
        self.timeout_ms = start_ms

    def failed(self) -> None:
        """A view passed without success: allow the next one half as much again."""
        self.timeout_ms = min(self._cap_ms, self.timeout_ms * 3 // 2)

    def progressed(self, latency_ms: int) -> None:
        """A slot was decided `latency_ms` after it was accepted here."""
        latency_ms = max(0, latency_ms)
        if len(self._latencies) < SAMPLES_MAX:
            self._latencies.append(latency_ms)
        else:
            self._latencies[self._next % SAMPLES_MAX] = latency_ms
        self._next += 1
        if self._next % REVIEW_EVERY == 0:
            self._review()

    def _review(self) -> None:
        ordered = sorted(self._latencies)
        p99 = ordered[(len(ordered) * 99) // 100]
        self.floor_ms = min(self._cap_ms, max(self._start_ms, FLOOR_FACTOR * p99))
        decayed = self.timeout_ms - max(1, self.timeout_ms // 8)
        self.timeout_ms = max(self.floor_ms, decayed)
