"""The codecs of the data path behind one interface, each with a hard limit on what it may put out.

A codec is a level of a library under a wire number that never changes. Packing
and unpacking release the interpreter lock and share no state, so that threads
may run them side by side. Unpacking trusts nobody: it never produces more than
about twice the size that the caller names, and raises unless it produces exactly that.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import brotli
import lz4.block
import zstandard

from dwcp.compression.errors import BlockInvalid, BombRefused, UnknownCodec

BLOCK_BYTES_MAX = 8 << 20
_ZSTD_WINDOW_MAX = 8 << 20  # RFC 9659's limit; a larger one is a request for our memory
_XZ_MEMORY_MAX = 32 << 20  # preset 6 decodes in 9 MiB
_PACKED_SLACK = 64 << 10  # no library expands a block by more than this

_RAW_DEFLATE = -15  # window bits; no header and no checksum, blocks carry their own


def _fast_deflate() -> Any:  # Any: a module that may be missing
    """Intel's implementation, eight times as fast at level 1; without it zlib writes the same format."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:
        return zlib


_DEFLATE = _fast_deflate()

Pack = Callable[[bytes], bytes]
Unpack = Callable[[bytes, int], bytes]


@dataclass(frozen=True, slots=True)
class Codec:
    """One entry of the wire's list. `ratio` is the aggregate over the reference corpus of
    160 MB (spec of the selector, §2.1): raw bytes for one packed byte."""

    name: str
    wire: int
    level: int
    ratio: float
    pack: Pack
    _unpack: Unpack

    def unpack(self, packed: bytes, *, raw_size: int) -> bytes:
        """The raw bytes. Raises `BlockInvalid` unless they are exactly `raw_size` bytes."""
        if not 0 <= raw_size <= BLOCK_BYTES_MAX:
            raise BombRefused(f"a block may hold {BLOCK_BYTES_MAX} bytes, its header declares {raw_size}")
        if len(packed) > raw_size + _PACKED_SLACK:
            raise BlockInvalid(f"{len(packed)} packed bytes cannot be a block of {raw_size}")
        try:
            raw = self._unpack(packed, raw_size)
        except (ValueError, RuntimeError, OSError, EOFError, MemoryError, *_LIBRARY_ERRORS) as exc:
            raise BlockInvalid(f"{self.name} cannot unpack the block: {exc}") from exc
        if len(raw) != raw_size:
            raise BlockInvalid(f"{self.name} gave {len(raw)} bytes where the header declares {raw_size}")
        return raw


_LIBRARY_ERRORS = (
    zstandard.ZstdError,
    zlib.error,
    _DEFLATE.error,
    lz4.block.LZ4BlockError,
    brotli.error,
    lzma.LZMAError,
)


def _none_unpack(packed: bytes, _raw_size: int) -> bytes:
    return bytes(packed)


def _lz4_pack(acceleration: int) -> Pack:
    def pack(raw: bytes) -> bytes:
        packed: bytes = lz4.block.compress(raw, mode="fast", acceleration=acceleration, store_size=False)
        return packed

    return pack


def _lz4_unpack(packed: bytes, raw_size: int) -> bytes:
    raw: bytes = lz4.block.decompress(packed, uncompressed_size=raw_size)
    return raw


def _zstd_pack(level: int) -> Pack:
    def pack(raw: bytes) -> bytes:
        return zstandard.ZstdCompressor(level=level, write_checksum=False).compress(raw)

    return pack


def _zstd_unpack(packed: bytes, raw_size: int) -> bytes:
    """The library ignores `max_output_size` when a frame declares its size (measured on 0.25: a frame
    of 6 KB returned 200 MB against a limit of 1 MiB), so the frame's own header is checked first.
    Once that equals `raw_size`, the library allocates exactly that and stops there."""
    frame = zstandard.get_frame_parameters(packed)
    if frame.content_size != raw_size:
        raise BombRefused(
            f"the zstd frame declares {frame.content_size} bytes, the block's header {raw_size}"
        )
    if frame.window_size > _ZSTD_WINDOW_MAX:
        raise BombRefused(
            f"the zstd frame wants a window of {frame.window_size} bytes, {_ZSTD_WINDOW_MAX} allowed"
        )
    if frame.dict_id:
        raise BlockInvalid(
            f"the zstd frame needs dictionary {frame.dict_id}, which this stream does not name"
        )
    unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
    return unpacker.decompress(packed, allow_extra_data=False)


def _brotli_pack(quality: int) -> Pack:
    def pack(raw: bytes) -> bytes:
        packed: bytes = brotli.compress(raw, quality=quality)
        return packed

    return pack


def _brotli_unpack(packed: bytes, raw_size: int) -> bytes:
    """The limit is soft in the library: up to twice as much may come out before it stops."""
    unpacker = brotli.Decompressor()
    raw: bytes = unpacker.process(packed, output_buffer_limit=raw_size + 1)
    if len(raw) > raw_size:
        raise BombRefused(f"the brotli stream holds more than the {raw_size} bytes that its header declares")
    if not unpacker.is_finished():
        raise BlockInvalid("the brotli stream is cut")
    return raw


def _bz2_pack(raw: bytes) -> bytes:
    return bz2.compress(raw, 9)


def _bz2_unpack(packed: bytes, raw_size: int) -> bytes:
    unpacker = bz2.BZ2Decompressor()
    return _stepwise(unpacker, packed, raw_size)


def _xz_pack(raw: bytes) -> bytes:
    return lzma.compress(raw, format=lzma.FORMAT_XZ, check=lzma.CHECK_NONE, preset=6)


def _xz_unpack(packed: bytes, raw_size: int) -> bytes:
    unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_MAX)
    return _stepwise(unpacker, packed, raw_size)


def _deflate_pack(raw: bytes) -> bytes:
    packed: bytes = _DEFLATE.compress(raw, 1, _RAW_DEFLATE)
    return packed


def _deflate_unpack(packed: bytes, raw_size: int) -> bytes:
    return _stepwise(_DEFLATE.decompressobj(_RAW_DEFLATE), packed, raw_size)


class _Stepwise(Protocol):
    """What bz2, xz and deflate have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /, max_length: int) -> bytes: ...


def _stepwise(unpacker: _Stepwise, packed: bytes, raw_size: int) -> bytes:
    """One byte more than declared is asked for, so that a bomb shows itself at that byte."""
    raw = unpacker.decompress(packed, max_length=raw_size + 1)
    if len(raw) > raw_size:
        raise BombRefused(f"the block holds more than the {raw_size} bytes that its header declares")
    if not unpacker.eof:
        raise BlockInvalid("the compressed block is cut")
    if unpacker.unused_data:
        raise BlockInvalid(f"{len(unpacker.unused_data)} bytes follow the compressed block")
    return raw


# Wire numbers are part of the container format: never reused, never changed.
CODECS: tuple[Codec, ...] = (
    Codec("none", 0, 0, 1.0, bytes, _none_unpack),
    Codec("lz4-a8", 1, 8, 1.81, _lz4_pack(8), _lz4_unpack),
    Codec("lz4", 2, 1, 2.07, _lz4_pack(1), _lz4_unpack),
    Codec("zstd-f1", 3, -1, 2.39, _zstd_pack(-1), _zstd_unpack),
    Codec("zstd-1", 4, 1, 2.67, _zstd_pack(1), _zstd_unpack),
    Codec("zstd-3", 5, 3, 2.80, _zstd_pack(3), _zstd_unpack),
    Codec("zstd-5", 6, 5, 2.88, _zstd_pack(5), _zstd_unpack),
    Codec("brotli-5", 7, 5, 2.99, _brotli_pack(5), _brotli_unpack),
    Codec("bz2-9", 8, 9, 3.05, _bz2_pack, _bz2_unpack),
    Codec("xz-6", 9, 6, 3.24, _xz_pack, _xz_unpack),
    Codec("zstd-9", 10, 9, 2.96, _zstd_pack(9), _zstd_unpack),
    Codec("igzip-1", 11, 1, 2.51, _deflate_pack, _deflate_unpack),
)
NONE = CODECS[0]
_BY_NAME = {codec.name: codec for codec in CODECS}
_BY_WIRE = {codec.wire: codec for codec in CODECS}


def by_name(name: str) -> Codec:
    """Raises `UnknownCodec`, naming those that exist."""
    codec = _BY_NAME.get(name)
    if codec is None:
        raise UnknownCodec(f"there is no codec {name!r}; this release has {', '.join(_BY_NAME)}")
    return codec


def by_wire(wire: int) -> Codec:
    codec = _BY_WIRE.get(wire)
    if codec is None:
        raise UnknownCodec(f"there is no codec number {wire}; this release reads 0 to {len(CODECS) - 1}")
    return codec


# How incompressible bytes are known without packing all of them: 8 pieces, spread evenly (a prefix
# lies: archives and executables begin with headers), packed together by lz4 in about 15 µs.
_PROBE_PIECES = 8
_PROBE_PIECE_BYTES = 2048
_PROBE_RATIO_MIN = 1.03


def looks_incompressible(raw: bytes) -> bool:
    """Whether a slow codec would most likely work for nothing."""
    if len(raw) < 2 * _PROBE_PIECES * _PROBE_PIECE_BYTES:
        return False
    stride = (len(raw) - _PROBE_PIECE_BYTES) // (_PROBE_PIECES - 1)
    sample = b"".join(raw[at * stride : at * stride + _PROBE_PIECE_BYTES] for at in range(_PROBE_PIECES))
    packed: bytes = lz4.block.compress(sample, store_size=False)
    return len(sample) < _PROBE_RATIO_MIN * len(packed)
