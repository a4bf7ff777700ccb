"""A body that is lent to its route, on real sockets: plain and with TLS, and what comes after it."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop
from blake3 import blake3

from dwcp.runtime import http, keys
from dwcp.runtime.authority import create_authority, issue
from dwcp.runtime.bodies import BLOCKS
from dwcp.runtime.layout import Layout
from dwcp.runtime.telemetry import Telemetry

pytestmark = pytest.mark.process

HOST = f"127.{16 + os.getpid() % 200}.201.1"
SIZE = 100_000
BODY = random.Random(2).randbytes(3_456_789)


async def _digests(scope: Any, receive: Any, send: Any) -> None:  # Any: ASGI
    """Answers with the body's digest and how many blocks came; `/early` answers before it reads."""
    digest, blocks = blake3(), 0
    lent = None if scope["path"] == "/early" else scope["extensions"][BLOCKS](SIZE)
    while lent is not None and (block := await lent.take(idle_s=5)):
        digest.update(block)
        blocks += 1
        lent.spare(block)
    if lent is None and scope["path"] != "/early":
        message = await receive()
        digest.update(message["body"])
    answer = f"{digest.hexdigest()} {blocks}".encode()
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def _request(body: bytes, *, path: str = "/take", more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


async def _answer(reader: asyncio.StreamReader) -> list[str]:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return (await reader.readexactly(length)).decode().split()


async def _serve_and(layout: Layout, context: ssl.SSLContext | None) -> None:
    stop, started = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(
        http.serve(
            _digests,
            stop=stop,
            started=started,
            telemetry=Telemetry("test", version="1"),
            plain=(HOST, 8080),
            tls=(HOST, 7443, layout.tls("server")),
            pure=("/take", "/early"),
            streams=("/",),
            drain_ms=100,
        )
    )
    await asyncio.wait(
        {serving, waiting := asyncio.create_task(started.wait())}, return_when="FIRST_COMPLETED"
    )
    waiting.cancel()
    reader, writer = await asyncio.open_connection(HOST, 7443 if context else 8080, ssl=context)
    try:
        await asyncio.wait_for(_speak(reader, writer), 20)
    finally:
        writer.close()
        stop.set()
        await serving


async def _speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Two pipelined requests behind a long one, a slow one that asks first, one that is answered too soon."""
    small = b"small"
    writer.write(_request(BODY) + _request(small) + _request(BODY[:SIZE]))
    assert await _answer(reader) == [blake3(BODY).hexdigest(), "35"]
    assert (await _answer(reader))[0] == blake3(small).hexdigest()
    assert (await _answer(reader))[0] == blake3(BODY[:SIZE]).hexdigest()
    long = _request(BODY, more="Expect: 100-continue\r\n")
    writer.write(long[: -len(BODY)])
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    for at in range(0, len(BODY), 400_001):
        writer.write(BODY[at : at + 400_001])
        await asyncio.sleep(0.002)
    assert await _answer(reader) == [blake3(BODY).hexdigest(), "35"]
    writer.write(_request(small, path="/early"))
    assert (await _answer(reader))[1] == "0"


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_requests_around_a_lent_body(tmp_path: Path, secure: bool) -> None:
    """Goal: a lent body is the body, and the connection goes on. Method: one connection, long bodies, requests
    pipelined behind them, pieces with pauses, `100 Continue`; on both listeners."""
    layout = Layout(tmp_path)
    now_ms = time.time_ns() // 1_000_000
    authority = create_authority(layout.authority, name="test", now_ms=now_ms)
    for name in ("server", "agent"):
        issue(authority, layout.keys(name), name=name, hosts=(HOST,), now_ms=now_ms)
    context = keys.client_context(layout.tls("agent")) if secure else None
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_and(layout, context))
