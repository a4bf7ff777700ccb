"""How an engine speaks: effects in order, promises before words, signatures bound to chain and epoch."""

from __future__ import annotations

from dwcp.consensus.core.committee import Committee
from dwcp.consensus.core.machine import (
    Accuse,
    Claim,
    Effect,
    Note,
    Persist,
    Send,
    SignatureClaim,
    Signer,
    Verify,
)
from dwcp.consensus.crypto.codec import encode
from dwcp.consensus.crypto.envelope import Context, Envelope
from dwcp.consensus.engines.probft.messages import CONTEXT, UNSIGNED, Body, Kind, Message
from dwcp.consensus.engines.probft.records import Entry
from dwcp.consensus.engines.probft.rules import Rules


class Voice:
    """Collects the effects of one step. A learner (`speaks` False) signs and promises nothing."""

    __slots__ = ("_context", "_lazy", "_rules", "_signer", "committee", "effects", "epoch", "speaks")

    def __init__(
        self,
        *,
        committee: Committee,
        chain_id: bytes,
        epoch: int,
        signer: Signer,
        rules: Rules,
        speaks: bool,
    ) -> None:
        self.committee = committee
        self.speaks = speaks
        self.effects: list[Effect] = []
        self._context = Context(CONTEXT, chain_id)
        self.epoch = epoch
        self._signer = signer
        self._rules = rules
        self._lazy: list[Entry] = []

    def take(self) -> list[Effect]:
        """The effects since the last call, in order."""
        effects, self.effects = self.effects, []
        return effects

    # ------------------------------------------------------------ promises

    def promise(self, entry: Entry, to: tuple[int, ...], *frames: bytes) -> None:
        """Make `entry` durable, then send the frames that rest on it."""
        if not self.speaks:
            return
        self.flush()
        sends = [Send(to, frame) for frame in frames if to]
        self.effects.extend(self._rules.promise_order(Persist(encode(entry)), sends))

    def later(self, entry: Entry) -> None:
        """Write `entry` together with the next promise: nothing rests on it."""
        if self.speaks:
            self._lazy.append(entry)

    def flush(self) -> None:
        """Write what waits; the host calls for it by the beacon, at the latest."""
        for entry in self._lazy:
            self.effects.append(Persist(encode(entry)))
        self._lazy.clear()

    # ------------------------------------------------------------ frames

    def sign(self, kind: Kind, part: bytes) -> bytes:
        return self._signer.sign(self.signed(kind, self.committee.me, part))

    def signed(self, kind: int, sender: int, part: bytes) -> bytes:
        return self._context.signed(kind=kind, epoch=self.epoch, sender=sender, body=part)

    def claim(self, kind: int, sender: int, part: bytes, signature: bytes) -> SignatureClaim:
        return SignatureClaim(sender, self.signed(kind, sender, part), signature)

    def frame(self, kind: Kind, body: Body, signature: bytes = UNSIGNED) -> bytes:
        return Envelope(kind, self.epoch, self.committee.me, encode(body), signature).encode()

    def frame_of(self, message: Message) -> bytes:
        """Another replica's frame, byte for byte as it was received."""
        return Envelope(message.kind, message.epoch, message.sender, message.raw, message.signature).encode()

    def send(self, to: tuple[int, ...], frame: bytes) -> None:
        if to:
            self.effects.append(Send(to, frame))

    def broadcast(self, frame: bytes) -> None:
        self.send(self.committee.others, frame)

    # ------------------------------------------------------------ the rest

    def verify(self, message: object, claims: tuple[Claim, ...]) -> None:
        self.effects.append(Verify(message, claims))

    def accuse(self, culprit: int, kind: str, proof: bytes) -> None:
        self.effects.append(Accuse(culprit, kind, proof))

    def note(self, event: str, **fields: int | str) -> None:
        self.effects.append(Note(event, fields))
