"""Leaving a view and installing the next (specification §4.1, §5.3; tpbft §3.5).

WISH moves replicas into a view together; each reports to its leader what it prepared
(NEWLEADER); the leader shows a quorum of reports and what follows from them (NEWVIEW);
everyone recomputes what follows and refuses any difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dwcp.consensus.core.committee import Committee, leader_of
from dwcp.consensus.core.errors import invariant
from dwcp.consensus.core.evidence import statement
from dwcp.consensus.core.machine import Claim
from dwcp.consensus.core.pacemaker import Pacemaker
from dwcp.consensus.core.views.selection import Report, Row, start_of, strongest_rows
from dwcp.consensus.core.views.slotlog import SlotLog
from dwcp.consensus.core.views.synchroniser import Synchroniser
from dwcp.consensus.core.views.window import CheckpointWindow
from dwcp.consensus.crypto.codec import encode
from dwcp.consensus.engines.probft.agreement import Agreement
from dwcp.consensus.engines.probft.checkpoints import Checkpoints, proof_of, stable_of
from dwcp.consensus.engines.probft.messages import (
    NULL_DIGEST,
    Certificate,
    Header,
    Kind,
    Message,
    NewLeader,
    NewView,
    ReportRow,
    SignedReport,
    StableProof,
    ViewReport,
    Wish,
)
from dwcp.consensus.engines.probft.records import Entered, Installed, Wished
from dwcp.consensus.engines.probft.rules import Rules
from dwcp.consensus.engines.probft.standing import Standing
from dwcp.consensus.engines.probft.voice import Voice

Proven = tuple[int, int, bytes]  # slot, view, digest


@dataclass(frozen=True, slots=True)
class WishCheck:
    """A WISH whose signature is being verified."""

    sender: int
    view: int


@dataclass(frozen=True, slots=True)
class ReportCheck:
    """A NEWLEADER that is being verified."""

    sender: int
    body: NewLeader
    signature: bytes


@dataclass(frozen=True, slots=True)
class NewViewCheck:
    """A NEWVIEW that agrees with its own reports and is being verified."""

    message: Message
    body: NewView


def core_report(sender: int, report: ViewReport) -> Report:
    return Report(sender, report.stable, tuple(Row(r.slot, r.view, r.digest) for r in report.rows))


class ViewChange:
    """May change the standing, the wishes and what it collects as a new leader."""

    __slots__ = (
        "_agreement",
        "_certificates",
        "_checking",
        "_checkpoint",
        "_checkpoints",
        "_committee",
        "_log",
        "_on_entered",
        "_on_installed",
        "_pace",
        "_reports",
        "_rules",
        "_standing",
        "_voice",
        "_window",
        "sync",
    )

    def __init__(  # noqa: PLR0913 - collaborators come one by one, by name
        self,
        *,
        committee: Committee,
        rules: Rules,
        standing: Standing,
        log: SlotLog,
        window: CheckpointWindow,
        pace: Pacemaker,
        voice: Voice,
        sync: Synchroniser,
        agreement: Agreement,
        checkpoints: Checkpoints,
        on_entered: Callable[[int], None],
        on_installed: Callable[[list[int], int], None],
    ) -> None:
        self._committee = committee
        self._rules = rules
        self._standing = standing
        self._log = log
        self._window = window
        self._pace = pace
        self._voice = voice
        self._agreement = agreement
        self._checkpoints = checkpoints
        self._on_entered = on_entered
        self._on_installed = on_installed
        self.sync = sync
        self._reports: dict[int, SignedReport] = {}
        self._certificates: dict[Proven, Certificate] = {}
        self._checkpoint: StableProof | None = None
        self._checking: set[int] = set()

    # ------------------------------------------------------------ wishes

    def give_up(self, now_ms: int) -> None:
        """The current view has failed: wish for the next."""
        target = self.sync.expired(self._standing.current)
        if self._voice.speaks:
            self._wish(target)
            self._turn(now_ms)

    def _wish(self, view: int) -> None:
        me = self._committee.me
        if self.sync.note(me, view):
            self._voice.promise(Wished(view), self._committee.others, self.wish_frame())
        else:
            self._voice.broadcast(self.wish_frame())

    def wish_frame(self) -> bytes:
        body = Wish(self.sync.own)
        return self._voice.frame(Kind.WISH, body, self._voice.sign(Kind.WISH, encode(body)))

    def on_wish(self, message: Message, body: Wish) -> None:
        if self._voice.speaks and body.view > self.sync.wishes[message.sender]:
            claim = self._voice.claim(Kind.WISH, message.sender, message.raw, message.signature)
            self._voice.verify(WishCheck(message.sender, body.view), (claim,))

    def on_wish_verified(self, check: WishCheck, *, valid: bool, now_ms: int) -> None:
        if valid and self.sync.note(check.sender, check.view):
            self._turn(now_ms)

    def _turn(self, now_ms: int) -> None:
        turn = self.sync.turn(self._standing.current)
        if turn.wish:
            self._wish(turn.wish)
            turn = self.sync.turn(self._standing.current)
        if turn.enter:
            self._enter(turn.enter, now_ms=now_ms)

    # ------------------------------------------------------------ entering

    def _leave(self, view: int) -> bool:
        """Stop taking part in every view below `view`."""
        if not self._rules.enters(view, self._standing.current):
            return False
        self._standing.enter(view)
        self._agreement.leave_view()
        self._pace.failed()
        self._reports.clear()
        self._certificates.clear()
        self._checkpoint = None
        self.sync.note(self._committee.me, view)
        self._voice.note("view.entered", view=view)
        return True

    def _enter(self, view: int, *, now_ms: int) -> None:
        if not self._leave(view):
            return
        leader = self._standing.leader
        if self._standing.leading:
            self._voice.promise(Entered(view), ())
            self._collect(self._committee.me, self.new_leader(), b"", now_ms=now_ms)
        else:
            self._voice.promise(Entered(view), (leader,), self._new_leader_frame())
        self._on_entered(now_ms)

    def report_again(self, *, now_ms: int) -> None:
        """After a restart in a view that was entered and not installed."""
        if self._standing.leading and self._voice.speaks:
            self._collect(self._committee.me, self.new_leader(), b"", now_ms=now_ms)

    def new_leader(self) -> NewLeader:
        """This replica's report: its highest prepared digest of each slot above its checkpoint."""
        low = self._window.low
        prepared = [(s.index, s.prepared) for s in self._log.ordered() if s.index > low and s.prepared]
        rows = self._rules.reported_rows([Row(i, p.view, p.digest) for i, p in prepared])
        listed = {row.slot for row in rows}
        certificates = tuple(
            Certificate(i, p.view, p.digest, p.leader_signature, p.votes) for i, p in prepared if i in listed
        )
        report = ViewReport(
            self._standing.current, low, tuple(ReportRow(r.slot, r.view, r.digest) for r in rows)
        )
        stable = self._window.stable
        return NewLeader(report, certificates, proof_of(stable) if stable is not None else None)

    def _new_leader_frame(self) -> bytes:
        body = self.new_leader()
        return self._voice.frame(Kind.NEWLEADER, body, self._voice.sign(Kind.NEWLEADER, encode(body.report)))

    def repeat(self) -> None:
        """Send again what the current view change waits for."""
        if not self._voice.speaks:
            return
        if self.sync.own > self._standing.current or not self._standing.installed:
            self._voice.broadcast(self.wish_frame())
        if not self._standing.installed and not self._standing.leading:
            self._voice.send((self._standing.leader,), self._new_leader_frame())

    # ------------------------------------------------------------ the new leader

    def on_new_leader(self, message: Message, body: NewLeader) -> None:
        """A report for the view that this replica is to lead."""
        standing = self._standing
        if not standing.leading or standing.installed or not self._voice.speaks:
            return
        if message.sender in self._reports or not self._well_formed(body.report, standing.current):
            return
        claims = self._report_claims(message, body)
        if claims is not None:
            self._voice.verify(ReportCheck(message.sender, body, message.signature), claims)

    def _well_formed(self, report: ViewReport, view: int) -> bool:
        """Rows by slot, inside one window, prepared before this view."""
        if report.view != view or len(report.rows) > self._window.size:
            return False
        previous = report.stable
        for row in report.rows:
            if not previous < row.slot <= report.stable + self._window.size or not 1 <= row.view < view:
                return False
            previous = row.slot
        return True

    def _report_claims(self, message: Message, body: NewLeader) -> tuple[Claim, ...] | None:
        """What must hold for a report; None where a row or the checkpoint comes without proof."""
        report = body.report
        part = encode(report)
        claims: list[Claim] = [self._voice.claim(Kind.NEWLEADER, message.sender, part, message.signature)]
        attached = {(c.slot, c.view, c.digest): c for c in body.certificates}
        for row in report.rows:
            key = (row.slot, row.view, row.digest)
            if self._knows(key) or key in self._certificates:
                continue
            certificate = attached.get(key)
            if certificate is None or not self._plausible(certificate):
                return None
            claims.extend(self._certificate_claims(certificate))
        if report.stable > 0:
            proof = body.checkpoint
            if proof is None or proof.index != report.stable or not self._checkpoints.plausible(proof):
                return None
            claims.extend(self._checkpoints.claims_of(proof))
        return tuple(claims)

    def _knows(self, key: Proven) -> bool:
        """Whether this replica itself holds proof that `key` was prepared."""
        return self._own_proof(key) is not None

    def _plausible(self, certificate: Certificate) -> bool:
        """As many distinct PREPAREs as make a quorum with the leader's header."""
        leader = leader_of(certificate.view, self._committee.n)
        return (
            len(certificate.votes) == self._agreement.quorum - 1
            and self._rules.distinct_signers(certificate.votes)
            and all(self._committee.has(s) and s != leader for s, _ in certificate.votes)
        )

    def _certificate_claims(self, certificate: Certificate) -> list[Claim]:
        part = statement(certificate.slot, certificate.view, certificate.digest)
        leader = leader_of(certificate.view, self._committee.n)
        header = self._voice.claim(Kind.PROPOSE, leader, part, certificate.leader_signature)
        votes = [self._voice.claim(Kind.PREPARE, s, part, sign) for s, sign in certificate.votes]
        return [header, *votes]

    def on_report_verified(self, check: ReportCheck, *, valid: bool, now_ms: int) -> None:
        standing = self._standing
        if not valid:
            self._voice.note("report.refused", sender=check.sender)
        elif check.body.report.view == standing.current and not standing.installed and standing.leading:
            self._collect(check.sender, check.body, check.signature, now_ms=now_ms)

    def _collect(self, sender: int, body: NewLeader, signature: bytes, *, now_ms: int) -> None:
        """Keep a verified report; with a quorum of them, lead (S1)."""
        if not signature:
            signature = self._voice.sign(Kind.NEWLEADER, encode(body.report))
        self._reports[sender] = SignedReport(sender, body.report, signature)
        attached = {(c.slot, c.view, c.digest): c for c in body.certificates}
        for row in body.report.rows:
            key = (row.slot, row.view, row.digest)
            if key not in self._certificates:
                self._certificates[key] = self._own_proof(key) or attached[key]
        proof = body.checkpoint
        if proof is not None and proof.index == body.report.stable:
            best = self._checkpoint.index if self._checkpoint is not None else 0
            if proof.index > best:
                self._checkpoint = self._own_stable(proof.index) or proof
        if len(self._reports) >= self._agreement.quorum:
            self._lead(now_ms)

    def _lead(self, now_ms: int) -> None:
        view = self._standing.current
        reports = tuple(self._reports[sender] for sender in sorted(self._reports))
        found = [core_report(r.sender, r.report) for r in reports]
        start = start_of(found)
        checkpoint = self._checkpoint if start > 0 else None
        invariant(
            start == (checkpoint.index if checkpoint is not None else 0),
            f"a report names checkpoint {start}, but nobody proved it",
        )
        certificates = tuple(
            self._certificates[row.slot, row.view, row.digest] for row in strongest_rows(found)
        )
        headers = tuple(
            Header(slot, digest, self._voice.sign(Kind.PROPOSE, statement(slot, view, digest)))
            for slot, digest in self._rules.select_proposals(found, NULL_DIGEST)
        )
        body = NewView(view, reports, certificates, checkpoint, headers)
        frame = self._voice.frame(Kind.NEWVIEW, body, self._voice.sign(Kind.NEWVIEW, encode(body)))
        self._install(body, frame, now_ms=now_ms, to=self._committee.others)

    def _own_stable(self, index: int) -> StableProof | None:
        """This replica's own certificate for `index`: known to hold, unlike an attached one."""
        stable = self._window.stable
        return proof_of(stable) if stable is not None and stable.checkpoint.index == index else None

    def _own_proof(self, key: Proven) -> Certificate | None:
        """This replica's own proof that `key` was prepared, if it has one."""
        slot = self._log.get(key[0])
        own = slot.prepared if slot is not None else None
        if own is None or (own.view, own.digest) != key[1:]:
            return None
        return Certificate(key[0], own.view, own.digest, own.leader_signature, own.votes)

    # ------------------------------------------------------------ NEWVIEW

    def on_new_view(self, message: Message, body: NewView) -> None:
        """What the leader of a view says follows from a quorum of reports (from anyone's link)."""
        standing = self._standing
        news = body.view > standing.current or (body.view == standing.current and not standing.installed)
        leads = message.sender == leader_of(body.view, self._committee.n)
        if not news or not leads or message.sender in self._checking:
            return
        if message.sender == self._committee.me and self._voice.speaks:
            return
        claims = self._new_view_claims(message, body)
        if claims is None:
            self._voice.note("view.refused", view=body.view)
            return
        self._checking.add(message.sender)
        self._voice.verify(NewViewCheck(message, body), claims)

    def _new_view_claims(self, message: Message, body: NewView) -> tuple[Claim, ...] | None:
        """Recompute what follows from the reports; None where the leader says something else."""
        if not self._follows(body):
            return None
        reports = [core_report(r.sender, r.report) for r in body.reports]
        claims: list[Claim] = [
            self._voice.claim(Kind.NEWVIEW, message.sender, message.raw, message.signature)
        ]
        claims.extend(
            self._voice.claim(Kind.NEWLEADER, r.sender, encode(r.report), r.signature) for r in body.reports
        )
        shown = {(c.slot, c.view, c.digest): c for c in body.certificates}
        for row in strongest_rows(reports):
            certificate = shown.get((row.slot, row.view, row.digest))
            if certificate is None or not self._plausible(certificate):
                return None
            if not self._knows((row.slot, row.view, row.digest)):
                claims.extend(self._certificate_claims(certificate))
        if body.checkpoint is not None:
            claims.extend(self._checkpoints.claims_of(body.checkpoint))
        for header in body.headers:
            part = statement(header.slot, body.view, header.digest)
            claims.append(self._voice.claim(Kind.PROPOSE, message.sender, part, header.signature))
        return tuple(claims)

    def _follows(self, body: NewView) -> bool:
        """The shape of a NEWVIEW: a quorum of members, the proven start, exactly the headers."""
        senders = [r.sender for r in body.reports]
        if len(set(senders)) != len(senders) or len(senders) < self._agreement.quorum:
            return False
        if not all(self._committee.has(s) for s in senders):
            return False
        if not all(self._well_formed(r.report, body.view) for r in body.reports):
            return False
        reports = [core_report(r.sender, r.report) for r in body.reports]
        proven = body.checkpoint.index if body.checkpoint is not None else 0
        if proven != start_of(reports):
            return False
        if body.checkpoint is not None and not self._checkpoints.plausible(body.checkpoint):
            return False
        expected = self._rules.select_proposals(reports, NULL_DIGEST)
        return [(h.slot, h.digest) for h in body.headers] == expected

    def on_new_view_verified(self, check: NewViewCheck, *, valid: bool, now_ms: int) -> None:
        self._checking.discard(check.message.sender)
        if not valid:
            self._voice.note("view.refused", view=check.body.view)
            return
        standing, body = self._standing, check.body
        if body.view < standing.current or (body.view == standing.current and standing.installed):
            return
        self._leave(body.view)
        self._install(body, self._voice.frame_of(check.message), now_ms=now_ms, to=())

    def _install(self, body: NewView, frame: bytes, *, now_ms: int, to: tuple[int, ...]) -> None:
        """Work in the view: its headers are accepted, its leader may propose."""
        for header in body.headers:
            slot = self._log.get(header.slot)
            decided = slot.decision.digest if slot is not None and slot.decision is not None else None
            invariant(
                self._rules.null_allowed(decided, header.digest),
                f"view {body.view} proposes another batch for slot {header.slot}, which is decided",
            )
        self._voice.promise(Installed(body.view, frame), to, frame)
        self._standing.install(frame)
        self._reports.clear()
        self._certificates.clear()
        if body.checkpoint is not None:
            self._checkpoints.adopt(stable_of(body.checkpoint))
        self._voice.note("view.installed", view=body.view, slots=len(body.headers))
        first = start_of([core_report(r.sender, r.report) for r in body.reports]) + 1
        missing = self._agreement.begin_view(body.headers, first=first, now_ms=now_ms)
        self._on_installed(missing, now_ms)
