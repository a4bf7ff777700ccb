"""Connections that carry frames over mutual TLS, and the listener that admits them.

Knows nothing of replicas or clients: who may connect is asked of the owner
before the first frame is read. Strangers cost little: handshakes are bounded in
number and time, and junk is closed and counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from dwcp.runtime.frames import FRAME_BYTES_MAX, FrameReader, FrameTooLong, packet

HANDSHAKE_SECONDS_MAX = 5.0
HANDSHAKES_MAX = 64  # connections of one listener that have not shown a certificate yet
PARTIAL_SECONDS_MAX = 30.0  # a frame that was begun must end by then
_ACCEPTS_PER_TURN = 32
_ACCEPT_PAUSE_S = 0.2  # after the system refused a descriptor
_WRITE_HIGH_BYTES = 1_048_576
_USER_TIMEOUT_MS = 15_000  # unacknowledged data for so long means that the other end is gone


class Owner(Protocol):
    """Whom a connection tells what happens to it."""

    def opened(self, connection: FrameConnection) -> None: ...
    def received(self, connection: FrameConnection, frames: list[bytes]) -> None: ...
    def closed(self, connection: FrameConnection) -> None: ...
    def refused(self, reason: str) -> None: ...


class FrameConnection(asyncio.Protocol):
    """One connection. Frames that are sent wait for `flush`, so that a turn costs one write."""

    __slots__ = (
        "_loop",
        "_out",
        "_owner",
        "_partial",
        "_reader",
        "_transport",
        "label",
        "waiting",
        "writable",
    )

    def __init__(self, owner: Owner, *, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._owner = owner
        self._reader = FrameReader(frame_bytes_max=frame_bytes_max)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._partial: asyncio.TimerHandle | None = None
        self._out: list[bytes] = []
        self.waiting = 0  # bytes handed to `send` and not yet to the transport
        self.writable = True
        self.label = -1  # the owner's name for this connection

    # ----------------------------------------------------------------- asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        tune(self._transport.get_extra_info("socket"))
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._reader.feed(data)
        except FrameTooLong:
            self._owner.refused("frame_too_long")
            self.abort()
            return
        if self._reader.partial:
            if self._partial is None:
                self._partial = self._loop.call_later(PARTIAL_SECONDS_MAX, self._late)
            elif frames:
                self._partial.cancel()
                self._partial = self._loop.call_later(PARTIAL_SECONDS_MAX, self._late)
        elif self._partial is not None:
            self._partial.cancel()
            self._partial = None
        if frames and self._transport is not None:
            self._owner.received(self, frames)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # a broken link is an everyday event; the owner counts it
        if self._partial is not None:
            self._partial.cancel()
            self._partial = None
        self._transport = None
        self._out.clear()
        self.waiting = 0
        self._owner.closed(self)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.flush()

    # ----------------------------------------------------------------- owners call these

    @property
    def open(self) -> bool:
        return self._transport is not None

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the other end's certificate."""
        tls = self._transport.get_extra_info("ssl_object") if self._transport is not None else None
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        return hashlib.sha256(certificate).digest() if certificate else b""

    @property
    def buffered(self) -> int:
        """Bytes on their way out: waiting here or in the transport."""
        transport = self._transport
        return self.waiting + (transport.get_write_buffer_size() if transport is not None else 0)

    def send(self, frame: bytes) -> None:
        self.send_packet(packet(frame))

    def send_packet(self, data: bytes) -> None:
        """A frame with its length already in front, as shared by several receivers."""
        self._out.append(data)
        self.waiting += len(data)

    def flush(self) -> None:
        """Hand everything that waits to the transport, in one write, unless it is full."""
        if self._out and self.writable and self._transport is not None:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self.waiting = 0
            self._transport.write(data)

    def drop_oldest(self) -> int:
        """Forget the oldest waiting frame; its size, 0 where none waits."""
        if not self._out:
            return 0
        size = len(self._out.pop(0))
        self.waiting -= size
        return size

    def close(self) -> None:
        """Close after what was written has gone out."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _late(self) -> None:
        self._partial = None
        self._owner.refused("slow_frame")
        self.abort()


def tune(raw: object) -> None:
    """No waiting for more data, and an end that went silent is noticed."""
    if isinstance(raw, socket.socket) or hasattr(raw, "setsockopt"):
        connection = cast(socket.socket, raw)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)


class TlsListener:
    """Accepts on one socket. At most `HANDSHAKES_MAX` strangers at a time, each for a few seconds."""

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        *,
        connect: Callable[[], FrameConnection],
        refused: Callable[[str], None],
    ) -> None:
        """`listening` is non-blocking and becomes this object's own."""
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._context = context
        self._connect = connect
        self._refused = refused
        self._shaking: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(listening.fileno(), self._accept)

    async def close(self) -> None:
        """No new connections; those that are made go on."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listening.fileno())
        self._listening.close()
        for task in list(self._shaking):
            task.cancel()
        await asyncio.gather(*self._shaking, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                raw, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptors left: wait, or the loop would spin
                self._loop.remove_reader(self._listening.fileno())
                self._pause = self._loop.call_later(_ACCEPT_PAUSE_S, self._resume)
                self._refused("descriptors")
                return
            if len(self._shaking) >= HANDSHAKES_MAX:
                raw.close()
                self._refused("handshakes_full")
                continue
            task = self._loop.create_task(self._shake(raw))
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening.fileno(), self._accept)

    async def _shake(self, raw: socket.socket) -> None:
        raw.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(
                self._connect, raw, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS_MAX
            )
        except (OSError, ssl.SSLError, TimeoutError):
            self._refused("handshake")
            raw.close()
