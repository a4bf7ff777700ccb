"""How fast the link is, from the kernel's own account of our connections.

Linux counts for each TCP connection the bytes that its peer has acknowledged and the time in which it had
something to send. Their quotient is the link's rate, however much the socket's buffers have swallowed, but only
where the link was what held us up: a question, a short burst or a window that still grows takes its time on an idle
link too. Such a sample says that the link gives this much at least, so it may raise the belief and never lowers it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dwcp.compression.bandwidth import RateEstimator
from dwcp.compression.pacing import MBIT

_TCP_INFO_BYTES = 192
# `struct tcp_info`, stable since Linux 4.10: where its fields are
_SEGMENT_AT, _UNACKED_AT, _THRESHOLD_AT, _ACKED_AT, _UNSENT_AT, _RTT_MIN_AT, _BUSY_AT = (
    16,
    24,
    76,
    120,
    144,
    148,
    168,
)
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_NO_THRESHOLD = 0x7FFFFFFF  # the window has not met a limit yet
_PAUSE_S = 0.02  # samples closer than this say little
_TELLING_BYTES = 16 << 10  # fewer, on a link that is mostly idle: a question, which measures the round trip
_BUSY = 0.5  # of the time between two samples: a link that is so slow that little arrives in it
_SHOWN_S_MAX = 0.3  # a link that is slower than its first sample in this time is slow enough to be waited for
_QUEUE_S = 0.005  # what waits longer than this and two round trips waits for the link
_RATE_MAX = (
    2.5e9  # encrypting, sending and receiving cost a process as much as such a link (3 ns a byte at each end)
)
_SECONDS_MIN = 1e-6


@dataclass(frozen=True, slots=True)
class Account:
    """What the kernel says of a connection: bytes acknowledged so far, µs busy so far; bytes on their way and
    bytes that wait for the window; its shortest round trip in µs; whether its window has met the link's limit."""

    acked: int
    busy_us: int
    flying: int = 0
    unsent: int = 0
    rtt_min_us: int = 0
    bounded: bool = False


class LinkMeter:
    """The rate of the link that some connections share. Where the kernel does not tell, the first guess stays."""

    def __init__(self, *, clock: Callable[[], float], first_bps: float = 100 * MBIT) -> None:
        self._clock = clock
        self._estimate = RateEstimator(first_bps)
        self._acked, self._busy_s = 0, 0.0  # not yet in the estimate
        self._seen: dict[socket.socket, Account] = {}
        self._shown_until_s: float | None = None
        self._at_s = clock()

    def watch(self, connection: socket.socket) -> None:
        """From now on this connection counts."""
        if connection in self._seen:
            return
        account = read_account(connection)
        if account is not None:
            self._seen[connection] = account

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """For httpx's "trace" extension: watches every connection that a request opens. Any: httpx's own."""
        if event == "connection.connect_tcp.complete":
            connection = info["return_value"].get_extra_info("socket")
            if connection is not None:
                self.watch(connection)

    @property
    def rate_bps(self) -> float:
        now_s = self._clock()
        if now_s - self._at_s >= _PAUSE_S:
            self._sample(now_s - self._at_s)
            self._at_s = now_s
        return min(_RATE_MAX, self._estimate.rate.bps)

    async def shown(self) -> None:
        """Returns once the link has shown its rate, or that it has time to spare, or soon; call it when something
        is under way. It waits once."""
        if self._shown_until_s is None:
            self._shown_until_s = self._clock() + _SHOWN_S_MAX
        while self._seen and not self._estimate.rate.samples and self._clock() < self._shown_until_s:
            await asyncio.sleep(_PAUSE_S)
            _ = self.rate_bps
            if not any(account.flying or account.unsent for account in self._seen.values()):
                return

    def _sample(self, elapsed_s: float) -> None:
        acked = busy_us = 0
        held_up = False
        for connection, before in list(self._seen.items()):
            account = read_account(connection)
            if account is None:  # closed
                del self._seen[connection]
                continue
            self._seen[connection] = account
            acked += account.acked - before.acked
            busy_us += account.busy_us - before.busy_us
            held_up = held_up or _held_up(before, account)
        # Connections that are busy at once share the link: their times must not be counted twice.
        waited_s = max(_SECONDS_MIN, min(elapsed_s, busy_us / 1e6))
        if not held_up:
            self._acked, self._busy_s = 0, 0.0
            if acked >= _TELLING_BYTES and 8 * acked / waited_s > self._estimate.rate.bps:
                self._estimate.delivered(acked, seconds=waited_s)
            return
        if acked < _TELLING_BYTES and waited_s < _BUSY * elapsed_s:
            self._acked, self._busy_s = 0, 0.0  # the end of a stretch, which told nothing
            return
        self._acked += acked
        self._busy_s += waited_s
        if self._acked >= _TELLING_BYTES:
            self._estimate.delivered(self._acked, seconds=self._busy_s)
            self._acked, self._busy_s = 0, 0.0


def _held_up(before: Account, now: Account) -> bool:
    """Whether the link was what a connection waited for between two accounts, and not we or its growing window.

    By Little's law what is on its way takes as long as it is large by the rate; where that is far above the
    shortest round trip, it stands in a queue. A window that the link has bounded, and bytes that wait for it at both
    times, say the same where the queue is short.
    """
    flying = min(before.flying, now.flying)
    seconds = max(_SECONDS_MIN, (now.busy_us - before.busy_us) / 1e6)
    waits_s = flying / max(1.0, (now.acked - before.acked) / seconds)
    queued = waits_s > 2e-6 * now.rtt_min_us + _QUEUE_S and flying > 0
    return queued or (now.bounded and before.unsent > 0 and now.unsent > 0)


def read_account(connection: socket.socket) -> Account | None:
    """None: closed, or not a kernel that tells."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except (OSError, ValueError, AttributeError):  # ValueError: a closed transport has no descriptor
        return None
    if len(info) < _BUSY_AT + _U64.size:
        return None

    def word(at: int) -> int:
        return int(_U32.unpack_from(info, at)[0])

    return Account(
        acked=_U64.unpack_from(info, _ACKED_AT)[0],
        busy_us=_U64.unpack_from(info, _BUSY_AT)[0],
        flying=word(_UNACKED_AT) * word(_SEGMENT_AT),
        unsent=word(_UNSENT_AT),
        rtt_min_us=word(_RTT_MIN_AT),
        bounded=word(_THRESHOLD_AT) < _NO_THRESHOLD,
    )
