"""Bodies in blocks: every byte once and in order, two blocks at most, and the socket goes back."""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.runtime.bodies import BlockBody

DATA = random.Random(1).randbytes(4000)


class Socket:
    """A transport that gives what was sent wherever it is being read; also the protocol that owns it."""

    def __init__(self, sent: bytes) -> None:
        self.sent = sent
        self.protocol: Any = self  # Any: whichever protocol has it
        self.reading = True
        self.complete = self.closing = False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_protocol(self, protocol: Any) -> None:
        assert not self.reading  # a switch while reading is lost on some loops
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self.closing

    def body_complete(self) -> None:
        self.complete = True
        self.set_protocol(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True

    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...

    def arrive(self, most: int) -> int:
        """Up to `most` bytes reach the protocol; how many did."""
        if not self.reading or self.protocol is self:
            return 0
        room = self.protocol.get_buffer(-1)
        part = self.sent[: min(most, len(room))]
        room[: len(part)] = part
        self.sent = self.sent[len(part) :]
        if part:
            self.protocol.buffer_updated(len(part))
        return len(part)

    def lend(self, *, held: bytes, rest: int, size: int) -> BlockBody:
        return BlockBody(cast("asyncio.Transport", self), self, held=held, rest=rest, size=size)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(60, 700),
    held=st.integers(0, 900),
    length=st.integers(901, 3000),
    whole=st.booleans(),
    steps=st.lists(st.integers(0, 900), min_size=1, max_size=20),
)
def test_each_byte_once(size: int, held: int, length: int, whole: bool, steps: list[int]) -> None:
    """Goal: the body, in order, in blocks, and nothing of what follows it. Method: any sizes, bytes arriving by any
    pieces between the reads, blocks given back and overwritten; the next request's bytes stay in the socket."""

    async def main() -> None:
        link = Socket(DATA[held:])
        body = link.lend(held=DATA[:held], rest=length - held, size=size)
        got, lengths = b"", []
        for turn in range(10_000):
            link.arrive(steps[turn % len(steps)] + (turn > 5000))
            try:
                block = await body.take(whole=whole, idle_s=0)
            except TimeoutError:
                continue
            assert block is not None
            if not block:
                break
            got += block
            lengths.append(len(block))
            body.spare(block)
        assert got == DATA[:length]
        assert (link.complete, link.protocol, link.reading) == (True, link, True)
        assert link.sent == DATA[length:]
        assert not whole or set(lengths[:-1]) <= {size}

    asyncio.run(main())


def test_two_blocks_are_held_and_no_more() -> None:
    """Goal: back-pressure. Method: a sender that never stops and nobody who takes; then one block is taken."""

    async def main() -> None:
        link = Socket(bytes(100_000))
        body = link.lend(held=b"", rest=100_000, size=1000)
        while link.arrive(300):
            pass
        assert 100_000 - len(link.sent) == 2000
        await body.take(idle_s=0)
        while link.arrive(300):
            pass
        assert 100_000 - len(link.sent) == 3000

    asyncio.run(main())


def test_a_caller_that_goes_or_is_silent() -> None:
    """Goal: nobody waits for ever. Method: no byte within the time; then the connection is lost in mid-body."""

    async def main() -> None:
        link = Socket(bytes(100))
        body = link.lend(held=b"abc", rest=5000, size=1000)
        with pytest.raises(TimeoutError):
            await body.take(idle_s=0)
        link.protocol.connection_lost(None)
        assert await body.take(idle_s=0) is None
        assert link.closing

    asyncio.run(main())
