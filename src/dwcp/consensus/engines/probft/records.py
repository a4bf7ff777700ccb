"""The journal's records: every promise this replica makes, and what it needs to keep it.

| record | written before |
|---|---|
| `Voted` | PROPOSE (leader) or PREPARE |
| `PreparedHere` | COMMIT |
| `Wished`, `Entered`, `Installed` | WISH, NEWLEADER, NEWVIEW and any vote in the new view |
| `OwnCheckpoint` | CHECKPOINT |
| `DecidedHere`, `StableHere` | nothing: they ride on the next promise and save work after a restart |
"""

from __future__ import annotations

from dwcp.consensus.crypto.codec import Codec, Record
from dwcp.consensus.engines.probft.messages import (
    Batch,
    Digest,
    Number,
    Signature,
    StableProof,
    Votes,
)


class Voted(Record, frozen=True, tag=1):
    """The header accepted and this replica's PREPARE (b"" for the leader, whose header is its vote).

    `batch` is None where an earlier record of this slot and digest holds it.
    """

    slot: Number
    view: Number
    digest: Digest
    leader_signature: Signature
    signature: bytes
    batch: Batch | None


class PreparedHere(Record, frozen=True, tag=2):
    slot: Number
    view: Number
    digest: Digest
    leader_signature: Signature
    votes: Votes
    signature: Signature


class DecidedHere(Record, frozen=True, tag=3):
    slot: Number
    view: Number
    digest: Digest
    votes: Votes
    batch: Batch | None


class Wished(Record, frozen=True, tag=4):
    view: Number


class Entered(Record, frozen=True, tag=5):
    """This replica takes no part in any view below this one any more."""

    view: Number


class Installed(Record, frozen=True, tag=6):
    """The NEWVIEW frame by which a view was entered for good."""

    view: Number
    frame: bytes


class OwnCheckpoint(Record, frozen=True, tag=7):
    index: Number
    state_root: Digest
    time_ms: Number
    signature: Signature


class StableHere(Record, frozen=True, tag=8):
    proof: StableProof


Entry = Voted | PreparedHere | DecidedHere | Wished | Entered | Installed | OwnCheckpoint | StableHere

CODEC: Codec[Entry] = Codec(Entry)
