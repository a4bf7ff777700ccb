"""The frames that replicas exchange: one `Record` per kind inside the signed envelope.

A header, a PREPARE and a COMMIT sign the same 48-byte statement (slot, view, digest)
under their own kinds, so certificates need only senders and signatures. The leader's
header signature is also the signature of its PROPOSE frame; payload bodies are bound by
the digest. BEACON, ASK and their answers carry no signature: the link names their
sender, and what they bring is proven inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from msgspec import Meta

from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.core.evidence import statement
from dwcp.consensus.core.machine import Payload
from dwcp.consensus.core.views.slotlog import Content
from dwcp.consensus.core.views.window import Checkpoint
from dwcp.consensus.crypto import envelope
from dwcp.consensus.crypto.codec import Codec, Record, encode
from dwcp.consensus.crypto.hashes import SIZE, Domain, digest

CONTEXT = b"dwcp/probft/v1"
UNSIGNED = bytes(envelope.SIGNATURE_SIZE)

Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[bytes, Meta(min_length=SIZE, max_length=SIZE)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Member = Annotated[int, Meta(ge=0, lt=2**16)]
Votes = tuple[tuple[Member, Signature], ...]


class Kind(IntEnum):
    """The envelope's kind. Values are part of the wire format."""

    PROPOSE = 1
    PREPARE = 2
    COMMIT = 3
    NEWLEADER = 4
    NEWVIEW = 5
    WISH = 6
    EQUIVOCATION = 7
    DECIDED = 8
    CHECKPOINT = 9
    STABLE = 10
    BEACON = 11
    ASK = 12
    ASK_BATCH = 13
    BATCH = 14


class Batch(Record, frozen=True):
    """`digests` are the payloads' digests one after the other; a body may be absent (fetched later)."""

    time_ms: Number
    digests: bytes
    bodies: tuple[bytes | None, ...]
    tags: tuple[bytes, ...]


class Propose(Record, frozen=True):
    slot: Number
    view: Number
    digest: Digest
    batch: Batch


class Vote(Record, frozen=True):
    """PREPARE or COMMIT; carries the leader's header signature, so that equivocation is seen."""

    slot: Number
    view: Number
    digest: Digest
    leader_signature: Signature


class ReportRow(Record, frozen=True):
    slot: Number
    view: Number
    digest: Digest


class ViewReport(Record, frozen=True):
    """What NEWLEADER signs: the reporter's stable checkpoint and what it prepared above it."""

    view: Number
    stable: Number
    rows: tuple[ReportRow, ...]


class Certificate(Record, frozen=True):
    """Proof that a digest was prepared: the header's signature and the PREPAREs of others."""

    slot: Number
    view: Number
    digest: Digest
    leader_signature: Signature
    votes: Votes


class StableProof(Record, frozen=True):
    """Proof of a checkpoint: a quorum's signatures over (index, root, time)."""

    index: Number
    state_root: Digest
    time_ms: Number
    votes: Votes


class NewLeader(Record, frozen=True):
    """The report, and outside its signature what proves it."""

    report: ViewReport
    certificates: tuple[Certificate, ...]
    checkpoint: StableProof | None


class SignedReport(Record, frozen=True):
    sender: Member
    report: ViewReport
    signature: Signature


class Header(Record, frozen=True):
    """The new leader's header for one slot of the new view."""

    slot: Number
    digest: Digest
    signature: Signature


class NewView(Record, frozen=True):
    view: Number
    reports: tuple[SignedReport, ...]
    certificates: tuple[Certificate, ...]
    checkpoint: StableProof | None
    headers: tuple[Header, ...]


class Wish(Record, frozen=True):
    view: Number


class Equivocation(Record, frozen=True):
    """`proof` is `core.evidence.Conflict` over two headers."""

    proof: bytes


class Decided(Record, frozen=True):
    """A decision with its proof, a quorum of COMMITs, and its batch."""

    slot: Number
    view: Number
    digest: Digest
    votes: Votes
    batch: Batch


class CheckpointVote(Record, frozen=True):
    index: Number
    state_root: Digest
    time_ms: Number


class Beacon(Record, frozen=True):
    """Where the sender is: `installed` is the view it works in, at most `view`."""

    view: Number
    installed: Number
    decided: Number
    stable: Number


class Ask(Record, frozen=True):
    """Please send decisions from this slot on."""

    slot: Number


class AskBatch(Record, frozen=True):
    slot: Number
    digest: Digest


class BatchAnswer(Record, frozen=True):
    slot: Number
    digest: Digest
    batch: Batch


Body = (
    Propose
    | Vote
    | NewLeader
    | NewView
    | Wish
    | Equivocation
    | Decided
    | CheckpointVote
    | StableProof
    | Beacon
    | Ask
    | AskBatch
    | BatchAnswer
)

_SHAPES: dict[int, type[Record]] = {
    Kind.PROPOSE: Propose,
    Kind.PREPARE: Vote,
    Kind.COMMIT: Vote,
    Kind.NEWLEADER: NewLeader,
    Kind.NEWVIEW: NewView,
    Kind.WISH: Wish,
    Kind.EQUIVOCATION: Equivocation,
    Kind.DECIDED: Decided,
    Kind.CHECKPOINT: CheckpointVote,
    Kind.STABLE: StableProof,
    Kind.BEACON: Beacon,
    Kind.ASK: Ask,
    Kind.ASK_BATCH: AskBatch,
    Kind.BATCH: BatchAnswer,
}
_CODECS: dict[int, Codec[Body]] = {int(kind): Codec(shape) for kind, shape in _SHAPES.items()}


@dataclass(frozen=True, slots=True)
class Message:
    """One decoded frame. `sender` is who signed it (or claims to have)."""

    kind: int
    epoch: int
    sender: int
    signature: bytes
    body: Body
    raw: bytes  # the encoded body


def decode(frame: bytes) -> Message:
    """Raises `MalformedFrame` for anything but a canonical frame of a known kind."""
    outer = envelope.decode(frame)
    codec = _CODECS.get(outer.kind)
    if codec is None:
        raise MalformedFrame(f"no message has kind {outer.kind}")
    body = codec.decode(outer.body)
    return Message(outer.kind, outer.epoch, outer.sender, outer.signature, body, outer.body)


# --------------------------------------------------------------------------- signed parts


def signed_part(message: Message) -> bytes:
    """The bytes of the body that the envelope's signature covers."""
    body = message.body
    if isinstance(body, (Propose, Vote)):
        return statement(body.slot, body.view, body.digest)
    if isinstance(body, NewLeader):
        return encode(body.report)
    return message.raw


def checkpoint_part(checkpoint: Checkpoint) -> bytes:
    """What a CHECKPOINT signs."""
    return encode(CheckpointVote(checkpoint.index, checkpoint.state_root, checkpoint.time_ms))


# --------------------------------------------------------------------------- batches

NULL_CONTENT = Content(0, ())


def content_digest(time_ms: int, digests: bytes) -> bytes:
    """What is voted on: the batch's time and its payloads' digests, in order."""
    return digest(Domain.BATCH, time_ms.to_bytes(8, "big"), digests)


NULL_DIGEST = content_digest(0, b"")


def pack(content: Content) -> Batch:
    payloads = content.payloads
    return Batch(
        content.time_ms,
        b"".join([p.digest for p in payloads]),
        tuple([p.body for p in payloads]),
        tuple([p.tags for p in payloads]),
    )


def batch_digest(batch: Batch) -> bytes:
    return content_digest(batch.time_ms, batch.digests)


def well_formed(batch: Batch, *, count_max: int, bytes_max: int) -> bool:
    """Whether the lengths agree and lie within the limits (one payload may exceed `bytes_max`)."""
    count = len(batch.bodies)
    if count > count_max or len(batch.tags) != count or len(batch.digests) != SIZE * count:
        return False
    bodies = [b for b in batch.bodies if b is not None]
    size = sum(map(len, bodies)) + sum(map(len, batch.tags))
    return count <= 1 or size <= bytes_max


def unpack(batch: Batch) -> Content:
    """The content of a well-formed batch; bodies are not compared with their digests here."""
    digests = batch.digests
    each = [digests[i : i + SIZE] for i in range(0, len(digests), SIZE)]
    return Content(batch.time_ms, tuple(map(Payload, each, batch.bodies, batch.tags)))


def bodies_match(content: Content) -> bool:
    """Whether each body is there and hashes to its digest: all that a certified batch still needs."""
    return all(p.body is not None and digest(Domain.BUNDLE, p.body) == p.digest for p in content.payloads)
