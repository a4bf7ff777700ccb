"""Recipes: what is rebuilt is what was meant; lies make another chunk or a sentence, never more."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression.chunking import CHUNK_BYTES_MAX
from dwcp.compression.deltas import BASES_MAX, Sketch, rebuild, recipe, sketch
from dwcp.compression.errors import ChunkMissing, RequestInvalid, TransferError
from dwcp.compression.rolling import RollingHash

OLD = random.Random(1).randbytes(80_000)
NAME = bytes(32)
HASHING = RollingHash(512, random.Random(3).getrandbits(64) | 1)


def _base_of(name: bytes) -> bytes:
    if name != NAME:
        raise ChunkMissing("not here")
    return OLD


@pytest.mark.parametrize("at", [0, 10, 40_000, 75_904])
def test_an_overwritten_stretch_costs_little_more_than_itself(at: int) -> None:
    """Goal: 4 KiB in 80 are sent as about 4. Method: overwrite in place, say it, rebuild it."""
    new = OLD[:at] + random.Random(2).randbytes(4096) + OLD[at + 4096 :]
    made = recipe(new, [sketch(NAME, OLD, HASHING)], HASHING)

    assert made is not None
    assert 4096 < len(made) < 4096 + 512 + 100
    assert rebuild(made, _base_of) == new


@settings(deadline=None, max_examples=60)
@given(
    cuts=st.lists(
        st.tuples(st.integers(0, 80_000), st.integers(0, 3000), st.binary(max_size=500)), max_size=5
    )
)
def test_any_edit_is_rebuilt(cuts: list[tuple[int, int, bytes]]) -> None:
    """Goal: insertions, deletions and replacements. Method: random ones; a recipe is exact or there is none."""
    new = OLD
    for at, gone, put in cuts:
        new = new[:at] + put + new[at + gone :]
    made = recipe(new, [sketch(NAME, OLD, HASHING)], HASHING)

    assert made is None or rebuild(made, _base_of) == new


def test_what_has_nothing_in_common_is_not_said_as_a_recipe() -> None:
    """Goal: no detour without gain. Method: other noise, and no base at all."""
    assert recipe(random.Random(9).randbytes(50_000), [sketch(NAME, OLD, HASHING)], HASHING) is None
    assert recipe(OLD, [], HASHING) is None


@pytest.mark.parametrize(("at", "gone", "put"), [(0, 0, 3), (0, 7, 0), (20_001, 0, 1), (50_000, 30, 90)])
def test_what_follows_an_insertion_is_found_again(at: int, gone: int, put: int) -> None:
    """Goal: bytes that moved are copies too. Method: a few bytes in, out, or others; all but two blocks are said."""
    new = OLD[:at] + random.Random(4).randbytes(put) + OLD[at + gone :]
    made = recipe(new, [sketch(NAME, OLD, HASHING)], HASHING)

    assert made is not None
    assert len(made) < 2 * 512 + put + 100
    assert rebuild(made, _base_of) == new


@pytest.mark.parametrize("at", [0, 100, 33_333, 79_999, 85_000, -5, -20_000])
def test_a_chunk_is_found_wherever_it_began(at: int) -> None:
    """Goal: boundaries that moved cost no more. Method: a stretch of a file of two chunks, overwritten somewhere;
    the place that the hint names is right, and wrong by some bytes."""
    file = random.Random(6).randbytes(120_000)
    olds = {bytes([n]) * 32: part for n, part in enumerate((file[:70_000], file[70_000:]))}
    begin = max(0, at)
    new = file[begin : begin + 30_000] + random.Random(7).randbytes(2000) + file[begin + 32_000 :][:40_000]
    bases = [sketch(name, part, HASHING) for name, part in olds.items()]

    for claimed in (at, at + 9):
        made = recipe(new, bases, HASHING, at=claimed)
        assert made is not None
        assert len(made) < 2000 + 8 * 512
        assert rebuild(made, olds.__getitem__) == new


def test_many_equal_blocks_are_said_in_bounded_time_and_right() -> None:
    """Goal: zeros match everywhere. Method: a chunk of zeros with a little in between, on a base of zeros."""
    old, new = bytes(200_000), bytes(100_001) + b"x" * 40 + bytes(80_000)
    made = recipe(new, [sketch(NAME, old, HASHING)], HASHING, at=3)

    assert made is not None
    assert rebuild(made, {NAME: old}.__getitem__) == new


def test_a_lying_sketch_makes_another_chunk_or_none() -> None:
    """Goal: nothing wrong passes for right, nothing fails here. Method: hashes in another order, of another
    size, of an impossible chunk."""
    honest = sketch(NAME, OLD, HASHING)
    moved = Sketch(NAME, honest.size, honest.hashes[6:] + honest.hashes[:6])
    made = recipe(OLD, [moved], HASHING)
    assert made is not None
    assert rebuild(made, _base_of) != OLD
    for size, hashes in ((honest.size + 512, honest.hashes), (-1, b""), (1 << 60, honest.hashes), (5, b"x")):
        assert recipe(OLD, [Sketch(NAME, size, hashes)], HASHING) is None


@settings(deadline=None, max_examples=200)
@given(junk=st.binary(max_size=200), keep=st.integers(0, 200))
def test_junk_ends_in_a_sentence(junk: bytes, keep: int) -> None:
    """Goal: bounded output and no foreign error. Method: a recipe cut anywhere, continued with junk."""
    made = recipe(OLD[:40_000] + b"new" + OLD[40_000:], [sketch(NAME, OLD, HASHING)], HASHING)
    assert made is not None
    try:
        chunk = rebuild(made[:keep] + junk, _base_of)
    except TransferError:
        return
    assert len(chunk) <= CHUNK_BYTES_MAX


def test_a_recipe_cannot_grow_beyond_a_chunk() -> None:
    """Goal: no bomb. Method: many copies of all of one base; too many bases."""
    copy = bytes([1, 0]) + (0).to_bytes(4, "big") + (80_000).to_bytes(4, "big")
    with pytest.raises(RequestInvalid, match="makes more than"):
        rebuild(bytes([1, 0, 9]) + NAME + 9 * copy, _base_of)
    with pytest.raises(RequestInvalid, match="bases"):
        rebuild(bytes([BASES_MAX + 1, 0, 0]) + 9 * NAME, _base_of)
