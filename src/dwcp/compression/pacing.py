"""A link's rate, kept by arithmetic alone: the caller says what time it is and does the waiting."""

from __future__ import annotations

MBIT = 1_000_000


class Bucket:
    """A token bucket of bits. Debt is allowed, so that a large piece waits once, afterwards.

    Invariant: over any stretch of t seconds at most `rate · t + burst` bits pass, plus one piece.
    """

    def __init__(self, rate_bps: float, *, burst_bytes: int = 64 << 10) -> None:
        if rate_bps <= 0:
            raise ValueError(f"a link needs a rate above 0 bit/s, got {rate_bps}")
        self.rate_bps = rate_bps
        self._burst_bits = burst_bytes * 8
        self._level_bits = float(self._burst_bits)
        self._seen_s: float | None = None

    def take(self, size_bytes: int, *, now_s: float) -> float:
        """Accounts for the bytes; returns the seconds to wait before they may count as sent."""
        if self._seen_s is not None:
            gained = max(0.0, now_s - self._seen_s) * self.rate_bps
            self._level_bits = min(self._burst_bits, self._level_bits + gained)
        self._seen_s = now_s
        self._level_bits -= size_bytes * 8
        return max(0.0, -self._level_bits / self.rate_bps)
