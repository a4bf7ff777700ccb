"""Falling behind and getting up again: beacons, decisions with their proof, missing batches.

A replica says once per second where it stands. Who is behind asks one peer at a time;
answers prove themselves, so it does not matter who gives them.
"""

from __future__ import annotations

from dataclasses import dataclass

from dwcp.consensus.core.committee import Committee
from dwcp.consensus.core.evidence import statement
from dwcp.consensus.core.views.slotlog import Content, Decision, Slot, SlotLog
from dwcp.consensus.core.views.window import CheckpointWindow
from dwcp.consensus.engines.probft import messages as wire
from dwcp.consensus.engines.probft.agreement import Agreement
from dwcp.consensus.engines.probft.checkpoints import proof_of
from dwcp.consensus.engines.probft.delivery import Delivery
from dwcp.consensus.engines.probft.messages import (
    Ask,
    AskBatch,
    BatchAnswer,
    Beacon,
    Decided,
    Kind,
    Propose,
)
from dwcp.consensus.engines.probft.params import (
    ASK_BURST,
    ASK_GAP_MS,
    CATCH_UP_BYTES,
    CATCH_UP_SLOTS,
    HEAVY_GAP_MS,
    Params,
)
from dwcp.consensus.engines.probft.pool import size_of
from dwcp.consensus.engines.probft.rules import Rules
from dwcp.consensus.engines.probft.standing import Standing
from dwcp.consensus.engines.probft.voice import Voice

HASTE_SLOTS = 4  # behind by this much by a beacon: ask at once, not at the next beacon


@dataclass(frozen=True, slots=True)
class DecidedCheck:
    """A peer's decision that is being verified."""

    sender: int
    body: Decided
    content: Content


@dataclass(slots=True)
class Inquiry:
    """The ASK that is under way: to whom, from which slot, and what has come of it."""

    peer: int = -1
    first: int = 0
    received: int = 0  # the highest slot in the answers so far
    ended: bool = True  # the peer's closing beacon has come


class CatchUp:
    """May decide slots by proof and give contents to accepted ones; it never votes."""

    __slots__ = (
        "_agreement",
        "_allowance",
        "_committee",
        "_delivery",
        "_heavy_ms",
        "_heights",
        "_inquiry",
        "_last_decided",
        "_log",
        "_params",
        "_rules",
        "_standing",
        "_turn",
        "_voice",
        "_window",
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
        delivery: Delivery,
        agreement: Agreement,
        voice: Voice,
    ) -> None:
        self._committee = committee
        self._params = params
        self._rules = rules
        self._standing = standing
        self._log = log
        self._window = window
        self._delivery = delivery
        self._agreement = agreement
        self._voice = voice
        self._heights = [0] * committee.n
        self._heavy_ms: dict[int, int] = {}
        self._allowance: dict[int, tuple[int, int]] = {}
        self._inquiry = Inquiry()
        self._last_decided = -1
        self._turn = committee.me

    # ------------------------------------------------------------ beacons

    def beacon_frame(self) -> bytes:
        standing = self._standing
        installed = standing.current if standing.installed else 0
        body = Beacon(standing.current, installed, self._log.decided, self._window.low)
        return self._voice.frame(Kind.BEACON, body)

    def tick(self) -> None:
        """Once per beacon: ask if nothing moved since the last one and somebody is ahead."""
        if max(self._heights) > self._log.decided == self._last_decided:
            self.ask_next()
        self._last_decided = self._log.decided

    def on_beacon(self, sender: int, body: Beacon, *, now_ms: int) -> None:
        """Learn where `sender` is; send what it lacks."""
        self._heights[sender] = body.decided
        inquiry = self._inquiry
        if sender == inquiry.peer:
            inquiry.ended = True
            self._go_on()
        idle = self._inquiry.ended and self._inquiry.first <= self._log.decided
        if idle and body.decided >= self._log.decided + HASTE_SLOTS:
            self._ask(sender)
        self._help(sender, body, now_ms=now_ms)

    def show_view(self, sender: int, *, now_ms: int) -> None:
        """`sender` reports for a view that is installed here: it lacks the NEWVIEW."""
        self._help(sender, Beacon(0, 0, self._log.decided, self._window.low), now_ms=now_ms)

    def _help(self, sender: int, body: Beacon, *, now_ms: int) -> None:
        """NEWVIEW or a checkpoint certificate for a peer that lacks it, at most a few per second."""
        standing = self._standing
        behind_in_view = body.installed < standing.current and standing.installed and standing.frame
        behind_in_state = body.stable < self._window.low and body.decided >= self._window.low
        behind = body.decided < self._log.decided
        if not (behind_in_view or behind_in_state or behind):
            return
        if 0 <= now_ms - self._heavy_ms.get(sender, -HEAVY_GAP_MS) < HEAVY_GAP_MS:
            return
        self._heavy_ms[sender] = now_ms
        if behind_in_view:
            self._voice.send((sender,), standing.frame)
        if behind_in_state:
            self._send_stable(sender)
        if behind:
            self._voice.send((sender,), self.beacon_frame())

    def _send_stable(self, to: int) -> None:
        stable = self._window.stable
        if stable is not None:
            self._voice.send((to,), self._voice.frame(Kind.STABLE, proof_of(stable)))

    # ------------------------------------------------------------ asking

    def ask_next(self) -> None:
        """Ask the next peer, round robin, preferring those known to be ahead."""
        others = self._committee.others
        ahead = [p for p in others if self._heights[p] > self._log.decided] or list(others)
        if not ahead:
            return
        later = [p for p in ahead if p > self._turn]
        self._ask(later[0] if later else ahead[0])

    def _ask(self, peer: int) -> None:
        self._turn = peer
        first = self._log.decided + 1
        self._inquiry = Inquiry(peer, first, 0, ended=False)
        self._voice.send((peer,), self._voice.frame(Kind.ASK, Ask(first)))

    def _go_on(self) -> None:
        """The last answer is through and the peer has more: ask it again at once."""
        inquiry, decided = self._inquiry, self._log.decided
        moved = decided >= inquiry.first and decided >= inquiry.received
        if inquiry.ended and moved and self._heights[inquiry.peer] > decided:
            self._ask(inquiry.peer)

    def on_ask(self, sender: int, body: Ask, *, now_ms: int) -> None:
        """Send decisions from a slot on, or the certificate that replaces them; close with a beacon."""
        if not self._affords(sender, now_ms):
            return
        if body.slot <= self._log.base or (body.slot <= self._window.low and self._lacks(body.slot)):
            self._send_stable(sender)
            return
        sent = 0
        for index in range(body.slot, body.slot + CATCH_UP_SLOTS):
            slot = self._log.get(index)
            content = slot.content() if slot is not None else None
            if slot is None or slot.decision is None or content is None or sent > CATCH_UP_BYTES:
                break
            sent += sum([size_of(p) for p in content.payloads])
            self._voice.send((sender,), self._decided_frame(slot, slot.decision, content))
        if sent or body.slot <= self._log.decided:
            self._voice.send((sender,), self.beacon_frame())

    def _affords(self, sender: int, now_ms: int) -> bool:
        """A bucket of `ASK_BURST` answers per peer, refilled by one every `ASK_GAP_MS`."""
        left, since_ms = self._allowance.get(sender, (ASK_BURST, now_ms))
        left = min(ASK_BURST, left + max(0, now_ms - since_ms) // ASK_GAP_MS)
        self._allowance[sender] = (max(0, left - 1), now_ms)
        return left > 0

    def _lacks(self, index: int) -> bool:
        slot = self._log.get(index)
        return slot is None or slot.decision is None

    def _decided_frame(self, slot: Slot, decision: Decision, content: Content) -> bytes:
        body = Decided(slot.index, decision.view, decision.digest, decision.votes, wire.pack(content))
        return self._voice.frame(Kind.DECIDED, body)

    # ------------------------------------------------------------ answers

    def on_decided(self, sender: int, body: Decided) -> None:
        """Check a decision's shape and bodies here, its quorum of COMMITs by the verifier."""
        slot = self._log.get(body.slot)
        if not self._log.decided < body.slot <= self._window.high:
            return
        if slot is not None and slot.decision is not None:
            return
        votes = body.votes
        proven = (
            len(votes) == self._agreement.quorum
            and self._rules.distinct_signers(votes)
            and all(self._committee.has(s) for s, _ in votes)
        )
        content = self._certified(body.digest, body.batch) if proven else None
        if content is None:
            return
        part = statement(body.slot, body.view, body.digest)
        claims = tuple(self._voice.claim(Kind.COMMIT, s, part, sign) for s, sign in votes)
        self._voice.verify(DecidedCheck(sender, body, content), claims)

    def _certified(self, digest: bytes, batch: wire.Batch) -> Content | None:
        """The content of a batch that a quorum vouched for: only hashes are left to compare."""
        params = self._params
        if not wire.well_formed(batch, count_max=params.batch_count_max, bytes_max=params.batch_bytes_max):
            return None
        if digest != wire.batch_digest(batch):
            return None
        content = wire.unpack(batch)
        return content if wire.bodies_match(content) else None

    def on_decided_verified(self, check: DecidedCheck, *, valid: bool, now_ms: int) -> None:
        body = check.body
        if not valid:
            self._voice.note("decision.refused", sender=check.sender, slot=body.slot)
            return
        if body.slot <= self._log.base or body.slot <= self._log.decided:
            return
        slot = self._log.at(body.slot)
        decision = Decision(body.view, body.digest, body.votes)
        self._delivery.decide(slot, decision, content=check.content)
        self._agreement.resume(body.slot, now_ms=now_ms)
        if check.sender == self._inquiry.peer:
            self._inquiry.received = max(self._inquiry.received, body.slot)
            self._go_on()

    # ------------------------------------------------------------ batches

    def want_batch(self, slot: Slot) -> None:
        """Ask everyone for the batch of an accepted digest."""
        if slot.digest is not None:
            frame = self._voice.frame(Kind.ASK_BATCH, AskBatch(slot.index, slot.digest))
            self._voice.broadcast(frame)

    def want_rumoured(self, slot: Slot) -> None:
        """Votes carry a header that never came as a proposal: ask a voter for its batch (H2)."""
        camp = slot.prepares.leading() or slot.commits.leading()
        if camp is not None and camp[0] in slot.rumours:
            frame = self._voice.frame(Kind.ASK_BATCH, AskBatch(slot.index, camp[0]))
            self._voice.send(tuple(camp[1][:1]), frame)

    def on_ask_batch(self, sender: int, body: AskBatch) -> None:
        slot = self._log.get(body.slot)
        content = slot.contents.get(body.digest) if slot is not None else None
        if content is not None:
            answer = BatchAnswer(body.slot, body.digest, wire.pack(content))
            self._voice.send((sender,), self._voice.frame(Kind.BATCH, answer))

    def on_batch(self, body: BatchAnswer, *, now_ms: int) -> wire.Message | None:
        """Fill an accepted slot; or give back the PROPOSE that a rumoured header and a batch make."""
        slot = self._log.get(body.slot)
        if slot is None:
            return None
        if slot.digest == body.digest and body.digest not in slot.contents:
            content = self._certified(body.digest, body.batch)
            if content is not None:
                self._agreement.provide(slot, content, now_ms=now_ms)
            return None
        signature = slot.rumours.get(body.digest)
        if slot.digest is not None or signature is None:
            return None
        standing = self._standing
        propose = Propose(body.slot, standing.current, body.digest, body.batch)
        return wire.Message(Kind.PROPOSE, self._voice.epoch, standing.leader, signature, propose, b"")
