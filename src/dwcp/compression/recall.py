"""Cutting with memory: where an older version of a file was cut is tried by hash before it is searched.

A boundary depends on nothing but the bytes since the last one, so bytes whose hash is that of an older
chunk end where that chunk ended. Hashing is several times faster than searching and lets other threads
run. The chunks are those that `chunking.cut` gives, and those of them that the memory names are known to be
where the memory came from. Sans-IO.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dwcp.compression.chunking import CHUNK_BYTES_MAX, address, cut_views
from dwcp.compression.errors import RequestInvalid
from dwcp.compression.manifest import Chunk

NAME_BYTES = 16
_SIZE_BYTES = 3
_ITEM_BYTES = _SIZE_BYTES + NAME_BYTES
_WINDOW_BYTES = 4 << 20  # how much is cut at once; bounds memory, does not move boundaries


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
class Found:
    """A chunk of the file. `data` is None where the memory names it, as its number `known`."""

    chunk: Chunk
    data: bytes | None
    known: int = -1


class Cutter:
    """Cuts one file, given in pieces of any size, in memory bounded by the window."""

    def __init__(self, recall: Recall) -> None:
        self._recall = recall
        self._at = 0  # in the file, of the next chunk
        self._next = 0  # the older chunk that is expected there

    def cut(self, pieces: Iterable[bytes]) -> Iterator[Found]:
        """Raises what the pieces raise."""
        waiting: list[bytes] = []
        size = 0
        for piece in pieces:
            waiting.append(piece)
            size += len(piece)
            if size >= _WINDOW_BYTES:
                view = memoryview(_joined(waiting))
                before = self._at
                yield from self._cut(view, final=False)
                rest = bytes(view[self._at - before :])
                waiting, size = [rest], len(rest)
        yield from self._cut(memoryview(_joined(waiting)), final=True)

    def _cut(self, view: memoryview, *, final: bool) -> Iterator[Found]:
        """All chunks that end for sure in this window: the last `CHUNK_BYTES_MAX` bytes may need more."""
        at = 0
        least = 1 if final else CHUNK_BYTES_MAX
        while len(view) - at >= least:
            found = self._expected(view, at, final=final)
            if found is not None:
                self._at += found.chunk.size
                at += found.chunk.size
                yield found
                continue
            for piece in cut_views(view[at:]):
                found = self._searched(piece)
                self._at += len(piece)
                at += len(piece)
                yield found
                if len(view) - at < least or found.known >= 0 or self._expect_here():
                    break

    def _expect_here(self) -> bool:
        """Whether an older chunk began at this offset: an edit in place is over there."""
        number = self._recall.by_offset.get(self._at)
        if number is None:
            return False
        self._next = number
        return True

    def _expected(self, view: memoryview, at: int, *, final: bool) -> Found | None:
        recall, number = self._recall, self._next
        if number >= len(recall.sizes):
            return None
        size = recall.sizes[number]
        end = at + size
        was_last = number + 1 == len(recall.sizes)  # the end of its file may have cut it
        if end > len(view) or (was_last and not (final and end == len(view))):
            return None
        name = address(view[at:end])
        if name[:NAME_BYTES] != recall.names[number]:
            return None
        self._next = number + 1
        return Found(Chunk(name, size), None, number)

    def _searched(self, piece: memoryview) -> Found:
        name = address(piece)
        number = self._recall.by_name.get(name[:NAME_BYTES], -1)
        if number < 0:
            return Found(Chunk(name, len(piece)), bytes(piece))
        self._next = number + 1
        return Found(Chunk(name, len(piece)), None, number)


def _joined(pieces: list[bytes]) -> bytes:
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
