"""Cutting with memory: always the chunks of a plain cut, whatever the memory says."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression.chunking import address, cut
from dwcp.compression.errors import PayloadChanged, RequestInvalid
from dwcp.compression.manifest import Chunk
from dwcp.compression.recall import BUFFER_BYTES_MIN, Cutter, Found, Known, Recall, describe

OLD = random.Random(1).randbytes(6 << 20)
OLD_CHUNKS = tuple(Chunk(address(data), len(data)) for data in cut(OLD))


def _cut(data: bytes, recall: Recall, piece: int = 1 << 20, buffer: int = 1 << 20) -> list[Known | Found]:
    """`piece`: no more is given at once."""
    left = memoryview(data)

    def fill(view: memoryview) -> int:
        nonlocal left
        size = min(len(view), len(left), piece)
        view[:size] = left[:size]
        left = left[size:]
        return size

    found = list(Cutter(recall, memoryview(bytearray(buffer))).cut(fill, len(data)))
    assert not left
    return found


def _new(found: list[Known | Found]) -> list[Found]:
    return [each for each in found if isinstance(each, Found)]


@settings(deadline=None, max_examples=25)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 6 << 20), st.integers(0, 300_000), st.integers(0, 300_000)), max_size=4
    ),
    piece=st.sampled_from([4096, 65_537, 1 << 20, 9 << 20]),
    buffer=st.sampled_from([BUFFER_BYTES_MIN, 1 << 20, 9 << 20]),
)
def test_the_chunks_are_those_of_a_plain_cut(
    edits: list[tuple[int, int, int]], piece: int, buffer: int
) -> None:
    """Goal: one content has one manifest. Method: random replacements, insertions, deletions; each chunk is
    the plain cut's, and is either given or named by its number among the older ones."""
    new = OLD
    for at, gone, put in edits:
        new = new[:at] + random.Random(put).randbytes(put) + new[at + gone :]
    plain = list(cut(new))

    found = _cut(new, Recall(describe(OLD_CHUNKS)), piece, buffer)

    chunks = [each.chunks if isinstance(each, Known) else [each.chunk] for each in found]
    assert list(itertools.chain(*chunks)) == [Chunk(address(data), len(data)) for data in plain]
    for each in found:
        if isinstance(each, Known):
            assert each.chunks == list(OLD_CHUNKS[each.first : each.first + len(each.chunks)])
        else:
            assert address(each.data) == each.chunk.address


@pytest.mark.parametrize("at", [0, 1_000_000, 6 << 20])
def test_an_insertion_leaves_its_neighbours_known(at: int) -> None:
    """Goal: the memory is found again after a shift. Method: 1,000 bytes put in; few chunks are new."""
    found = _cut(OLD[:at] + bytes(1000) + OLD[at:], Recall(describe(OLD_CHUNKS)))

    assert len(_new(found)) <= 3


def test_what_was_the_end_of_a_file_ends_no_chunk_of_a_longer_one() -> None:
    """Goal: the last chunk was cut by its file's end, which proves nothing. Method: the file grew."""
    new = OLD + random.Random(2).randbytes(100_000)

    found = _cut(new, Recall(describe(OLD_CHUNKS)))

    chunks = [each.chunks if isinstance(each, Known) else [each.chunk] for each in found]
    assert [chunk.size for chunk in itertools.chain(*chunks)] == [len(data) for data in cut(new)]


def test_another_files_memory_is_of_no_use_and_no_harm() -> None:
    """Goal: a wrong memory costs hashing only. Method: the chunks of other noise."""
    other = random.Random(3).randbytes(2 << 20)

    found = _cut(other, Recall(describe(OLD_CHUNKS)))

    assert b"".join(each.data for each in _new(found)) == other


def test_a_fill_that_fails_ends_the_cut() -> None:
    """Goal: a file that became shorter is the reader's to tell. Method: bytes that stop coming."""

    def fill(view: memoryview) -> int:
        raise PayloadChanged(f"{len(view)} bytes are not there")

    with pytest.raises(PayloadChanged):
        next(Cutter(Recall(), memoryview(bytearray(BUFFER_BYTES_MIN))).cut(fill, 10))


@pytest.mark.parametrize("described", [b"x", bytes(19), b"\xff" * 19])
def test_lists_that_are_none_are_refused(described: bytes) -> None:
    """Goal: a list from anybody. Method: a wrong length, a chunk without bytes, one beyond the maximum."""
    with pytest.raises(RequestInvalid):
        Recall(described)


def test_a_place_names_the_chunks_that_overlap_it() -> None:
    """Goal: hints point at what was there. Method: places inside a chunk, across two, beyond the end."""
    recall = Recall(describe(OLD_CHUNKS))
    first = OLD_CHUNKS[0].size

    assert recall.around(0, first) == [0]
    assert recall.around(first - 1, 2) == [0, 1]
    assert recall.around(len(OLD) - 1, 500) == [len(OLD_CHUNKS) - 1]
    assert recall.around(len(OLD) + 5, 500) == []
