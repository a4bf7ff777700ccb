"""A ledger client's connections: one to every replica, pinned by genesis, dialled again when lost."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable

from dwcp.consensus.ledger.genesis import Genesis
from dwcp.runtime.config import TlsFiles
from dwcp.runtime.keys import client_context
from dwcp.runtime.links import HANDSHAKE_SECONDS_MAX, FrameConnection

BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 5.0
BACKLOG_BYTES_MAX = 32 * 1024 * 1024  # requests that one replica may leave unread


class ReplicaLink:
    """The connection to one replica. Frames sent while it is down are lost: the session repeats them."""

    def __init__(
        self,
        replica: int,
        *,
        host: str,
        port: int,
        pin: bytes,
        context: ssl.SSLContext,
        greeting: Callable[[int], bytes],
        received: Callable[[int, list[bytes]], None],
        changed: Callable[[int, bool], None],
    ) -> None:
        self._replica = replica
        self._address = host, port
        self._pin = pin
        self._context = context
        self._greeting = greeting
        self._received = received
        self._changed = changed
        self._connection: FrameConnection | None = None
        self._gone = asyncio.Event()
        self.problem = "not tried yet"  # why there is no connection; "" where there is one

    @property
    def up(self) -> bool:
        return self._connection is not None

    def send(self, frame: bytes) -> None:
        """Queue a frame; it leaves with `flush`."""
        if self._connection is not None:
            self._connection.send(frame)

    def flush(self) -> None:
        connection = self._connection
        if connection is not None and connection.waiting:
            connection.flush()
            if connection.buffered > BACKLOG_BYTES_MAX:
                connection.abort()

    def drop(self) -> None:
        """Close the connection, for example because it brought junk; it is dialled again."""
        if self._connection is not None:
            self._connection.abort()

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        pause = BACKOFF_FIRST_S
        while True:
            if await self._dial():
                pause = BACKOFF_FIRST_S
                await self._gone.wait()
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, BACKOFF_LAST_S)

    async def _dial(self) -> bool:
        self._gone.clear()
        host, port = self._address
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS_MAX):
                await asyncio.get_running_loop().create_connection(
                    lambda: FrameConnection(self), host, port, ssl=self._context, server_hostname=host
                )
        except (TimeoutError, ssl.SSLError, OSError) as exc:
            self.problem = str(exc) or type(exc).__name__
            return False
        return self.up

    # ----------------------------------------------------------------- links call these

    def opened(self, connection: FrameConnection) -> None:
        if connection.fingerprint != self._pin:
            self.problem = "its certificate is not the one in genesis"
            connection.abort()
            return
        self._connection = connection
        self.problem = ""
        connection.send(self._greeting(self._replica))
        self._changed(self._replica, True)
        connection.flush()

    def received(self, connection: FrameConnection, frames: list[bytes]) -> None:
        if connection is self._connection:
            self._received(self._replica, frames)

    def closed(self, connection: FrameConnection) -> None:
        if connection is self._connection:
            self._connection = None
            self.problem = "the connection was lost"
            self._changed(self._replica, False)
        self._gone.set()

    def refused(self, reason: str) -> None:
        self.problem = reason


def replica_links(
    genesis: Genesis,
    tls: TlsFiles,
    *,
    greeting: Callable[[int], bytes],
    received: Callable[[int, list[bytes]], None],
    changed: Callable[[int, bool], None],
) -> list[ReplicaLink]:
    """A link to every replica of genesis, by id. Raises `KeyUnusable`."""
    context = client_context(tls)
    return [
        ReplicaLink(
            replica.id,
            host=replica.host,
            port=replica.client_port,
            pin=bytes.fromhex(replica.tls_sha256),
            context=context,
            greeting=greeting,
            received=received,
            changed=changed,
        )
        for replica in genesis.replicas
    ]
