"""Links between replicas over real sockets and real certificates."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from dwcp.consensus.crypto import codec
from dwcp.runtime.authority import create_authority, issue
from dwcp.runtime.clock import SystemClock
from dwcp.runtime.config import TlsFiles
from dwcp.runtime.frames import packet
from dwcp.runtime.keys import client_context, fingerprint, server_context
from dwcp.runtime.transport import Hello, Identity, Peer, PeerLinks

CHAIN = b"c" * 32
NET = f"127.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
PORT = 9000


@dataclass
class Node:
    """One end: its links, and what they brought."""

    links: PeerLinks
    got: list[tuple[int, bytes]] = field(default_factory=list)
    changes: list[tuple[int, bool]] = field(default_factory=list)


class World:
    """Certificates of one installation and the replicas that use them."""

    def __init__(self, folder: Path, n: int) -> None:
        self.folder = folder
        now_ms = SystemClock().now_ms()
        self.authority = create_authority(folder / "authority", name="test", now_ms=now_ms)
        self.peers = []
        for replica in range(n):
            self.issue(f"node-{replica}", f"{NET}.{replica + 1}")
            pin = fingerprint(folder / f"node-{replica}" / "tls.crt")
            self.peers.append(Peer(replica, f"{NET}.{replica + 1}", PORT, pin))

    def issue(self, name: str, host: str) -> TlsFiles:
        issue(self.authority, self.folder / name, name=name, hosts=(host,), now_ms=SystemClock().now_ms())
        return self.tls(name)

    def tls(self, name: str) -> TlsFiles:
        folder = self.folder / name
        ca = self.folder / "authority" / "ca.crt"
        return TlsFiles(certificate=folder / "tls.crt", key=folder / "tls.key", authority=ca)

    def node(self, replica: int, *, chain_id: bytes = CHAIN, tls: str = "") -> Node:
        files = self.tls(tls or f"node-{replica}")
        node = Node(
            PeerLinks(
                identity=Identity(chain_id, 0, replica),
                peers=[peer for peer in self.peers if peer.replica != replica],
                dial=client_context(files),
                receive=lambda peer, frames: node.got.extend((peer, frame) for frame in frames),
                changed=lambda peer, up: node.changes.append((peer, up)),
            )
        )
        node.links.open(host=self.peers[replica].host, port=PORT, accept=server_context(files))
        return node


async def until(condition: Callable[[], bool], seconds: float = 8.0) -> None:
    """Wait for a condition that real sockets bring about."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  a condition of another end has no event
            await asyncio.sleep(0.005)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("keys"), 4)


@pytest.mark.process
def test_frames_arrive_in_order_and_a_link_comes_back(world: World) -> None:
    """Goal: order per peer, and a restarted peer is found again. Method: send, restart one end, send."""

    async def scenario() -> None:
        a, b = world.node(0), world.node(1)
        await until(lambda: a.links.connected() == (1,) and b.links.connected() == (0,))
        sent = [number.to_bytes(4, "big") * (1 + number * 97) for number in range(200)]
        for frame in sent:
            a.links.send((1,), frame)
        a.links.flush()
        await until(lambda: len(b.got) == 200)
        assert b.got == [(0, frame) for frame in sent]
        await b.links.close()
        await until(lambda: a.links.connected() == ())
        b = world.node(1)
        await until(lambda: a.links.connected() == (1,))
        a.links.send((1,), b"again")
        a.links.flush()
        await until(lambda: b.got == [(0, b"again")])
        assert a.changes == [(1, True), (1, False), (1, True)]
        await a.links.close()
        await b.links.close()

    run(scenario)


@pytest.mark.process
def test_a_frame_of_the_full_size_passes(world: World) -> None:
    """Goal: the largest frame is usable under back-pressure. Method: 8 MiB, three times, at once."""

    async def scenario() -> None:
        a, b = world.node(0), world.node(1)
        await until(lambda: a.links.connected() == (1,))
        frame = os.urandom(8 * 1024 * 1024)
        for _ in range(3):
            a.links.send((1,), frame)
        a.links.flush()
        await until(lambda: len(b.got) == 3)
        assert all(got == (0, frame) for got in b.got)
        await a.links.close()
        await b.links.close()

    run(scenario)


@pytest.mark.process
def test_a_queue_over_its_bound_drops_the_oldest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a stuck peer costs bounded memory. Method: never let the loop write; bound 1000 bytes."""
    monkeypatch.setattr("dwcp.runtime.transport.QUEUE_BYTES_MAX", 1000)

    async def scenario() -> None:
        a, b = world.node(0), world.node(1)
        await until(lambda: a.links.connected() == (1,))
        for number in range(50):
            a.links.send((1,), bytes([number]) * 96)
        a.links.flush()
        await until(lambda: len(b.got) == 10)
        assert [frame[0] for _, frame in b.got] == list(range(40, 50))
        assert a.links.counters.dropped_frames == {1: 40}
        await a.links.close()
        await b.links.close()

    run(scenario)


@pytest.mark.process
def test_frames_for_a_peer_that_is_down_are_dropped(world: World) -> None:
    """Goal: nothing stale piles up. Method: send while nobody listens, count, then connect."""

    async def scenario() -> None:
        a = world.node(0)
        a.links.send((1, 2), b"stale")
        a.links.flush()
        assert a.links.counters.dropped_frames == {1: 1, 2: 1}
        b = world.node(1)
        await until(lambda: a.links.connected() == (1,))
        assert b.got == []
        await a.links.close()
        await b.links.close()

    run(scenario)


async def _raw(host: str, data: bytes) -> bytes:
    """What a plain TCP stranger gets back."""
    reader, writer = await asyncio.open_connection(host, PORT)
    writer.write(data)
    answer = b""
    try:
        async with asyncio.timeout(8):
            await writer.drain()
            answer = await reader.read()
    except ConnectionError:
        pass
    writer.close()
    return answer


async def _as_peer(world: World, name: str, host: str, data: bytes) -> bytes:
    """What somebody with a certificate gets back for these bytes."""
    return await _with_context(client_context(world.tls(name)), host, data)


async def _with_context(context: ssl.SSLContext, host: str, data: bytes) -> bytes:
    answer = b""
    try:
        async with asyncio.timeout(8):
            reader, writer = await asyncio.open_connection(host, PORT, ssl=context)
            writer.write(data)
            answer = await reader.read()
            writer.close()
    except (ConnectionError, ssl.SSLError):
        pass
    return answer


@pytest.mark.process
def test_strangers_are_closed_and_counted(world: World, tmp_path: Path) -> None:
    """Goal: nobody without a pinned certificate has a frame read. Method: junk, a foreign authority,
    a certificate of this installation that genesis does not pin."""
    world.issue("visitor", "127.0.0.1")
    foreign = World(tmp_path, 1)

    async def scenario() -> None:
        a = world.node(0)
        host, refused = world.peers[0].host, a.links.counters.refused
        hello = packet(Identity(CHAIN, 0, 1).hello())
        await _raw(host, os.urandom(5000))
        await until(lambda: refused.get("handshake") == 1)
        foreign_tls = foreign.tls("node-0")
        context = client_context(foreign_tls)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        assert await _with_context(context, host, hello) == b""
        await until(lambda: refused.get("handshake") == 2)
        assert await _as_peer(world, "visitor", host, hello) == b""
        await until(lambda: refused.get("unknown_certificate") == 1)
        assert a.got == []
        await a.links.close()

    run(scenario)


@pytest.mark.process
@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (b"junk", "hello_malformed"),
        (Identity(b"x" * 32, 0, 1).hello(), "hello_chain"),
        (Identity(CHAIN, 1, 1).hello(), "hello_epoch"),
        (Identity(CHAIN, 0, 2).hello(), "hello_replica"),
        (codec.encode(Hello(b"DWCP-PEER", 9, CHAIN, 0, 1)), "hello_version"),
    ],
)
def test_a_wrong_hello_is_refused(world: World, hello: bytes, reason: str) -> None:
    """Goal: the right certificate is not enough. Method: replica 1's, one wrong field, then a frame."""

    async def scenario() -> None:
        a = world.node(0)
        await _as_peer(world, "node-1", world.peers[0].host, packet(hello) + packet(b"frame"))
        await until(lambda: a.links.counters.refused.get(reason) == 1)
        assert a.got == []
        await a.links.close()

    run(scenario)


@pytest.mark.process
def test_silence_and_giants_are_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a connection that says nothing, or announces too much, ends.

    Method: a short time for the hello; a huge length after a good one."""
    monkeypatch.setattr("dwcp.runtime.transport.HELLO_SECONDS_MAX", 0.2)

    async def scenario() -> None:
        a = world.node(0)
        host, refused = world.peers[0].host, a.links.counters.refused
        assert await _as_peer(world, "node-1", host, b"") == b""
        await until(lambda: refused.get("hello_timeout") == 1)
        good = packet(Identity(CHAIN, 0, 1).hello())
        await _as_peer(world, "node-1", host, good + b"\xff\xff\xff\xff")
        await until(lambda: refused.get("frame_too_long") == 1)
        await a.links.close()

    run(scenario)


@pytest.mark.process
def test_half_open_handshakes_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a slow stranger cannot keep peers out for long. Method: 5 silent sockets against room for 3."""
    monkeypatch.setattr("dwcp.runtime.links.HANDSHAKES_MAX", 3)
    monkeypatch.setattr("dwcp.runtime.links.HANDSHAKE_SECONDS_MAX", 0.5)

    async def scenario() -> None:
        a = world.node(0)
        refused = a.links.counters.refused
        held = [socket.create_connection((world.peers[0].host, PORT)) for _ in range(5)]
        await until(lambda: refused.get("handshakes_full") == 2)
        await until(lambda: refused.get("handshake") == 3)
        for raw in held:
            raw.close()
        b = world.node(1)
        await until(lambda: b.links.connected() == (0,))
        await a.links.close()
        await b.links.close()

    run(scenario)
