"""The hash of blocks: at every offset the same as block by block, and different where the bytes are."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp.compression.chunking import CHUNK_BYTES_MAX
from dwcp.compression.rolling import HASH_BITS, RollingHash

HASHING = RollingHash(256, random.Random(1).getrandbits(64) | 1)


@pytest.mark.parametrize("size", [0, 255, 256, 257, 258, 259, 260, 1023, 5000, CHUNK_BYTES_MAX])
def test_everywhere_holds_the_hash_of_each_block(size: int) -> None:
    """Goal: one hash, two ways. Method: offsets of each remainder modulo a word, at lengths of each remainder."""
    data = random.Random(size).randbytes(size)
    hashes = HASHING.everywhere(data)

    assert len(hashes) == max(0, size - 255)
    assert not len(hashes) or int(hashes.max()) < 1 << HASH_BITS
    for at in {*range(min(9, len(hashes))), *range(max(0, len(hashes) - 9), len(hashes))}:
        assert hashes[at] == HASHING.of_blocks(data[at : at + 256])[0]


def test_blocks_are_hashed_one_after_another() -> None:
    """Goal: the rest of the data counts for nothing. Method: whole blocks, and less than one more."""
    data = random.Random(2).randbytes(3 * 256 + 100)

    assert HASHING.of_blocks(data).tolist() == HASHING.everywhere(data)[: 3 * 256 : 256].tolist()
    assert len(HASHING.of_blocks(b"short")) == 0


@given(at=st.integers(0, 255), change=st.integers(1, 255), seed=st.integers(0, 1 << 32))
def test_one_other_byte_is_seen(at: int, change: int, seed: int) -> None:
    """Goal: no word of a block weighs little. Method: one byte changed anywhere, multipliers as they are drawn."""
    hashing = RollingHash(256, random.Random(seed).getrandbits(64) | 1)
    block = bytearray(random.Random(at).randbytes(256))
    before = hashing.of_blocks(bytes(block))[0]
    block[at] ^= change

    assert hashing.of_blocks(bytes(block))[0] != before
