"""The container: a self-describing stream of blocks, each packed by any codec.

Layout, big-endian (`docs/formats/container.md` has the tables and the reasons):

    header  "DWCZ" version u8, flags u8, block_bytes_max u32, first_index u32, dictionary u32,
            raw_total u64 (2^64-1: unknown), stream id 16, crc32 u32
    block   kind 0x01, codec u8, index u32, raw_size u32, packed_size u32, check 16, crc32 u32, packed bytes
    end     kind 0x02, blocks u32, raw_total u64, digest 32, crc32 u32, then (raw_size u32, packed_size u32)
            per block, crc32 u32

The crc of a block's header is seeded with the stream id, and its check covers stream id, index
and raw bytes, so a block of another stream or at another place is refused. This module is sans-IO: it
takes and gives bytes, and unpacking is a separate pure function that a thread may run.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from blake3 import blake3

from dwcp.compression import codecs
from dwcp.compression.codecs import BLOCK_BYTES_MAX, Codec
from dwcp.compression.errors import BlockInvalid, ContainerInvalid

MAGIC = b"DWCZ"
VERSION = 1
STREAM_ID_SIZE = 16
CHECK_SIZE = 16
TOTAL_UNKNOWN = 2**64 - 1
BLOCKS_MAX = 1 << 20

_KIND_BLOCK = 1
_KIND_END = 2
_CRITICAL_FLAGS = 0xF0  # none is known yet; a reader that does not know one refuses the stream
_HEAD = struct.Struct(">4sBBIIIQ16s")
_BLOCK = struct.Struct(">BBIII16s")
_END = struct.Struct(">BIQ32s")
_INDEX = struct.Struct(">II")
_CRC = struct.Struct(">I")
_CHECK_CONTEXT = "dwcp container v1 block check"
_DIGEST_CONTEXT = "dwcp container v1 stream digest"

HEADER_BYTES = _HEAD.size + _CRC.size
BLOCK_HEADER_BYTES = _BLOCK.size + _CRC.size


@dataclass(frozen=True, slots=True)
class Header:
    """What opens a stream. `first_index` above 0 means a stream resumed at that block."""

    stream_id: bytes
    block_bytes_max: int
    first_index: int = 0
    raw_total: int = TOTAL_UNKNOWN
    flags: int = 0

    def encode(self) -> bytes:
        head = _HEAD.pack(
            MAGIC,
            VERSION,
            self.flags,
            self.block_bytes_max,
            self.first_index,
            0,
            self.raw_total,
            self.stream_id,
        )
        return head + _CRC.pack(zlib.crc32(head))


@dataclass(frozen=True, slots=True)
class PackedBlock:
    """One block whose header has been checked; its content has not (`unpack` does that)."""

    stream_id: bytes
    index: int
    codec: Codec
    raw_size: int
    check: bytes
    packed: bytes

    def unpack(self) -> bytes:
        """The raw bytes, verified. Raises `BlockInvalid`. Pure: any thread may call it."""
        raw = self.codec.unpack(self.packed, raw_size=self.raw_size)
        if _check(self.stream_id, self.index, raw) != self.check:
            raise BlockInvalid(f"block {self.index} does not have the hash that its header declares")
        return raw


@dataclass(frozen=True, slots=True)
class End:
    """The stream is complete and agrees with its end frame."""

    blocks: int
    raw_total: int


Item = Header | PackedBlock | End


def pack_block(raw: bytes, codec: Codec, *, stream_id: bytes, index: int) -> bytes:
    """One block frame; stored as it is where the codec does not make it smaller. Any thread may call it."""
    packed = codec.pack(raw)
    if len(packed) >= len(raw):
        codec, packed = codecs.NONE, bytes(raw)
    check = _check(stream_id, index, raw)
    head = _BLOCK.pack(_KIND_BLOCK, codec.wire, index, len(raw), len(packed), check)
    return head + _CRC.pack(zlib.crc32(head, _seed(stream_id))) + packed


class Writer:
    """Keeps what the end frame must say: `header`, then `note` each block frame in order, then `end`."""

    def __init__(self, header: Header) -> None:
        _require_header(header)
        self.header = header
        self._sizes: list[tuple[int, int]] = []
        self._raw_total = 0
        self._digest = blake3(derive_key_context=_DIGEST_CONTEXT)
        self._digest.update(header.encode())

    @property
    def next_index(self) -> int:
        return self.header.first_index + len(self._sizes)

    def block(self, raw: bytes, codec: Codec) -> bytes:
        """Packs and notes in one step."""
        frame = pack_block(raw, codec, stream_id=self.header.stream_id, index=self.next_index)
        self.note(frame)
        return frame

    def note(self, frame: bytes) -> None:
        """Takes account of a frame made by `pack_block` for `next_index`."""
        _kind, _wire, index, raw_size, packed_size, check = _BLOCK.unpack_from(frame)
        if index != self.next_index:
            raise ValueError(f"block {index} where {self.next_index} is next")
        if raw_size > self.header.block_bytes_max:
            raise ValueError(
                f"a block of {raw_size} bytes where the header allows {self.header.block_bytes_max}"
            )
        self._sizes.append((raw_size, packed_size))
        self._raw_total += raw_size
        self._digest.update(check)

    def end(self) -> bytes:
        return _encode_end(self._sizes, self._raw_total, self._digest.digest())


class _Arrived:
    """Bytes in the order of their arrival. What is taken is copied once, however many pieces it came in."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: deque[memoryview] = deque()

    def add(self, data: bytes) -> None:
        if data:
            self._pieces.append(memoryview(bytes(data)))
            self.size += len(data)

    def first(self, size: int) -> bytes:
        """The first bytes, as many as there are; they stay."""
        found = b""
        for piece in self._pieces:
            found += piece[: size - len(found)]
            if len(found) == size:
                break
        return found

    def take(self, size: int) -> bytes:
        """The first bytes; there must be as many."""
        self.size -= size
        parts = []
        while size:
            part = self._pieces.popleft()
            if len(part) > size:
                self._pieces.appendleft(part[size:])
                part = part[:size]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class Reader:
    """Turns bytes as they arrive into checked items; holds at most one packed block.

    `raw_bytes_max` bounds the sum of all blocks, `block_bytes_max` one of them.
    After any error the reader is of no use.
    """

    def __init__(self, *, raw_bytes_max: int, block_bytes_max: int = BLOCK_BYTES_MAX) -> None:
        self._raw_bytes_max = raw_bytes_max
        self._block_bytes_max = block_bytes_max
        self._arrived = _Arrived()
        self._due = 0  # bytes that the next item has at least
        self._header: Header | None = None
        self._sizes: list[tuple[int, int]] = []
        self._raw_total = 0
        self._digest = blake3(derive_key_context=_DIGEST_CONTEXT)
        self._ended = False

    def feed(self, data: bytes) -> Iterator[Item]:
        """Items that `data` completes, in order. Raises `ContainerInvalid`."""
        self._arrived.add(data)
        while self._arrived.size >= self._due and (item := self._next()) is not None:
            self._due = 0
            yield item

    def finish(self) -> None:
        """To be called when no more bytes come; raises `ContainerInvalid` unless the stream is complete."""
        if not self._ended:
            at = f"after block {self._index - 1}" if self._sizes else "before its first block"
            raise ContainerInvalid(f"the stream is cut {at}")

    @property
    def _index(self) -> int:
        first = self._header.first_index if self._header else 0
        return first + len(self._sizes)

    def _next(self) -> Item | None:
        if self._ended:
            if self._arrived.size:
                raise ContainerInvalid(f"{self._arrived.size} bytes follow the end of the stream")
            return None
        if self._header is None:
            return self._take_header()
        if not self._arrived.size:
            return None
        kind = self._arrived.first(1)[0]
        if kind == _KIND_BLOCK:
            return self._take_block(self._header)
        if kind == _KIND_END:
            return self._take_end(self._header)
        raise ContainerInvalid(f"frame kind {kind} after block {self._index - 1} is none of this version")

    def _take_header(self) -> Header | None:
        if not MAGIC.startswith(self._arrived.first(len(MAGIC))):
            raise ContainerInvalid(
                f"the stream does not begin with {MAGIC!r}; it is no container of this product"
            )
        if self._arrived.size < HEADER_BYTES:
            return None
        head = self._arrived.first(HEADER_BYTES)
        _magic, version, flags, block_max, first, dictionary, total, stream_id = _HEAD.unpack_from(head)
        if version != VERSION:
            raise ContainerInvalid(f"the stream has version {version}, this release reads version {VERSION}")
        _require_crc(head, seed=0, what="stream header")
        if flags & _CRITICAL_FLAGS or dictionary:
            raise ContainerInvalid(
                f"the stream needs features (flags {flags:#x}, dictionary {dictionary}) unknown here"
            )
        header = Header(stream_id, block_max, first, total, flags)
        if not 0 < block_max <= self._block_bytes_max:
            raise ContainerInvalid(
                f"blocks of up to {block_max} bytes announced, {self._block_bytes_max} allowed"
            )
        if total != TOTAL_UNKNOWN and total > self._raw_bytes_max:
            raise ContainerInvalid(f"{total} bytes announced, {self._raw_bytes_max} allowed")
        self._arrived.take(HEADER_BYTES)
        self._header = header
        self._digest.update(header.encode())
        return header

    def _take_block(self, header: Header) -> PackedBlock | None:
        if self._arrived.size < BLOCK_HEADER_BYTES:
            return None
        head = self._arrived.first(BLOCK_HEADER_BYTES)
        _require_crc(head, seed=_seed(header.stream_id), what=f"header of block {self._index}")
        _kind, wire, index, raw_size, packed_size, check = _BLOCK.unpack_from(head)
        self._require_block(header, index=index, raw_size=raw_size, packed_size=packed_size)
        codec = codecs.by_wire(wire)
        self._due = BLOCK_HEADER_BYTES + packed_size
        if self._arrived.size < self._due:
            return None
        self._arrived.take(BLOCK_HEADER_BYTES)
        packed = self._arrived.take(packed_size)
        self._sizes.append((raw_size, packed_size))
        self._raw_total += raw_size
        self._digest.update(check)
        return PackedBlock(header.stream_id, index, codec, raw_size, check, packed)

    def _require_block(self, header: Header, *, index: int, raw_size: int, packed_size: int) -> None:
        if index != self._index:
            raise ContainerInvalid(f"block {index} arrived where block {self._index} was due")
        if raw_size > header.block_bytes_max:
            raise ContainerInvalid(
                f"block {index} declares {raw_size} bytes, the stream's limit is {header.block_bytes_max}"
            )
        if packed_size > raw_size:
            raise ContainerInvalid(f"block {index} is larger packed ({packed_size}) than raw ({raw_size})")
        if self._raw_total + raw_size > self._raw_bytes_max:
            raise ContainerInvalid(f"the stream holds more than the {self._raw_bytes_max} bytes allowed")
        if len(self._sizes) >= BLOCKS_MAX:
            raise ContainerInvalid(f"the stream holds more than {BLOCKS_MAX} blocks")

    def _take_end(self, header: Header) -> End | None:
        if self._arrived.size < _END.size + _CRC.size:
            return None
        expected = _encode_end(self._sizes, self._raw_total, self._digest.digest())
        if self._arrived.first(_END.size) != expected[: _END.size]:
            raise ContainerInvalid(
                f"the end frame does not agree with the {len(self._sizes)} blocks before it"
            )
        self._due = len(expected)
        if self._arrived.size < self._due:
            return None
        if self._arrived.take(len(expected)) != expected:
            raise ContainerInvalid("the index in the end frame does not agree with the blocks before it")
        if header.raw_total not in (TOTAL_UNKNOWN, self._raw_total):
            raise ContainerInvalid(
                f"{self._raw_total} bytes arrived, the header announced {header.raw_total}"
            )
        self._ended = True
        return End(len(self._sizes), self._raw_total)


def _check(stream_id: bytes, index: int, raw: bytes) -> bytes:
    hasher = blake3(stream_id + index.to_bytes(4, "big"), derive_key_context=_CHECK_CONTEXT)
    hasher.update(raw)
    return hasher.digest(length=CHECK_SIZE)


def _seed(stream_id: bytes) -> int:
    return zlib.crc32(stream_id)


def _require_crc(head: bytes, *, seed: int, what: str) -> None:
    """`head` ends with its crc."""
    (stored,) = _CRC.unpack_from(head, len(head) - _CRC.size)
    if zlib.crc32(head[: -_CRC.size], seed) != stored:
        raise ContainerInvalid(f"the {what} is damaged or belongs to another stream")


def _encode_end(sizes: list[tuple[int, int]], raw_total: int, digest: bytes) -> bytes:
    head = _END.pack(_KIND_END, len(sizes), raw_total, digest)
    index = b"".join(_INDEX.pack(*pair) for pair in sizes)
    return head + _CRC.pack(zlib.crc32(head)) + index + _CRC.pack(zlib.crc32(index))


def _require_header(header: Header) -> None:
    if len(header.stream_id) != STREAM_ID_SIZE:
        raise ValueError(f"a stream id has {STREAM_ID_SIZE} bytes, got {len(header.stream_id)}")
    if not 0 < header.block_bytes_max <= BLOCK_BYTES_MAX:
        raise ValueError(f"blocks may be 1 to {BLOCK_BYTES_MAX} bytes, got {header.block_bytes_max}")
