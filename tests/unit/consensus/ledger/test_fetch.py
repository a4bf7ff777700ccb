"""Bringing payload bodies: only what was asked for, from one source after another."""

from __future__ import annotations

import pytest

from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.core.machine import Payload
from dwcp.consensus.ledger import fetch
from dwcp.consensus.ledger.fetch import PayloadFetch
from dwcp.consensus.ledger.operations import payload_digest
from dwcp.consensus.ledger.outputs import ToPeers


def payload(text: bytes) -> Payload:
    return Payload(payload_digest(text), text, b"tags")


def body_of(frame: ToPeers) -> bytes:
    """The frame without its channel byte, as the replica hands it over."""
    return frame.frame[1:]


def test_a_body_travels_from_the_first_source() -> None:
    """Goal: a digest becomes a body. Method: two fetchers joined by function calls."""
    held = {p.digest: p for p in (payload(b"one"), payload(b"two"))}
    asker, server = PayloadFetch(me=0, n=4), PayloadFetch(me=2, n=4)

    asks = asker.want(list(held), (2,))
    assert [ask.to for ask in asks] == [(2,)]
    answers, none = server.receive(0, body_of(asks[0]), held.get)
    assert none == ()
    _, brought = asker.receive(2, body_of(answers[0]), held.get)

    assert {p.digest: p for p in brought} == held
    assert len(asker) == 0


def test_retries_walk_through_every_peer() -> None:
    """Goal: one silent source does not stall a fetch. Method: retry until all peers were asked."""
    asker = PayloadFetch(me=1, n=4)
    asked = [ask.to for ask in asker.want([payload(b"x").digest], (3,))]
    for _ in range(3):
        asked += [ask.to for ask in asker.retry()]

    assert asked[0] == (3,)
    assert set(asked) == {(0,), (2,), (3,)}


def test_bodies_nobody_asked_for_are_dropped() -> None:
    """Goal: a peer cannot push bodies into memory. Method: answer a question that was never put."""
    wanted, pushed = payload(b"wanted"), payload(b"pushed")
    asker, liar = PayloadFetch(me=0, n=4), PayloadFetch(me=3, n=4)
    asker.want([wanted.digest], (3,))
    question = PayloadFetch(me=0, n=4).want([pushed.digest], (3,))
    answers, _ = liar.receive(0, body_of(question[0]), {pushed.digest: pushed}.get)

    _, brought = asker.receive(3, body_of(answers[0]), {}.get)

    assert brought == ()
    assert len(asker) == 1


def test_what_is_wanted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: bounded memory. Method: want more digests than the limit."""
    monkeypatch.setattr(fetch, "WANTED_MAX", 3)
    asker = PayloadFetch(me=0, n=4)
    asker.want([bytes([i]) * 32 for i in range(10)], (1,))

    assert len(asker) == 3


def test_an_answer_is_cut_at_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: an answer fits a frame. Method: bodies over the limit; the rest comes by retries."""
    monkeypatch.setattr(fetch, "ANSWER_BYTES_MAX", 100)
    held = {p.digest: p for p in (payload(bytes([i]) * 60) for i in range(4))}
    asker, server = PayloadFetch(me=0, n=2), PayloadFetch(me=1, n=2)
    asks, rounds = asker.want(list(held), (1,)), 0
    while asks:
        rounds += 1
        answers, _ = server.receive(0, body_of(asks[0]), held.get)
        asker.receive(1, body_of(answers[0]), held.get)
        asks = asker.retry()

    assert rounds == 4
    assert len(asker) == 0


def test_junk_is_refused() -> None:
    """Goal: junk raises the one error that the replica counts. Method: bytes of no message."""
    with pytest.raises(MalformedFrame):
        PayloadFetch(me=0, n=4).receive(1, b"\xc1junk", {}.get)
