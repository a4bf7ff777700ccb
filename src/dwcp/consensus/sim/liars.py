"""What lying replicas send instead of what their honest code would, for the ProBFT wire.

A liar runs the product's replica; a `Distort` stands between it and the network
and holds the liar's own key, so what it sends is properly signed. Twins, disks
that go back in time and wiped disks need no distortion: the world makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec

from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.core.evidence import statement
from dwcp.consensus.core.machine import Signer
from dwcp.consensus.crypto.codec import encode
from dwcp.consensus.crypto.envelope import Context, Envelope
from dwcp.consensus.engines.probft import messages as wire
from dwcp.consensus.engines.probft.messages import (
    CONTEXT,
    CheckpointVote,
    Kind,
    Message,
    NewLeader,
    Propose,
    Vote,
)
from dwcp.consensus.ledger.outputs import Channel

Frames = list[tuple[tuple[int, ...], bytes]]
Distort = Callable[[tuple[int, ...], bytes], Frames]

_ENGINE = bytes([Channel.ENGINE])
_DIGESTS_KEPT = 32


def decode(frame: bytes) -> Message | None:
    """An engine frame of a peer link, decoded; None for other channels and junk."""
    if not frame or frame[0] != Channel.ENGINE:
        return None
    try:
        return wire.decode(frame[1:])
    except MalformedFrame:
        return None


class Pen:
    """Signs an altered message with the liar's key."""

    def __init__(self, *, signer: Signer, chain_id: bytes, replica: int) -> None:
        self._signer = signer
        self._context = Context(CONTEXT, chain_id)
        self._replica = replica

    def sign(self, message: Message, part: bytes) -> bytes:
        signed = self._context.signed(kind=message.kind, epoch=message.epoch, sender=self._replica, body=part)
        return self._signer.sign(signed)

    def statement(self, message: Message, body: Propose | Vote) -> bytes:
        """The frame of `body`, signed as its kind signs statements."""
        signature = self.sign(message, statement(body.slot, body.view, body.digest))
        return self.frame(message, body, signature)

    def frame(self, message: Message, body: wire.Body, signature: bytes) -> bytes:
        return (
            _ENGINE + Envelope(message.kind, message.epoch, self._replica, encode(body), signature).encode()
        )


def silent(rng: Random) -> Distort:
    """Says nothing to anyone, or nothing to some."""
    ignored = frozenset(peer for peer in range(64) if rng.random() < 0.7)

    def distort(to: tuple[int, ...], frame: bytes) -> Frames:
        rest = tuple(peer for peer in to if peer not in ignored)
        return [(rest, frame)] if rest else []

    return distort


def withholding(rng: Random) -> Distort:
    """Leaves out some kinds of message towards some peers, now and then."""
    kinds = [int(kind) for kind in Kind]
    withheld = frozenset(rng.sample(kinds, rng.randrange(1, 5)))
    chance = rng.choice([0.3, 0.7, 1.0])

    def distort(to: tuple[int, ...], frame: bytes) -> Frames:
        if len(frame) > 1 and frame[0] == Channel.ENGINE and frame[1] in withheld:
            to = tuple(peer for peer in to if rng.random() >= chance)
        return [(to, frame)] if to else []

    return distort


class Equivocator:
    """Proposes one batch to some peers and another to the rest, and votes for both."""

    def __init__(self, rng: Random, pen: Pen) -> None:
        self._rng = rng
        self._pen = pen
        self._others: dict[tuple[int, int], tuple[bytes, bytes]] = {}  # (slot, view): digest, signature
        self._deceived: tuple[int, ...] = ()

    def __call__(self, to: tuple[int, ...], frame: bytes) -> Frames:
        message = decode(frame)
        if message is None:
            return [(to, frame)]
        if message.kind == Kind.PROPOSE and isinstance(message.body, Propose):
            return self._propose(to, frame, message, message.body)
        if isinstance(message.body, Vote):
            return self._vote(to, frame, message, message.body)
        return [(to, frame)]

    def _propose(self, to: tuple[int, ...], frame: bytes, message: Message, body: Propose) -> Frames:
        if self._rng.random() < 0.3:
            return [(to, frame)]
        batch = msgspec.structs.replace(body.batch, time_ms=body.batch.time_ms + 1)
        other = Propose(body.slot, body.view, wire.batch_digest(batch), batch)
        altered = self._pen.statement(message, other)
        signature = self._pen.sign(message, statement(other.slot, other.view, other.digest))
        self._others[body.slot, body.view] = (other.digest, signature)
        if len(self._others) > _DIGESTS_KEPT:
            del self._others[next(iter(self._others))]
        self._deceived = tuple(peer for peer in to if self._rng.random() < 0.5)
        return self._split(to, frame, altered)

    def _vote(self, to: tuple[int, ...], frame: bytes, message: Message, body: Vote) -> Frames:
        other = self._others.get((body.slot, body.view))
        if other is None:
            return [(to, frame)]
        altered = self._pen.statement(message, Vote(body.slot, body.view, *other))
        if self._rng.random() < 0.3:
            return [(to, frame), (to, altered)]
        return self._split(to, frame, altered)

    def _split(self, to: tuple[int, ...], frame: bytes, altered: bytes) -> Frames:
        told = tuple(peer for peer in to if peer not in self._deceived)
        deceived = tuple(peer for peer in to if peer in self._deceived)
        return [pair for pair in ((told, frame), (deceived, altered)) if pair[0]]


class Mutator:
    """Sends messages that are almost right: wrong view or slot, an old digest, no signature, junk."""

    def __init__(self, rng: Random, pen: Pen) -> None:
        self._rng = rng
        self._pen = pen
        self._digests: list[bytes] = [bytes(32)]

    def __call__(self, to: tuple[int, ...], frame: bytes) -> Frames:
        if self._rng.random() < 0.6:
            return [(to, frame)]
        message = decode(frame)
        if message is not None and isinstance(message.body, (Propose, Vote)):
            altered = self._alter(message, message.body)
        elif message is not None and isinstance(message.body, CheckpointVote):
            altered = self._checkpoint(message, message.body)
        elif message is not None and isinstance(message.body, NewLeader):
            altered = self._report(message, message.body)
        else:
            return [(to, self._junk(frame))]
        return self._divide(to, frame, altered)

    def _divide(self, to: tuple[int, ...], frame: bytes, altered: bytes) -> Frames:
        """All get the lie, or both, or each peer one of the two."""
        mode = self._rng.randrange(3)
        if mode == 0:
            return [(to, altered)]
        if mode == 1:
            return [(to, frame), (to, altered)]
        return [((peer,), altered if self._rng.random() < 0.5 else frame) for peer in to]

    def _alter(self, message: Message, body: Propose | Vote) -> bytes:
        rng = self._rng
        self._digests = [*self._digests[-7:], body.digest]
        match rng.randrange(7):
            case 0:
                view = max(0, body.view + rng.choice([-1, 1, 7]))
                return self._pen.statement(message, msgspec.structs.replace(body, view=view))
            case 1:
                slot = max(0, body.slot + rng.choice([-1, 1, 10**6]))
                return self._pen.statement(message, msgspec.structs.replace(body, slot=slot))
            case 2:
                old = rng.choice(self._digests)
                return self._pen.statement(message, msgspec.structs.replace(body, digest=old))
            case 3:
                return self._pen.frame(message, body, bytes(64))
            case 4 if isinstance(body, Propose):  # a batch that its digest does not cover
                batch = msgspec.structs.replace(body.batch, time_ms=body.batch.time_ms + rng.randrange(1, 9))
                return self._pen.statement(message, msgspec.structs.replace(body, batch=batch))
            case 5 if isinstance(body, Propose):  # a time of long ago
                early = max(1, body.batch.time_ms - rng.randrange(10_000))
                batch = msgspec.structs.replace(body.batch, time_ms=early)
                other = Propose(body.slot, body.view, wire.batch_digest(batch), batch)
                return self._pen.statement(message, other)
            case _:
                return self._junk(self._pen.statement(message, body))

    def _checkpoint(self, message: Message, body: CheckpointVote) -> bytes:
        """A checkpoint that nobody reached, or a root that nobody has."""
        ahead = self._rng.choice([0, 0, 4, 16])
        forged = CheckpointVote(body.index + ahead, self._rng.randbytes(32), body.time_ms)
        return self._pen.frame(message, forged, self._pen.sign(message, encode(forged)))

    def _report(self, message: Message, body: NewLeader) -> bytes:
        """A report that leaves out what was prepared, all of it or the end."""
        keep = self._rng.randrange(len(body.report.rows) + 1)
        report = msgspec.structs.replace(body.report, rows=body.report.rows[:keep])
        forged = NewLeader(report, body.certificates[:keep], body.checkpoint)
        return self._pen.frame(message, forged, self._pen.sign(message, encode(report)))

    def _junk(self, frame: bytes) -> bytes:
        """One byte flipped, or the end missing."""
        if len(frame) < 2:
            return frame
        position = self._rng.randrange(1, len(frame))
        if self._rng.random() < 0.5:
            return frame[:position]
        return frame[:position] + bytes([frame[position] ^ 0x41]) + frame[position + 1 :]
