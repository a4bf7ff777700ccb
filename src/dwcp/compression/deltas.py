"""Chunks that changed a little: said as pieces of chunks that the receiver holds, and what is new.

The receiver describes a chunk that it holds by the sizes and short hashes of its small content-defined
pieces (a sketch). The sender cuts its own chunk alike and writes a recipe: copies and literals. A short
hash may collide or be a lie; the rebuilt chunk is named by its own address, so nothing wrong is ever
taken for right. Sans-IO.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from blake3 import blake3

from dwcp.compression.chunking import CHUNK_BYTES_MAX, cut_small
from dwcp.compression.errors import RequestInvalid
from dwcp.consensus.crypto.codec import Record
from dwcp.consensus.crypto.hashes import SIZE as ADDRESS_SIZE

HASH_BYTES = 8
BASES_MAX = 8
GAIN_MIN = 0.7  # a recipe larger than this share of its chunk is not worth its trouble
_LITERAL, _COPY = 0, 1
_HEAD = struct.Struct(">BH")  # bases, operations
_OP = struct.Struct(">BBII")  # kind, base, offset, length
_MIN_RUN_BYTES = 64  # copies shorter than this cost more than they save


class Sketch(Record, frozen=True):
    """A chunk that the receiver holds: its pieces' sizes and hashes, in order, `HASH_BYTES` each."""

    address: bytes
    sizes: tuple[int, ...]
    hashes: bytes


def sketch(name: bytes, chunk: bytes, piece_bytes: int) -> Sketch:
    """`piece_bytes`: their average, one of `SMALL_BYTES_AVERAGES`; small ones find more and cost more."""
    pieces = cut_small(chunk, piece_bytes)
    return Sketch(name, tuple(map(len, pieces)), b"".join(map(_short, pieces)))


def recipe(chunk: bytes, bases: Sequence[Sketch], piece_bytes: int) -> bytes | None:
    """How to make the chunk from bases cut alike; None where that would save little."""
    places = _places(bases[:BASES_MAX])
    operations: list[list[int]] = []
    literals: list[bytes] = []
    for piece in cut_small(chunk, piece_bytes):
        found = places.get((len(piece), _short(piece)))
        last = operations[-1] if operations else None
        if found is None:
            if last is not None and last[0] == _LITERAL:
                last[3] += len(piece)
                literals[-1] += piece
            else:
                operations.append([_LITERAL, 0, 0, len(piece)])
                literals.append(piece)
        elif last is not None and last[0] == _COPY and (last[1], last[2] + last[3]) == found:
            last[3] += len(piece)
        else:
            operations.append([_COPY, *found, len(piece)])
    head = _HEAD.pack(min(len(bases), BASES_MAX), len(operations))
    names = b"".join(base.address for base in bases[:BASES_MAX])
    made = b"".join((head, names, *(_OP.pack(*each) for each in operations), *literals))
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
    held: dict[int, bytes] = {}
    chunk = bytearray()
    for _ in range(operations):
        kind, base, offset, length = _OP.unpack_from(made, at)
        at += _OP.size
        if len(chunk) + length > CHUNK_BYTES_MAX:
            raise RequestInvalid(f"a recipe makes more than the {CHUNK_BYTES_MAX} bytes of a chunk")
        if kind == _LITERAL:
            part = made[literals : literals + length]
            literals += length
        elif kind == _COPY and base < bases:
            if base not in held:
                held[base] = base_of(names[base])
            part = held[base][offset : offset + length]
        else:
            raise RequestInvalid(f"operation {kind} on base {base} is none of a recipe")
        if len(part) != length:
            raise RequestInvalid("a recipe reaches beyond its base or its own end")
        chunk += part
    if literals != len(made) or not chunk:
        raise RequestInvalid("a recipe is empty or has bytes that nothing uses")
    return bytes(chunk)


def _places(bases: Sequence[Sketch]) -> dict[tuple[int, bytes], tuple[int, int]]:
    """(size, hash) of a piece → (base, offset), the first wins. A sketch may be a lie; it costs a recipe."""
    places: dict[tuple[int, bytes], tuple[int, int]] = {}
    for number, base in enumerate(bases):
        offset = 0
        for at, size in enumerate(base.sizes):
            short = base.hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES]
            if size >= _MIN_RUN_BYTES:
                places.setdefault((size, short), (number, offset))
            offset += size
    return places


def _short(piece: bytes) -> bytes:
    return blake3(piece).digest(length=HASH_BYTES)
