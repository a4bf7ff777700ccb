"""How fast the link is, from the kernel's own account of our connections.

Linux counts for each TCP connection the bytes that its peer has acknowledged and the time in which it had
something to send. Their quotient is the link's rate, however much the socket's buffers have swallowed.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

from dwcp.compression.bandwidth import RateEstimator
from dwcp.compression.pacing import MBIT

_TCP_INFO_BYTES = 192
_BYTES_ACKED_AT, _BUSY_US_AT = 120, 168  # `struct tcp_info`, stable since Linux 4.10
_U64 = struct.Struct("=Q")
_PAUSE_S = 0.02  # samples closer than this say little
_TELLING_BYTES = 16 << 10  # fewer, on a link that is mostly idle: a question, which measures the round trip
_BUSY = 0.5  # of the time between two samples: a link that is so slow that little arrives in it
_SHOWN_S_MAX = 0.3  # a link that is slower than its first sample in this time is slow enough to be waited for
_RATE_MAX = 10e9
_SECONDS_MIN = 1e-6


class LinkMeter:
    """The rate of the link that some connections share. Where the kernel does not tell, the first guess stays."""

    def __init__(self, *, clock: Callable[[], float], first_bps: float = 100 * MBIT) -> None:
        self._clock = clock
        self._estimate = RateEstimator(first_bps)
        self._acked, self._busy_s = 0, 0.0  # not yet in the estimate
        self._seen: dict[socket.socket, tuple[int, int]] = {}  # bytes acknowledged, µs busy
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
        """Returns once the link has shown its rate, or soon; call it when something is under way."""
        until_s = self._clock() + _SHOWN_S_MAX
        while self._seen and not self._estimate.rate.samples and self._clock() < until_s:
            await asyncio.sleep(_PAUSE_S)
            _ = self.rate_bps

    def _sample(self, elapsed_s: float) -> None:
        acked = busy_us = 0
        for connection, before in list(self._seen.items()):
            account = read_account(connection)
            if account is None:  # closed
                del self._seen[connection]
                continue
            self._seen[connection] = account
            acked += account[0] - before[0]
            busy_us += account[1] - before[1]
        # Connections that are busy at once share the link: their times must not be counted twice.
        waited_s = min(elapsed_s, busy_us / 1e6)
        if acked < _TELLING_BYTES and waited_s < _BUSY * elapsed_s:
            self._acked, self._busy_s = 0, 0.0  # a question, or the end of a stretch that told nothing
            return
        self._acked += acked
        self._busy_s += waited_s
        if self._acked >= _TELLING_BYTES:
            self._estimate.delivered(self._acked, seconds=max(_SECONDS_MIN, self._busy_s))
            self._acked, self._busy_s = 0, 0.0


def read_account(connection: socket.socket) -> tuple[int, int] | None:
    """(bytes acknowledged, µs busy) of a connection; None: closed, or not a kernel that tells."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except (OSError, ValueError, AttributeError):  # ValueError: a closed transport has no descriptor
        return None
    if len(info) < _BUSY_US_AT + _U64.size:
        return None
    return _U64.unpack_from(info, _BYTES_ACKED_AT)[0], _U64.unpack_from(info, _BUSY_US_AT)[0]
