"""HTTP as every service speaks it: one app on two listeners, gated before any route sees a request.

Plain HTTP: reads are free, a change of state needs a bearer token. Mutual TLS: the
caller is the process named in its certificate, which changes only what it was granted. Heads, bodies, time and
connections are limited here, so that routes need not think of them.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from dwcp.api.health import Verdict as Verdict
from dwcp.api.health import worst
from dwcp.runtime.clock import Clock, SystemClock
from dwcp.runtime.config import ServiceConfig, TlsFiles
from dwcp.runtime.connections import Answer, App, AtOnce, Listener, Message
from dwcp.runtime.connections import Receive as Receive
from dwcp.runtime.connections import Scope as Scope
from dwcp.runtime.connections import Send as Send
from dwcp.runtime.errors import AddressTaken
from dwcp.runtime.http_client import client as client
from dwcp.runtime.keys import server_context
from dwcp.runtime.principals import ANONYMOUS, Grant, Principal, of_certificate
from dwcp.runtime.telemetry import Telemetry
from dwcp.runtime.tokens import Role, TokenBook

BODY_BYTES_MAX = 2_097_152
_TOO_LARGE = f"a request body may have {BODY_BYTES_MAX} bytes"
_JSON_HEAD = b"content-type: application/json\r\ncontent-length: %d\r\n"
_HOLDER = "dwcp.holder"  # key in a scope: the token book and whose its token is
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
    at_once: tuple[AtOnce, ...] = (),
    drain_ms: int = 5000,
    started: asyncio.Event | None = None,
) -> None:
    """Serves until `stop` is set, then lets open requests end for up to `drain_ms`.

    `streams` are path prefixes whose bodies their routes read and limit themselves; `pure` are paths
    where a POST only computes an answer, so that it needs no token; `grants` say which processes beside
    the operator's own may change what; `at_once` is answered before the app, which must answer it alike.
    Raises `AddressTaken` before anything is served.
    """
    gate = Gate(
        app, telemetry=telemetry, tokens=tokens, streams=streams, pure=pure, grants=grants, at_once=at_once
    )
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
    at_once: tuple[AtOnce, ...] = (),
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
        at_once=at_once,
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
        at_once: tuple[AtOnce, ...] = (),
    ) -> None:
        self._app = app
        self._telemetry = telemetry
        self._tokens = tokens
        self._streams = streams
        self._pure = frozenset(pure)
        self._grants = grants
        self.at_once: Mapping[bytes, AtOnce] = {found.path.encode(): found for found in at_once}

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
        started = time.perf_counter()
        try:
            await self._app(scope, limited, answer)
        finally:
            self._took(started, method=_method(scope), status=answer.status)

    def answer_at_once(self, found: AtOnce, scope: Scope, body: bytes) -> Answer:
        """The same gate without a task: who asks, whether they may, the answer, its time."""
        refusal = self._refuse(scope, self._identify(scope))
        if refusal is not None:
            return _written(refusal)
        started = time.perf_counter()
        status = 0
        try:
            content = found.answer(scope, body)
            status = 200
            return Answer(status, _JSON_HEAD % len(content), content)
        except Refusal as exc:
            status = exc.status
            return _written(refused(exc))
        finally:
            self._took(started, method="POST", status=status)

    def _took(self, started: float, *, method: str, status: int) -> None:
        elapsed = time.perf_counter() - started
        self._telemetry.observe("dwcp_request_duration_seconds", elapsed, method=method, status=str(status))

    def _identify(self, scope: Scope) -> Principal | None:
        """None stands for a token that nobody has."""
        peer = scope["state"].get("peer")
        if peer:
            return of_certificate(peer)
        for name, value in scope["headers"]:
            if name == b"authorization":
                return self._holder(value, scope)
        return ANONYMOUS

    def _holder(self, header: bytes, scope: Scope) -> Principal | None:
        """Once for a scope, unless the book has changed: a revocation acts on connections that are open too."""
        if self._tokens is None:
            return None
        book = self._tokens.current()
        known: tuple[object, Principal | None] | None = scope.get(_HOLDER)
        if known is not None and known[0] is book:
            return known[1]
        scheme, _, presented = header.decode("latin-1").partition(" ")
        token = self._tokens.find(presented.strip()) if scheme.lower() == "bearer" else None
        found = Principal(token.name, "person", token.role) if token else None
        scope[_HOLDER] = (book, found)
        return found

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


def _written(response: Response) -> Answer:
    head = b"".join(b"%s: %s\r\n" % pair for pair in response.raw_headers)
    return Answer(response.status_code, head, bytes(response.body))


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
