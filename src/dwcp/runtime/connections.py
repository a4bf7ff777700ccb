"""HTTP/1.1 connections and the sockets they come from: uvicorn's, with bounded heads, lent bodies and answers at once.

It knows nothing of who may do what: that is the gate's (`http`), which is the app that is served here.
"""

from __future__ import annotations

import asyncio
import functools
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

import httptools
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from dwcp.runtime.bodies import BLOCKS, BlockBody

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

HEAD_BYTES_MAX = 32_768
HEAD_SECONDS_MAX = 10.0  # a caller that has not finished its request line and headers by then is cut off
HANDSHAKE_SECONDS_MAX = 10.0
IDLE_SECONDS_MAX = 75
CONNECTIONS_MAX = 512
JOINED_BYTES_MAX = 16_384
_KNOWN_HEAD_BYTES_MAX = 2_048
_FAILED = (
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 21\r\nconnection: close\r\n\r\n"
    b"Internal Server Error"
)


@dataclass(frozen=True, slots=True)
class AtOnce:
    """A POST whose answer is a short calculation: given in the moment its last byte is read, without a task. `answer`
    takes the scope, names of headers in small letters, and the body; it gives JSON and raises what the app would.
    Requests with equal heads on one connection may come with one scope: it may keep there what it made of the head."""

    path: str
    body_bytes_max: int
    answer: Callable[[Scope, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `head`: its header lines, each with its end, the content's length included."""

    status: int
    head: bytes
    content: bytes


class _Pieces:
    """A body on its way to the app, without the copies of uvicorn's bytearray: most often it is one piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def __iadd__(self, piece: bytes) -> Self:
        self._pieces.append(piece)
        self._size += len(piece)
        return self

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self._pieces)


@dataclass(frozen=True, slots=True)
class _Known:
    """A question that was answered at once, as it came: equal bytes between two requests say the same again, so that
    they need not be parsed. `size`: bytes of head and body."""

    head: bytes
    size: int
    found: AtOnce
    scope: Scope


class Site(Protocol):
    """What is served: an app, and what it answers at once. Both must answer one request alike."""

    @property
    def at_once(self) -> Mapping[bytes, AtOnce]:
        """By path, as in the request line."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def answer_at_once(self, found: AtOnce, scope: Scope, body: bytes) -> Answer:
        """May raise: that is logged, answered 500 and ends the connection."""


class Joined:
    """A transport that sends an answer's head and body by one system call. uvicorn writes them apart, and
    each write would wake the caller. Held bytes go out at `flush`, at the latest in the loop's next turn."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._held_bytes = 0

    def write(self, data: bytes) -> None:
        """Beyond a little nothing is held: the transport must see it to ask for a pause."""
        if self._held_bytes + len(data) > JOINED_BYTES_MAX:
            self.flush()
            self._transport.write(data)
            return
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._held_bytes += len(data)

    def write_now(self, data: bytes) -> None:
        """All that is held, and this."""
        self.flush()
        self._transport.write(data)

    def flush(self) -> None:
        if self._held:
            held, self._held, self._held_bytes = self._held, [], 0
            self._transport.write(b"".join(held))

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:  # Any: whatever the transport has
        return getattr(self._transport, name)


class Patience:
    """When a caller that keeps silent is cut off. Moving the moment costs nothing: the one timer looks again when it
    is due, so that a busy connection does not make two timers for each of its requests."""

    def __init__(self, loop: asyncio.AbstractEventLoop, cut: Callable[[], None]) -> None:
        self._loop = loop
        self._cut = cut
        self._due_s = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf

    def until(self, seconds: float) -> None:
        """From now; replaces what was said before."""
        self._due_s = self._loop.time() + seconds
        if self._due_s < self._timer_s:
            self._arm()

    def on(self) -> None:
        """The caller did what was waited for."""
        self._due_s = math.inf

    def end(self) -> None:
        self._due_s = self._timer_s = math.inf
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = self._due_s
        self._timer = self._loop.call_at(self._timer_s, self._look)

    def _look(self) -> None:
        """The timer's moment has come, which need not be the caller's."""
        due = self._timer_s >= self._due_s
        self._timer, self._timer_s = None, math.inf
        if due:
            self._due_s = math.inf
            self._cut()
        elif self._due_s < math.inf:
            self._arm()


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection with a bounded head; notes the name in the peer's certificate. A route may
    have the body in blocks that are read from the socket, past the parser (`bodies.BlockBody`), and what the site
    answers at once goes no further than here."""

    def __init__(
        self, site: Site, config: Config, state: ServerState, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(config=config, server_state=state, app_state={}, _loop=loop)
        self._site = site
        self._head_bytes = 0
        self._in_head = True
        self._began = False  # a head, in this read
        self._body_bytes = 0
        self._lent = False
        self._turn_taken = False  # one answer at once for each read: others have a turn too
        self._asked: tuple[AtOnce, list[bytes]] | None = None  # to be answered at once, and its body so far
        self._between = True  # two requests: nothing of the next one has come
        self._known: _Known | None = None
        self._told: tuple[AtOnce, int] | None = (
            None  # what this read had answered at once, and its body's bytes
        )
        self._patience = Patience(loop, self._late)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._patience.until(HEAD_SECONDS_MAX)
        peer = _common_name(transport)
        if peer:
            link = transport.get_extra_info("socket")  # the data path reads the kernel's account of it
            self.app_state = {**self.app_state, "peer": peer, "link": link}
        super().connection_made(transport)
        self._joined = Joined(transport, self.loop)
        self.transport = cast("asyncio.Transport", self._joined)  # all that uvicorn asks of one

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.end()
        self._asked = self._known = None
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """A question that has not come whole is waited for, as every open request is."""
        if self._asked is not None:
            self._pass_on()
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        known = self._known
        if known is not None and len(data) == known.size and data.startswith(known.head) and self._idle():
            self._answer(known.found, known.scope, data[len(known.head) :])
            return
        whole = self._between
        self._began = self._turn_taken = False
        self._told = None
        super().data_received(data)
        if whole and self._between:
            self._know(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self.send_400_response("The request head is too large.")
            elif self._began:
                self._patience.until(HEAD_SECONDS_MAX)

    def on_message_begin(self) -> None:
        self._in_head = self._began = True
        self._between = False
        self._head_bytes = 0
        self._body_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._patience.on()
        found = self._site.at_once.get(self.url)
        if found is None or self._turn_taken or not self._simple(found):
            self._to_the_app()
            return
        self._turn_taken = True
        self._asked = found, []

    def on_body(self, body: bytes) -> None:
        if self._asked is not None:
            self._asked[1].append(body)
            return
        self._body_bytes += len(body)
        if not self.cycle.body:
            self.cycle.body = cast("bytearray", _Pieces())
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._between = True
        if self._asked is not None:
            (found, pieces), self._asked = self._asked, None
            body = b"".join(pieces)
            self._told = found, len(body)
            scope = cast("Scope", self.scope)
            scope["method"], scope["path"] = "POST", found.path
            self._answer(found, scope, body)
            return
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's, but for the timer that it makes for each answer."""
        self._joined.flush()
        if self._lent:
            self.transport.close()  # answered before the body was read: nobody can tell where the next request is
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._in_head:
            self._patience.until(IDLE_SECONDS_MAX)

    # answers at once

    def _simple(self, found: AtOnce) -> bool:
        """Whether nothing but the answer is asked of this connection: what is rare goes to the app."""
        parser = self.parser
        return (
            parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and not self.expect_100_continue
            and self._free()
            and 0 < _announced(self.headers) <= found.body_bytes_max
        )

    def _free(self) -> bool:
        """Whether nobody else's answer is due before this one's."""
        return (
            not self.pipeline
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and len(self.connections) < CONNECTIONS_MAX
        )

    def _idle(self) -> bool:
        return self._between and self._free() and not self.transport.is_closing()

    def _know(self, data: bytes) -> None:
        """Keeps the head of the one request that `data` is, where that was answered at once. Where anything else is in
        it, the head's end says so."""
        if self._told is None:
            return
        found, body_bytes = self._told
        size = len(data) - body_bytes
        if size <= _KNOWN_HEAD_BYTES_MAX and data.find(b"\r\n\r\n") == size - 4:
            self._known = _Known(data[:size], len(data), found, cast("Scope", self.scope))

    def _answer(self, found: AtOnce, scope: Scope, body: bytes) -> None:
        try:
            answer = self._site.answer_at_once(found, scope, body)
        except Exception as exc:
            self.logger.error("Exception in ASGI application\n", exc_info=exc)
            self._joined.write_now(STATUS_LINE[500] + _FAILED)
            self.transport.close()
            return
        self._joined.write_now(b"%s%s\r\n%s" % (STATUS_LINE[answer.status], answer.head, answer.content))
        self.on_response_complete()

    def _pass_on(self) -> None:
        """What was to be answered at once becomes the app's."""
        assert self._asked is not None
        (_, body), self._asked = self._asked, None
        self._to_the_app()
        self.on_body(b"".join(body))

    def _to_the_app(self) -> None:
        scope = cast("Scope", self.scope)
        scope["extensions"] = {BLOCKS: functools.partial(self._lend, scope)}
        super().on_headers_complete()

    # bodies past the parser

    def _lend(self, scope: Scope, size: int) -> BlockBody | None:
        """The rest of this request's body in blocks; None where its length is not known or little of it is left."""
        cycle = self.cycle
        rest = _announced(scope["headers"]) - self._body_bytes
        if cycle.scope is not scope or not cycle.more_body or cycle.disconnected or rest < size:
            return None
        if cycle.waiting_for_100_continue:
            cycle.waiting_for_100_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        held, cycle.body = bytes(cycle.body), bytearray()
        self._lent = True
        self.flow.read_paused = False  # from now on the block body pauses and resumes
        return BlockBody(self.transport, self, held=held, rest=rest, size=size)

    def body_complete(self) -> None:
        """The lent socket comes back; the parser, which has not seen the body's end, is made anew."""
        self._lent = False
        self.parser = httptools.HttpRequestParser(self)
        self.transport.set_protocol(self)
        self.on_message_complete()

    def _unset_keepalive_if_required(self) -> None:
        """uvicorn's, at each read: silence is over, but for a head that is not complete."""
        if not self._in_head:
            self._patience.on()

    def _late(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def _announced(headers: RawHeaders) -> int:
    """Bytes of the body as its head says; 0 where it says nothing that can be counted on."""
    lengths = [value for name, value in headers if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in headers)
    return int(lengths[0]) if len(lengths) == 1 and lengths[0].isdigit() and not chunked else 0


def _common_name(transport: asyncio.Transport) -> str:
    certificate = transport.get_extra_info("peercert")
    if not certificate:
        return ""
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""


class Listener:
    """One listening socket. uvicorn's own server object is left out: it wakes ten times a second."""

    def __init__(self, server: asyncio.Server, state: ServerState) -> None:
        self._server = server
        self._state = state

    @classmethod
    async def open(cls, site: Site, listening: socket.socket, context: ssl.SSLContext | None) -> Listener:
        config = Config(
            site,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=IDLE_SECONDS_MAX,
        )
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()

        def connection() -> Connection:
            return Connection(site, config, state, loop)

        handshake = HANDSHAKE_SECONDS_MAX if context else None
        server = await loop.create_server(
            connection, sock=listening, ssl=context, ssl_handshake_timeout=handshake
        )
        return cls(server, state)

    async def close(self, drain_s: float) -> None:
        """No new connections; idle ones end at once, busy ones after their answer or `drain_s`."""
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        busy = list(self._state.tasks)
        if busy:
            _, late = await asyncio.wait(busy, timeout=drain_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for connection in list(self._state.connections):
            connection.transport.close()
