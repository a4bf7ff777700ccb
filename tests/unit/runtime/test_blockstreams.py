"""Streams of blocks: whole, cut, damaged and taken up again at every boundary."""

from __future__ import annotations

import io
import random

import pytest

from dwcp.compression import codecs
from dwcp.compression.container import Header, Writer
from dwcp.compression.errors import BlockInvalid, ContainerInvalid, PayloadChanged
from dwcp.runtime import blockstreams
from dwcp.runtime.blockstreams import BEGUN

SIZE = 4096
RAW = random.Random(3).randbytes(5 * SIZE) + b"text " * 3000


ZSTD = blockstreams.fixed(codecs.by_name("zstd-1"))


def _blocks(raw: bytes) -> list[bytes]:
    return list(blockstreams.blocks([raw], SIZE))


def _packed(raw: bytes) -> bytes:
    out = io.BytesIO()
    writer = Writer(Header(bytes(16), SIZE))
    out.write(writer.header.encode())
    blockstreams.pack(iter(_blocks(raw)), out.write, writer, packer=ZSTD)
    return out.getvalue()


def _unpacked(data: bytes, piece: int = 777) -> bytes:
    out = io.BytesIO()
    blockstreams.unpack((data[at : at + piece] for at in range(0, len(data), piece)), out.write)
    return out.getvalue()


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE, SIZE + 1, len(RAW)])
def test_what_goes_in_comes_out(size: int) -> None:
    """Goal: a round trip at the edges of a block. Method: sizes around one."""
    assert _unpacked(_packed(RAW[:size])) == RAW[:size]


def test_a_cut_stream_is_resumed_at_every_byte() -> None:
    """Goal: wherever a run broke off, the finished stream is sound and whole blocks are kept.

    Method: cut at every boundary of a block and around it, resume, unpack.
    """
    whole = _packed(RAW)
    boundaries = [BEGUN.packed_bytes]
    blockstreams.unpack([whole], lambda _: None, tell=lambda passed: boundaries.append(passed.packed_bytes))
    assert len(boundaries) == len(_blocks(RAW)) + 1

    for number, boundary in enumerate(boundaries):
        for cut in (boundary - 1, boundary, boundary + 1):
            partial = io.BytesIO(whole[:cut])
            raws = iter(_blocks(RAW))
            resumed = blockstreams.resume(partial, raws)
            if cut < BEGUN.packed_bytes:
                assert resumed is None
                continue
            assert resumed is not None
            writer, passed = resumed
            assert passed.blocks == (number if cut >= boundary else number - 1)
            assert partial.getvalue() == whole[: passed.packed_bytes]
            blockstreams.pack(raws, partial.write, writer, packer=ZSTD, passed=passed)
            assert partial.getvalue() == whole


def test_a_complete_stream_is_resumed_to_itself() -> None:
    """Goal: resuming what was finished changes nothing. Method: resume it."""
    whole = _packed(RAW)
    partial, raws = io.BytesIO(whole), iter(_blocks(RAW))
    resumed = blockstreams.resume(partial, raws)
    assert resumed is not None
    blockstreams.pack(
        raws, partial.write, resumed[0], packer=blockstreams.fixed(codecs.NONE), passed=resumed[1]
    )

    assert partial.getvalue() == whole


def test_another_input_is_not_resumed() -> None:
    """Goal: no stream of two inputs. Method: one byte of the second block differs."""
    other = RAW[:5000] + b"?" + RAW[5001:]
    with pytest.raises(PayloadChanged, match="at block 1"):
        blockstreams.resume(io.BytesIO(_packed(RAW)), iter(_blocks(other)))


@pytest.mark.parametrize("at", [60, 3000, 9000, 20_000])
def test_nothing_after_damage_is_delivered(at: int) -> None:
    """Goal: verified before delivery. Method: flip one bit; what came out is a proper prefix."""
    whole = bytearray(_packed(RAW))
    whole[at] ^= 4
    out = io.BytesIO()
    with pytest.raises((ContainerInvalid, BlockInvalid)):
        blockstreams.unpack([bytes(whole)], out.write)

    assert RAW.startswith(out.getvalue())
    assert len(out.getvalue()) < len(RAW)
    assert len(out.getvalue()) % SIZE == 0


def test_whole_blocks_before_a_cut_are_delivered() -> None:
    """Goal: a resumed run need not see them again. Method: cut in the third block."""
    out = io.BytesIO()
    with pytest.raises(ContainerInvalid, match="cut after block"):
        blockstreams.unpack([_packed(RAW)[: 46 + 2 * (34 + SIZE) + 50]], out.write)

    assert out.getvalue() == RAW[: 2 * SIZE]


def test_a_stream_that_begins_elsewhere_is_refused() -> None:
    """Goal: the middle of a stream is not taken for all of it. Method: first index 3."""
    writer = Writer(Header(bytes(16), SIZE, 3))
    with pytest.raises(ContainerInvalid, match="begins at block 3"):
        blockstreams.unpack([writer.header.encode() + writer.block(b"x", codecs.NONE) + writer.end()], print)


def test_a_bomb_stops_at_the_limit() -> None:
    """Goal: no more raw bytes than allowed. Method: a stream of zeros against a limit of two blocks."""
    out = io.BytesIO()
    with pytest.raises(ContainerInvalid, match="more than"):
        blockstreams.unpack([_packed(bytes(10 * SIZE))], out.write, raw_bytes_max=2 * SIZE)

    assert len(out.getvalue()) <= 2 * SIZE
