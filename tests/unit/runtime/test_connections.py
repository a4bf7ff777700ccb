"""Answers leave by one write, in order, and nothing much is held back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from dwcp.runtime.connections import JOINED_BYTES_MAX, Joined, _Pieces


class Wire(asyncio.Transport):
    """What a caller would see: the pieces, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.pieces.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class Turns:
    """The part of a loop that is asked for: what is to be done in the next turn."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, act: Callable[[], None]) -> None:
        self.soon.append(act)

    def turn(self) -> None:
        acts, self.soon = self.soon, []
        for act in acts:
            act()


def joined() -> tuple[Joined, Wire, Turns]:
    wire, turns = Wire(), Turns()
    return Joined(wire, cast(asyncio.AbstractEventLoop, turns)), wire, turns


def test_head_and_body_are_one_write() -> None:
    """Goal: the caller wakes once. Method: two small writes and the end of an answer; and the same without an
    end, which goes out in the next turn; closing loses nothing; other questions reach the transport."""
    answer, wire, turns = joined()
    answer.write(b"head ")
    answer.write(b"body")
    assert wire.pieces == []
    answer.flush()
    assert wire.pieces == [b"head body"]

    answer.write(b"more")
    turns.turn()
    answer.write(b"last")
    assert not answer.is_closing()
    answer.close()
    assert wire.pieces[1:] == [b"more", b"last"]
    assert wire.closed


@given(st.lists(st.one_of(st.binary(max_size=40), st.integers(1, 40_000).map(bytes), st.none()), max_size=40))
def test_order_and_bound(steps: list[bytes | None]) -> None:
    """Goal: the same bytes in the same order, and a writer that never lets the loop turn is not held back
    without end. Method: random writes and turns (None); what is held is what the wire has not seen."""
    answer, wire, turns = joined()
    sent = b""
    for step in steps:
        if step is None:
            turns.turn()
        else:
            answer.write(step)
            sent += step
        seen = b"".join(wire.pieces)
        assert sent.startswith(seen)
        assert len(sent) - len(seen) <= JOINED_BYTES_MAX
    turns.turn()

    assert b"".join(wire.pieces) == sent


def test_a_body_in_one_piece_is_not_copied() -> None:
    """Goal: gigabytes pass through without a copy. Method: one piece comes out as itself, several joined."""
    piece = b"x" * 70_000
    one = _Pieces()
    one += piece
    assert bytes(one) is piece

    two = _Pieces()
    for each in (b"ab", b"", b"c"):
        two += each
    assert (bytes(two), len(two)) == (b"abc", 3)
    assert not _Pieces()
