"""Decided slots on their way to the application: in order, each once, with strictly increasing time."""

from __future__ import annotations

from dwcp.consensus.core.errors import invariant
from dwcp.consensus.core.machine import Commit
from dwcp.consensus.core.views.slotlog import Content, Decision, Slot, SlotLog
from dwcp.consensus.core.views.window import CheckpointWindow
from dwcp.consensus.engines.probft.messages import pack
from dwcp.consensus.engines.probft.pool import Pool
from dwcp.consensus.engines.probft.records import DecidedHere
from dwcp.consensus.engines.probft.rules import Rules
from dwcp.consensus.engines.probft.voice import Voice


class Delivery:
    """`delivered` is the last position handed over; it waits while a snapshot is being installed.

    Invariant: `delivered ≤ log.decided`, except right after a restart or an
    installation, when the application may be ahead of what this log can prove.
    """

    __slots__ = (
        "_epoch",
        "_log",
        "_pool",
        "_ready",
        "_rules",
        "_voice",
        "_window",
        "delivered",
        "installing",
    )

    def __init__(
        self,
        *,
        epoch: int,
        log: SlotLog,
        window: CheckpointWindow,
        pool: Pool,
        voice: Voice,
        rules: Rules,
    ) -> None:
        self._epoch = epoch
        self._log = log
        self._window = window
        self._pool = pool
        self._voice = voice
        self._rules = rules
        self._ready: set[int] = set()  # decided with content, not yet counted in log.decided
        self.delivered = 0
        self.installing = 0  # index of the snapshot asked for; 0: none

    def decide(self, slot: Slot, decision: Decision, *, content: Content) -> None:
        """`slot` is decided; hand over everything that has become contiguous."""
        if slot.decision is not None:
            invariant(
                slot.decision.digest == decision.digest,
                f"slot {slot.index} was decided as {slot.decision.digest.hex()} and again as "
                f"{decision.digest.hex()}: more than f replicas are faulty",
            )
            return
        slot.decision = decision
        slot.contents[decision.digest] = content
        self._pool.place(slot.index, content.payloads)
        for dropped in slot.prune_contents():
            self._pool.restore(slot.index, dropped.payloads)
        self._record(slot, decision, content)
        self._ready.add(slot.index)
        self.advance()

    def _record(self, slot: Slot, decision: Decision, content: Content) -> None:
        batch = None if decision.digest in slot.written else pack(content)
        slot.written.add(decision.digest)
        self._voice.later(DecidedHere(slot.index, decision.view, decision.digest, decision.votes, batch))

    def recovered(self, slot: Slot) -> None:
        """A decision read back from the journal."""
        self._ready.add(slot.index)

    def advance(self) -> None:
        """Extend the contiguous prefix of decisions and deliver it."""
        log = self._log
        while self._ready:
            index = min(self._ready)
            if index <= log.decided:
                self._ready.discard(index)
                continue
            if not self._rules.next_in_order(index, log.decided):
                break
            self._ready.discard(index)
            slot = log.at(index)
            content = slot.content()
            invariant(content is not None, f"slot {index} is decided without its content")
            assert content is not None
            if content.payloads:
                log.decided_ms = self._rules.committed_time(content.time_ms, log.decided_ms)
            slot.committed_ms = log.decided_ms
            log.decided = index
            if index > self.delivered and not self.installing:
                self._hand_over(slot, content)

    def _hand_over(self, slot: Slot, content: Content) -> None:
        self.delivered = slot.index
        commit = Commit(slot.index, self._epoch, slot.committed_ms, content.payloads)
        self._voice.effects.append(commit)

    def installed(self, index: int) -> None:
        """The application now stands at `index`, or further: deliver what was held meanwhile."""
        if index >= self.installing:
            self.installing = 0
        self.delivered = max(self.delivered, index)
        while not self.installing and self.delivered < self._log.decided:
            slot = self._log.get(self.delivered + 1)
            content = slot.content() if slot is not None else None
            if slot is None or slot.decision is None or content is None:
                return
            self._hand_over(slot, content)
