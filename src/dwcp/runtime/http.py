"""HTTP as every service speaks it: one app on two listeners, gated before any route sees a request.

Plain HTTP: reads are free, a change of state needs a bearer token. Mutual TLS: the
caller is the process named in its certificate, which changes only what it was granted. Heads, bodies, time and
connections are limited here, so that routes need not think of them.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, cast

import httptools
import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from dwcp.api.health import Verdict as Verdict
from dwcp.api.health import worst
from dwcp.runtime.bodies import BLOCKS, BlockBody
from dwcp.runtime.clock import Clock, SystemClock
from dwcp.runtime.config import ServiceConfig, TlsFiles
from dwcp.runtime.errors import AddressTaken
from dwcp.runtime.http_client import client as client
from dwcp.runtime.keys import server_context
from dwcp.runtime.principals import ANONYMOUS, Grant, Principal, of_certificate
from dwcp.runtime.telemetry import Telemetry
from dwcp.runtime.tokens import Role, TokenBook

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEAD_BYTES_MAX = 32_768
HEAD_SECONDS_MAX = 10.0  # a caller that has not finished its request line and headers by then is cut off
HANDSHAKE_SECONDS_MAX = 10.0
CONNECTIONS_MAX = 512
BODY_BYTES_MAX = 2_097_152
JOINED_BYTES_MAX = 16_384
_TOO_LARGE = f"a request body may have {BODY_BYTES_MAX} bytes"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Check:
    """The answer of one health check. `data` is shown as it is."""

    verdict: Verdict
    detail: str = ""
    data: dict[str, Any] = field(default_factory=dict)


class Health:
    """What `/health` and `/ready` say. Checks are cheap functions: they report, they never probe."""

    def __init__(self, service: str, *, version: str, clock: Clock | None = None) -> None:
        self.service = service
        self.version = version
        self._clock = clock or SystemClock()
        self._started_ms = self._clock.monotonic_ms()
        self._checks: dict[str, tuple[Callable[[], Check], bool]] = {}

    def add(self, name: str, check: Callable[[], Check], *, needed: bool = False) -> None:
        """`needed` checks hold back readiness until they are ok or warn."""
        self._checks[name] = (check, needed)

    def ready(self) -> bool:
        return not self.missing()

    def missing(self) -> list[str]:
        """What keeps the service from being ready."""
        bad = {Verdict.CRIT, Verdict.UNKNOWN}
        return [name for name, (check, needed) in self._checks.items() if needed and check().verdict in bad]

    def report(self) -> dict[str, Any]:
        checks = {name: check() for name, (check, _) in self._checks.items()}
        verdict = worst(check.verdict for check in checks.values()) if checks else Verdict.OK
        return {
            "service": self.service,
            "version": self.version,
            "verdict": verdict,
            "uptime_ms": self._clock.monotonic_ms() - self._started_ms,
            "checks": {
                name: {"verdict": c.verdict, "detail": c.detail, **c.data} for name, c in checks.items()
            },
        }


class Refusal(Exception):
    """Raised by a route: answered as JSON {"error": {"code", "detail"}} with that status."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})


def principal(request: Request) -> Principal:
    """The caller, as the gate found it."""
    found: Principal = getattr(request.state, "principal", ANONYMOUS)
    return found


def require(request: Request, role: Role) -> Principal:
    """The caller, if it holds `role`; raises `Refusal` 403."""
    caller = principal(request)
    if not caller.may(role):
        raise Refusal(403, "forbidden", f"this needs the role {role}, {caller.name} has {caller.role}")
    return caller


def json_response(value: object, status: int = 200) -> Response:
    """`value` (structs included) as a JSON answer."""
    return Response(msgspec.json.encode(value, enc_hook=str), status, media_type="application/json")


def error_response(status: int, code: str, detail: str) -> Response:
    return json_response({"error": {"code": code, "detail": detail}}, status)


def refused(refusal: Refusal) -> Response:
    """The answer that a refusal stands for."""
    answer = error_response(refusal.status, refusal.code, refusal.detail)
    answer.headers.update(refusal.headers)
    return answer


def application(health: Health, telemetry: Telemetry) -> FastAPI:
    """An app with the routes and error answers that every service has."""
    app = FastAPI(title=health.service, version=health.version, docs_url=None, redoc_url=None)
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)

    async def get_health() -> Response:
        return json_response(health.report())

    async def get_ready() -> Response:
        missing = health.missing()
        telemetry.gauge("dwcp_ready", 0 if missing else 1)
        return json_response(
            {"service": health.service, "ready": not missing, "missing": missing}, 503 if missing else 200
        )

    async def get_metrics() -> Response:
        return Response(telemetry.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def get_version() -> Response:
        return json_response({"service": health.service, "version": health.version})

    for path, route in (
        ("/health", get_health),
        ("/ready", get_ready),
        ("/metrics", get_metrics),
        ("/version", get_version),
    ):
        app.add_api_route(path, route, methods=["GET"], response_model=None)
    return app


async def serve(  # noqa: PLR0913  # a composition root passes its parts by name
    app: App,
    *,
    stop: asyncio.Event,
    telemetry: Telemetry,
    plain: tuple[str, int] | None = None,
    tls: tuple[str, int, TlsFiles] | None = None,
    tokens: TokenBook | None = None,
    streams: tuple[str, ...] = (),
    pure: tuple[str, ...] = (),
    grants: tuple[Grant, ...] = (),
    drain_ms: int = 5000,
    started: asyncio.Event | None = None,
) -> None:
    """Serves until `stop` is set, then lets open requests end for up to `drain_ms`.

    `streams` are path prefixes whose bodies their routes read and limit themselves; `pure` are paths
    where a POST only computes an answer, so that it needs no token; `grants` say which processes beside
    the operator's own may change what.
    Raises `AddressTaken` before anything is served.
    """
    gate = Gate(app, telemetry=telemetry, tokens=tokens, streams=streams, pure=pure, grants=grants)
    sockets: list[tuple[socket.socket, ssl.SSLContext | None]] = []
    try:
        if plain is not None:
            sockets.append((bind(*plain), None))
        if tls is not None:
            sockets.append((bind(tls[0], tls[1]), server_context(tls[2])))
    except BaseException:
        for listening, _ in sockets:
            listening.close()
        raise
    listeners = [await Listener.open(gate, listening, context) for listening, context in sockets]
    if started is not None:
        started.set()
    try:
        await stop.wait()
    finally:
        await asyncio.gather(*(listener.close(drain_ms / 1000) for listener in listeners))


async def serve_configured(
    app: App,
    config: ServiceConfig,
    *,
    stop: asyncio.Event,
    telemetry: Telemetry,
    pure: tuple[str, ...] = (),
    streams: tuple[str, ...] = (),
    grants: tuple[Grant, ...] = (),
) -> None:
    """`serve` on the listeners of a service's configuration."""
    await serve(
        app,
        stop=stop,
        telemetry=telemetry,
        plain=(config.plain.host, config.plain.port) if config.plain else None,
        tls=(config.mutual.host, config.mutual.port, config.tls) if config.mutual else None,
        tokens=TokenBook(config.tokens) if config.tokens else None,
        pure=pure,
        streams=streams,
        grants=grants,
        drain_ms=config.drain_ms,
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `AddressTaken` naming the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(256)
    except OSError as exc:
        listening.close()
        raise AddressTaken(
            f"cannot listen on {host}:{port}: {exc.strerror}; free it or choose another --net"
        ) from exc
    listening.setblocking(False)
    return listening


class Gate:
    """Authenticates, authorises, limits and measures each request before the app sees it."""

    def __init__(
        self,
        app: App,
        *,
        telemetry: Telemetry,
        tokens: TokenBook | None,
        streams: tuple[str, ...] = (),
        pure: tuple[str, ...] = (),
        grants: tuple[Grant, ...] = (),
    ) -> None:
        self._app = app
        self._telemetry = telemetry
        self._tokens = tokens
        self._streams = streams
        self._pure = frozenset(pure)
        self._grants = grants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        caller = self._identify(scope)
        refusal = self._refuse(scope, caller)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        scope["state"]["principal"] = caller or ANONYMOUS
        limited = receive if self._is_stream(scope) else _limited(receive)
        answer = _Measured(send)
        started = asyncio.get_running_loop().time()
        try:
            await self._app(scope, limited, answer)
        finally:
            elapsed = asyncio.get_running_loop().time() - started
            self._telemetry.observe(
                "dwcp_request_duration_seconds", elapsed, method=_method(scope), status=str(answer.status)
            )

    def _identify(self, scope: Scope) -> Principal | None:
        """None stands for a token that nobody has."""
        peer = scope["state"].get("peer")
        if peer:
            return of_certificate(peer)
        for name, value in scope["headers"]:
            if name == b"authorization":
                return self._holder(value)
        return ANONYMOUS

    def _holder(self, header: bytes) -> Principal | None:
        scheme, _, presented = header.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or self._tokens is None:
            return None
        token = self._tokens.find(presented.strip())
        return Principal(token.name, "person", token.role) if token else None

    def _refuse(self, scope: Scope, caller: Principal | None) -> Response | None:
        if caller is None:
            return self._rejected("bad_token", 401, "this token is unknown or revoked: see `dwcp token list`")
        safe = scope["method"] in _SAFE_METHODS or (scope["method"] == "POST" and scope["path"] in self._pure)
        if not safe and not self._granted(caller, scope["path"]) and not caller.may(Role.OPERATOR):
            if caller.kind == "anonymous":
                detail = "a change of state needs `Authorization: Bearer TOKEN` of an operator"
                return self._rejected("no_token", 401, detail)
            return self._rejected(
                "forbidden", 403, f"this needs the role operator, {caller.name} has {caller.role}"
            )
        if not self._is_stream(scope):
            length = dict(scope["headers"]).get(b"content-length", b"0")
            if length.isdigit() and int(length) > BODY_BYTES_MAX:
                return self._too_large()
        return None

    def _granted(self, caller: Principal, path: str) -> bool:
        return any(grant.covers(caller, path) for grant in self._grants)

    def _rejected(self, code: str, status: int, detail: str) -> Response:
        self._telemetry.count("dwcp_http_rejected_total", reason=code)
        return error_response(status, code, detail)

    def _too_large(self) -> Response:
        return self._rejected("too_large", 413, _TOO_LARGE)

    def _is_stream(self, scope: Scope) -> bool:
        return bool(self._streams) and scope["path"].startswith(self._streams)


def _limited(receive: Receive) -> Receive:
    seen = 0

    async def read() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > BODY_BYTES_MAX:
            raise HTTPException(413, _TOO_LARGE)  # the one error that FastAPI's body reader passes on
        return message

    return read


class _Measured:
    """Notes the status that is sent; 0 until then."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def _method(scope: Scope) -> str:
    """Bounded, or a stranger could make labels without end."""
    return scope["method"] if scope["method"] in _METHODS else "other"


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


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

    def flush(self) -> None:
        if self._held:
            held, self._held, self._held_bytes = self._held, [], 0
            self._transport.write(b"".join(held))

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:  # Any: whatever the transport has
        return getattr(self._transport, name)


class _Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection with a bounded head; notes the name in the peer's certificate. A route may
    have the body in blocks that are read from the socket, past the parser (`bodies.BlockBody`)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._head_bytes = 0
        self._in_head = True
        self._body_bytes = 0
        self._lent = False
        self._head_timer = self.loop.call_later(HEAD_SECONDS_MAX, self._head_late)
        peer = _common_name(transport)
        if peer:
            link = transport.get_extra_info("socket")  # the data path reads the kernel's account of it
            self.app_state = {**self.app_state, "peer": peer, "link": link}
        super().connection_made(transport)
        self._joined = Joined(transport, self.loop)
        self.transport = cast("asyncio.Transport", self._joined)  # all that uvicorn asks of one

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self.send_400_response("The request head is too large.")

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._body_bytes = 0
        self._head_timer.cancel()
        self._head_timer = self.loop.call_later(HEAD_SECONDS_MAX, self._head_late)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_timer.cancel()
        scope = cast("Scope", self.scope)
        scope["extensions"] = {BLOCKS: functools.partial(self._lend, scope)}
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        self._joined.flush()
        if self._lent:
            self.transport.close()  # answered before the body was read: nobody can tell where the next request is
        super().on_response_complete()

    def _lend(self, scope: Scope, size: int) -> BlockBody | None:
        """The rest of this request's body in blocks; None where its length is not known or little of it is left."""
        cycle = self.cycle
        rest = _announced(scope) - self._body_bytes
        if cycle.scope is not scope or not cycle.more_body or cycle.disconnected or rest < size:
            return None
        if cycle.waiting_for_100_continue:
            cycle.waiting_for_100_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        held, cycle.body = cycle.body, bytearray()
        self._lent = True
        self.flow.read_paused = False  # from now on the block body pauses and resumes
        return BlockBody(self.transport, self, held=held, rest=rest, size=size)

    def body_complete(self) -> None:
        """The lent socket comes back; the parser, which has not seen the body's end, is made anew."""
        self._lent = False
        self.parser = httptools.HttpRequestParser(self)
        self.transport.set_protocol(self)
        self.on_message_complete()

    def _head_late(self) -> None:
        if self._in_head and not self.transport.is_closing():
            self.transport.close()


def _announced(scope: Scope) -> int:
    """Bytes of the body as its head says; 0 where it says nothing that can be counted on."""
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
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
    async def open(cls, app: Gate, listening: socket.socket, context: ssl.SSLContext | None) -> Listener:
        config = Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=75,
        )
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()

        def connection() -> _Connection:
            return _Connection(config=config, server_state=state, app_state={}, _loop=loop)

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


async def _on_refusal(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, Refusal)
    return refused(exc)


async def _on_invalid(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    place = ".".join(str(part) for part in first.get("loc", ()))
    return error_response(422, "invalid", f"{place}: {first.get('msg', 'not valid')}")


async def _on_http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
    detail = f"{exc.detail}: {request.method} {request.url.path}"
    return error_response(exc.status_code, codes.get(exc.status_code, "http"), detail)
