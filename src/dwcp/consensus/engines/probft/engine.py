"""ProBFT in its deterministic profile, as a machine: told what happened, it answers what to do.

`step` is one `match`; the handlers it calls own one concern each and are given only
what they may change: `agreement` (the normal case), `viewchange`, `checkpoints`,
`catchup`, `faults`, `delivery`. Read `rules.py` for the decisions that carry safety.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dwcp.consensus.core import quorum as quorums
from dwcp.consensus.core.committee import Committee, leader_of
from dwcp.consensus.core.evidence import Conflict
from dwcp.consensus.core.machine import (
    Applied,
    Effect,
    Event,
    Payload,
    PayloadReady,
    Received,
    SetTimer,
    Signer,
    Snapshotted,
    Submitted,
    TimerFired,
    Verified,
)
from dwcp.consensus.core.pacemaker import Pacemaker
from dwcp.consensus.core.views.slotlog import SlotLog
from dwcp.consensus.core.views.synchroniser import Synchroniser
from dwcp.consensus.core.views.window import CheckpointWindow
from dwcp.consensus.engines.probft import messages as wire
from dwcp.consensus.engines.probft import recovery
from dwcp.consensus.engines.probft.agreement import HOLD_TIMER, Agreement, Proposal, VoteCheck
from dwcp.consensus.engines.probft.ahead import Ahead
from dwcp.consensus.engines.probft.catchup import CatchUp, DecidedCheck
from dwcp.consensus.engines.probft.checkpoints import CheckpointCheck, Checkpoints, StableCheck
from dwcp.consensus.engines.probft.delivery import Delivery
from dwcp.consensus.engines.probft.faults import Faults
from dwcp.consensus.engines.probft.messages import Kind, Message
from dwcp.consensus.engines.probft.params import (
    BEACON_MS,
    RESEND_MS_MAX,
    RESEND_MS_MIN,
    RESEND_SLOTS,
    VIEWS_AHEAD_MAX,
    Params,
)
from dwcp.consensus.engines.probft.patience import VIEW_TIMER, Patience
from dwcp.consensus.engines.probft.pool import Pool
from dwcp.consensus.engines.probft.recovery import Start
from dwcp.consensus.engines.probft.rules import Rules
from dwcp.consensus.engines.probft.standing import Standing
from dwcp.consensus.engines.probft.viewchange import (
    NewViewCheck,
    ReportCheck,
    ViewChange,
    WishCheck,
)
from dwcp.consensus.engines.probft.voice import Voice

RESEND_TIMER = "resend"
BEACON_TIMER = "beacon"

_OF_A_VIEW = (Kind.PROPOSE, Kind.PREPARE, Kind.COMMIT)
_DIRECT = frozenset((*_OF_A_VIEW, Kind.NEWLEADER, Kind.WISH, Kind.CHECKPOINT))


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Two signed statements that are being verified; together they convict."""

    conflict: Conflict


@dataclass(frozen=True, slots=True)
class Status:
    """What an operator, a test or the simulator may look at."""

    view: int
    installed: bool
    leader: int
    voting: bool
    decided: int
    delivered: int
    executed: int
    stable: int
    floor: int
    slots: int
    pending_count: int
    pending_bytes: int
    ahead_messages: int
    timeout_ms: int


class ProBFT:
    """A replica's engine; `voting=False` makes a learner that signs nothing and follows proofs."""

    def __init__(
        self,
        *,
        me: int,
        n: int,
        chain_id: bytes,
        epoch: int,
        params: Params,
        signer: Signer,
        rules: Rules | None = None,
        voting: bool = True,
    ) -> None:
        rules = rules if rules is not None else Rules()
        committee = Committee(n, me)
        weak = quorums.weak_quorum(n, committee.f)
        strong = quorums.strong_quorum(n, committee.f)
        self._rules = rules
        self._committee = committee
        self._voice = voice = Voice(
            committee=committee, chain_id=chain_id, epoch=epoch, signer=signer, rules=rules, speaks=voting
        )
        self._standing = standing = Standing(committee)
        self._log = log = SlotLog()
        self._window = window = CheckpointWindow(interval=params.checkpoint_interval, size=params.window)
        self._pool = pool = Pool(
            bytes_max=params.pending_bytes_max, count_max=params.pending_count_max, patience=n
        )
        self._sync = sync = Synchroniser(n=n, me=me, weak=weak, strong=strong)
        self._pace = pace = Pacemaker(start_ms=params.timeout_start_ms, cap_ms=params.timeout_cap_ms)
        self._delivery = delivery = Delivery(
            epoch=epoch, log=log, window=window, pool=pool, voice=voice, rules=rules
        )
        self._checkpoints = checkpoints = Checkpoints(
            window=window, log=log, pool=pool, delivery=delivery, voice=voice, rules=rules
        )
        self._agreement = agreement = Agreement(
            committee=committee,
            params=params,
            rules=rules,
            standing=standing,
            log=log,
            window=window,
            pool=pool,
            delivery=delivery,
            pace=pace,
            voice=voice,
            on_suspicion=self._suspect,
        )
        self._changes = ViewChange(
            committee=committee,
            rules=rules,
            standing=standing,
            log=log,
            window=window,
            pace=pace,
            voice=voice,
            sync=sync,
            agreement=agreement,
            checkpoints=checkpoints,
            on_entered=self._entered,
            on_installed=self._installed,
        )
        self._catchup = CatchUp(
            committee=committee,
            params=params,
            rules=rules,
            standing=standing,
            log=log,
            window=window,
            delivery=delivery,
            agreement=agreement,
            voice=voice,
        )
        self._faults = Faults(standing=standing, voice=voice, on_blocked=self._blocked)
        self._patience = Patience(pool=pool, log=log, standing=standing, pace=pace, voice=voice)
        self._ahead = Ahead()
        self._now_ms = 0
        self._resend_armed = False
        self._resend_ms = RESEND_MS_MIN
        self._resend_mark = (0, 0, False)

    # ------------------------------------------------------------ what hosts may ask

    @property
    def leader(self) -> int:
        """Whom to forward payloads to: the leader of the view that is installed here.

        While a view is entered and not installed, its leader may not have entered it and would
        drop what it is sent; hosts forward again when this changes, which is at the NEWVIEW.
        """
        standing = self._standing
        return leader_of(standing.current if standing.installed else standing.current - 1, self._committee.n)

    @property
    def view(self) -> int:
        return self._standing.current

    def pending(self) -> tuple[Payload, ...]:
        """Payloads that wait here, oldest first: forward them again when the leader changes."""
        return self._pool.pending()

    @property
    def pending_bytes(self) -> int:
        """Payload bytes that wait to be proposed."""
        return self._pool.pending_bytes

    def payload(self, digest: bytes) -> Payload | None:
        """A body that this replica holds, for a peer that fetches it."""
        payload, index = self._pool.find(digest)
        slot = self._log.get(index) if payload is None else None
        if slot is None:
            return payload
        held = [p for content in slot.contents.values() for p in content.payloads]
        return next((p for p in held if p.digest == digest and p.body is not None), None)

    def status(self) -> Status:
        return Status(
            view=self._standing.current,
            installed=self._standing.installed,
            leader=self._standing.leader,
            voting=self._voice.speaks,
            decided=self._log.decided,
            delivered=self._delivery.delivered,
            executed=self._checkpoints.executed,
            stable=self._window.low,
            floor=self._window.floor,
            slots=len(self._log),
            pending_count=len(self._pool),
            pending_bytes=self._pool.pending_bytes,
            ahead_messages=len(self._ahead),
            timeout_ms=self._pace.timeout_ms,
        )

    def decode(self, frame: bytes) -> object:
        return wire.decode(frame)

    # ------------------------------------------------------------ the machine

    def start(self, *, now_ms: int, journal: Sequence[bytes], applied: int, applied_ms: int) -> list[Effect]:
        self._now_ms = now_ms
        recovery.restore(
            [recovery.decode(record) for record in journal],
            applied=Start(applied, applied_ms),
            rules=self._rules,
            standing=self._standing,
            log=self._log,
            window=self._window,
            pool=self._pool,
            delivery=self._delivery,
            sync=self._sync,
            agreement=self._agreement,
            me=self._committee.me,
        )
        self._checkpoints.executed = applied
        self._delivery.advance()
        self._rejoin(now_ms)
        self._voice.broadcast(self._catchup.beacon_frame())
        self._voice.effects.append(SetTimer(BEACON_TIMER, BEACON_MS))
        return self._finish(now_ms)

    def _rejoin(self, now_ms: int) -> None:
        """Take part again where the journal says this replica left off."""
        if self._standing.installed:
            for slot in list(self._log.ordered()):
                if slot.digest is not None:
                    self._agreement.resume(slot.index, now_ms=now_ms)
            for slot in self._log.undecided()[:RESEND_SLOTS]:
                self._agreement.repeat(slot)
        else:
            self._changes.report_again(now_ms=now_ms)
        self._changes.repeat()
        self._checkpoints.tick()

    def step(self, event: Event, *, now_ms: int) -> list[Effect]:
        self._now_ms = now_ms
        match event:
            case Received(sender, message):
                self._on_received(sender, message, now_ms)
            case Verified(message, valid):
                self._on_verified(message, valid, now_ms)
            case TimerFired(name):
                self._on_timer(name, now_ms)
            case Submitted(payloads):
                self._on_submitted(payloads)
            case PayloadReady(payloads):
                self._agreement.on_payloads(payloads)
            case Applied(index, state_root):
                self._checkpoints.on_applied(index, state_root)
            case Snapshotted(index, state_root, installed):
                self._checkpoints.on_snapshotted(index, state_root, installed=installed)
        return self._finish(now_ms)

    def records(self) -> list[bytes]:
        return recovery.records(standing=self._standing, log=self._log, window=self._window, sync=self._sync)

    def _finish(self, now_ms: int) -> list[Effect]:
        """After every step: a leader proposes, and timers run while there is work."""
        self._agreement.propose(now_ms)
        self._patience.arm()
        if not self._resend_armed and self._outstanding():
            self._resend_armed = True
            self._resend_ms = RESEND_MS_MIN
            self._resend_mark = self._mark()
            self._voice.effects.append(SetTimer(RESEND_TIMER, self._resend_ms))
        return self._voice.take()

    # ------------------------------------------------------------ events

    def _on_submitted(self, payloads: tuple[Payload, ...]) -> None:
        if not self._voice.speaks:
            return
        dropped = self._pool.submit(payloads)
        if dropped:
            self._voice.note("pool.full", dropped=dropped, pending=len(self._pool))

    def _on_received(self, sender: int, message: object, now_ms: int) -> None:
        """Who may send what, and to which view it belongs; then one handler."""
        if not isinstance(message, Message) or message.epoch != self._voice.epoch:
            return
        committee = self._committee
        if not committee.has(sender) or sender == committee.me or not committee.has(message.sender):
            return
        if message.kind in _DIRECT and message.sender != sender:
            return
        match message.body:
            case wire.Propose(slot=slot, view=view) as body:
                if self._in_view(sender, message, slot=slot, view=view):
                    self._agreement.on_propose(message, body)
            case wire.Vote(slot=slot, view=view) as body:
                if self._in_view(sender, message, slot=slot, view=view):
                    self._agreement.on_vote(message, body, now_ms=now_ms)
            case wire.NewLeader() as body:
                self._on_new_leader(sender, message, body, now_ms=now_ms)
            case wire.NewView() as body:
                self._changes.on_new_view(message, body)
            case wire.Wish() as body:
                self._changes.on_wish(message, body)
            case wire.Equivocation() as body:
                conflict = self._faults.on_equivocation(body)
                if conflict is not None:
                    self._suspect(conflict)
            case wire.CheckpointVote() as body:
                self._checkpoints.on_vote(message, body)
            case _:
                self._on_catch_up(sender, message, now_ms)

    def _on_catch_up(self, sender: int, message: Message, now_ms: int) -> None:
        match message.body:
            case wire.Decided() as body:
                self._catchup.on_decided(sender, body)
            case wire.StableProof() as body:
                self._checkpoints.on_stable(body)
            case wire.Beacon() as body:
                self._catchup.on_beacon(sender, body, now_ms=now_ms)
            case wire.Ask() as body:
                self._catchup.on_ask(sender, body, now_ms=now_ms)
            case wire.AskBatch() as body:
                self._catchup.on_ask_batch(sender, body)
            case wire.BatchAnswer() as body:
                found = self._catchup.on_batch(body, now_ms=now_ms)
                if found is not None and isinstance(found.body, wire.Propose):
                    self._agreement.on_propose(found, found.body)

    def _in_view(self, sender: int, message: Message, *, slot: int, view: int) -> bool:
        """Whether a message belongs to the installed view; one for a later view is kept for it."""
        current, installed = self._standing.current, self._standing.installed
        if self._rules.accepts_view(view, current) and installed:
            return True
        early = view > current or (view == current and not installed)
        if early and view <= current + VIEWS_AHEAD_MAX:
            inside = self._rules.accepts_slot(slot, self._window.low, self._window.high)
            if inside and (message.kind != Kind.PROPOSE or self._leads(sender, view)):
                self._ahead.keep(sender, message, slot=slot, view=view)
        return False

    def _leads(self, replica: int, view: int) -> bool:
        return leader_of(view, self._committee.n) == replica

    def _on_new_leader(self, sender: int, message: Message, body: wire.NewLeader, *, now_ms: int) -> None:
        current, view = self._standing.current, body.report.view
        if view == current and not self._standing.installed:
            self._changes.on_new_leader(message, body)
        elif current < view <= current + VIEWS_AHEAD_MAX and self._leads(self._committee.me, view):
            self._ahead.keep(sender, message, slot=0, view=view)
        elif view <= current:
            self._catchup.show_view(sender, now_ms=now_ms)

    def _on_verified(self, message: object, valid: bool, now_ms: int) -> None:
        match message:
            case VoteCheck():
                self._agreement.on_votes_verified(message, valid=valid, now_ms=now_ms)
            case Proposal():
                self._agreement.on_proposal_verified(message, valid=valid, now_ms=now_ms)
            case DecidedCheck():
                self._catchup.on_decided_verified(message, valid=valid, now_ms=now_ms)
            case CheckpointCheck():
                self._checkpoints.on_votes_verified(message, valid=valid)
            case StableCheck():
                self._checkpoints.on_stable_verified(message, valid=valid)
            case WishCheck():
                self._changes.on_wish_verified(message, valid=valid, now_ms=now_ms)
            case ReportCheck():
                self._changes.on_report_verified(message, valid=valid, now_ms=now_ms)
            case NewViewCheck():
                self._changes.on_new_view_verified(message, valid=valid, now_ms=now_ms)
            case Suspicion(conflict):
                if valid:
                    self._faults.convict(conflict)

    # ------------------------------------------------------------ views

    def _entered(self, now_ms: int) -> None:
        """A view was entered: reports that came early count now."""
        self._patience.restart()
        for sender, message in self._ahead.take(self._standing.current, kinds=(Kind.NEWLEADER,)):
            self._on_received(sender, message, now_ms)

    def _installed(self, missing: list[int], now_ms: int) -> None:
        """A view was installed: fetch what it lacks, and hear what came early."""
        self._patience.restart()
        for index in missing:
            self._catchup.want_batch(self._log.at(index))
        for sender, message in self._ahead.take(self._standing.current, kinds=_OF_A_VIEW):
            self._on_received(sender, message, now_ms)
        self._faults.block_current()

    def _suspect(self, conflict: Conflict) -> None:
        if not self._faults.convicted(conflict):
            self._voice.verify(Suspicion(conflict), self._faults.claims(conflict))

    def _blocked(self) -> None:
        self._changes.give_up(self._now_ms)

    # ------------------------------------------------------------ timers

    def _on_timer(self, name: str, now_ms: int) -> None:
        if name == VIEW_TIMER:
            if self._patience.fired():
                self._changes.give_up(now_ms)
        elif name == HOLD_TIMER:
            self._agreement.retry_held(now_ms)
        elif name == RESEND_TIMER:
            self._resend()
        elif name == BEACON_TIMER:
            self._voice.broadcast(self._catchup.beacon_frame())
            self._catchup.tick()
            self._checkpoints.tick()
            self._voice.flush()
            self._voice.effects.append(SetTimer(BEACON_TIMER, BEACON_MS))

    def _outstanding(self) -> bool:
        """Whether peers may still owe this replica something, or it them."""
        return (
            self._log.top > self._log.decided
            or not self._standing.installed
            or self._sync.own > self._standing.current
        )

    def _mark(self) -> tuple[int, int, bool]:
        return (self._log.decided, self._standing.current, self._standing.installed)

    def _resend(self) -> None:
        """Nothing moved since the last look: say it again, less and less often."""
        self._resend_armed = False
        if not self._outstanding():
            return
        mark = self._mark()
        if mark == self._resend_mark:
            self._repeat()
            self._resend_ms = min(RESEND_MS_MAX, self._resend_ms * 3 // 2)
        else:
            self._resend_mark, self._resend_ms = mark, RESEND_MS_MIN
        self._resend_armed = True
        self._voice.effects.append(SetTimer(RESEND_TIMER, self._resend_ms))

    def _repeat(self) -> None:
        self._changes.repeat()
        for slot in self._log.undecided()[:RESEND_SLOTS]:
            self._agreement.repeat(slot)
            if slot.digest not in slot.contents:
                self._catchup.want_batch(slot)
        rumoured = [s for s in self._log.ordered() if s.digest is None and s.rumours]
        for slot in rumoured[:RESEND_SLOTS]:
            self._catchup.want_rumoured(slot)
        if self._log.top > self._log.decided:
            self._catchup.ask_next()
