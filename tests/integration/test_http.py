"""The HTTP gate on real sockets: who may do what, and what junk costs."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from fastapi import Request, Response

from dwcp.runtime import http, keys
from dwcp.runtime.authority import create_authority, issue
from dwcp.runtime.errors import AddressTaken
from dwcp.runtime.layout import Layout
from dwcp.runtime.principals import Grant
from dwcp.runtime.telemetry import Telemetry
from dwcp.runtime.tokens import Role, TokenBook

pytestmark = pytest.mark.process

HOST = f"127.{16 + os.getpid() % 200}.200.1"
PLAIN, MUTUAL = f"http://{HOST}:8080", f"https://{HOST}:7443"


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scene())


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Certificates of two processes and two tokens."""
    layout = Layout(tmp_path)
    now_ms = time.time_ns() // 1_000_000
    authority = create_authority(layout.authority, name="test", now_ms=now_ms)
    for name in ("server", "agent", "operator", "granted-one"):
        issue(authority, layout.keys(name), name=name, hosts=(HOST,), now_ms=now_ms)
    return layout


@asynccontextmanager
async def serving(layout: Layout, *, slow_s: float = 0) -> AsyncIterator[asyncio.Event]:
    """A service with one route that says who asked and how much was sent."""
    telemetry = Telemetry("test", version="1")
    app = http.application(http.Health("test", version="1"), telemetry)

    async def echo(request: Request) -> Response:
        body = await request.body()
        await asyncio.sleep(slow_s)
        caller = http.principal(request)
        return http.json_response({"name": caller.name, "kind": caller.kind, "bytes": len(body)})

    app.add_api_route("/echo", echo, methods=["GET", "POST"], response_model=None)
    stop, started = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(
        http.serve(
            app,
            stop=stop,
            telemetry=telemetry,
            plain=(HOST, 8080),
            tls=(HOST, 7443, layout.tls("server")),
            tokens=TokenBook(layout.tokens),
            grants=(Grant("/echo", "granted-"),),
            started=started,
        )
    )
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield stop
    finally:
        stop.set()
        waiting.cancel()
        await task


def test_who_may_change_state(layout: Layout) -> None:
    """Goal: no change of state without a token, the operator's certificate or a grant.
    Method: every kind of caller posts."""
    book = TokenBook(layout.tokens)
    operator, viewer = book.create("ann", Role.OPERATOR, now_ms=1), book.create("bob", Role.VIEWER, now_ms=1)

    async def scene() -> None:
        async with (
            serving(layout),
            httpx.AsyncClient() as stranger,
            http.client(layout.tls("agent")) as agent,
            http.client(layout.tls("granted-one")) as granted,
            http.client(layout.tls("operator")) as command_line,
        ):

            async def post(token: str | None) -> httpx.Response:
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                return await stranger.post(PLAIN + "/echo", content=b"abc", headers=headers)

            assert (await stranger.get(PLAIN + "/echo")).json()["kind"] == "anonymous"
            assert (await post(None)).status_code == 401
            assert (await post("wrong")).status_code == 401
            assert (await post(viewer)).status_code == 403
            assert (await post(operator)).json() == {"name": "ann", "kind": "person", "bytes": 3}
            assert (await agent.get(MUTUAL + "/echo")).json()["name"] == "agent"
            assert (await agent.post(MUTUAL + "/echo", content=b"abc")).status_code == 403
            assert (await granted.post(MUTUAL + "/echo/x", content=b"abc")).status_code == 403
            for process, name in ((granted, "granted-one"), (command_line, "operator")):
                answer = await process.post(MUTUAL + "/echo", content=b"abc")
                assert answer.json() == {"name": name, "kind": "process", "bytes": 3}

    run(scene)


def test_mutual_port_refuses_strangers(layout: Layout) -> None:
    """Goal: no request without a certificate of the installation. Method: plain text, no and foreign certificates."""
    other = Layout(layout.root / "other")
    authority = create_authority(other.authority, name="other", now_ms=time.time_ns() // 1_000_000)
    issue(authority, other.keys("x"), name="x", hosts=(HOST,), now_ms=time.time_ns() // 1_000_000)
    foreign = keys.client_context(other.tls("x"))
    foreign.check_hostname, foreign.verify_mode = False, ssl.CERT_NONE
    bare = ssl.create_default_context(cafile=str(layout.authority_certificate))

    async def refused(request: Awaitable[httpx.Response]) -> bool:
        try:
            await request
        except httpx.HTTPError:
            return True
        return False

    async def scene() -> None:
        async with serving(layout):
            for context in (foreign, bare):
                async with httpx.AsyncClient(verify=context) as client:
                    assert await refused(client.get(MUTUAL + "/health"))
            async with httpx.AsyncClient() as client:
                assert await refused(client.get(MUTUAL.replace("https", "http") + "/health"))

    run(scene)


@pytest.mark.parametrize(
    "junk",
    [b"\x00" * 1000, b"GET / HTTP/1.1\r\nA: " + b"x" * 100_000, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 50_000],
)
def test_junk_is_answered_and_closed(layout: Layout, junk: bytes) -> None:
    """Goal: junk costs one short answer. Method: send it, read to the end; the service still answers."""

    async def scene() -> None:
        async with serving(layout):
            reader, writer = await asyncio.open_connection(HOST, 8080)
            writer.write(junk)
            try:
                answer = await asyncio.wait_for(reader.read(), 5)
            except ConnectionResetError:
                answer = b"HTTP/1.1 400"
            writer.close()
            assert answer.startswith(b"HTTP/1.1 400")
            async with httpx.AsyncClient() as client:
                assert (await client.get(PLAIN + "/ready")).status_code == 200

    run(scene)


def test_bodies_are_bounded(layout: Layout) -> None:
    """Goal: nobody fills the memory. Method: too long by its header, and too long without one."""
    token = TokenBook(layout.tokens).create("ann", Role.OPERATOR, now_ms=1)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(100_000)

    async def scene() -> None:
        async with serving(layout), httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as client:
            declared = await client.post(PLAIN + "/echo", content=bytes(http.BODY_BYTES_MAX + 1))
            chunked = await client.post(PLAIN + "/echo", content=endless())
            fits = await client.post(PLAIN + "/echo", content=bytes(http.BODY_BYTES_MAX))
            assert (declared.status_code, chunked.status_code, fits.status_code) == (413, 413, 200)

    run(scene)


def test_open_requests_end_before_the_process(layout: Layout) -> None:
    """Goal: a drain loses no answer. Method: stop while a slow request is open."""

    async def scene() -> None:
        async with httpx.AsyncClient() as client:
            async with serving(layout, slow_s=0.3) as stop:
                asking = asyncio.create_task(client.get(PLAIN + "/echo"))
                await asyncio.sleep(0.1)
                stop.set()
            assert (await asking).status_code == 200

    run(scene)


def test_taken_port_is_named(layout: Layout) -> None:
    """Goal: a taken port is a sentence. Method: bind it first."""
    taken = http.bind(HOST, 8080)
    try:
        with pytest.raises(AddressTaken, match=f"{HOST}:8080"):
            http.bind(HOST, 8080)
    finally:
        taken.close()
    assert layout.root.exists()
