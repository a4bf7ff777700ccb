"""The port that ledger clients connect to: framed, mutual TLS, bounded per connection.

Anyone with a certificate of the installation may connect; whether it is a known
client is the ledger's to say, by the `Hello` in its first frame.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from dwcp.runtime.http import bind
from dwcp.runtime.links import FrameConnection, TlsListener
from dwcp.runtime.transport import LinkCounters

FIRST_FRAME_SECONDS_MAX = 10.0
REQUEST_FRAME_BYTES_MAX = 2 * 1024 * 1024  # above the largest bundle that any ledger takes
BACKLOG_BYTES_MAX = 16 * 1024 * 1024  # replies and events that one client may leave unread


class ClientPort:
    """Connections are numbered from 1 and never reuse a number.

    A client that does not read what it asked for is closed when its backlog is
    over `BACKLOG_BYTES_MAX`; one that sends junk is closed by the link.
    """

    def __init__(
        self,
        *,
        receive: Callable[[int, list[bytes]], None],
        gone: Callable[[int], None],
        counters: LinkCounters,
        connections_max: int,
    ) -> None:
        self._receive = receive
        self._gone = gone
        self._counters = counters
        self._connections_max = connections_max
        self._connections: dict[int, FrameConnection] = {}
        self._silent: dict[int, asyncio.TimerHandle] = {}
        self._dirty: dict[int, FrameConnection] = {}
        self._next = 1
        self._listener: TlsListener | None = None

    def __len__(self) -> int:
        return len(self._connections)

    def open(self, *, host: str, port: int, accept: ssl.SSLContext) -> None:
        """Raises `AddressTaken`."""
        self._listener = TlsListener(
            bind(host, port),
            accept,
            connect=lambda: FrameConnection(self, frame_bytes_max=REQUEST_FRAME_BYTES_MAX),
            refused=self.refused,
        )

    # ----------------------------------------------------------------- the driver calls these

    def send(self, connection: int, frame: bytes) -> None:
        """Queue a frame; it leaves with `flush`. A connection that has gone is no error."""
        target = self._connections.get(connection)
        if target is None:
            return
        target.send(frame)
        self._dirty[connection] = target

    def flush(self) -> None:
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, {}
        for target in dirty.values():
            target.flush()
            if not target.writable and target.buffered > BACKLOG_BYTES_MAX:
                self.refused("slow_reader")
                target.abort()

    def shut(self, connection: int) -> None:
        """Close one connection after what was sent has gone out."""
        target = self._connections.get(connection)
        if target is not None:
            target.close()

    async def stop_accepting(self) -> None:
        if self._listener is not None:
            await self._listener.close()
            self._listener = None

    async def close(self) -> None:
        await self.stop_accepting()
        for target in list(self._connections.values()):
            target.close()

    # ----------------------------------------------------------------- links call these

    def opened(self, connection: FrameConnection) -> None:
        if len(self._connections) >= self._connections_max:
            self.refused("connections_full")
            connection.abort()
            return
        connection.label = self._next
        self._next += 1
        self._connections[connection.label] = connection
        loop = asyncio.get_running_loop()
        self._silent[connection.label] = loop.call_later(FIRST_FRAME_SECONDS_MAX, self._late, connection)

    def received(self, connection: FrameConnection, frames: list[bytes]) -> None:
        label = connection.label
        if label < 0:
            return  # refused in `opened`
        if self._silent:
            timer = self._silent.pop(label, None)
            if timer is not None:
                timer.cancel()
        self._receive(label, frames)

    def closed(self, connection: FrameConnection) -> None:
        label = connection.label
        timer = self._silent.pop(label, None)
        if timer is not None:
            timer.cancel()
        self._dirty.pop(label, None)
        if self._connections.pop(label, None) is not None:
            self._gone(label)

    def refused(self, reason: str) -> None:
        self._counters.refuse(f"client_{reason}")

    def _late(self, connection: FrameConnection) -> None:
        self._silent.pop(connection.label, None)
        self.refused("silent")
        connection.abort()
