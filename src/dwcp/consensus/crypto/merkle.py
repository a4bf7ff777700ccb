"""Merkle trees over digests: one root for a batch, and short proofs that a leaf is in it.

Neighbours are joined level by level; an odd last node moves up unchanged. A
root is only meaningful together with its leaf count: where somebody must not
be able to lie about a position, hash the count in (`bound_root`).
"""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from dwcp.consensus.crypto.hashes import SIZE, ZERO, Domain, digest

_LEAF = Domain.LEAF.value
_NODE = Domain.NODE.value
COUNT_MAX = 2**32 - 1


def leaf(data: bytes) -> bytes:
    return blake3(_LEAF + data).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root of leaf digests; `ZERO` for none."""
    level = list(leaves)
    if not level:
        return ZERO
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def bound_root(domain: Domain, leaves: Sequence[bytes]) -> bytes:
    """The root with its leaf count, under `domain`: no leaf has two positions in it."""
    return bind(domain, len(leaves), root(leaves))


def bind(domain: Domain, count: int, tree_root: bytes) -> bytes:
    return digest(domain, count.to_bytes(4, "big"), tree_root)


def path(leaves: Sequence[bytes], position: int) -> tuple[bytes, ...]:
    """The siblings from the leaf at `position` to the root."""
    if not 0 <= position < len(leaves):
        raise IndexError(f"no leaf {position} among {len(leaves)}")
    level = list(leaves)
    siblings = []
    while len(level) > 1:
        sibling = position ^ 1
        if sibling < len(level):
            siblings.append(level[sibling])
        level = _parents(level)
        position >>= 1
    return tuple(siblings)


def root_from(leaf_digest: bytes, *, position: int, count: int, siblings: Sequence[bytes]) -> bytes | None:
    """The root that a proof leads to; None where the proof has not the shape of such a tree."""
    if not 0 <= position < count <= COUNT_MAX or any(len(sibling) != SIZE for sibling in siblings):
        return None
    node = leaf_digest
    rest = iter(siblings)
    while count > 1:
        if position ^ 1 < count:
            sibling = next(rest, None)
            if sibling is None:
                return None
            pair = sibling + node if position & 1 else node + sibling
            node = blake3(_NODE + pair).digest()
        position >>= 1
        count = (count + 1) >> 1
    return node if next(rest, None) is None else None


def _parents(level: list[bytes]) -> list[bytes]:
    parents = [blake3(_NODE + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
    if len(level) & 1:
        parents.append(level[-1])
    return parents
