"""Packs: how chunks are grouped into the blocks of one stream. Small files travel together, and a codec
sees enough at once.

Where a plan was agreed, both ends know addresses and sizes in its order, so a pack carries no framing of
its own: its raw bytes are its chunks, one after another. Where chunks are pushed, the receiver learns
their sizes from the pack itself (a parcel) and computes their addresses, so there is nothing to lie about.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blake3 import blake3

from dwcp.compression.chunking import CHUNK_BYTES_MAX, address
from dwcp.compression.container import STREAM_ID_SIZE
from dwcp.compression.errors import RequestInvalid, SourceLied
from dwcp.compression.manifest import Chunk

PACK_BYTES = 1 << 20
PACK_BYTES_MAX = PACK_BYTES + CHUNK_BYTES_MAX
PLAN_CHUNKS_MAX = 32_768  # a request of 1 MiB of addresses; larger payloads take several plans

Pack = tuple[Chunk, ...]


def group(plan: Iterable[Chunk]) -> tuple[Pack, ...]:
    """Consecutive chunks until a pack has at least `PACK_BYTES`; the last may be smaller."""
    packs: list[Pack] = []
    pack: list[Chunk] = []
    size = 0
    for chunk in plan:
        pack.append(chunk)
        size += chunk.size
        if size >= PACK_BYTES:
            packs.append(tuple(pack))
            pack, size = [], 0
    if pack:
        packs.append(tuple(pack))
    return tuple(packs)


def stream_id(plan: Iterable[Chunk]) -> bytes:
    """Names the stream of a plan, so that a resumed one cannot be another plan's."""
    hasher = blake3(derive_key_context="dwcp packs v1 stream id")
    for chunk in plan:
        hasher.update(chunk.address)
        hasher.update(chunk.size.to_bytes(4, "big"))
    return hasher.digest(length=STREAM_ID_SIZE)


_COUNT = struct.Struct(">I")
_RECIPE = 1 << 31  # set in a part's size: it is a recipe (`compression.deltas`), not the chunk itself
PARCEL_CHUNKS_MAX = 16_384
PUSHED_BYTES_MOST = 4 << 20  # of a pushed pack, but for its last chunk
PARCEL_BYTES_MAX = PUSHED_BYTES_MOST + CHUNK_BYTES_MAX + _COUNT.size * (PARCEL_CHUNKS_MAX + 1)
PARCEL_REBUILT_MAX = 64 << 20  # what all recipes of one parcel may make


@dataclass(frozen=True, slots=True)
class Part:
    """One chunk in a parcel: its bytes, or a recipe for them."""

    data: bytes | memoryview
    is_recipe: bool = False


def parcel(parts: Sequence[Part]) -> bytes:
    """The raw bytes of a pushed pack: how many parts (u32), their sizes (u32 each), the parts."""
    sizes = [len(part.data) | (_RECIPE if part.is_recipe else 0) for part in parts]
    return b"".join((struct.pack(f">{len(parts) + 1}I", len(parts), *sizes), *(part.data for part in parts)))


def unparcel(raw: bytes) -> list[Part]:
    """The parts of a parcel from anybody, without copies. Raises `RequestInvalid`."""
    (count,) = _COUNT.unpack_from(raw) if len(raw) >= _COUNT.size else (0,)
    at = _COUNT.size * (count + 1)
    if not 0 < count <= PARCEL_CHUNKS_MAX or at > len(raw):
        raise RequestInvalid(f"{len(raw)} bytes are no parcel of {count} chunks")
    declared = struct.unpack_from(f">{count}I", raw, _COUNT.size)
    sizes = [size & ~_RECIPE for size in declared]
    if not all(0 < size <= CHUNK_BYTES_MAX for size in sizes) or at + sum(sizes) != len(raw):
        raise RequestInvalid("the sizes in a parcel do not add up to its bytes")
    parts = []
    view = memoryview(raw)
    for size, marked in zip(sizes, declared, strict=True):
        parts.append(Part(view[at : at + size], bool(marked & _RECIPE)))
        at += size
    return parts


def raw_size(pack: Pack) -> int:
    return sum(chunk.size for chunk in pack)


def split(pack: Pack, raw: bytes) -> list[tuple[bytes, bytes]]:
    """(address, bytes) of each chunk, verified. Raises `SourceLied`."""
    if len(raw) != raw_size(pack):
        raise SourceLied(f"a pack of {raw_size(pack)} bytes was asked for, {len(raw)} bytes came")
    chunks = []
    at = 0
    for chunk in pack:
        data = raw[at : at + chunk.size]
        if address(data) != chunk.address:
            raise SourceLied(f"chunk {chunk.address.hex()[:12]} was asked for, other bytes came")
        chunks.append((chunk.address, data))
        at += chunk.size
    return chunks
