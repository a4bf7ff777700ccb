"""Digests: BLAKE3-256 under a domain, so that no digest of one kind can pass for another."""

from __future__ import annotations

from enum import Enum

from blake3 import blake3

SIZE = 32
ZERO = bytes(SIZE)


class Domain(Enum):
    """Every purpose a digest is made for. Values are frozen: they are part of the formats."""

    CHAIN = b"dwcp/v1/chain\0"
    BUNDLE = b"dwcp/v1/bundle\0"
    BATCH = b"dwcp/v1/batch\0"
    LEAF = b"dwcp/v1/leaf\0"
    NODE = b"dwcp/v1/node\0"
    RESULT = b"dwcp/v1/result\0"
    HISTORY = b"dwcp/v1/history\0"
    STATE = b"dwcp/v1/state\0"
    CHUNK = b"dwcp/v1/chunk\0"
    MANIFEST = b"dwcp/v1/manifest\0"
    EPOCH = b"dwcp/v1/epoch\0"


def digest(domain: Domain, *parts: bytes) -> bytes:
    """BLAKE3-256 of the domain and the parts, concatenated (parts must be self-delimiting)."""
    return blake3(domain.value + b"".join(parts)).digest()
