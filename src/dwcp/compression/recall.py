"""Cutting with memory: where an older version of a file was cut is tried by hash before it is searched.

A boundary depends on nothing but the bytes since the last one, so bytes whose hash is that of an older
chunk end where that chunk ended. Hashing is several times faster than searching and lets other threads
run. The chunks are those that `chunking.cut` gives, and those of them that the memory names are known to be
where the memory came from. Sans-IO.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

from dwcp.compression.chunking import CHUNK_BYTES_MAX, address, cut_views
from dwcp.compression.errors import RequestInvalid
from dwcp.compression.manifest import Chunk

NAME_BYTES = 16
_SIZE_BYTES = 3
_ITEM_BYTES = _SIZE_BYTES + NAME_BYTES
BUFFER_BYTES_MIN = 2 * CHUNK_BYTES_MAX

Fill = Callable[[memoryview], int]  # puts the next bytes of a file there, one at least; how many


def describe(chunks: Iterable[Chunk]) -> bytes:
    """A file's chunks for somebody who may have a newer version: size u24 and `NAME_BYTES` of the address."""
    return b"".join(chunk.size.to_bytes(_SIZE_BYTES, "big") + chunk.address[:NAME_BYTES] for chunk in chunks)


class Recall:
    """An older version's chunks, from anybody: a lie makes other chunks of the same bytes, or costs a retry."""

    def __init__(self, described: bytes = b"") -> None:
        """Raises `RequestInvalid`."""
        if len(described) % _ITEM_BYTES:
            raise RequestInvalid(f"{len(described)} bytes are no list of chunks")
        starts = range(0, len(described), _ITEM_BYTES)
        self.sizes = [int.from_bytes(described[at : at + _SIZE_BYTES], "big") for at in starts]
        self.names = [described[at + _SIZE_BYTES : at + _ITEM_BYTES] for at in starts]
        if not all(0 < size <= CHUNK_BYTES_MAX for size in self.sizes):
            raise RequestInvalid("a chunk in a list has an impossible size")
        self.by_name = {name: at for at, name in enumerate(self.names)}
        self.starts = [0, *itertools.accumulate(self.sizes)]
        self.by_offset = {offset: at for at, offset in enumerate(self.starts[:-1])}

    def around(self, offset: int, size: int) -> list[int]:
        """The chunks that overlap a stretch of the file, by number."""
        first = max(0, bisect.bisect_right(self.starts, offset) - 1)
        return list(range(first, min(bisect.bisect_left(self.starts, offset + size), len(self.sizes))))


@dataclass(frozen=True, slots=True)
class Known:
    """A stretch of the file: chunks that the memory names, from its number `first` on."""

    first: int
    chunks: list[Chunk]


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk that the memory does not name, and its bytes."""

    chunk: Chunk
    data: bytes


class Cutter:
    """Cuts one file in the memory that it is given, of `BUFFER_BYTES_MIN` at least: files of one size after
    another may share it, and a processor's cache may hold it."""

    def __init__(self, recall: Recall, buffer: memoryview) -> None:
        self._recall = recall
        self._buffer = buffer
        self._next = 0  # the older chunk that is expected here
        self._missed = (0, b"")  # size and address of what stands here instead

    def cut(self, fill: Fill, size: int) -> Iterator[Known | Found]:
        """`size` bytes of the file. Raises what `fill` raises."""
        buffer = self._buffer
        offset = held = 0  # in the file of the buffer's first byte; bytes in the buffer
        while offset + held < size:
            while held < len(buffer) and offset + held < size:
                held += fill(buffer[held : held + size - offset])
            done = yield from self._cut(buffer[:held], offset, final=offset + held == size)
            buffer[: held - done] = buffer[done:held]
            offset += done
            held -= done

    def _cut(self, view: memoryview, offset: int, *, final: bool) -> Generator[Known | Found, None, int]:
        """All chunks that end for sure in this window; returns their bytes."""
        at = 0
        while at < len(view):
            known, end = self._expected(view, at, final=final)
            if known:
                yield Known(self._next - len(known), known)
                at = end
                continue
            if not final and len(view) - at < CHUNK_BYTES_MAX:
                break  # to search its end may need more
            for piece in cut_views(view[at:]):
                found = self._searched(piece)
                at += len(piece)
                yield found
                enough = final or len(view) - at >= CHUNK_BYTES_MAX
                if not enough or isinstance(found, Known) or self._expect_at(offset + at):
                    break
        return at

    def _expect_at(self, offset: int) -> bool:
        """Whether an older chunk began at this offset: an edit in place is over there."""
        number = self._recall.by_offset.get(offset)
        if number is None:
            return False
        self._next = number
        return True

    def _expected(self, view: memoryview, at: int, *, final: bool) -> tuple[list[Chunk], int]:
        """The older chunks that stand here one after another, and where they end."""
        sizes, names = self._recall.sizes, self._recall.names
        last = len(sizes) - 1  # the end of its file may have cut it
        number, whole = self._next, len(view)
        chunks: list[Chunk] = []
        self._missed = (0, b"")
        while number <= last:
            size = sizes[number]
            end = at + size
            if end > whole or (number == last and not (final and end == whole)):
                break
            name = address(view[at:end])
            if name[:NAME_BYTES] != names[number]:
                self._missed = (size, name)
                break
            chunks.append(Chunk(name, size))
            number += 1
            at = end
        self._next = number
        return chunks, at

    def _searched(self, piece: memoryview) -> Known | Found:
        size, missed = self._missed
        name = missed if len(piece) == size else address(piece)
        self._missed = (0, b"")
        chunk = Chunk(name, len(piece))
        number = self._recall.by_name.get(name[:NAME_BYTES], -1)
        if number < 0:
            return Found(chunk, bytes(piece))
        self._next = number + 1
        return Known(number, [chunk])
