"""Chunks that changed a little: said as stretches of chunks that the receiver holds, and what is new.

The receiver describes a chunk that it holds by hashes of its blocks (a sketch). The sender looks for them in
its own chunk, where they stood first, for most edits are in place, then everywhere, and writes a recipe:
copies and literals. A hash may collide or be a lie; the rebuilt chunk is named by its own address, so
nothing wrong is ever taken for right. Sans-IO.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwcp.compression.chunking import CHUNK_BYTES_MAX
from dwcp.compression.errors import RequestInvalid
from dwcp.compression.rolling import HASH_BITS, Hashes, RollingHash
from dwcp.consensus.crypto.codec import Record
from dwcp.consensus.crypto.hashes import SIZE as ADDRESS_SIZE

HASH_BYTES = HASH_BITS // 8
BASES_MAX = 8
GAIN_MIN = 0.7  # a recipe larger than this share of its chunk is not worth its trouble
_SEARCHED_BLOCKS_MIN = 16  # what is new in one place and shorter than so many blocks was overwritten
_FILTER_BITS = 12
_LITERAL, _COPY = 0, 1
_HEAD = struct.Struct(">BH")  # bases, operations
_OP = struct.Struct(">BBII")  # kind, base, offset, length


class Sketch(Record, frozen=True):
    """A chunk that the receiver holds: its size, and the hashes of its blocks, `HASH_BYTES` each; where the
    size is no multiple of a block's, the last one ends where the chunk ends and overlaps the one before."""

    address: bytes
    size: int
    hashes: bytes


def sketch(name: bytes, chunk: bytes, hashing: RollingHash) -> Sketch:
    """Small blocks find more and take more bytes."""
    hashes = hashing.of_blocks(chunk)
    if len(chunk) % hashing.block_bytes and len(hashes):
        hashes = np.append(hashes, hashing.of_blocks(chunk[-hashing.block_bytes :]))
    raw = hashes.astype(">u8").view(np.uint8).reshape(-1, 8)
    return Sketch(name, len(chunk), raw[:, -HASH_BYTES:].tobytes())


@dataclass(frozen=True, slots=True)
class _Base:
    """A sketch unpacked: its number, size, and where its blocks stand in it."""

    number: int
    size: int
    hashes: Hashes
    offsets: NDArray[np.int64]


@dataclass(slots=True)
class _Match:
    """Bytes of the chunk from `start` to `end` stand in a base from `offset` on."""

    start: int
    end: int
    base: int
    offset: int


def recipe(chunk: bytes, bases: Sequence[Sketch], hashing: RollingHash, *, at: int = 0) -> bytes | None:
    """How to make the chunk from bases that stand one after another in the older file; None where that would
    save little. `at`: the chunk's offset in its file, less that of the first base in the older one."""
    bases = bases[:BASES_MAX]
    unpacked = [_unpacked(number, base, hashing.block_bytes) for number, base in enumerate(bases)]
    matches: list[_Match] = []
    place = -at
    for base in unpacked:
        matches += _in_place(chunk, base, place, hashing)
        place += base.size
    found = list(_joined(sorted(matches, key=lambda match: match.start)))
    gaps = [gap for gap in _gaps(found, len(chunk)) if len(gap) >= _SEARCHED_BLOCKS_MIN * hashing.block_bytes]
    if gaps:
        table = _Table(unpacked)
        for gap in gaps:
            matches += table.search(chunk, gap, hashing)
        found = list(_joined(sorted(matches, key=lambda match: match.start)))
    made = _written(chunk, bases, found)
    return made if len(made) <= GAIN_MIN * len(chunk) else None


def rebuild(made: bytes, base_of: Callable[[bytes], bytes]) -> bytes:
    """The chunk of a recipe from anybody. `base_of` gives held chunks by address and may raise.

    Raises `RequestInvalid`. Memory: the bases and one chunk.
    """
    if len(made) < _HEAD.size:
        raise RequestInvalid(f"{len(made)} bytes are no recipe")
    bases, operations = _HEAD.unpack_from(made)
    at = _HEAD.size + bases * ADDRESS_SIZE
    literals = at + operations * _OP.size
    if bases > BASES_MAX or literals > len(made):
        raise RequestInvalid(f"a recipe of {bases} bases and {operations} operations is cut or too large")
    names = [made[_HEAD.size + n * ADDRESS_SIZE :][:ADDRESS_SIZE] for n in range(bases)]
    held: dict[int, memoryview] = {}
    whole = memoryview(made)
    parts: list[memoryview] = []
    size = 0
    for _ in range(operations):
        kind, base, offset, length = _OP.unpack_from(made, at)
        at += _OP.size
        size += length
        if size > CHUNK_BYTES_MAX:
            raise RequestInvalid(f"a recipe makes more than the {CHUNK_BYTES_MAX} bytes of a chunk")
        if kind == _LITERAL:
            part = whole[literals : literals + length]
            literals += length
        elif kind == _COPY and base < bases:
            if base not in held:
                held[base] = memoryview(base_of(names[base]))
            part = held[base][offset : offset + length]
        else:
            raise RequestInvalid(f"operation {kind} on base {base} is none of a recipe")
        if len(part) != length:
            raise RequestInvalid("a recipe reaches beyond its base or its own end")
        parts.append(part)
    if literals != len(made) or not size:
        raise RequestInvalid("a recipe is empty or has bytes that nothing uses")
    return b"".join(parts)


def _unpacked(number: int, base: Sketch, block_bytes: int) -> _Base:
    """From anybody; what cannot be a sketch has no blocks."""
    count = -(-base.size // block_bytes)
    if not block_bytes <= base.size <= CHUNK_BYTES_MAX or len(base.hashes) != count * HASH_BYTES:
        return _Base(number, max(0, base.size), np.empty(0, np.uint64), np.empty(0, np.int64))
    raw = np.zeros((count, 8), dtype=np.uint8)
    raw[:, -HASH_BYTES:] = np.frombuffer(base.hashes, dtype=np.uint8).reshape(count, HASH_BYTES)
    offsets = np.minimum(np.arange(count) * block_bytes, base.size - block_bytes)
    return _Base(number, base.size, raw.view(">u8").ravel().astype(np.uint64), offsets)


def _in_place(chunk: bytes, base: _Base, place: int, hashing: RollingHash) -> Iterator[_Match]:
    """Blocks of the base that stand in the chunk where they would if nothing had moved; `place` is the base's
    first byte there."""
    block = hashing.block_bytes
    skipped = max(0, -(place // block))  # blocks that begin before the chunk
    start = place + skipped * block
    ours = hashing.of_blocks(memoryview(chunk)[start : max(start, place + base.size)])
    whole = base.hashes[skipped : base.size // block]
    count = min(len(ours), len(whole))
    same = np.zeros(count + 2, dtype=np.int8)
    same[1:-1] = ours[:count] == whole[:count]
    edges = np.flatnonzero(np.diff(same)) * block
    for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield _Match(start + first, start + end, base.number, skipped * block + first)
    last = place + base.size - block
    if base.size % block and len(base.hashes) and 0 <= last <= len(chunk) - block:
        (tail,) = hashing.of_blocks(memoryview(chunk)[last : last + block])
        if tail == base.hashes[-1]:
            yield _Match(last, last + block, base.number, base.size - block)


class _Table:
    """Where each hash is found among all bases; the first place wins."""

    def __init__(self, bases: Sequence[_Base]) -> None:
        hashes = np.concatenate([base.hashes for base in bases] or [np.empty(0, np.uint64)])
        numbers = [np.full(len(base.hashes), base.number) for base in bases]
        self._keys, first = np.unique(hashes, return_index=True)
        self._bases = np.concatenate(numbers or [np.empty(0, np.int64)])[first]
        self._offsets = np.concatenate([base.offsets for base in bases] or [np.empty(0, np.int64)])[first]
        self._likely = np.zeros(1 << _FILTER_BITS, dtype=np.bool_)
        self._likely[self._keys >> np.uint64(HASH_BITS - _FILTER_BITS)] = True

    def search(self, chunk: bytes, gap: range, hashing: RollingHash) -> Iterator[_Match]:
        """Blocks at any offset of a stretch of the chunk, from its beginning, none overlapping another."""
        if not len(self._keys):
            return
        hashes = hashing.everywhere(memoryview(chunk)[gap.start : gap.stop])
        places = np.flatnonzero(self._likely[hashes >> np.uint64(HASH_BITS - _FILTER_BITS)])
        which = np.minimum(np.searchsorted(self._keys, hashes[places]), len(self._keys) - 1)
        equal = self._keys[which] == hashes[places]
        places, which = places[equal], which[equal]
        at = 0
        while (index := int(np.searchsorted(places, at))) < len(places):
            begin, key = int(places[index]), which[index]
            at = begin + hashing.block_bytes
            start = gap.start + begin
            yield _Match(start, gap.start + at, int(self._bases[key]), int(self._offsets[key]))


def _joined(matches: Sequence[_Match]) -> Iterator[_Match]:
    """In order of their starts: overlaps cut off, and neighbours of one base in one piece."""
    last: _Match | None = None
    for match in matches:
        over = 0 if last is None else max(0, last.end - match.start)
        start, offset = match.start + over, match.offset + over
        if start >= match.end:
            continue
        if last is not None and _goes_on(last, start, match.base, offset):
            last.end = match.end
            continue
        if last is not None:
            yield last
        last = _Match(start, match.end, match.base, offset)
    if last is not None:
        yield last


def _goes_on(last: _Match, start: int, base: int, offset: int) -> bool:
    return (start, base, offset) == (last.end, last.base, last.offset + last.end - last.start)


def _gaps(matches: Sequence[_Match], size: int) -> Iterator[range]:
    at = 0
    for match in matches:
        if match.start > at:
            yield range(at, match.start)
        at = match.end
    if at < size:
        yield range(at, size)


def _written(chunk: bytes, bases: Sequence[Sketch], matches: Sequence[_Match]) -> bytes:
    """The recipe's bytes: docs/formats/transfer.md."""
    operations: list[bytes] = []
    literals: list[bytes] = []
    at = 0
    for match in (*matches, _Match(len(chunk), len(chunk), 0, 0)):
        if match.start > at:
            operations.append(_OP.pack(_LITERAL, 0, 0, match.start - at))
            literals.append(chunk[at : match.start])
        if match.end > match.start:
            operations.append(_OP.pack(_COPY, match.base, match.offset, match.end - match.start))
        at = match.end
    head = _HEAD.pack(len(bases), len(operations))
    return b"".join((head, *(base.address for base in bases), *operations, *literals))
