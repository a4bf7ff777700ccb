"""The normal case of one view: propose, prepare, commit (specification §4, S1 to S4 and S6).

What it may change: slots of the log, the pool, and proposals that it holds back. It
reports what looks like a lie through `on_suspicion`, and never leaves a view itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dwcp.consensus.core.committee import Committee
from dwcp.consensus.core.evidence import Conflict, statement
from dwcp.consensus.core.machine import Claim, Fetch, Payload, PayloadClaim, SetTimer
from dwcp.consensus.core.pacemaker import Pacemaker
from dwcp.consensus.core.views.slotlog import Content, Decision, Prepared, Slot, SlotLog
from dwcp.consensus.core.views.votes import Arrival, Unchecked, VoteBox
from dwcp.consensus.core.views.window import CheckpointWindow
from dwcp.consensus.engines.probft import messages as wire
from dwcp.consensus.engines.probft.delivery import Delivery
from dwcp.consensus.engines.probft.messages import Kind, Message, Propose, Vote
from dwcp.consensus.engines.probft.params import HELD_PROPOSALS_MAX, Params
from dwcp.consensus.engines.probft.pool import Pool
from dwcp.consensus.engines.probft.records import PreparedHere, Voted
from dwcp.consensus.engines.probft.rules import Rules
from dwcp.consensus.engines.probft.standing import Standing
from dwcp.consensus.engines.probft.voice import Voice

HOLD_TIMER = "hold"
RUMOURS_MAX = 4  # headers per slot known only from votes


@dataclass(frozen=True, slots=True)
class Proposal:
    """A PROPOSE whose header and payloads are being verified, or have been."""

    message: Message
    body: Propose
    content: Content


@dataclass(frozen=True, slots=True)
class VoteCheck:
    """Votes of one phase that are being verified together."""

    kind: Kind
    slot: int
    view: int
    digest: bytes
    votes: tuple[Unchecked, ...]


class Agreement:
    """One replica's part in deciding slots of the current view."""

    __slots__ = (
        "_awaiting",
        "_batch_count",
        "_committee",
        "_delivery",
        "_held",
        "_log",
        "_on_suspicion",
        "_pace",
        "_params",
        "_pool",
        "_rules",
        "_standing",
        "_voice",
        "_window",
        "next_slot",
        "quorum",
    )

    def __init__(  # noqa: PLR0913 - collaborators come one by one, by name
        self,
        *,
        committee: Committee,
        params: Params,
        rules: Rules,
        standing: Standing,
        log: SlotLog,
        window: CheckpointWindow,
        pool: Pool,
        delivery: Delivery,
        pace: Pacemaker,
        voice: Voice,
        on_suspicion: Callable[[Conflict], None],
    ) -> None:
        self._committee = committee
        self._params = params
        self._rules = rules
        self._standing = standing
        self._log = log
        self._window = window
        self._pool = pool
        self._delivery = delivery
        self._pace = pace
        self._voice = voice
        self._on_suspicion = on_suspicion
        self._held: dict[int, Proposal] = {}
        self._awaiting: dict[int, Proposal] = {}
        self.quorum = rules.quorum(committee.n, committee.f)
        self.next_slot = 1  # the leader's next fresh slot
        self._batch_count = 0  # payloads in the last batch that was proposed here

    # ------------------------------------------------------------ the leader

    def propose(self, now_ms: int) -> None:
        """Propose while there is something to propose and the predecessor is prepared (S1)."""
        standing = self._standing
        if not (standing.leading and standing.works and self._voice.speaks):
            return
        while len(self._pool) and self.next_slot <= self._window.high and self._may_run_ahead():
            slot = self._log.get(self.next_slot)
            if slot is not None and slot.decision is not None:
                self.next_slot += 1
                continue
            previous_ms = self._time_before(self.next_slot)
            if previous_ms is None:
                return
            self._propose_one(max(previous_ms + 1, now_ms), now_ms=now_ms)

    def _may_run_ahead(self) -> bool:
        """Once the predecessor is decided; or only prepared (or less, by `unprepared_max`), where the
        next batch would be no smaller than the last: else waiting half a round saves a slot."""
        if self.next_slot <= self._log.decided + 1:
            return True
        index = self.next_slot - self._params.unprepared_max
        slot = self._log.get(index)
        prepared = index <= self._log.decided or (
            slot is not None and (slot.prepared_here or slot.decision is not None)
        )
        return prepared and self._pool.fills(self._batch_count, self._params.batch_bytes_max)

    def _propose_one(self, time_ms: int, *, now_ms: int) -> None:
        params = self._params
        payloads = self._pool.batch(count_max=params.batch_count_max, bytes_max=params.batch_bytes_max)
        self._batch_count = len(payloads)
        content = Content(time_ms, payloads)
        batch = wire.pack(content)
        digest = wire.batch_digest(batch)
        index, view = self.next_slot, self._standing.current
        slot = self._log.at(index)
        if not self._rules.may_vote(slot.voted_view, slot.voted_digest, view, digest):
            self.next_slot += 1
            return
        signature = self._voice.sign(Kind.PROPOSE, statement(index, view, digest))
        self.next_slot += 1
        self._take(slot, digest, signature, content, now_ms=now_ms)
        slot.voted_view, slot.voted_digest = view, digest
        slot.written.add(digest)
        frame = self._voice.frame(Kind.PROPOSE, Propose(index, view, digest, batch), signature)
        self._voice.promise(Voted(index, view, digest, signature, b"", batch), self._committee.others, frame)
        self._count_prepares(slot, now_ms=now_ms)

    # ------------------------------------------------------------ proposals

    def on_propose(self, message: Message, body: Propose) -> None:
        """A proposal of the current view: cheap checks, then its signatures (S2)."""
        if self._standing.blocked or message.sender != self._standing.leader:
            return
        index = body.slot
        if not self._rules.accepts_slot(index, self._window.low, self._window.high):
            return
        held = self._held.get(index)
        slot = self._log.get(index)
        if slot is not None and slot.decision is not None and slot.decision.digest != body.digest:
            return
        seen, signature = (held.body.digest, held.message.signature) if held else (None, b"")
        if slot is not None and slot.digest is not None:
            seen, signature = slot.digest, slot.leader_signature
        if seen is not None:
            if seen != body.digest:
                self._suspect_leader(index, (seen, signature), (body.digest, message.signature))
            elif slot is not None and slot.digest is not None:
                self._say_votes(slot, (message.sender,))
            return
        if self._plausible(body):
            self._check_proposal(Proposal(message, body, wire.unpack(body.batch)))

    def _plausible(self, body: Propose) -> bool:
        params = self._params
        return (
            len(body.batch.bodies) > 0
            and wire.well_formed(
                body.batch, count_max=params.batch_count_max, bytes_max=params.batch_bytes_max
            )
            and self._rules.binds(body.digest, wire.batch_digest(body.batch))
        )

    def _check_proposal(self, proposal: Proposal) -> None:
        body, content = proposal.body, proposal.content
        payloads: Sequence[Payload] = content.payloads
        if None in body.batch.bodies:
            missing = tuple(p.digest for p in payloads if p.body is None)
            if missing:
                self._await_bodies(proposal, missing)
                return
        elif len(self._pool):
            proposal, payloads = self._own_copies(proposal)
        header = self._voice.claim(
            Kind.PROPOSE,
            proposal.message.sender,
            statement(body.slot, body.view, body.digest),
            proposal.message.signature,
        )
        claims: tuple[Claim, ...] = (header, PayloadClaim(tuple(payloads))) if payloads else (header,)
        self._voice.verify(proposal, claims)

    def _own_copies(self, proposal: Proposal) -> tuple[Proposal, Sequence[Payload]]:
        """Payloads that wait here were authenticated: they stand in for the leader's; the rest is to check.

        Only for equal bodies: a leader's signature covers digests, so a lying one may send
        another body along, and the journal keeps the batch as it came.
        """
        known = self._pool.known
        payloads, unknown = [], []
        for payload in proposal.content.payloads:
            mine = known(payload)
            if mine is None or mine.body != payload.body:
                unknown.append(payload)
                payloads.append(payload)
            else:
                payloads.append(mine)
        content = Content(proposal.content.time_ms, tuple(payloads))
        return Proposal(proposal.message, proposal.body, content), unknown

    def _await_bodies(self, proposal: Proposal, missing: tuple[bytes, ...]) -> None:
        if len(self._awaiting) < HELD_PROPOSALS_MAX:
            self._awaiting[proposal.body.slot] = proposal
            self._voice.effects.append(Fetch(missing, (self._standing.leader,)))

    def on_payloads(self, payloads: tuple[Payload, ...]) -> None:
        """Bodies that were fetched: proposals that lacked them go on."""
        bodies = {p.digest: p for p in payloads if p.body is not None}
        for index in sorted(self._awaiting):
            proposal = self._awaiting[index]
            if not any(p.body is None and p.digest in bodies for p in proposal.content.payloads):
                continue
            del self._awaiting[index]
            filled = tuple(
                bodies.get(p.digest, p) if p.body is None else p for p in proposal.content.payloads
            )
            content = Content(proposal.content.time_ms, filled)
            self._check_proposal(Proposal(proposal.message, proposal.body, content))

    def on_proposal_verified(self, proposal: Proposal, *, valid: bool, now_ms: int) -> None:
        body = proposal.body
        if not valid:
            self._voice.note("proposal.refused", slot=body.slot, view=body.view, reason="signature")
            return
        if not self._current(body.view):
            return
        if not self._rules.accepts_slot(body.slot, self._window.low, self._window.high):
            return
        slot = self._log.at(body.slot)
        if slot.digest is not None:
            if slot.digest != body.digest:
                self._suspect_leader(
                    body.slot,
                    (slot.digest, slot.leader_signature),
                    (body.digest, proposal.message.signature),
                )
            return
        held = self._held.get(body.slot)
        if held is not None and held.body.digest != body.digest:
            self._suspect_leader(
                body.slot,
                (held.body.digest, held.message.signature),
                (body.digest, proposal.message.signature),
            )
            return
        self._try_accept(slot, proposal, now_ms=now_ms)

    def _try_accept(self, slot: Slot, proposal: Proposal, *, now_ms: int) -> None:
        """Accept in order of slots and only batches whose time has come (tpbft §3.10)."""
        body, content = proposal.body, proposal.content
        previous_ms = self._time_before(slot.index)
        latest_ms = now_ms + self._params.time_ahead_ms_max
        if previous_ms is None:
            self._hold(slot.index, proposal)
            return
        if not self._rules.valid_time(content.time_ms, previous_ms, latest_ms):
            if content.time_ms > latest_ms and content.time_ms > previous_ms:
                self._hold(slot.index, proposal)
                wait_ms = min(content.time_ms - latest_ms, self._params.timeout_cap_ms)
                self._voice.effects.append(SetTimer(HOLD_TIMER, wait_ms))
            else:
                self._voice.note("proposal.refused", slot=body.slot, view=body.view, reason="time")
            return
        if not self._rules.may_vote(slot.voted_view, slot.voted_digest, body.view, body.digest):
            self._voice.note("proposal.refused", slot=body.slot, view=body.view, reason="voted")
            return
        self._held.pop(slot.index, None)
        self._take(slot, body.digest, proposal.message.signature, content, now_ms=now_ms)
        whole = None if None in body.batch.bodies else body.batch
        self._vote(slot, content, now_ms=now_ms, batch=whole)
        self.retry_held(now_ms)

    def _hold(self, index: int, proposal: Proposal) -> None:
        if len(self._held) < HELD_PROPOSALS_MAX:
            self._held[index] = proposal

    def retry_held(self, now_ms: int) -> None:
        """Look again at the first proposal held back: its predecessor or its time may have come."""
        for index in sorted(self._held)[:1]:
            proposal = self._held[index]
            slot = self._log.at(index)
            if slot.digest is not None or not self._current(proposal.body.view):
                del self._held[index]
            elif self._time_before(index) is not None:
                del self._held[index]
                self._try_accept(slot, proposal, now_ms=now_ms)

    def _take(
        self, slot: Slot, digest: bytes, leader_signature: bytes, content: Content, *, now_ms: int
    ) -> None:
        slot.accept(digest, leader_signature, certified=False, now_ms=now_ms)
        self._log.top = max(self._log.top, slot.index)
        slot.keep(digest, content)
        self._pool.place(slot.index, content.payloads)
        for other in sorted(slot.rumours):
            if other != digest:
                self._compare_headers(slot, other, slot.rumours[other])

    def _time_before(self, index: int) -> int | None:
        """The time of the last batch before `index`; None while the predecessor is unknown."""
        log = self._log
        before = index - 1
        while before > log.decided:
            slot = log.get(before)
            content = slot.content() if slot is not None else None
            if content is None:
                return None
            if content.payloads:
                return content.time_ms
            before -= 1
        if before == log.decided:
            return log.decided_ms
        slot = log.get(before)
        return slot.committed_ms if slot is not None else self._window.low_ms

    # ------------------------------------------------------------ votes

    def _vote(self, slot: Slot, content: Content, *, now_ms: int, batch: wire.Batch | None = None) -> None:
        """PREPARE what was accepted; the leader's header is its vote."""
        view, digest = self._standing.current, slot.digest
        if digest is None or slot.my_prepare or not self._standing.works:
            return
        if not self._rules.may_vote(slot.voted_view, slot.voted_digest, view, digest):
            return
        if self._voice.speaks:
            slot.voted_view, slot.voted_digest = view, digest
            batch = None if digest in slot.written else batch or wire.pack(content)
            slot.written.add(digest)
            if self._standing.leading:
                self._voice.later(Voted(slot.index, view, digest, slot.leader_signature, b"", batch))
            else:
                self._prepare(slot, digest, view, batch)
        self._count_prepares(slot, now_ms=now_ms)

    def _prepare(self, slot: Slot, digest: bytes, view: int, batch: wire.Batch | None) -> None:
        signature = self._voice.sign(Kind.PREPARE, statement(slot.index, view, digest))
        slot.my_prepare = signature
        slot.prepares.add_own(self._committee.me, digest, signature)
        self._voice.promise(
            Voted(slot.index, view, digest, slot.leader_signature, signature, batch),
            self._committee.others,
            self._vote_frame(Kind.PREPARE, slot, signature),
        )

    def _vote_frame(self, kind: Kind, slot: Slot, signature: bytes) -> bytes:
        body = Vote(slot.index, self._standing.current, slot.digest or b"", slot.leader_signature)
        return self._voice.frame(kind, body, signature)

    def on_vote(self, message: Message, body: Vote, *, now_ms: int) -> None:
        """A PREPARE or COMMIT of the current view, unchecked (S3, S4)."""
        kind = Kind(message.kind)
        if self._standing.blocked or not self._rules.accepts_slot(
            body.slot, self._window.low, self._window.high
        ):
            return
        if kind is Kind.PREPARE and message.sender == self._standing.leader:
            return
        slot = self._log.at(body.slot)
        box = slot.prepares if kind is Kind.PREPARE else slot.commits
        arrival = box.add(
            message.sender,
            body.digest,
            message.signature,
            view=body.view,
            fresh=self._rules.fresh_vote,
        )
        if arrival is Arrival.KNOWN:
            return
        if slot.digest != body.digest:
            self._compare_headers(slot, body.digest, body.leader_signature)
        if arrival is Arrival.CONFLICT:
            self._suspect_voter(message, body, box)
        elif arrival is Arrival.KEPT and kind is Kind.PREPARE:
            self._count_prepares(slot, now_ms=now_ms)
        elif arrival is Arrival.KEPT:
            self._count_commits(slot, now_ms=now_ms)

    def _compare_headers(self, slot: Slot, digest: bytes, leader_signature: bytes) -> None:
        """A vote carries a header that was not accepted here: remember it, or suspect the leader."""
        if slot.digest is not None:
            self._suspect_leader(slot.index, (slot.digest, slot.leader_signature), (digest, leader_signature))
        elif len(slot.rumours) < RUMOURS_MAX:
            slot.rumours.setdefault(digest, leader_signature)

    def _count_prepares(self, slot: Slot, *, now_ms: int) -> None:
        digest = slot.digest
        if digest is None or slot.prepared_here or digest not in slot.contents:
            return
        need = self.quorum - 1  # the leader's header is its PREPARE
        if len(slot.prepares.valid(digest)) >= need:
            self._prepared(slot, digest, need, now_ms=now_ms)
            return
        self._check_votes(Kind.PREPARE, slot, slot.prepares.take(digest, need))

    def _count_commits(self, slot: Slot, *, now_ms: int) -> None:
        digest = slot.digest
        if digest is None or slot.decision is not None or digest not in slot.contents:
            return
        if self._rules.may_decide(slot.prepared_here, len(slot.commits.valid(digest)), self.quorum):
            self._decide(slot, digest, now_ms=now_ms)
        elif self._rules.may_decide(slot.prepared_here, self.quorum, self.quorum):
            self._check_votes(Kind.COMMIT, slot, slot.commits.take(digest, self.quorum))

    def _check_votes(self, kind: Kind, slot: Slot, votes: tuple[Unchecked, ...]) -> None:
        if not votes or slot.digest is None:
            return
        view, index, digest = self._standing.current, slot.index, slot.digest
        claims = tuple(
            [self._voice.claim(kind, who, statement(index, seen, digest), sign) for who, sign, seen in votes]
        )
        self._voice.verify(VoteCheck(kind, index, view, digest, votes), claims)

    def on_votes_verified(self, check: VoteCheck, *, valid: bool, now_ms: int) -> None:
        slot = self._log.get(check.slot)
        if slot is None or slot.digest != check.digest or not self._current(check.view):
            return
        box = slot.prepares if check.kind is Kind.PREPARE else slot.commits
        if not valid and len(check.votes) > 1:
            box.split(check.votes)
            for vote in check.votes:
                self._check_votes(check.kind, slot, (vote,))
            return
        box.settle(check.digest, check.votes, valid=valid)
        if not valid:
            self._voice.note("vote.refused", slot=check.slot, sender=check.votes[0][0])
        if check.kind is Kind.PREPARE:
            self._count_prepares(slot, now_ms=now_ms)
        else:
            self._count_commits(slot, now_ms=now_ms)

    def _prepared(self, slot: Slot, digest: bytes, need: int, *, now_ms: int) -> None:
        """A quorum prepared `digest`: promise it, then COMMIT (S3)."""
        view = self._standing.current
        votes = tuple(slot.prepares.valid(digest)[:need])
        slot.prepared_here = True
        slot.prepared = Prepared(view, digest, slot.leader_signature, votes)
        if self._voice.speaks:
            signature = self._voice.sign(Kind.COMMIT, statement(slot.index, view, digest))
            slot.my_commit = signature
            slot.commits.add_own(self._committee.me, digest, signature)
            self._voice.promise(
                PreparedHere(slot.index, view, digest, slot.leader_signature, votes, signature),
                self._committee.others,
                self._vote_frame(Kind.COMMIT, slot, signature),
            )
        self._count_commits(slot, now_ms=now_ms)

    def _decide(self, slot: Slot, digest: bytes, *, now_ms: int) -> None:
        """A quorum committed (S4). A slot decided in an earlier view is not decided again."""
        votes = tuple(slot.commits.valid(digest)[: self.quorum])
        decision = Decision(self._standing.current, digest, votes)
        self._pace.progressed(now_ms - slot.accepted_ms)
        self._delivery.decide(slot, decision, content=slot.contents[digest])

    # ------------------------------------------------------------ a new view

    def begin_view(self, headers: tuple[wire.Header, ...], *, first: int, now_ms: int) -> list[int]:
        """Take over what NEWVIEW proposes again; returns the slots whose content is missing.

        Batches that the new view does not hold go back to the pool.
        """
        chosen = {header.slot: header for header in headers}
        for slot in list(self._log.ordered()):
            header = chosen.get(slot.index)
            if slot.decision is None and header is None:
                self._give_back(slot, keep=b"")
            elif slot.decision is None and header is not None:
                self._give_back(slot, keep=header.digest)
        missing = []
        self._log.top = self._log.decided
        for header in headers:
            if header.slot <= self._window.low:
                continue
            slot = self._log.at(header.slot)
            slot.accept(header.digest, header.signature, certified=True, now_ms=now_ms)
            self._log.top = header.slot
            if header.digest == wire.NULL_DIGEST:
                slot.contents[header.digest] = wire.NULL_CONTENT
            if header.digest not in slot.contents:
                missing.append(header.slot)
        self.next_slot = max(first, self._window.low + 1, *(h.slot + 1 for h in headers), 1)
        for header in headers:
            self.resume(header.slot, now_ms=now_ms)
        return missing

    def _give_back(self, slot: Slot, *, keep: bytes) -> None:
        for digest, content in slot.contents.items():
            if digest != keep:
                self._pool.restore(slot.index, content.payloads)
        kept = slot.contents.get(keep)
        if kept is not None:
            self._pool.place(slot.index, kept.payloads)

    def resume(self, index: int, *, now_ms: int) -> None:
        """Vote for an accepted slot whose content is there now."""
        slot = self._log.get(index)
        content = slot.contents.get(slot.digest) if slot is not None and slot.digest else None
        if slot is not None and content is not None:
            self._vote(slot, content, now_ms=now_ms)
            self._count_prepares(slot, now_ms=now_ms)
            self._count_commits(slot, now_ms=now_ms)
        self.retry_held(now_ms)

    def provide(self, slot: Slot, content: Content, *, now_ms: int) -> None:
        """The content of an accepted digest arrived, its bodies checked."""
        if slot.digest is None:
            return
        slot.contents[slot.digest] = content
        self._pool.place(slot.index, content.payloads)
        self.resume(slot.index, now_ms=now_ms)

    def leave_view(self) -> None:
        self._held.clear()
        self._awaiting.clear()
        for slot in self._log.ordered():
            slot.leave_view()

    # ------------------------------------------------------------ repetition

    def repeat(self, slot: Slot) -> None:
        """Send again what this replica said about an undecided slot."""
        content = slot.contents.get(slot.digest) if slot.digest is not None else None
        view = self._standing.current
        if not self._voice.speaks or slot.digest is None or not self._standing.installed:
            return
        if self._standing.leading and not slot.certified and content is not None:
            body = Propose(slot.index, view, slot.digest, wire.pack(content))
            self._voice.broadcast(self._voice.frame(Kind.PROPOSE, body, slot.leader_signature))
        self._say_votes(slot, self._committee.others)

    def _say_votes(self, slot: Slot, to: tuple[int, ...]) -> None:
        """The own votes of this view again; the leader that repeats its proposal has lost them."""
        if slot.my_prepare:
            self._voice.send(to, self._vote_frame(Kind.PREPARE, slot, slot.my_prepare))
        if slot.my_commit:
            self._voice.send(to, self._vote_frame(Kind.COMMIT, slot, slot.my_commit))

    # ------------------------------------------------------------ liars

    def _suspect_leader(self, slot: int, first: tuple[bytes, bytes], second: tuple[bytes, bytes]) -> None:
        """Two headers for one slot: proven once both signatures hold (S5)."""
        self._on_suspicion(self._conflict(Kind.PROPOSE, self._standing.leader, slot, first, second))

    def _suspect_voter(self, message: Message, body: Vote, box: VoteBox) -> None:
        second = (body.digest, message.signature)
        kind = Kind(message.kind)
        first = box.first_of(message.sender)
        self._on_suspicion(self._conflict(kind, message.sender, body.slot, first, second))

    def _conflict(
        self,
        kind: Kind,
        culprit: int,
        slot: int,
        first: tuple[bytes, bytes],
        second: tuple[bytes, bytes],
    ) -> Conflict:
        one, two = sorted((first, second))
        return Conflict(kind, self._voice.epoch, culprit, slot, self._standing.current, one, two)

    def _current(self, view: int) -> bool:
        standing = self._standing
        return self._rules.accepts_view(view, standing.current) and standing.works
