"""A hash of blocks that costs as little at every offset as at some: for finding what two chunks share.

The 32-bit words of a block are the coefficients of a polynomial modulo 2^64 at an odd multiplier, without a
constant term, whose difference would stay in the lower bits; what counts are the 48 upper ones. Whoever asks
draws the multiplier, so two blocks that share a hash by accident do so for one question only. Not a
cryptographic hash: what is made from a match is checked by its address.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dwcp.compression.chunking import CHUNK_BYTES_MAX

HASH_BITS = 48
MULTIPLIER_MAX = (1 << 64) - 1
_WORD = 4
_DROPPED = np.uint64(64 - HASH_BITS)

Hashes = NDArray[np.uint64]  # below 2 ** HASH_BITS


class RollingHash:
    """Blocks of `block_bytes`, a multiple of four; `multiplier` is odd and below 2^64."""

    def __init__(self, block_bytes: int, multiplier: int) -> None:
        self.block_bytes = block_bytes
        self._words = block_bytes // _WORD
        self.multiplier = multiplier
        self._first_powers = _powers(multiplier, self._words, first=multiplier)

    def of_blocks(self, data: bytes | memoryview) -> Hashes:
        """One block after another; what is left at the end of the data counts for nothing."""
        count = len(data) // self.block_bytes
        words = np.frombuffer(data, dtype="<u4", count=count * self._words)
        hashes: Hashes = words.reshape(count, self._words).astype(np.uint64) @ self._first_powers
        return hashes >> _DROPPED

    def everywhere(self, data: bytes | memoryview) -> Hashes:
        """The blocks at each offset: `len(data) - block_bytes + 1`, of at most `CHUNK_BYTES_MAX` bytes.

        Words at offsets that are equal modulo four make one row of prefix sums each.
        """
        found = np.empty(max(0, len(data) - self.block_bytes + 1), dtype=np.uint64)
        for phase in range(min(_WORD, len(found))):
            count = (len(data) - phase) // _WORD
            words = np.frombuffer(data, dtype="<u4", count=count, offset=phase)
            sums = np.zeros(count + 1, dtype=np.uint64)
            np.cumsum(words * self._powers[:count], out=sums[1:])
            spans = sums[self._words :] - sums[: -self._words]
            found[phase::_WORD] = spans * self._inverses[: len(spans)]
        return found >> _DROPPED

    @cached_property
    def _powers(self) -> Hashes:
        return _powers(self.multiplier, CHUNK_BYTES_MAX // _WORD, first=1)

    @cached_property
    def _inverses(self) -> Hashes:
        inverse = pow(self.multiplier, -1, 1 << 64)
        return _powers(inverse, CHUNK_BYTES_MAX // _WORD, first=self.multiplier)


def _powers(multiplier: int, count: int, *, first: int) -> Hashes:
    """`first` times the powers 0, 1, … of `multiplier`, modulo 2^64."""
    factors = np.full(count, multiplier, dtype=np.uint64)
    factors[0] = first
    return np.cumprod(factors)
