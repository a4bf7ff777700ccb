"""Snapshot parts under one root: part 0 lists the digests of the others."""

from __future__ import annotations

from dwcp.consensus.core.errors import CoreError


class SnapshotInvalid(CoreError):
    """The parts do not match the certified root: they are dropped and another peer is asked."""


def part_digest(part: bytes) -> bytes:
    """The digest under which part 0 lists a part."""
    raise NotImplementedError


def list_parts(part: bytes, root: bytes) -> tuple[bytes, ...]:
    """The digests that part 0 lists; raises `SnapshotInvalid` unless it matches `root`."""
    raise NotImplementedError
