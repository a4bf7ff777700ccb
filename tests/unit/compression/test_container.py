"""The container: every cut, flip, swap, repetition and lie is found; what is left is what was written."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression import codecs, container
from dwcp.compression.container import End, Header, PackedBlock, Reader, Writer, pack_block
from dwcp.compression.errors import ContainerInvalid, TransferError

GOLDEN = Path(__file__).parents[2] / "golden" / "container"
STREAM = bytes(range(16))
LIMIT = 1 << 20


def _write(raws: list[bytes], *, codec: str = "zstd-1", first: int = 0, stream: bytes = STREAM) -> bytes:
    writer = Writer(Header(stream, LIMIT, first))
    frames = [writer.block(raw, codecs.by_name(codec)) for raw in raws]
    return writer.header.encode() + b"".join(frames) + writer.end()


def _read(data: bytes, *, piece: int = 1 << 20, limit: int = LIMIT) -> list[bytes]:
    reader = Reader(raw_bytes_max=limit)
    raws = []
    for at in range(0, len(data), piece):
        raws += [
            item.unpack() for item in reader.feed(data[at : at + piece]) if isinstance(item, PackedBlock)
        ]
    reader.finish()
    return raws


@settings(deadline=None)
@given(
    raws=st.lists(st.binary(max_size=2000), max_size=6),
    codec=st.sampled_from([codec.name for codec in codecs.CODECS]),
    piece=st.integers(1, 500),
    first=st.integers(0, 9),
)
def test_round_trip(raws: list[bytes], codec: str, piece: int, first: int) -> None:
    """Any blocks in any codec come back, however the bytes arrive."""
    assert _read(_write(raws, codec=codec, first=first), piece=piece) == raws


@settings(deadline=None, max_examples=300)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(at: int, bit: int) -> None:
    """One bit anywhere in a stream of three blocks: an error, never other bytes.

    A codec may have bits that it does not read; then the bytes are still the right ones.
    """
    raws = [b"first " * 50, b"second " * 50, b"third"]
    data = bytearray(_write(raws))
    data[at % len(data)] ^= 1 << bit

    try:
        actual = _read(bytes(data))
    except TransferError:
        return
    assert actual == raws


def test_every_flipped_bit_of_a_stored_stream_is_found() -> None:
    """Where no codec is in between there are no spare bits: each flip is an error."""
    whole = _write([b"first " * 5, b"second"], codec="none")

    for at in range(len(whole) * 8):
        data = bytearray(whole)
        data[at // 8] ^= 1 << at % 8
        with pytest.raises(TransferError):
            _read(bytes(data))


def test_every_cut_is_found() -> None:
    """A stream that ends early, at any byte, is never taken for complete."""
    data = _write([b"first " * 20, b"second"])

    for end in range(len(data)):
        with pytest.raises(ContainerInvalid, match=r"cut|begin"):
            _read(data[:end])


def _frames(stream: bytes = STREAM) -> tuple[Writer, list[bytes]]:
    writer = Writer(Header(stream, LIMIT))
    return writer, [writer.block(raw, codecs.NONE) for raw in (b"a" * 40, b"b" * 40)]


def test_swapped_repeated_and_dropped_blocks_are_found() -> None:
    """Whole frames moved about have valid checks, but not at that place."""
    writer, (a, b) = _frames()
    head, end = writer.header.encode(), writer.end()

    for frames in ((b, a), (a, a, b), (a,), (b,), (a, b, b)):
        with pytest.raises(ContainerInvalid):
            _read(head + b"".join(frames) + end)


def test_a_block_out_of_place_is_refused_at_once() -> None:
    """Not only at the end: what came so far may be in use by then."""
    writer, (_, b) = _frames()

    with pytest.raises(ContainerInvalid, match="block 1 arrived where block 0 was due"):
        list(Reader(raw_bytes_max=LIMIT).feed(writer.header.encode() + b))


def test_a_block_of_another_stream_is_found() -> None:
    """Same index, same content rules, other stream: refused at its header."""
    writer, (_, b) = _frames()
    _, (other, _) = _frames(bytes(16))

    with pytest.raises(ContainerInvalid, match="another stream"):
        _read(writer.header.encode() + other + b + writer.end())


def test_a_forged_check_is_found_when_unpacked() -> None:
    """A liar can compute the crc; the content's hash still has to fit."""
    frame = bytearray(pack_block(b"honest content", codecs.NONE, stream_id=STREAM, index=0))
    frame[-1] ^= 1
    writer = Writer(Header(STREAM, LIMIT))
    writer.note(bytes(frame))

    with pytest.raises(TransferError, match="hash"):
        _read(writer.header.encode() + bytes(frame) + writer.end())


def test_incompressible_blocks_are_stored_with_bounded_expansion() -> None:
    """What does not shrink is stored; the price is the header alone."""
    raw = bytes(range(256))

    frame = pack_block(raw, codecs.by_name("xz-6"), stream_id=STREAM, index=0)

    assert len(frame) == len(raw) + container.BLOCK_HEADER_BYTES
    assert frame[1] == codecs.NONE.wire


def _header(**changes: int) -> bytes:
    values = {
        "version": 1,
        "flags": 0,
        "block": 1000,
        "first": 0,
        "dictionary": 0,
        "total": 2**64 - 1,
    } | changes
    head = struct.pack(">4sBBIIIQ16s", b"DWCZ", *values.values(), STREAM)
    return head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 2}, "version 2"),
        ({"flags": 0x10}, "features"),
        ({"dictionary": 5}, "dictionary 5"),
        ({"block": 1 << 30}, "1073741824 bytes announced"),
        ({"block": 0}, "0 bytes announced"),
        ({"total": 1 << 40}, "bytes announced"),
    ],
)
def test_headers_that_ask_too_much_are_refused(changes: dict[str, int], sentence: str) -> None:
    """Each critical field beyond what this reader knows or allows ends in a sentence."""
    with pytest.raises(ContainerInvalid, match=sentence):
        list(Reader(raw_bytes_max=LIMIT).feed(_header(**changes)))


def test_uncritical_flags_are_passed_over() -> None:
    """The low four flags are for additions that old readers may ignore."""
    assert len(list(Reader(raw_bytes_max=LIMIT).feed(_header(flags=0x0F)))) == 1


def test_no_more_raw_bytes_than_allowed() -> None:
    """The sum over blocks is bounded before any of them is unpacked."""
    with pytest.raises(ContainerInvalid, match="more than the 100 bytes"):
        _read(_write([bytes(60), bytes(60)]), limit=100)


def test_a_declared_block_size_beyond_the_streams_is_refused_before_its_bytes_come() -> None:
    """A header that declares much must not make the reader wait for, or hold, so much."""
    writer = Writer(Header(STREAM, 100))
    frame = pack_block(bytes(101), codecs.NONE, stream_id=STREAM, index=0)

    with pytest.raises(ContainerInvalid, match="limit is 100"):
        list(Reader(raw_bytes_max=LIMIT).feed(writer.header.encode() + frame[: container.BLOCK_HEADER_BYTES]))


def test_bytes_after_the_end_are_refused() -> None:
    """A stream has one end."""
    with pytest.raises(ContainerInvalid, match="follow"):
        _read(_write([b"x"]) + b"y")


@settings(deadline=None)
@given(junk=st.binary(max_size=400))
def test_junk_is_refused_with_a_sentence(junk: bytes) -> None:
    """Arbitrary bytes, alone or after a valid header, end in `TransferError` only."""
    for data in (junk, _header() + junk):
        with pytest.raises(TransferError):
            _read(data)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.dwcz")), ids=lambda path: path.stem)
def test_golden_streams_stay_readable(path: Path) -> None:
    """What the first release wrote, in every codec, is read today."""
    raws = _read(path.read_bytes())

    assert raws == [b"golden block %d " % n * 40 for n in range(3)]


def test_there_is_a_golden_stream_for_every_codec() -> None:
    """A codec without a golden file could change unnoticed."""
    assert {path.stem for path in GOLDEN.glob("*.dwcz")} == {codec.name for codec in codecs.CODECS}


def test_golden_stored_stream_is_written_the_same() -> None:
    """The framing itself, without any library's output, is byte for byte the first release's."""
    written = _write([b"golden block %d " % n * 40 for n in range(3)], codec="none")

    assert written == (GOLDEN / "none.dwcz").read_bytes()


def test_the_end_says_what_came() -> None:
    """Blocks and bytes of the end item are the counts of the stream."""
    items = list(Reader(raw_bytes_max=LIMIT).feed(_write([b"abc", b"de"])))

    assert items[-1] == End(blocks=2, raw_total=5)
