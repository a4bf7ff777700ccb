"""Containers as streams: bytes of any length in, blocks packed by several threads, bounded memory.

Both directions hold a fixed number of blocks. Nothing is handed on before its block's hash was checked.
Functions block; the library of each codec releases the interpreter lock, so threads do run side by side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

from dwcp.compression import codecs
from dwcp.compression.codecs import Codec
from dwcp.compression.container import (
    BLOCK_HEADER_BYTES,
    BLOCKS_MAX,
    HEADER_BYTES,
    Header,
    PackedBlock,
    Reader,
    Writer,
    pack_block,
)
from dwcp.compression.errors import BlockInvalid, ContainerInvalid, PayloadChanged, UnknownCodec

BLOCK_BYTES = 1 << 20
RAW_BYTES_MAX = BLOCKS_MAX * BLOCK_BYTES
_THREADS = 2
_AHEAD = 2 * _THREADS  # blocks in flight
_READ_BYTES = 256 << 10

Packer = Callable[[bytes, bytes, int], bytes]  # (raw, stream id, index) to a block frame; called in threads


@dataclass(frozen=True, slots=True)
class Passed:
    """So much has gone through: raw bytes, bytes of the container, and the last block's codec."""

    raw_bytes: int
    packed_bytes: int
    blocks: int
    codec: str


Tell = Callable[[Passed], None]
BEGUN = Passed(0, HEADER_BYTES, 0, "none")  # a stream of which only the header was written


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """What a file or pipe gives, as it comes."""
    read = getattr(file, "read1", file.read)
    while piece := read(_READ_BYTES):
        yield piece


def blocks(source: Iterable[bytes], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The same bytes in blocks of `size`; the last may be smaller."""
    buffer = bytearray()
    for piece in source:
        buffer += piece
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)


def fixed(codec: Codec) -> Packer:
    """One codec for all blocks."""
    return lambda raw, stream_id, index: pack_block(raw, codec, stream_id=stream_id, index=index)


def pack(
    raws: Iterator[bytes],
    out: Callable[[bytes], object],
    writer: Writer,
    *,
    packer: Packer,
    tell: Tell | None = None,
    passed: Passed = BEGUN,
) -> Passed:
    """Packs the blocks after those that `writer` knows already, and the end frame.

    The stream's header has been written by the caller. `passed` is what a resumed stream has already.
    """
    waiting: deque[tuple[int, Future[bytes]]] = deque()

    def finish_one() -> None:
        nonlocal passed
        size, future = waiting.popleft()
        frame = future.result()
        out(frame)
        writer.note(frame)
        name = codecs.by_wire(frame[1]).name
        passed = Passed(passed.raw_bytes + size, passed.packed_bytes + len(frame), passed.blocks + 1, name)
        if tell is not None:
            tell(passed)

    with ThreadPoolExecutor(_THREADS) as pool:
        for index, raw in enumerate(raws, start=writer.next_index):
            packing = pool.submit(packer, raw, writer.header.stream_id, index)
            waiting.append((len(raw), packing))
            if len(waiting) > _AHEAD:
                finish_one()
        while waiting:
            finish_one()
    end = writer.end()
    out(end)
    return Passed(passed.raw_bytes, passed.packed_bytes + len(end), passed.blocks, passed.codec)


def unpack(
    source: Iterable[bytes],
    out: Callable[[bytes], object],
    *,
    opened: Callable[[Header], object] = lambda _: None,
    raw_bytes_max: int = RAW_BYTES_MAX,
    tell: Tell | None = None,
) -> Passed:
    """Verified raw bytes to `out`, block by block; `opened` is told the stream's header first.

    Raises `ContainerInvalid` or `BlockInvalid`; what `out` got until then was verified.
    """
    reader = Reader(raw_bytes_max=raw_bytes_max)
    waiting: deque[tuple[PackedBlock, Future[bytes]]] = deque()
    passed = BEGUN

    def finish_one() -> None:
        nonlocal passed
        block, future = waiting.popleft()
        out(future.result())
        packed_bytes = passed.packed_bytes + BLOCK_HEADER_BYTES + len(block.packed)
        passed = Passed(passed.raw_bytes + block.raw_size, packed_bytes, passed.blocks + 1, block.codec.name)
        if tell is not None:
            tell(passed)

    with ThreadPoolExecutor(_THREADS) as pool:
        failure: ContainerInvalid | UnknownCodec | None = None
        try:
            for item in _items(reader, source):
                if isinstance(item, Header):
                    _require_start(item)
                    opened(item)
                else:
                    waiting.append((item, pool.submit(item.unpack)))
                    if len(waiting) > _AHEAD:
                        finish_one()
        except (ContainerInvalid, UnknownCodec) as exc:
            failure = exc
        while waiting:  # blocks before the damage are whole, and a resumed run need not see them again
            finish_one()
        if failure is not None:
            raise failure
    return passed


def _items(reader: Reader, source: Iterable[bytes]) -> Iterator[Header | PackedBlock]:
    for piece in source:
        for item in reader.feed(piece):
            if isinstance(item, Header | PackedBlock):
                yield item
    reader.finish()


def _require_start(header: Header) -> None:
    if header.first_index:
        raise ContainerInvalid(
            f"the stream begins at block {header.first_index}: its beginning is somewhere else"
        )


def resume(partial: BinaryIO, raws: Iterator[bytes]) -> tuple[Writer, Passed] | None:
    """Takes up a container that was cut: its whole blocks are compared with the input, `raws` is advanced
    behind them, and `partial` is truncated there. None: it has no whole header, begin anew.

    Raises `PayloadChanged` where the input is not what was packed.
    """
    reader = Reader(raw_bytes_max=RAW_BYTES_MAX)
    writer: Writer | None = None
    passed = BEGUN
    try:
        for item in _items(reader, pieces(partial)):
            if isinstance(item, Header):
                writer = Writer(item)
                continue
            assert writer is not None
            raw = item.unpack()
            if next(raws, None) != raw:
                raise PayloadChanged(
                    f"the input is not what was packed before, at block {item.index}: begin without --resume"
                )
            size = BLOCK_HEADER_BYTES + len(item.packed)
            writer.note(_at(partial, passed.packed_bytes, BLOCK_HEADER_BYTES))
            passed = Passed(
                passed.raw_bytes + len(raw), passed.packed_bytes + size, passed.blocks + 1, item.codec.name
            )
    except (ContainerInvalid, BlockInvalid, UnknownCodec):  # cut or damaged from here on
        pass
    if writer is None:
        return None
    partial.seek(passed.packed_bytes)
    partial.truncate()
    return writer, passed


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    here = file.tell()
    file.seek(offset)
    data = file.read(size)
    file.seek(here)
    return data
