"""New leaders that lie about what their quorum reported (specification §7.2 A8, A9)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.engines.network import Network, payload
from tests.engines.test_liars import frame, give, sign

from dwcp.consensus.core import machine
from dwcp.consensus.core.evidence import statement
from dwcp.consensus.crypto.codec import encode
from dwcp.consensus.engines.probft import messages as wire
from dwcp.consensus.engines.probft.messages import Kind, Message, NewLeader, NewView

Change = Callable[[NewView], NewView]


def headers(*slots: tuple[int, bytes]) -> tuple[wire.Header, ...]:
    return tuple(
        wire.Header(slot, digest, sign(1, Kind.PROPOSE, statement(slot, 2, digest))) for slot, digest in slots
    )


def true_new_view(seed: int = 0) -> tuple[Network, Message]:
    """A network in view 1 with slot 1 prepared, and the NEWVIEW that leads to view 2, not delivered."""
    net = Network(seed=seed)
    net.drop = lambda sender, to, message: message.kind == Kind.COMMIT or isinstance(message.body, NewView)
    net.submit("prepared")
    net.run()
    net.crash(0)
    net.tick(times=10)
    found = [m for _, _, m in net.sent if isinstance(m.body, NewView)]
    assert found
    assert not net.nodes[2].engine.status().installed
    return net, found[0]


def again(body: NewView, **changed: object) -> NewView:
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    return NewView(**(fields | changed))


def drop_row(body: NewView) -> NewView:
    """Leave the prepared slot out of the headers."""
    return again(body, headers=())


def null_instead(body: NewView) -> NewView:
    """A9: propose a null batch where a digest was prepared."""
    return again(body, headers=headers((1, wire.NULL_DIGEST)))


def too_few(body: NewView) -> NewView:
    """A9: fewer than a quorum of reports."""
    return again(body, reports=body.reports[:2])


def one_report_twice(body: NewView) -> NewView:
    """A8: duplicate senders."""
    return again(body, reports=(body.reports[0], body.reports[0], body.reports[1]))


def emptied_report(body: NewView) -> NewView:
    """A forged report: rows removed under an old signature, headers to match."""
    bare = tuple(wire.SignedReport(r.sender, wire.ViewReport(2, 0, ()), r.signature) for r in body.reports)
    return again(body, reports=bare, certificates=(), headers=())


def no_certificate(body: NewView) -> NewView:
    return again(body, certificates=())


def false_certificate(body: NewView) -> NewView:
    """Rows and headers for a digest that nobody prepared, its certificate forged."""
    c = body.certificates[0]
    lie = bytes(31) + b"\1"
    rows = (wire.ReportRow(1, 1, lie),)
    reports = tuple(
        wire.SignedReport(1, r.report, r.signature)
        if r.sender != 1
        else wire.SignedReport(
            1,
            wire.ViewReport(2, 0, rows),
            sign(1, Kind.NEWLEADER, encode(wire.ViewReport(2, 0, rows))),
        )
        for r in body.reports
    )
    forged = wire.Certificate(1, 1, lie, c.leader_signature, c.votes)
    return again(body, reports=reports, certificates=(forged,), headers=headers((1, lie)))


def forged_header(body: NewView) -> NewView:
    return again(body, headers=(wire.Header(1, body.headers[0].digest, bytes(64)),))


def short_certificate(body: NewView) -> NewView:
    """A8: q-1 promises."""
    c = body.certificates[0]
    return again(
        body,
        certificates=(wire.Certificate(c.slot, c.view, c.digest, c.leader_signature, c.votes[:1]),),
    )


def doubled_certificate(body: NewView) -> NewView:
    """A8: one promise counted twice."""
    c = body.certificates[0]
    twice = (c.votes[0], c.votes[0])
    return again(body, certificates=(wire.Certificate(c.slot, c.view, c.digest, c.leader_signature, twice),))


def claimed_checkpoint(body: NewView) -> NewView:
    """A checkpoint without votes would let it skip slots."""
    return again(body, checkpoint=wire.StableProof(8, bytes(32), 1, ()))


LIES: list[Change] = [
    drop_row,
    null_instead,
    too_few,
    one_report_twice,
    emptied_report,
    no_certificate,
    false_certificate,
    forged_header,
    short_certificate,
    doubled_certificate,
    claimed_checkpoint,
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_lying_new_view_is_refused(lie: Change) -> None:
    """Goal: safe_proposal. Method: sign a changed NEWVIEW with the leader's key; nobody installs it."""
    net, true = true_new_view()
    assert isinstance(true.body, NewView)
    changed = lie(true.body)
    give(net, 2, frame(1, Kind.NEWVIEW, changed, encode(changed)))
    assert not net.nodes[2].engine.status().installed
    give(net, 2, true)
    assert net.nodes[2].engine.status().installed, "the true one still counts"


def test_a_new_view_by_another_replica_is_refused() -> None:
    """Goal: only leader(v) opens v. Method: replica 3 signs the same body."""
    net, true = true_new_view()
    give(net, 2, frame(3, Kind.NEWVIEW, true.body, encode(true.body)))
    assert not net.nodes[2].engine.status().installed


def test_a_relayed_new_view_counts() -> None:
    """Goal: laggards get it from anyone. Method: deliver the leader's frame over another link."""
    net, true = true_new_view()
    give(net, 2, true, by=3)
    assert net.nodes[2].engine.status().installed


def test_an_old_new_view_does_not_reopen_its_view() -> None:
    """Goal: views only rise. Method: reach view 3, then deliver the NEWVIEW of view 2."""
    net, true = true_new_view()
    net.tick(times=40)
    view = net.nodes[2].engine.view
    assert view >= 3
    give(net, 2, true)
    assert net.nodes[2].engine.view == view


@pytest.mark.parametrize("rows", [((1, 1, 7),), ((2, 1, 7), (1, 1, 7)), ((1, 2, 7),), ((99, 1, 7),)])
def test_unproven_or_misshapen_reports_are_refused(rows: tuple[tuple[int, int, int], ...]) -> None:
    """Goal: a Byzantine reporter cannot place a digest. Method: no certificate, disorder, view, window."""
    net = Network()
    net.drop = lambda sender, to, message: True
    net.crash(0)
    net.submit("a")
    engine = net.nodes[1].engine
    for me in (2, 3):
        give(net, 1, frame(me, Kind.WISH, wire.Wish(2), encode(wire.Wish(2))))
    assert engine.view == 2
    report = wire.ViewReport(
        2, 0, tuple(wire.ReportRow(slot, view, bytes([n]) * 32) for slot, view, n in rows)
    )
    empty = wire.ViewReport(2, 0, ())
    give(net, 1, frame(3, Kind.NEWLEADER, NewLeader(report, (), None), encode(report)))
    give(net, 1, frame(2, Kind.NEWLEADER, NewLeader(empty, (), None), encode(empty)))
    assert not engine.status().installed
    give(net, 1, frame(3, Kind.NEWLEADER, NewLeader(empty, (), None), encode(empty)))
    assert engine.status().installed


def test_a_reporters_junk_certificate_does_not_spoil_an_honest_new_view() -> None:
    """Goal: liveness. Method: replica 3 reports the truth with a junk proof; others without it still install.

    The leader shows its own proof instead of the reporter's.
    """
    net = Network()
    net.drop = lambda sender, to, message: (
        message.kind == Kind.COMMIT or (message.kind == Kind.PREPARE and to == 2)
    )
    net.submit("prepared")
    net.run()
    net.drop = lambda sender, to, message: to == 3
    net.crash(0)
    report = net.nodes[3].engine._changes.new_leader().report
    true_rows = wire.ViewReport(2, 0, report.rows)
    junk = tuple(wire.Certificate(r.slot, r.view, r.digest, bytes(64), ()) for r in report.rows)
    net.nodes[3].up = False
    for me in (1, 2):
        give(net, me, frame(3, Kind.WISH, wire.Wish(2), encode(wire.Wish(2))))
    net.feed(1, machine.TimerFired("view"))
    net.tick(times=7)
    give(net, 1, frame(3, Kind.NEWLEADER, NewLeader(true_rows, junk, None), encode(true_rows)))
    net.tick(times=40)
    assert net.nodes[2].engine.status().installed
    net.nodes[3].up = True
    net.drop = lambda sender, to, message: False
    net.tick(times=60)
    assert net.all_committed("prepared", among=(1, 2, 3))
    assert payload("prepared").digest in net.decisions[1][1]
