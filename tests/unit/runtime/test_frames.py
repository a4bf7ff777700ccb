"""Frames on a byte stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp.runtime.frames import FrameReader, FrameTooLong, packet


@given(st.lists(st.binary(max_size=300), max_size=12), st.lists(st.integers(1, 97), min_size=1, max_size=20))
def test_any_cut_of_the_stream_gives_the_same_frames(frames: list[bytes], cuts: list[int]) -> None:
    """Goal: stream boundaries mean nothing. Method: cut the bytes anywhere and compare."""
    stream = b"".join(packet(frame) for frame in frames)
    reader = FrameReader()
    got: list[bytes] = []
    offset = turn = 0
    while offset < len(stream):
        size = cuts[turn % len(cuts)]
        got += reader.feed(stream[offset : offset + size])
        offset, turn = offset + size, turn + 1

    assert got == frames
    assert reader.partial == 0


def test_an_announced_giant_is_refused_before_its_bytes_arrive() -> None:
    """Goal: no memory for a liar's length. Method: only the four length bytes are fed."""
    reader = FrameReader(frame_bytes_max=1000)

    with pytest.raises(FrameTooLong, match="1001 bytes"):
        reader.feed((1001).to_bytes(4, "big"))


def test_the_largest_frame_passes() -> None:
    """Goal: the limit is inclusive. Method: a frame of exactly the limit, in two pieces."""
    reader = FrameReader(frame_bytes_max=1000)
    data = packet(b"x" * 1000)

    assert reader.feed(data[:3]) == []
    assert reader.feed(data[3:]) == [b"x" * 1000]


def test_a_giant_behind_a_good_frame_is_refused() -> None:
    """Goal: the check holds for every frame, not only the first. Method: good frame, then a huge length."""
    reader = FrameReader(frame_bytes_max=10)

    with pytest.raises(FrameTooLong):
        reader.feed(packet(b"ok") + (11).to_bytes(4, "big"))
