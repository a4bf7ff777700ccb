"""Clients' bundles that a replica passes on to the leader."""

from __future__ import annotations

from collections.abc import Sequence

from dwcp.consensus.core.machine import Payload
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Codec, Record
from dwcp.consensus.ledger.operations import payload_digest
from dwcp.consensus.ledger.outputs import Channel

FRAME_BYTES_MAX = 1024 * 1024
_PREFIX = bytes([Channel.BUNDLES])


class ForwardedBundle(Record, frozen=True):
    body: bytes
    tags: bytes


class Forward(Record, frozen=True, tag=1):
    bundles: tuple[ForwardedBundle, ...]


_CODEC: Codec[Forward] = Codec(Forward)


def forward_frames(payloads: Sequence[Payload]) -> list[bytes]:
    """Frames for a peer link, each of at most `FRAME_BYTES_MAX` unless one bundle alone is larger."""
    groups: list[list[ForwardedBundle]] = []
    size = 0
    for payload in payloads:
        if payload.body is None:
            continue
        size += len(payload.body) + len(payload.tags)
        if not groups or size > FRAME_BYTES_MAX:
            groups.append([])
            size = len(payload.body) + len(payload.tags)
        groups[-1].append(ForwardedBundle(payload.body, payload.tags))
    return [_PREFIX + codec.encode(Forward(tuple(group))) for group in groups]


def decode_forward(body: bytes) -> tuple[Payload, ...]:
    """Raises `MalformedFrame`."""
    forward = _CODEC.decode(body)
    return tuple(Payload(payload_digest(b.body), b.body, b.tags) for b in forward.bundles)
