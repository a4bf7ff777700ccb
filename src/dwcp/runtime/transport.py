"""Links between replicas: who is at the other end is proven by the certificate that genesis pins.

Every replica dials every other one and sends on that connection alone; it
receives on the connections that others dialled. One each way, because then the
sender alone owns a link's life: no tie-break between simultaneous dials, and a
half-dead connection stops one direction only. The price is a second socket.

A link loses frames: when it breaks, when its queue is over `QUEUE_BYTES_MAX`
(the oldest first), while it is down (all). Protocols retransmit.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Codec, Record
from dwcp.runtime.frames import packet
from dwcp.runtime.http import bind
from dwcp.runtime.links import HANDSHAKE_SECONDS_MAX, FrameConnection, TlsListener

PROTOCOL_VERSION = 1
QUEUE_BYTES_MAX = 32 * 1024 * 1024  # per peer, above what the transport holds
HELLO_SECONDS_MAX = 5.0
UNGREETED_MAX = 32  # inbound connections with a good certificate that have not said hello
BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 2.0
_MAGIC = b"DWCP-PEER"


class Hello(Record, frozen=True):
    """The first frame each way of a link. `replica` must be the one whose certificate was shown."""

    magic: bytes
    version: int
    chain_id: bytes
    epoch: int
    replica: int


_HELLO: Codec[Hello] = Codec(Hello)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another replica, as genesis describes it."""

    replica: int
    host: str
    port: int
    tls_sha256: bytes


@dataclass(slots=True)
class LinkCounters:
    """Totals since the start, for metrics."""

    refused: dict[str, int] = field(default_factory=dict)
    sent_bytes: dict[int, int] = field(default_factory=dict)
    received_bytes: dict[int, int] = field(default_factory=dict)
    dropped_frames: dict[int, int] = field(default_factory=dict)

    def refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1


@dataclass(frozen=True, slots=True)
class Identity:
    """What this replica says of itself, and what it demands of others."""

    chain_id: bytes
    epoch: int
    replica: int

    def hello(self) -> bytes:
        return codec.encode(Hello(_MAGIC, PROTOCOL_VERSION, self.chain_id, self.epoch, self.replica))

    def fault(self, frame: bytes, *, expected: int) -> str:
        """Why the other end's hello is not acceptable; "" where it is."""
        try:
            hello = _HELLO.decode(frame)
        except MalformedFrame:
            return "hello_malformed"
        if hello.magic != _MAGIC or hello.version != PROTOCOL_VERSION:
            return "hello_version"
        if hello.chain_id != self.chain_id:
            return "hello_chain"
        if hello.epoch != self.epoch:
            return "hello_epoch"
        return "" if hello.replica == expected else "hello_replica"


class Inbound:
    """The connections that peers dialled: received from, never sent to after the hello."""

    def __init__(
        self,
        *,
        identity: Identity,
        peers: Sequence[Peer],
        receive: Callable[[int, list[bytes]], None],
        counters: LinkCounters,
    ) -> None:
        self._identity = identity
        self._by_fingerprint = {peer.tls_sha256: peer.replica for peer in peers}
        self._receive = receive
        self._counters = counters
        self._ungreeted: dict[FrameConnection, asyncio.TimerHandle] = {}
        self._current: dict[int, FrameConnection] = {}

    def connection(self) -> FrameConnection:
        return FrameConnection(self)

    def opened(self, connection: FrameConnection) -> None:
        replica = self._by_fingerprint.get(connection.fingerprint)
        if replica is None:
            self._refuse(connection, "unknown_certificate")
            return
        if len(self._ungreeted) >= UNGREETED_MAX:
            self._refuse(connection, "hellos_full")
            return
        connection.label = replica
        loop = asyncio.get_running_loop()
        self._ungreeted[connection] = loop.call_later(
            HELLO_SECONDS_MAX, self._refuse, connection, "hello_timeout"
        )

    def received(self, connection: FrameConnection, frames: list[bytes]) -> None:
        replica = connection.label
        if replica < 0:
            return  # refused in `opened`; the abort is on its way
        timer = self._ungreeted.pop(connection, None)
        if timer is not None:
            timer.cancel()
            fault = self._identity.fault(frames[0], expected=replica)
            if fault:
                self._refuse(connection, fault)
                return
            self._take_over(connection)
            del frames[0]
        if frames and self._current.get(replica) is connection:
            received = self._counters.received_bytes
            received[replica] = received.get(replica, 0) + sum(map(len, frames))
            self._receive(replica, frames)

    def _take_over(self, connection: FrameConnection) -> None:
        """The newest connection of a peer is its link; an older one is half-dead."""
        older = self._current.get(connection.label)
        self._current[connection.label] = connection
        if older is not None:
            older.abort()
        connection.send(self._identity.hello())
        connection.flush()

    def closed(self, connection: FrameConnection) -> None:
        timer = self._ungreeted.pop(connection, None)
        if timer is not None:
            timer.cancel()
        if self._current.get(connection.label) is connection:
            del self._current[connection.label]

    def refused(self, reason: str) -> None:
        self._counters.refuse(reason)

    def _refuse(self, connection: FrameConnection, reason: str) -> None:
        self._counters.refuse(reason)
        connection.label = -1
        connection.abort()

    def close(self) -> None:
        for connection in (*self._current.values(), *self._ungreeted):
            connection.abort()


class Outbound:
    """The link to one peer: dialled again, with growing pauses, for as long as this object runs."""

    def __init__(
        self,
        *,
        identity: Identity,
        peer: Peer,
        context: ssl.SSLContext,
        counters: LinkCounters,
        changed: Callable[[int, bool], None],
    ) -> None:
        self._identity = identity
        self._peer = peer
        self._context = context
        self._counters = counters
        self._changed = changed
        self._connection: FrameConnection | None = None
        self._greeting: asyncio.Future[bytes] | None = None
        self._gone = asyncio.Event()
        self.up = False

    # ----------------------------------------------------------------- sending

    def send_packet(self, data: bytes) -> None:
        """Queue for `flush`. Over the bound the oldest waiting frame goes first."""
        connection = self._connection
        if not self.up or connection is None:
            self._drop()
            return
        connection.send_packet(data)
        while connection.waiting > QUEUE_BYTES_MAX and connection.drop_oldest():
            self._drop()

    def flush(self) -> None:
        connection = self._connection
        if connection is not None and connection.waiting:
            before = connection.waiting
            connection.flush()
            sent = self._counters.sent_bytes
            sent[self._peer.replica] = sent.get(self._peer.replica, 0) + before - connection.waiting

    def _drop(self) -> None:
        dropped = self._counters.dropped_frames
        dropped[self._peer.replica] = dropped.get(self._peer.replica, 0) + 1

    # ----------------------------------------------------------------- life

    async def run(self) -> None:
        """Dial, greet, wait for the end, again; until cancelled."""
        pause = BACKOFF_FIRST_S
        while True:
            if await self._dial():
                pause = BACKOFF_FIRST_S
                await self._gone.wait()
            self._down()
            await asyncio.sleep(pause * (0.5 + random.random()))  # jitter: peers must not dial in step
            pause = min(pause * 2, BACKOFF_LAST_S)

    async def _dial(self) -> bool:
        """Whether the link is up; every other outcome is counted."""
        loop = asyncio.get_running_loop()
        self._gone.clear()
        self._greeting = loop.create_future()
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS_MAX + HELLO_SECONDS_MAX):
                await loop.create_connection(
                    lambda: FrameConnection(self),
                    self._peer.host,
                    self._peer.port,
                    ssl=self._context,
                    server_hostname=self._peer.host,
                    ssl_handshake_timeout=HANDSHAKE_SECONDS_MAX,
                )
                fault = self._identity.fault(await self._greeting, expected=self._peer.replica)
        except (TimeoutError, ssl.SSLError, OSError) as exc:
            fault = "dial_tls" if isinstance(exc, ssl.SSLError) else "dial"
        if fault or self._connection is None:
            self._counters.refuse(fault or "dial")
            return False
        self.up = True
        self._changed(self._peer.replica, True)
        return True

    def _down(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        if self.up:
            self.up = False
            self._changed(self._peer.replica, False)

    def opened(self, connection: FrameConnection) -> None:
        if connection.fingerprint != self._peer.tls_sha256:
            self._counters.refuse("unknown_certificate")
            connection.abort()
            return
        self._connection = connection
        connection.send(self._identity.hello())
        connection.flush()

    def received(self, connection: FrameConnection, frames: list[bytes]) -> None:
        if self._greeting is not None and not self._greeting.done() and len(frames) == 1:
            self._greeting.set_result(frames[0])
            return
        self._counters.refuse("unasked_frame")  # the other end never sends on this connection
        connection.abort()

    def closed(self, connection: FrameConnection) -> None:
        if self._greeting is not None and not self._greeting.done():
            self._greeting.set_exception(ConnectionResetError("closed before its hello"))
        if self._connection is connection:
            self._connection = None
            self._gone.set()

    def shut(self) -> None:
        """Close after what was written has gone out; `run` has ended."""
        if self._connection is not None:
            self._connection.close()

    def refused(self, reason: str) -> None:
        self._counters.refuse(reason)


class PeerLinks:
    """All links of one replica. `receive(peer, frames)` is called in the loop, in order per peer."""

    def __init__(
        self,
        *,
        identity: Identity,
        peers: Sequence[Peer],
        dial: ssl.SSLContext,
        receive: Callable[[int, list[bytes]], None],
        changed: Callable[[int, bool], None],
    ) -> None:
        """`peers` are the others; `dial` is the client side of this replica's TLS."""
        self.counters = LinkCounters()
        self._inbound = Inbound(identity=identity, peers=peers, receive=receive, counters=self.counters)
        self._outbound = {
            peer.replica: Outbound(
                identity=identity, peer=peer, context=dial, counters=self.counters, changed=changed
            )
            for peer in peers
        }
        self._listener: TlsListener | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def open(self, *, host: str, port: int, accept: ssl.SSLContext) -> None:
        """Listen and start dialling. Raises `AddressTaken`."""
        self._listener = TlsListener(
            bind(host, port), accept, connect=self._inbound.connection, refused=self.counters.refuse
        )
        self._tasks = [asyncio.create_task(link.run()) for link in self._outbound.values()]

    def send(self, to: Sequence[int], frame: bytes) -> None:
        """Queue one frame for each of `to`; it leaves with `flush`."""
        data = packet(frame)
        for replica in to:
            link = self._outbound.get(replica)
            if link is not None:
                link.send_packet(data)

    def flush(self) -> None:
        for link in self._outbound.values():
            link.flush()

    def connected(self) -> tuple[int, ...]:
        """The peers that this replica can send to now."""
        return tuple(replica for replica, link in self._outbound.items() if link.up)

    async def close(self) -> None:
        self.flush()
        if self._listener is not None:
            await self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._outbound.values():
            link.shut()
        self._inbound.close()
