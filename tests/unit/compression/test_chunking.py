"""Chunks: stable under edits, equal however the data arrives, within their sizes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression import chunking
from dwcp.compression.chunking import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, address, cut, cut_stream


def _noise(size: int, seed: int = 7) -> bytes:
    return random.Random(seed).randbytes(size)


def test_boundaries_and_addresses_are_part_of_the_format() -> None:
    """Golden values: a library that cuts elsewhere would make every stored manifest useless."""
    chunks = list(cut(_noise(1 << 20)))

    assert [len(chunk) for chunk in chunks] == GOLDEN_SIZES
    assert address(chunks[0]).hex() == GOLDEN_ADDRESS


GOLDEN_SIZES = [
    50366,
    17946,
    48732,
    104427,
    102558,
    84086,
    191694,
    116100,
    66179,
    47279,
    28076,
    20102,
    60815,
    42083,
    54052,
    14081,
]
GOLDEN_ADDRESS = "32f19d3e192176648239cce465e84ac027a76eb9c7a3bb792fbdd9e5f1564309"


def test_chunks_join_to_the_data_within_their_sizes() -> None:
    """Nothing is lost, and every chunk but the last lies between the two limits."""
    data = _noise(3 << 20)

    chunks = list(cut(data))

    assert b"".join(chunks) == data
    assert all(CHUNK_BYTES_MIN <= len(chunk) <= CHUNK_BYTES_MAX for chunk in chunks[:-1])


def test_constant_data_is_cut_at_the_maximum() -> None:
    """Zeros have no boundary of their own."""
    assert {len(chunk) for chunk in cut(bytes(1 << 20))} == {CHUNK_BYTES_MAX}


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99),
    size=st.integers(0, 9 << 20),
    piece=st.sampled_from([4096, 65_537, 1 << 20, 5 << 20]),
)
def test_a_stream_is_cut_like_the_whole(seed: int, size: int, piece: int) -> None:
    """Whatever pieces the data arrives in, the chunks are those of the whole."""
    data = _noise(size, seed)
    pieces = [data[at : at + piece] for at in range(0, size, piece)]

    assert list(cut_stream(pieces)) == list(cut(data))


def test_an_insertion_changes_few_chunks() -> None:
    """A byte inserted into 4 MiB leaves all chunks but its neighbours with their addresses."""
    data = _noise(4 << 20)
    before = {address(chunk) for chunk in cut(data)}
    after = {address(chunk) for chunk in cut(data[:2_000_000] + b"!" + data[2_000_000:])}

    assert len(after - before) <= 3


def test_the_slow_fallback_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiled module the sentence says what to reinstall."""
    chunking._compiled.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "fastcdc.fastcdc_cy", None)

    with pytest.raises(chunking.ChunkerMissing, match="reinstall"):
        list(cut(bytes(CHUNK_BYTES_MIN + 1)))
    chunking._compiled.cache_clear()
