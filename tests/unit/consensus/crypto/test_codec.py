"""The encoding of a sequence, put together from its items' encodings."""

from __future__ import annotations

import pytest

from dwcp.consensus.crypto.codec import encode, sequence_head


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_a_head_and_encoded_items_are_the_encoded_sequence(count: int) -> None:
    """Goal: one canonical form, however it is made. Method: both ways, at every change of the head's form."""
    items = [b"item"] * count

    assert sequence_head(count) + b"".join(map(encode, items)) == encode(items)
