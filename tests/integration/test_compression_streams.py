"""Streams over real sockets: both ways at once, bounded, and broken off where they are wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import select
import socket
import threading
from collections.abc import Iterator

import httpx
import psutil
import pytest
from tests.integration.compression_service import Installed, installation, serving

from dwcp.compression import codecs
from dwcp.compression.container import Header, Writer
from dwcp.runtime.tokens import Role, TokenBook

pytestmark = pytest.mark.process

NOISE = random.Random(5).randbytes(1 << 20)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Installed, str]]:
    """The service and an operator's token."""
    with installation() as made, serving(made, "dwcp.services.compression_api") as one:
        yield one, TokenBook(made.layout.tokens).create("streams", Role.OPERATOR, now_ms=0)


def _open(running: tuple[Installed, str], path: str, length: int) -> socket.socket:
    one, token = running
    host, _, port = one.plain.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: c\r\nAuthorization: Bearer {token}\r\nX-Codec: lz4\r\n"
        f"Content-Length: {length}\r\n\r\n"
    )
    connection.sendall(head.encode())
    return connection


def test_answers_begin_before_the_question_ends(running: tuple[Installed, str]) -> None:
    """Goal: full duplex, and no block waits for the next. Method: send 8 of 64 MiB, then read; all 8 must come."""
    with _open(running, "/api/v1/stream/compress", 64 << 20) as connection:
        for _ in range(8):
            connection.sendall(NOISE)
        seen = 0
        while seen < 8 << 20:
            piece = connection.recv(1 << 20)
            assert piece
            seen += len(piece)


def test_a_reader_that_does_not_read_stops_the_sender(running: tuple[Installed, str]) -> None:
    """Goal: bounded memory by back-pressure. Method: send without reading until nothing is taken any more for
    two seconds; what went in, and what the process grew by, is far below the stream's length."""
    process = psutil.Process(running[0].pid)
    before = process.memory_info().rss
    with _open(running, "/api/v1/stream/compress", 1 << 30) as connection:
        connection.setblocking(False)
        sent = 0
        while select.select([], [connection], [], 2.0)[1]:
            sent += connection.send(NOISE)
            assert sent < 200 << 20
        grown = process.memory_info().rss - before

    assert sent < 64 << 20
    assert grown < 48 << 20


def test_a_damaged_container_never_looks_whole(running: tuple[Installed, str]) -> None:
    """Goal: no client takes half for all. Method: a flipped bit in the last of 8 blocks; whatever the client
    has seen by then, its library must say that the answer is not complete."""
    writer = Writer(Header(b"s" * 16, 1 << 20))
    parts = [writer.header.encode(), *(writer.block(NOISE, codecs.by_name("lz4")) for _ in range(8))]
    parts[-1] = parts[-1][:-9] + bytes([parts[-1][-9] ^ 1]) + parts[-1][-8:]
    headers = {"Authorization": f"Bearer {running[1]}"}
    url = f"{running[0].plain}/api/v1/stream/decompress"

    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.HTTPError):
        client.post(url, content=b"".join([*parts, writer.end()]), headers=headers).raise_for_status()


def test_places_run_out_and_come_back(running: tuple[Installed, str]) -> None:
    """Goal: a bounded number of streams, and none is leaked. Method: eight half-open ones, a ninth is refused
    with a time; they are closed without a word, then there is place again."""
    url = f"{running[0].plain}/api/v1/stream/compress"
    headers = {"Authorization": f"Bearer {running[1]}"}
    with contextlib.ExitStack() as held, httpx.Client(trust_env=False, headers=headers) as client:
        for _ in range(8):
            connection = held.enter_context(_open(running, "/api/v1/stream/compress", 1 << 20))
            assert connection.recv(12)  # the answer has begun: the place is taken
        refused = client.post(url, content=b"x")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    again = threading.Event()
    with httpx.Client(trust_env=False, headers=headers) as client:
        for _ in range(100):
            if client.post(url, content=b"x").status_code == 200:
                return
            again.wait(0.1)
    raise AssertionError("no place came back")


@pytest.mark.parametrize(
    "codec", [codec for codec in codecs.CODECS if codec.wire], ids=lambda codec: codec.name
)
def test_bombs_of_every_codec(running: tuple[Installed, str], codec: codecs.Codec) -> None:
    """Goal: no codec can be made to fill the memory. Method: 64 MiB of zeros behind a header that says 1 MiB,
    to the real process; the answer is an error, the process grows by less than half, and it still answers."""
    bomb = codec.pack(bytes(64 << 20))
    liar = dataclasses.replace(codec, pack=lambda raw: bomb)
    writer = Writer(Header(b"s" * 16, 1 << 20))
    stream = b"".join([writer.header.encode(), writer.block(bytes(1 << 20), liar), writer.end()])
    process = psutil.Process(running[0].pid)
    before = process.memory_info().rss
    with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {running[1]}"}) as client:
        answer = client.post(f"{running[0].plain}/api/v1/stream/decompress", content=stream)

        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_stream")
        assert process.memory_info().rss - before < 32 << 20
        assert client.get(f"{running[0].plain}/ready").is_success
