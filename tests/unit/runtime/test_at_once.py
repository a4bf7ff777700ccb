"""Questions that a connection answers at once, and when a silent caller is cut off: no sockets, a fake wire."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.server import ServerState

from dwcp.runtime.connections import (
    HEAD_SECONDS_MAX,
    IDLE_SECONDS_MAX,
    AtOnce,
    Connection,
    Patience,
)
from dwcp.runtime.http import Gate, Receive, Refusal, Scope, Send
from dwcp.runtime.telemetry import Telemetry
from dwcp.runtime.tokens import Role, TokenBook

PATH = "/ask"
BODY = b"0123456789" * 40


class Wire(asyncio.Transport):
    """What the caller sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.seen += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """The test reads for the connection."""

    def resume_reading(self) -> None:
        """As above."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # Any: asyncio's own
        return ("127.0.0.1", 1) if name in {"peername", "sockname"} else default

    def answers(self) -> list[tuple[int, bytes]]:
        """(status, content) of each answer, in order; fails on anything else between them."""
        found, rest = [], self.seen
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            size = re.search(rb"content-length: (\d+)", head)
            assert head.startswith(b"HTTP/1.1 "), head
            assert size, head
            length = int(size[1])
            found.append((int(head[9:12]), rest[:length]))
            rest = rest[length:]
        return found


class Site:
    """Tells by which way it was asked; one header makes it refuse, another makes it fail."""

    def __init__(self, tokens: TokenBook | None = None) -> None:
        self.telemetry = Telemetry("test", version="1")
        found = AtOnce(PATH, 4096, self.answer)
        self.gate = Gate(self, telemetry=self.telemetry, tokens=tokens, pure=(PATH,), at_once=(found,))
        self.by_app = 0

    def answer(self, scope: Scope, body: bytes) -> bytes:
        names = [name for name, _ in scope["headers"]]
        if b"x-refuse" in names:
            raise Refusal(429, "overloaded", "too many", {"Retry-After": "1"})
        if b"x-fail" in names:
            raise RuntimeError("our own fault")
        return b'{"bytes": %d}' % len(body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.by_app += 1
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        content = self.answer(scope, body)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def request(body: bytes = BODY, *, line: str = f"POST {PATH} HTTP/1.1", more: str = "") -> bytes:
    return f"{line}\r\nHost: h\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def spoken(
    reads: list[bytes],
    *,
    then: Callable[[Connection], None] | None = None,
    site: Site | None = None,
    made: type[Connection] = Connection,
) -> tuple[Site, Wire]:
    """A connection that reads this, is told `then` whatever it is, and has time for its tasks."""
    site, wire = site or Site(), Wire()

    async def scene() -> None:
        config = Config(site.gate, lifespan="off", ws="none", log_config=None, access_log=False)
        config.load()
        connection = made(site.gate, config, ServerState(), asyncio.get_running_loop())
        connection.connection_made(wire)
        for data in reads:
            connection.data_received(data)
        if then is not None:
            then(connection)
        for _ in range(20):
            await asyncio.sleep(0)
        if wire.closed:
            connection.connection_lost(None)

    asyncio.run(scene())
    return site, wire


@pytest.mark.parametrize("cut", [1, 30, 60, 61, 100, 399, 10_000])
def test_answers_at_once_however_it_comes(cut: int) -> None:
    """Goal: a question that comes in pieces is answered without the app too. Method: cut it at several places."""
    whole = request()

    site, wire = spoken([whole[:cut], whole[cut:]])

    assert wire.answers() == [(200, b'{"bytes": 400}')]
    assert site.by_app == 0
    exposed = site.telemetry.exposition().decode()
    assert 'dwcp_request_duration_seconds_count{method="POST",status="200"} 1.0' in exposed


@pytest.mark.parametrize(
    "asked",
    [
        request(more="Expect: 100-continue\r\n"),
        request(line=f"POST {PATH} HTTP/1.0"),
        request(line=f"POST {PATH}?a=b HTTP/1.1"),
        request(more="Connection: close\r\n"),
        request(bytes(4097)),
        f"POST {PATH} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n".encode(),
    ],
    ids=["expect", "old", "query", "last", "long", "chunked"],
)
def test_the_rare_goes_to_the_app(asked: bytes) -> None:
    """Goal: only the simple case has the short way. Method: one request of each rare kind."""
    site, wire = spoken([asked])

    assert site.by_app == 1
    assert b'{"bytes": ' in wire.seen


def test_pipelined_questions_keep_their_order() -> None:
    """Goal: no caller takes more than one turn at once, and answers come in the order of the questions. Method: five
    in one read and two in the next, told apart by their lengths."""
    bodies = [bytes(size) for size in (10, 20, 30, 40, 50, 60, 70)]
    reads = [b"".join(request(body) for body in bodies[:5]), b"".join(request(body) for body in bodies[5:])]

    site, wire = spoken(reads)

    assert wire.answers() == [(200, b'{"bytes": %d}' % len(body)) for body in bodies]
    assert 4 <= site.by_app <= 6


def test_both_ways_answer_alike() -> None:
    """Goal: status, headers and content do not depend on the way. Method: a good, a refused and a failing question,
    whole and (by `Connection: close`) through the app; the gate's refusals need no app to compare with."""
    for more, status in (("", 200), ("X-Refuse: 1\r\n", 429), ("X-Fail: 1\r\n", 500)):
        _, wire = spoken([request(more=more)])
        if status == 429:
            assert b"retry-after: 1\r\n" in wire.seen
            assert b'"overloaded"' in wire.seen
            continue
        site, other = spoken([request(more=more + "Connection: close\r\n")])
        assert site.by_app == 1
        assert wire.answers() == other.answers()
        assert wire.answers()[0][0] == status
        assert wire.closed == (status == 500)
        same = wire.seen.replace(b"connection: close\r\n", b"") == other.seen.replace(
            b"connection: close\r\n", b""
        )
        assert same


def test_an_unknown_token_is_refused_before_the_question() -> None:
    """Goal: the gate stands before this way too. Method: a token that nobody has, and the counters."""
    site, wire = spoken([request(more="Authorization: Bearer nonsense\r\n")])

    assert wire.answers()[0][0] == 401
    assert b"bad_token" in wire.seen
    assert 'dwcp_http_rejected_total{reason="bad_token"} 1.0' in site.telemetry.exposition().decode()


def test_a_drain_waits_for_half_a_question() -> None:
    """Goal: a shutdown loses no question whose body is on its way. Method: shut down in mid-body, then the rest."""
    whole = request()

    def rest(connection: Connection) -> None:
        connection.shutdown()
        connection.data_received(whole[200:])

    site, wire = spoken([whole[:200]], then=rest)

    assert site.by_app == 1
    assert wire.answers() == [(200, b'{"bytes": 400}')]
    assert wire.closed


def test_a_caller_that_leaves_in_mid_question_costs_nothing() -> None:
    """Goal: no task, no answer, no error. Method: the connection is lost in mid-body."""
    site, wire = spoken([request()[:200]], then=lambda connection: connection.connection_lost(None))

    assert (site.by_app, wire.seen) == (0, b"")


ODD = [
    request(),
    request(bytes(400)),
    request(b"\r\n\r\n" + bytes(396)),
    request(bytes(10)),
    b"\r\n" + request(),
    request() + b"\r\n",
    request(b"\r\n" + bytes(398)) + b"\r\n",
    request() + request(),
    request(more="X-Refuse: 1\r\n"),
    request(more="Authorization: Bearer nonsense\r\n"),
    request()[:-1],
    request(line="GET / HTTP/1.1"),
]


class Forgetful(Connection):
    """Parses every head."""

    def _know(self, data: bytes) -> None:
        """Nothing."""


class Exact(Site):
    """Tells every byte of the body."""

    def answer(self, scope: Scope, body: bytes) -> bytes:
        return super().answer(scope, body) + body.hex().encode()


@given(st.lists(st.sampled_from(ODD), min_size=1, max_size=8))
@settings(max_examples=80, deadline=None)
def test_a_head_seen_before_changes_no_answer(reads: list[bytes]) -> None:
    """Goal: what a connection remembers of an equal head saves work and nothing else. Method: the same reads, most of
    them twice, to one that remembers and one that does not. Bodies that look like a head's end, strays between
    requests and cut-off ones are among them."""
    twice = [read for each in reads for read in (each, each)]

    site, wire = spoken(twice, site=Exact())
    other, plain = spoken(twice, site=Exact(), made=Forgetful)

    assert (wire.seen, wire.closed, site.by_app) == (plain.seen, plain.closed, other.by_app)


def test_an_equal_head_is_not_parsed_again() -> None:
    """Goal: the short way is taken where it may be. Method: the scope of each answer: the same for whole questions
    with equal heads, another one after a different length or a cut."""
    scopes: list[int] = []
    kept: list[Scope] = []

    class Watching(Site):
        def answer(self, scope: Scope, body: bytes) -> bytes:
            kept.append(scope)  # so that no id comes back
            scopes.append(id(scope))
            return super().answer(scope, body)

    whole = request()
    reads = [whole, whole, request(bytes(400)), request(bytes(9)), request(bytes(9)), whole[:50], whole[50:]]
    _, wire = spoken(reads, site=Watching())

    assert [content for _, content in wire.answers()] == [
        b'{"bytes": %d}' % n for n in (400, 400, 400, 9, 9, 400)
    ]
    assert scopes[0] == scopes[1] == scopes[2]
    assert scopes[3] == scopes[4] != scopes[0]
    assert scopes[5] not in scopes[:5]


def test_a_revocation_acts_on_an_open_connection(tmp_path: Path) -> None:
    """Goal: what is remembered of a head never outlives its token. Method: a question, a revocation, the same bytes
    again; then the token's name is given to another token."""
    book = TokenBook(tmp_path / "tokens.json")
    token = book.create("ann", Role.OPERATOR, now_ms=0)
    asked = request(more=f"Authorization: Bearer {token}\r\n")

    def then(connection: Connection) -> None:
        connection.data_received(asked)
        book.revoke("ann")
        connection.data_received(asked)
        book.create("ann", Role.OPERATOR, now_ms=1)
        connection.data_received(asked)

    _, wire = spoken([asked], then=then, site=Site(TokenBook(tmp_path / "tokens.json")))

    assert [status for status, _ in wire.answers()] == [200, 200, 401, 401]


class Hours:
    """The part of a loop that `Patience` asks for, with time that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, act: Callable[[], None]) -> Timer:
        timer = Timer(when, act)
        self.timers.append(timer)
        return timer

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        for timer in [each for each in self.timers if each.when <= self.now and not each.done]:
            timer.done = True
            timer.act()

    @property
    def waiting(self) -> int:
        return sum(not timer.done for timer in self.timers)


class Timer:
    def __init__(self, when: float, act: Callable[[], None]) -> None:
        self.when, self.act, self.done = when, act, False

    def cancel(self) -> None:
        self.done = True


def test_patience_ends_when_it_should() -> None:
    """Goal: the moment is kept to the second, and a busy caller makes no timers. Method: a loop whose time is the
    test's; many requests, a shorter wait than the last, silence."""
    hours, cuts = Hours(), list[float]()
    patience = Patience(cast(asyncio.AbstractEventLoop, hours), lambda: cuts.append(hours.now))
    for _ in range(1000):
        patience.until(IDLE_SECONDS_MAX)
        patience.on()
        hours.pass_(0.5)
    assert len(hours.timers) <= 500 / IDLE_SECONDS_MAX + 2
    assert not cuts

    patience.until(IDLE_SECONDS_MAX)
    patience.until(HEAD_SECONDS_MAX)
    for _ in range(22):
        hours.pass_(0.5)
    assert cuts == [500 + HEAD_SECONDS_MAX]
    assert hours.waiting == 0

    patience.until(5)
    patience.end()
    hours.pass_(100)
    assert len(cuts) == 1
