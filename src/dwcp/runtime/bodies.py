"""A request's body read from its socket straight into blocks, for routes that take gigabytes.

The common way (socket, parser, message, block) copies each byte four times and wakes the route for every 64 KiB.
Where the length was announced, nothing of the rest of the body is for the parser, and the kernel can write it where
it is wanted. It knows nothing of HTTP: the connection lends its socket and is told when the body is complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

BLOCKS = "dwcp.blocks"  # the key in a scope's `extensions` under which a connection offers a `Lender`
_SPARE_MAX = 8


class Owner(Protocol):
    """The protocol that the socket belongs to before and after the body."""

    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def body_complete(self) -> None:
        """All was read: the owner's protocol is in place again."""


class BlockBody(asyncio.BufferedProtocol):
    """The `rest` bytes of a body, in blocks of `size`, the last one shorter; `held` were read before.

    One full block waits for `take` while the next is filled; when that is full too the socket is not read, so two
    blocks are held here, whatever the sender does. Buffers that come back by `spare` are filled again.
    """

    def __init__(
        self, transport: asyncio.Transport, owner: Owner, *, held: bytes | bytearray, rest: int, size: int
    ) -> None:
        self._transport = transport
        self._owner = owner
        self._rest = rest
        self._size = size
        self._held = memoryview(held)
        self._spares: list[bytearray] = []
        self._filled = 0  # bytes of `_block`
        self._aside: memoryview | None = None
        self._paused = True
        self._gone = False
        self._came = 0  # bytes from the socket
        self._wanted = size
        self._ready = asyncio.Event()
        self._block = bytearray(size)
        transport.pause_reading()
        transport.set_protocol(self)
        self._go_on()

    # for the route

    async def take(self, *, whole: bool = True, idle_s: float) -> memoryview | None:
        """The next block; where `whole` is not asked for, what there is of one. Empty at the body's end, None when
        the caller has gone. Raises `TimeoutError` when no byte came for `idle_s`."""
        self._wanted = self._size if whole else 1
        while not self._enough():
            self._ready.clear()
            came = self._came
            try:
                async with asyncio.timeout(idle_s):
                    await self._ready.wait()
            except TimeoutError:
                if self._came == came:
                    raise
        if self._gone:
            return None
        taken, self._aside = self._aside, None
        if taken is None:
            taken = self._begin_next()
        self._go_on()
        return taken

    def spare(self, block: memoryview) -> None:
        """Takes back a block that nobody reads any more."""
        buffer = block.obj
        block.release()
        if isinstance(buffer, bytearray) and len(buffer) == self._size and len(self._spares) < _SPARE_MAX:
            self._spares.append(buffer)

    def _enough(self) -> bool:
        some = self._aside is not None or self._filled >= self._wanted
        return some or self._gone or not (self._rest or self._held)

    def _begin_next(self) -> memoryview:
        """What there is of the block; the next one begins."""
        done = memoryview(self._block)[: self._filled]
        self._block = self._spares.pop() if self._spares else bytearray(self._size)
        self._filled = 0
        return done

    def _go_on(self) -> None:
        """Reads where there is room, and only there."""
        self._fill_held()
        if self._filled == self._size and self._aside is None:
            self._aside = self._begin_next()
            self._fill_held()
        room = self._filled < self._size
        if self._paused and room and self._rest and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
        elif not self._paused and not room:
            self._paused = True
            self._transport.pause_reading()

    def _fill_held(self) -> None:
        part = self._held[: self._size - self._filled]
        self._block[self._filled : self._filled + len(part)] = part
        self._filled += len(part)
        self._held = self._held[len(part) :]

    # for the transport

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the transport's guess
        """Where the next bytes go; never room for what follows the body."""
        return memoryview(self._block)[self._filled : min(self._size, self._filled + self._rest)]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        self._came += nbytes
        self._rest -= nbytes
        if self._rest:
            self._go_on()
        else:
            self._give_back()
        if self._enough():
            self._ready.set()

    def eof_received(self) -> None:
        """The body is not complete: the transport closes itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._ready.set()
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()

    def _give_back(self) -> None:
        self._transport.pause_reading()
        self._owner.body_complete()
        self._transport.resume_reading()


Lender = Callable[[int], BlockBody | None]
"""Gives the body in blocks of that many bytes, or None where the common way must do."""
