"""The signed envelope of every message between replicas, bound to chain, epoch, sender and kind.

Layout of a frame, big-endian: kind u8, epoch u32, sender u16, signature 64, body.
What is signed: context ‖ 0x00 ‖ chain id (32) ‖ kind ‖ epoch ‖ sender ‖ body.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dwcp.consensus.core.errors import MalformedFrame

SIGNATURE_SIZE = 64
_HEAD = struct.Struct(">BIH")
_OVERHEAD = _HEAD.size + SIGNATURE_SIZE


@dataclass(frozen=True, slots=True)
class Envelope:
    """One signed message. `body` is canonical bytes; `signature` has not been checked by decoding."""

    kind: int
    epoch: int
    sender: int
    body: bytes
    signature: bytes

    def encode(self) -> bytes:
        return _HEAD.pack(self.kind, self.epoch, self.sender) + self.signature + self.body


def decode(frame: bytes) -> Envelope:
    """Raises `MalformedFrame` where the frame is shorter than an envelope's head."""
    if len(frame) < _OVERHEAD:
        raise MalformedFrame(f"an envelope needs {_OVERHEAD} bytes, got {len(frame)}")
    kind, epoch, sender = _HEAD.unpack_from(frame)
    return Envelope(kind, epoch, sender, frame[_OVERHEAD:], frame[_HEAD.size : _OVERHEAD])


@dataclass(frozen=True, slots=True)
class Context:
    """What binds signatures to one protocol on one chain."""

    name: bytes  # for example b"dwcp/probft/v1"
    chain_id: bytes  # 32 bytes

    def signed(self, *, kind: int, epoch: int, sender: int, body: bytes) -> bytes:
        """The bytes under the signature."""
        return self.name + b"\0" + self.chain_id + _HEAD.pack(kind, epoch, sender) + body
