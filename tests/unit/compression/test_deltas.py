"""Recipes: what is rebuilt is what was meant; lies make another chunk or a sentence, never more."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression.chunking import CHUNK_BYTES_MAX
from dwcp.compression.deltas import BASES_MAX, Sketch, rebuild, recipe, sketch
from dwcp.compression.errors import ChunkMissing, RequestInvalid, TransferError

OLD = random.Random(1).randbytes(80_000)
NAME = bytes(32)


def _base_of(name: bytes) -> bytes:
    if name != NAME:
        raise ChunkMissing("not here")
    return OLD


@pytest.mark.parametrize("at", [0, 10, 40_000, 75_904])
def test_an_overwritten_stretch_costs_little_more_than_itself(at: int) -> None:
    """Goal: 4 KiB in 80 are sent as about 4. Method: overwrite in place, say it, rebuild it."""
    new = OLD[:at] + random.Random(2).randbytes(4096) + OLD[at + 4096 :]
    made = recipe(new, [sketch(NAME, OLD, 1024)], 1024)

    assert made is not None
    assert 4096 < len(made) < 4096 + 6000
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
    made = recipe(new, [sketch(NAME, OLD, 1024)], 1024)

    assert made is None or rebuild(made, _base_of) == new


def test_what_has_nothing_in_common_is_not_said_as_a_recipe() -> None:
    """Goal: no detour without gain. Method: other noise, and no base at all."""
    assert recipe(random.Random(9).randbytes(50_000), [sketch(NAME, OLD, 1024)], 1024) is None
    assert recipe(OLD, [], 1024) is None


def test_a_lying_sketch_makes_another_chunk() -> None:
    """Goal: nothing wrong passes for right. Method: sizes that shift every copy; the rebuilt bytes differ."""
    honest = sketch(NAME, OLD, 1024)
    liar = Sketch(NAME, (7, *honest.sizes), bytes(8) + honest.hashes)
    made = recipe(OLD, [liar], 1024)
    assert made is not None
    with pytest.raises(RequestInvalid, match="reaches beyond"):
        rebuild(made, _base_of)


@settings(deadline=None, max_examples=200)
@given(junk=st.binary(max_size=200), keep=st.integers(0, 200))
def test_junk_ends_in_a_sentence(junk: bytes, keep: int) -> None:
    """Goal: bounded output and no foreign error. Method: a recipe cut anywhere, continued with junk."""
    made = recipe(OLD[:40_000] + b"new" + OLD[40_000:], [sketch(NAME, OLD, 1024)], 1024)
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
