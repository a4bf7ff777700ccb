"""A link's rate, kept by arithmetic alone: the caller says what time it is and does the waiting."""

from __future__ import annotations

from collections import deque

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


class Outlook:
    """The time left, from what the last seconds moved: a link that became slow shows within the window.

    Nothing is promised before a second has passed, and nothing after the window went by without a byte.
    """

    def __init__(self, *, now_s: float, window_s: float = 10.0) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, int]] = deque([(now_s, 0)])  # (time, bytes so far), oldest first

    def rate(self, done_bytes: int, *, now_s: float) -> float | None:
        """Bytes per second over the window, `done_bytes` having been moved so far; None: not known."""
        if now_s - self._seen[-1][0] >= self._window_s / 50:
            self._seen.append((now_s, done_bytes))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= self._window_s:
            self._seen.popleft()
        since_s, before = self._seen[0]
        if now_s - since_s < 1.0 or done_bytes <= before:
            return None
        return (done_bytes - before) / (now_s - since_s)

    def left_s(self, done_bytes: int, total_bytes: int, *, now_s: float) -> float | None:
        """Seconds until `total_bytes` at the window's rate; 0 when all is done; None: not known."""
        rate = self.rate(done_bytes, now_s=now_s)
        if done_bytes >= total_bytes:
            return 0.0
        return (total_bytes - done_bytes) / rate if rate else None


class Goodput:
    """The rate of a link as its sender sees it: bytes handed over per second of waiting for the link.

    Time that passes elsewhere (packing, reading) is not the link's, so a link that is never waited for
    counts as fast. The past fades by half with every `half_life_s` of waiting.
    """

    def __init__(self, *, half_life_s: float = 1.0, first_bps: float = 100 * MBIT) -> None:
        self._half_life_s = half_life_s
        self._first_bps = first_bps
        self._bits = 0.0
        self._seconds = 0.0

    def add(self, size_bytes: int, *, waited_s: float) -> None:
        fading = 0.5 ** (waited_s / self._half_life_s)
        self._bits = self._bits * fading + size_bytes * 8
        self._seconds = self._seconds * fading + waited_s

    @property
    def rate_bps(self) -> float:
        """Bits per second; the first guess until something was waited for, 10 Gbit/s at most."""
        if self._seconds < 0.001 and self._bits < 8 * MBIT:
            return self._first_bps
        return min(10e9, self._bits / max(self._seconds, 1e-9))


class Shares:
    """Who is next on a link that several transfers want: each gets bytes in proportion to its weight.

    Self-clocked fair queueing (Golestani, INFOCOM 1994): a piece is served in the order of the time at
    which it would end if every transfer had its share to itself. A transfer that was idle saves nothing up.
    """

    def __init__(self) -> None:
        self._now = 0.0  # the tag of the piece that is being served
        self._last: dict[object, float] = {}

    def tag(self, transfer: object, size_bytes: int, *, weight: float) -> float:
        """The place of a piece in the line; the smallest is served first."""
        tag = max(self._now, self._last.get(transfer, 0.0)) + size_bytes / weight
        self._last[transfer] = tag
        return tag

    def serve(self, tag: float) -> None:
        """This piece is next; transfers whose last piece is over are forgotten."""
        self._now = max(self._now, tag)
        if len(self._last) > 64:
            self._last = {transfer: last for transfer, last in self._last.items() if last >= self._now}
