"""Checkpoints: agree on the state, move the window, truncate, or learn that a snapshot is needed."""

from __future__ import annotations

from dataclasses import dataclass

from dwcp.consensus.core.errors import invariant
from dwcp.consensus.core.machine import Claim, InstallSnapshot, Truncate
from dwcp.consensus.core.views.slotlog import SlotLog
from dwcp.consensus.core.views.votes import Arrival, Signed, Unchecked
from dwcp.consensus.core.views.window import Checkpoint, CheckpointWindow, StableCheckpoint, key_of
from dwcp.consensus.engines.probft import messages as wire
from dwcp.consensus.engines.probft.delivery import Delivery
from dwcp.consensus.engines.probft.messages import CheckpointVote, Kind, Message, StableProof
from dwcp.consensus.engines.probft.pool import Pool
from dwcp.consensus.engines.probft.records import OwnCheckpoint, StableHere
from dwcp.consensus.engines.probft.rules import Rules
from dwcp.consensus.engines.probft.voice import Voice

SNAPSHOTS_KEPT = 2  # by every replica; an older one than these is asked for in vain
INSTALL_TICKS = 5  # beacons after which a newer snapshot is asked for, if there is one


@dataclass(frozen=True, slots=True)
class CheckpointCheck:
    """CHECKPOINT votes that are being verified together."""

    checkpoint: Checkpoint
    votes: tuple[Unchecked, ...]


@dataclass(frozen=True, slots=True)
class StableCheck:
    """A certificate that a peer sent."""

    stable: StableCheckpoint


def proof_of(stable: StableCheckpoint) -> StableProof:
    point = stable.checkpoint
    return StableProof(point.index, point.state_root, point.time_ms, stable.votes)


def stable_of(proof: StableProof) -> StableCheckpoint:
    return StableCheckpoint(Checkpoint(proof.index, proof.state_root, proof.time_ms), proof.votes)


class Checkpoints:
    """Moves `window` and cuts `log`; `executed` is how far the application says it is."""

    __slots__ = (
        "_delivery",
        "_log",
        "_pool",
        "_rules",
        "_unsigned",
        "_voice",
        "_waited",
        "_window",
        "executed",
        "quorum",
    )

    def __init__(
        self,
        *,
        window: CheckpointWindow,
        log: SlotLog,
        pool: Pool,
        delivery: Delivery,
        voice: Voice,
        rules: Rules,
    ) -> None:
        self._window = window
        self._log = log
        self._pool = pool
        self._delivery = delivery
        self._voice = voice
        self._rules = rules
        self.executed = 0
        self._unsigned: tuple[int, bytes] | None = None  # executed, but not known to be decided yet
        self._waited = 0  # beacons since the last snapshot was asked for
        committee = voice.committee
        self.quorum = rules.checkpoint_quorum(committee.n, committee.f)

    # ------------------------------------------------------------ the own state

    def on_applied(self, index: int, state_root: bytes | None) -> None:
        """At a multiple of the interval: sign the state and tell everyone."""
        self.executed = max(self.executed, index)
        if state_root is None or index % self._window.interval:
            return
        stable = self._window.stable
        if stable is not None and stable.checkpoint.index == index:
            self._compare(stable.checkpoint, state_root)
        if not self._window.collects(index):
            return
        slot = self._log.get(index)
        if slot is None or index > self._log.decided:
            self._unsigned = (index, state_root)  # after a restart the application may be ahead
            return
        self._sign(Checkpoint(index, state_root, slot.committed_ms))

    def _sign(self, checkpoint: Checkpoint) -> None:
        if checkpoint.index in self._window.own or not self._voice.speaks:
            return
        part = wire.checkpoint_part(checkpoint)
        signature = self._voice.sign(Kind.CHECKPOINT, part)
        self._window.sign_own(self._voice.committee.me, checkpoint, signature)
        entry = OwnCheckpoint(checkpoint.index, checkpoint.state_root, checkpoint.time_ms, signature)
        self._voice.promise(entry, self._voice.committee.others, self._frame(checkpoint, signature))
        self._count(checkpoint)

    def _frame(self, checkpoint: Checkpoint, signature: bytes) -> bytes:
        body = CheckpointVote(checkpoint.index, checkpoint.state_root, checkpoint.time_ms)
        return self._voice.frame(Kind.CHECKPOINT, body, signature)

    def _compare(self, certified: Checkpoint, state_root: bytes) -> None:
        invariant(
            certified.state_root == state_root,
            f"this replica's state after {certified.index} is {state_root.hex()}, "
            f"a quorum certified {certified.state_root.hex()}",
        )

    def on_snapshotted(self, index: int, state_root: bytes, *, installed: bool) -> None:
        """A snapshot is durable here, taken or installed: the log may be cut below it."""
        self._window.snapshot = max(self._window.snapshot, index)
        if installed:
            self.executed = max(self.executed, index)
            self._delivery.installed(index)
        else:
            self.on_applied(index, state_root)
        self.truncate()

    def _repeat(self) -> None:
        """Send the own CHECKPOINTs again that are not stable yet."""
        for index in sorted(self._window.own):
            self._voice.broadcast(self._frame(*self._window.own[index]))

    # ------------------------------------------------------------ the others' states

    def on_vote(self, message: Message, body: CheckpointVote) -> None:
        if not self._window.collects(body.index):
            return
        checkpoint = Checkpoint(body.index, body.state_root, body.time_ms)
        arrival = self._window.add(
            message.sender, checkpoint, message.signature, fresh=self._rules.fresh_vote
        )
        if arrival is Arrival.KEPT:
            self._count(checkpoint)

    def _count(self, checkpoint: Checkpoint) -> None:
        box = self._window.box(checkpoint.index)
        if box is None:
            return
        valid = box.valid(key_of(checkpoint))
        if len(valid) >= self.quorum:
            self.adopt(StableCheckpoint(checkpoint, tuple(valid[: self.quorum])))
            return
        self._check(checkpoint, box.take(key_of(checkpoint), self.quorum))

    def _check(self, checkpoint: Checkpoint, votes: tuple[Unchecked, ...]) -> None:
        if votes:
            signed = tuple((sender, signature) for sender, signature, _ in votes)
            self._voice.verify(CheckpointCheck(checkpoint, votes), self._claims(checkpoint, signed))

    def _claims(self, checkpoint: Checkpoint, votes: tuple[Signed, ...]) -> tuple[Claim, ...]:
        part = wire.checkpoint_part(checkpoint)
        return tuple(
            self._voice.claim(Kind.CHECKPOINT, sender, part, signature) for sender, signature in votes
        )

    def on_votes_verified(self, check: CheckpointCheck, *, valid: bool) -> None:
        box = self._window.box(check.checkpoint.index)
        if box is None:
            return
        if not valid and len(check.votes) > 1:
            box.split(check.votes)
            for vote in check.votes:
                self._check(check.checkpoint, (vote,))
            return
        box.settle(key_of(check.checkpoint), check.votes, valid=valid)
        self._count(check.checkpoint)

    # ------------------------------------------------------------ certificates

    def plausible(self, proof: StableProof) -> bool:
        """A quorum of distinct members, at a checkpoint position."""
        committee = self._voice.committee
        return (
            proof.index > 0
            and proof.index % self._window.interval == 0
            and len(proof.votes) >= self.quorum
            and self._rules.distinct_signers(proof.votes)
            and all(committee.has(sender) for sender, _ in proof.votes)
        )

    def claims_of(self, proof: StableProof) -> tuple[Claim, ...]:
        """What must hold for a certificate; nothing where this replica holds the same one."""
        stable = stable_of(proof)
        if self._window.stable is not None and self._window.stable.checkpoint == stable.checkpoint:
            return ()
        return self._claims(stable.checkpoint, stable.votes)

    def on_stable(self, proof: StableProof) -> None:
        """A peer's answer: what this replica asks for is truncated there."""
        if proof.index < self._window.low or not self.plausible(proof):
            return
        check = StableCheck(stable_of(proof))
        claims = self.claims_of(proof)
        if claims:
            self._voice.verify(check, claims)
        else:
            self.on_stable_verified(check, valid=True)

    def on_stable_verified(self, check: StableCheck, *, valid: bool) -> None:
        """Certified: move there, by a snapshot where the application is behind."""
        if not valid:
            return
        self.adopt(check.stable)
        point = check.stable.checkpoint
        if point.index <= max(self._log.decided, self._delivery.installing):
            return
        if self._delivery.delivered < point.index and self._rules.may_install(point.index, self.executed):
            self._install(check.stable)

    def _install(self, stable: StableCheckpoint) -> None:
        point = stable.checkpoint
        me = self._voice.committee.me
        self._delivery.installing = point.index
        self._waited = 0
        self._log.jump(point.index, point.time_ms)
        self._delivery.advance()
        sources = tuple(sorted(sender for sender, _ in stable.votes if sender != me))
        self._voice.note("snapshot.wanted", index=point.index, executed=self.executed)
        self._voice.effects.append(InstallSnapshot(point.index, point.state_root, sources))

    def adopt(self, stable: StableCheckpoint) -> None:
        """A certificate that holds: the window moves, old messages are refused from here on."""
        point = stable.checkpoint
        if point.index <= self._window.low:
            return
        own = self._window.own.get(point.index)
        if own is not None:
            self._compare(point, own[0].state_root)
        self._window.settle(stable)
        self._voice.later(StableHere(proof_of(stable)))
        self._voice.note("checkpoint.stable", index=point.index)
        if point.index > self._log.decided and self._delivery.delivered >= point.index:
            self._log.jump(point.index, point.time_ms)
            self._delivery.advance()
        wanted = self._delivery.installing
        if wanted and point.index >= wanted + SNAPSHOTS_KEPT * self._window.interval:
            self._install(stable)  # peers have dropped the older one by now
        self.truncate()

    def tick(self) -> None:
        """Once per beacon: repeat the own CHECKPOINTs; a snapshot that does not come may be gone.

        Not at every checkpoint: a transfer slower than the log would begin anew for ever.
        """
        unsigned, self._unsigned = self._unsigned, None
        if unsigned is not None:
            self.on_applied(*unsigned)
        self._repeat()
        stable, wanted = self._window.stable, self._delivery.installing
        self._waited = self._waited + 1 if wanted else 0
        if stable is not None and 0 < wanted < self._window.low and self._waited >= INSTALL_TICKS:
            self._install(stable)

    def truncate(self) -> None:
        """Cut what is certified and in an own durable snapshot."""
        floor = self._rules.truncate_below(self._window.low, self._window.snapshot)
        if floor <= self._window.floor:
            return
        self._window.floor = floor
        for slot in self._log.drop_up_to(floor):
            for content in slot.contents.values():
                self._pool.forget(slot.index, content.payloads)
        if self._voice.speaks:  # a learner keeps no journal
            self._voice.effects.append(Truncate(floor + 1))
