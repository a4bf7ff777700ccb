"""The codecs: they give back what they took, and none can be made to give more than was declared."""

from __future__ import annotations

import bz2
import lzma
import random
import struct
import zlib

import brotli
import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression import codecs
from dwcp.compression.codecs import BLOCK_BYTES_MAX, CODECS
from dwcp.compression.errors import BlockInvalid, BombRefused, UnknownCodec

ALL = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
SMALL = 1 << 16
ZEROS = bytes(64 << 20)


def test_wire_numbers_and_names_never_change() -> None:
    """The list is part of the container format: compare it with what was first released."""
    expected = [
        "none",
        "lz4-a8",
        "lz4",
        "zstd-f1",
        "zstd-1",
        "zstd-3",
        "zstd-5",
        "brotli-5",
        "bz2-9",
        "xz-6",
        "zstd-9",
        "igzip-1",
    ]

    actual = [codecs.by_wire(wire).name for wire in range(12)]

    assert actual == expected
    assert [codecs.by_name(name).wire for name in expected] == list(range(12))


@ALL
@settings(deadline=None)
@given(raw=st.binary(max_size=4000), repeat=st.integers(1, 30))
def test_round_trip(codec: codecs.Codec, raw: bytes, repeat: int) -> None:
    """Any bytes, repeated so that they compress, come back equal."""
    data = raw * repeat
    packed = codec.pack(data)
    if len(packed) > len(data):
        return  # such a block is stored

    assert codec.unpack(packed, raw_size=len(data)) == data


@ALL
def test_compresses_what_can_be_compressed(codec: codecs.Codec) -> None:
    """Each codec but `none` makes text smaller; a codec wired to the wrong library would not."""
    text = b"".join(b"line %d of a file that repeats itself\n" % n for n in range(3000))

    size = len(codec.pack(text))

    assert size == len(text) if codec.name == "none" else size < len(text) / 4


def _bomb(name: str) -> bytes:
    """64 MiB of zeros as the library itself packs them."""
    if name.startswith("lz4"):
        return bytes(lz4.block.compress(ZEROS, store_size=False))
    if name.startswith("zstd"):
        return zstandard.ZstdCompressor(level=3).compress(ZEROS)
    if name == "igzip-1":
        packer = zlib.compressobj(9, wbits=-15)
        return packer.compress(ZEROS) + packer.flush()
    if name == "brotli-5":
        return bytes(brotli.compress(ZEROS, quality=5))
    if name == "bz2-9":
        return bz2.compress(ZEROS, 9)
    return lzma.compress(ZEROS, preset=1)


@pytest.mark.parametrize("codec", CODECS[1:], ids=lambda codec: codec.name)
def test_bombs_are_refused(codec: codecs.Codec) -> None:
    """A block that unpacks to 64 MiB under a header of 64 KiB is refused, whatever its codec."""
    bomb = _bomb(codec.name)[: SMALL + (1 << 15)] if codec.name.startswith("lz4") else _bomb(codec.name)

    with pytest.raises(BlockInvalid):
        codec.unpack(bomb, raw_size=SMALL)


def test_zstd_frame_that_declares_more_is_refused_before_it_allocates() -> None:
    """The measured trap: the library's own output limit does not act where a frame declares its size."""
    bomb = zstandard.ZstdCompressor().compress(ZEROS)
    assert len(bomb) < 10_000

    with pytest.raises(BombRefused, match="declares 67108864 bytes"):
        codecs.by_name("zstd-3").unpack(bomb, raw_size=SMALL)


def test_zstd_frame_without_a_declared_size_is_refused() -> None:
    """Without a size in the frame the library would grow its buffer as it pleases."""
    packer = zstandard.ZstdCompressor().compressobj()
    frame = packer.compress(bytes(SMALL)) + packer.flush()

    with pytest.raises(BombRefused):
        codecs.by_name("zstd-1").unpack(frame, raw_size=SMALL)


def test_zstd_window_larger_than_the_limit_is_refused() -> None:
    """A window of 128 MiB is a request for memory, even if the content is small."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=True)
    data = b"x" * 100
    frame = bytearray(zstandard.ZstdCompressor(compression_params=parameters).compress(data))
    # A single-segment frame has no window; write one by hand: descriptor 0x80 (4-byte size), window 27.
    raw_block = struct.pack("<I", (len(data) << 3) | 1)[:3] + data
    frame = bytearray(
        b"\x28\xb5\x2f\xfd" + bytes([0x80, (27 - 10) << 3]) + struct.pack("<I", len(data)) + raw_block
    )
    assert zstandard.get_frame_parameters(bytes(frame)).window_size == 1 << 27

    with pytest.raises(BombRefused, match="window"):
        codecs.by_name("zstd-1").unpack(bytes(frame), raw_size=len(data))


def test_xz_that_wants_much_memory_is_refused() -> None:
    """Preset 9 needs 65 MiB to decode; the limit is half of it."""
    packed = lzma.compress(b"y" * 100_000, preset=9)

    with pytest.raises(BlockInvalid, match=r"[Mm]emory"):
        codecs.by_name("xz-6").unpack(packed, raw_size=100_000)


@pytest.mark.parametrize("codec", CODECS[3:], ids=lambda codec: codec.name)
def test_trailing_bytes_and_cuts_are_refused(codec: codecs.Codec) -> None:
    """One byte more or less than the library wrote is never a valid block."""
    data = b"some text that is long enough to be packed " * 200
    packed = codec.pack(data)

    for damaged in (packed + b"\0", packed[:-1], packed[: len(packed) // 2], b""):
        with pytest.raises(BlockInvalid):
            codec.unpack(damaged, raw_size=len(data))


@ALL
@settings(deadline=None)
@given(junk=st.binary(max_size=300), size=st.integers(0, 1 << 16))
def test_junk_never_ends_in_a_foreign_error(codec: codecs.Codec, junk: bytes, size: int) -> None:
    """Arbitrary bytes give a result of the declared size or `BlockInvalid`, nothing else."""
    try:
        raw = codec.unpack(junk, raw_size=size)
    except BlockInvalid:
        return
    assert len(raw) == size


def test_sizes_beyond_the_block_limit_are_refused_unread() -> None:
    """The declared size alone condemns the block."""
    with pytest.raises(BombRefused):
        codecs.by_name("lz4").unpack(b"", raw_size=BLOCK_BYTES_MAX + 1)


def test_unknown_codecs_are_named() -> None:
    """The sentence lists what there is."""
    with pytest.raises(UnknownCodec, match="zstd-3"):
        codecs.by_name("snappy")
    with pytest.raises(UnknownCodec, match="0 to 11"):
        codecs.by_wire(12)


def test_the_probe_tells_noise_from_text() -> None:
    """Random bytes look incompressible, text does not, and a text that only begins with noise does not."""
    noise = random.Random(1).randbytes(1 << 20)
    text = b"the quick brown fox jumps over the lazy dog\n" * 25_000

    assert codecs.looks_incompressible(noise)
    assert not codecs.looks_incompressible(text)
    assert not codecs.looks_incompressible(noise[:4096] + text)
    assert not codecs.looks_incompressible(noise[:1000])
