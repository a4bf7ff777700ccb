"""A circuit breaker: stops asking a dependency that keeps failing, then tries it gently again."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """Opens after `failures` in a row, tries again after `open_ms`, closes after `successes`."""

    failures: int = 5
    open_ms: int = 30_000
    successes: int = 2


@dataclass(slots=True)
class Breaker:
    """Time is given; a clock that jumps back keeps it open at most `open_ms` longer.

    Half open, one call at a time is let through; `trial` marks it under way.
    """

    name: str
    limits: BreakerLimits = field(default_factory=BreakerLimits)
    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    successes: int = 0
    last_error: str = ""
    _opened_ms: int = 0
    _trial_ms: int | None = None

    def allows(self, *, now_ms: int) -> bool:
        """Whether a call may go out now; half open it also takes the one trial."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN:
            if self.retry_after_ms(now_ms=now_ms) > 0:
                return False
            self.state, self.successes = BreakerState.HALF_OPEN, 0
        if self._trial_ms is not None and 0 <= now_ms - self._trial_ms < self.limits.open_ms:
            return False
        self._trial_ms = now_ms
        return True

    def succeeded(self) -> None:
        self.failures, self._trial_ms = 0, None
        if self.state is BreakerState.HALF_OPEN:
            self.successes += 1
            if self.successes >= self.limits.successes:
                self.reset()

    def failed(self, error: str, *, now_ms: int) -> None:
        """One failure half open opens it again: the dependency is not well yet."""
        self.failures += 1
        self.last_error, self._trial_ms = error, None
        if self.state is BreakerState.HALF_OPEN or self.failures >= self.limits.failures:
            self.state, self.successes, self._opened_ms = BreakerState.OPEN, 0, now_ms

    def reset(self) -> None:
        """Closed and forgetful, as at the start; what an operator's reset does."""
        self.state, self.failures, self.successes = BreakerState.CLOSED, 0, 0
        self.last_error, self._trial_ms = "", None

    def retry_after_ms(self, *, now_ms: int) -> int:
        """How long an open breaker stays shut; 0 in the other states."""
        if self.state is not BreakerState.OPEN:
            return 0
        waited = max(0, now_ms - self._opened_ms)
        return max(0, self.limits.open_ms - waited)
