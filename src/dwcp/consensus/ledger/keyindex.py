"""Keys in order, in blocks, so that adding one moves at most a block's worth of pointers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

_BLOCK_MAX = 1024


class KeyIndex:
    """A sorted set of byte strings. Invariant: blocks are sorted, non-empty and ascending."""

    __slots__ = ("_blocks", "_firsts")

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        ordered = sorted(keys)
        half = _BLOCK_MAX // 2
        self._blocks = [ordered[i : i + half] for i in range(0, len(ordered), half)]
        self._firsts = [block[0] for block in self._blocks]

    def add(self, key: bytes) -> None:
        """Add a key that is not present."""
        if not self._blocks:
            self._blocks.append([key])
            self._firsts.append(key)
            return
        position = bisect_right(self._firsts, key) - 1
        if position < 0:
            position = 0
            self._firsts[0] = key
        block = self._blocks[position]
        insort(block, key)
        if len(block) > _BLOCK_MAX:
            half = len(block) // 2
            self._blocks[position : position + 1] = [block[:half], block[half:]]
            self._firsts[position : position + 1] = [block[0], block[half]]

    def remove(self, key: bytes) -> None:
        """Remove a key that is present."""
        position = bisect_right(self._firsts, key) - 1
        block = self._blocks[position]
        del block[bisect_left(block, key)]
        if block:
            self._firsts[position] = block[0]
        else:
            del self._blocks[position]
            del self._firsts[position]

    def between(self, start: bytes, end: bytes | None) -> Iterator[bytes]:
        """Keys in [start, end), ascending; `end` None means to the last. Do not change the set meanwhile."""
        position = max(bisect_right(self._firsts, start) - 1, 0)
        for block in self._blocks[position:]:
            first = bisect_left(block, start)
            if end is not None and block[-1] >= end:
                yield from block[first : bisect_left(block, end)]
                return
            yield from block[first:]

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            yield from block

    def __len__(self) -> int:
        return sum(map(len, self._blocks))
