"""The only place where time is read. Everything else is handed a `Clock` or a `now_ms`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time for people and committed time; monotonic time for durations and leases."""

    def now_ms(self) -> int:
        """Unix time, milliseconds."""
        ...

    def monotonic_ms(self) -> int:
        """Milliseconds that never go back and keep counting while the machine sleeps."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return boottime_ns() // 1_000_000


class ManualClock:
    """A clock that moves when told to; for tests."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._monotonic_ms = 0

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic_ms(self) -> int:
        return self._monotonic_ms

    def advance(self, by_ms: int) -> None:
        self._now_ms += by_ms
        self._monotonic_ms += by_ms


def boottime_ns() -> int:
    """Nanoseconds since the machine started, sleep included; the same in every process."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def iso(at_ms: int) -> str:
    """Unix milliseconds as ISO 8601 in UTC, for people."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
