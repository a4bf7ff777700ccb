"""The sorted key set against Python's own sorting."""

from __future__ import annotations

from random import Random

import pytest

from dwcp.consensus.ledger.keyindex import KeyIndex

KEYS = [i.to_bytes(2, "big") for i in range(6000)]


@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_a_plain_sorted_list(seed: int) -> None:
    """Goal: order and range bounds hold across block splits and emptied blocks.

    Method: random adds, removals.
    """
    rng = Random(seed)
    chosen = rng.sample(KEYS, 5000)
    index = KeyIndex(chosen[:1000])
    for key in chosen[1000:]:
        index.add(key)
    gone = rng.sample(chosen, 4000)
    for key in gone:
        index.remove(key)
    left = sorted(set(chosen) - set(gone))
    low, high = sorted(rng.sample(KEYS, 2))

    assert list(index) == left
    assert len(index) == len(left)
    assert list(index.between(low, high)) == [key for key in left if low <= key < high]
    assert list(index.between(low, None)) == [key for key in left if key >= low]


def test_emptied_and_filled_again() -> None:
    """Goal: the empty set works. Method: remove the last key, add one below all earlier."""
    index = KeyIndex([b"m"])
    index.remove(b"m")

    assert list(index.between(b"", None)) == []
    for key in (b"m", b"a", b"z"):
        index.add(key)
    assert list(index.between(b"a", b"z")) == [b"a", b"m"]
