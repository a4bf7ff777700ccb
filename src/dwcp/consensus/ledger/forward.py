"""Clients' bundles that a replica passes on to the leader."""

from __future__ import annotations

from collections.abc import Sequence

from dwcp.consensus.core.machine import Payload
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Codec, Record
from dwcp.consensus.ledger.operations import payload_digest
from dwcp.consensus.ledger.outputs import Channel

_PREFIX = bytes([Channel.BUNDLES])


class ForwardedBundle(Record, frozen=True):
    body: bytes
    tags: bytes


class Forward(Record, frozen=True, tag=1):
    bundles: tuple[ForwardedBundle, ...]


_CODEC: Codec[Forward] = Codec(Forward)


def encode_forward(payloads: Sequence[Payload]) -> bytes:
    """One frame for a peer link."""
    bundles = tuple(ForwardedBundle(p.body, p.tags) for p in payloads if p.body is not None)
    return _PREFIX + codec.encode(Forward(bundles))


def decode_forward(body: bytes) -> tuple[Payload, ...]:
    """Raises `MalformedFrame`."""
    forward = _CODEC.decode(body)
    return tuple(Payload(payload_digest(b.body), b.body, b.tags) for b in forward.bundles)
