"""The client port over real sockets: who is let in, and what a bad client costs."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from dwcp.runtime.authority import create_authority, issue
from dwcp.runtime.client_port import ClientPort
from dwcp.runtime.clock import SystemClock
from dwcp.runtime.config import TlsFiles
from dwcp.runtime.frames import packet
from dwcp.runtime.keys import client_context, server_context
from dwcp.runtime.transport import LinkCounters

pytestmark = pytest.mark.process

HOST = f"127.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}.99"
PORT = 9001


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    folder = tmp_path_factory.mktemp("keys")
    now_ms = SystemClock().now_ms()
    authority = create_authority(folder / "authority", name="test", now_ms=now_ms)
    issue(authority, folder / "node", name="node", hosts=(HOST,), now_ms=now_ms)
    return TlsFiles(
        certificate=folder / "node" / "tls.crt",
        key=folder / "node" / "tls.key",
        authority=Path(folder / "authority" / "ca.crt"),
    )


class Echo:
    """A port that answers each frame with itself, as often as asked."""

    def __init__(self, tls: TlsFiles, *, connections_max: int = 8, times: int = 1) -> None:
        self.counters = LinkCounters()
        self.gone: list[int] = []
        self._times = times
        self.port = ClientPort(
            receive=self._echo, gone=self.gone.append, counters=self.counters, connections_max=connections_max
        )
        self.port.open(host=HOST, port=PORT, accept=server_context(tls))

    def _echo(self, connection: int, frames: list[bytes]) -> None:
        for frame in frames * self._times:
            self.port.send(connection, frame)
        self.port.flush()

    async def refused(self, reason: str) -> None:
        async with asyncio.timeout(8):
            while not self.counters.refused.get(reason):  # noqa: ASYNC110  a counter has no event
                await asyncio.sleep(0.005)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())  # type: ignore[arg-type]


async def connect(tls: TlsFiles) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(HOST, PORT, ssl=client_context(tls), limit=64)


def test_frames_go_both_ways_and_an_end_is_told(tls: TlsFiles) -> None:
    """Goal: the ordinary connection. Method: two frames echoed, then close."""

    async def scenario() -> None:
        echo = Echo(tls)
        reader, writer = await connect(tls)
        writer.write(packet(b"one") + packet(b"two" * 1000))
        wanted = packet(b"one") + packet(b"two" * 1000)
        assert await reader.readexactly(len(wanted)) == wanted
        assert len(echo.port) == 1
        writer.close()
        async with asyncio.timeout(8):
            while echo.gone != [1]:  # noqa: ASYNC110  a list has no event
                await asyncio.sleep(0.005)
        await echo.port.close()

    run(scenario)


def test_without_a_certificate_nobody_is_let_in(tls: TlsFiles) -> None:
    """Goal: TLS asks for the installation's certificate. Method: a client that shows none."""

    async def scenario() -> None:
        echo = Echo(tls)
        context = ssl.create_default_context(cafile=tls.authority)
        try:
            reader, writer = await asyncio.open_connection(HOST, PORT, ssl=context)
            writer.write(packet(b"hello"))
            assert await reader.read() == b""
        except (ssl.SSLError, ConnectionError):
            pass
        await echo.refused("client_handshake")
        assert len(echo.port) == 0
        await echo.port.close()

    run(scenario)


def test_too_many_connections_and_silence_are_closed(tls: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: connections are bounded and must speak. Method: a third one of two; silence for 0.3 s."""
    monkeypatch.setattr("dwcp.runtime.client_port.FIRST_FRAME_SECONDS_MAX", 0.3)

    async def scenario() -> None:
        echo = Echo(tls, connections_max=2)
        held = [await connect(tls) for _ in range(3)]
        await echo.refused("client_connections_full")
        await echo.refused("client_silent")
        for reader, _ in held:
            assert await reader.read() == b""
        assert len(echo.port) == 0
        await echo.port.close()

    run(scenario)


def test_a_giant_and_a_client_that_does_not_read_are_closed(
    tls: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: bounded memory for each client. Method: a frame over the limit; 40 MiB of unread echoes."""
    monkeypatch.setattr("dwcp.runtime.client_port.BACKLOG_BYTES_MAX", 4 * 1024 * 1024)

    async def scenario() -> None:
        echo = Echo(tls, times=20)
        _, writer = await connect(tls)
        writer.write((3 * 1024 * 1024).to_bytes(4, "big"))
        await echo.refused("client_frame_too_long")
        _, writer = await connect(tls)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(2):
            writer.write(packet(bytes(1024 * 1024)))
        await echo.refused("client_slow_reader")
        writer.transport.abort()
        await echo.port.close()
        await asyncio.sleep(0.05)  # the loop closes what both ends have aborted

    run(scenario)
