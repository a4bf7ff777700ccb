"""How large the packs of a push are: what a codec, a link, the first and the last of them want."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dwcp.compression.packs import PACK_BYTES, PUSHED_BYTES_MOST
from dwcp.runtime.packflow import PackSizes

MIB = 1 << 20
RATES = st.floats(1e3, 1e10)


def _sizes(total: int, rates: list[float]) -> list[int]:
    """Of one push, a pack at each rate."""
    sizes = PackSizes(total)
    found = []
    for rate in rates:
        size = sizes.next(rate)
        sizes.passed(size)
        sizes.taken()
        found.append(size)
    return found


@given(st.integers(0, 1 << 40), st.lists(RATES, min_size=1, max_size=40))
def test_every_pack_but_the_first_has_its_least_and_its_most(total: int, rates: list[float]) -> None:
    """Goal: never below what was promised nor above what a receiver takes. Method: any push on any link."""
    first, *later = _sizes(total, rates)
    assert first < PACK_BYTES
    assert all(PACK_BYTES <= size <= PUSHED_BYTES_MOST for size in later)


def test_packs_grow_where_the_link_waits_for_them_and_shrink_at_the_end() -> None:
    """Goal: few large packs in the middle; small ones first and last. Method: 40 MB at 100 Mbit/s."""
    found = _sizes(40 * MIB, [1e8] * 16)
    assert found[1:3] == [MIB, MIB]
    assert max(found) == PUSHED_BYTES_MOST
    assert found[-1] == MIB
    assert found.index(max(found)) < 8


def test_the_link_bounds_a_pack() -> None:
    """Goal: what breaks off is soon sent again, and fast links get small packs. Method: a slow link, a fast one."""
    assert max(_sizes(1 << 30, [1e6] * 20)) <= 1e6 / 8 * 16
    assert max(_sizes(1 << 30, [1e9] * 20)) == 2 * MIB


def test_packs_of_recipes_are_small() -> None:
    """Goal: the link never waits for a large pack in which a codec finds little. Method: rates of five decades."""
    sizes = PackSizes(1 << 30)
    sizes.taken()
    found = [sizes.next(rate, recipes=True) for rate in (1e6, 1e7, 1e8, 1e9, 1e10)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (64 << 10, PACK_BYTES)
    assert found[2] == 1e8 / 8 * 0.05
