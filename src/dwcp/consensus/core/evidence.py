"""Proof that a replica signed two statements of which a correct one signs at most one.

A proof is two signed statements of one kind for one (slot, view) with different
digests. Anyone who holds the signer's key can check it; nobody else can make it.
What is signed around a statement (chain, epoch, kind) is the caller's to rebuild.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from dwcp.consensus.core.errors import MalformedFrame

VERSION = 1
DIGEST_SIZE = 32
SIGNATURE_SIZE = 64
_STATEMENT = struct.Struct(">QQ32s")
_PROOF = struct.Struct(">BBIHQQ32s64s32s64s")


def statement(slot: int, view: int, digest: bytes) -> bytes:
    """The 48 bytes that a leader's header and every vote sign, under different kinds."""
    return _STATEMENT.pack(slot, view, digest)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Replica `culprit` signed both digests as `kind` for one slot and view."""

    kind: int
    epoch: int
    culprit: int
    slot: int
    view: int
    first: tuple[bytes, bytes]  # digest, signature
    second: tuple[bytes, bytes]

    def encode(self) -> bytes:
        return _PROOF.pack(
            VERSION,
            self.kind,
            self.epoch,
            self.culprit,
            self.slot,
            self.view,
            *self.first,
            *self.second,
        )

    def holds(self, check: Callable[[bytes, bytes], bool]) -> bool:
        """Whether the proof convinces; `check(statement, signature)` asks the culprit's key."""
        return self.first[0] != self.second[0] and all(
            check(statement(self.slot, self.view, digest), signature)
            for digest, signature in (self.first, self.second)
        )


def decode(proof: bytes) -> Conflict:
    """Raises `MalformedFrame` where `proof` is no proof of this version."""
    if len(proof) != _PROOF.size or proof[0] != VERSION:
        raise MalformedFrame(f"a proof of conflict has {_PROOF.size} bytes and version {VERSION}")
    _, kind, epoch, culprit, slot, view, one, sign_one, two, sign_two = _PROOF.unpack(proof)
    return Conflict(kind, epoch, culprit, slot, view, (one, sign_one), (two, sign_two))
