"""Batches of a push are read while those before them are sent."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest

from dwcp.compression.errors import PayloadChanged
from dwcp.runtime.pushing import Batch, _ahead


def test_the_next_batch_is_read_while_one_is_in_hand() -> None:
    """Goal: reading and sending side by side, in order. Method: a reader that says when it reads; the second read
    begins though nobody has asked for it."""
    begun = [threading.Event() for _ in range(3)]

    def read() -> Iterator[Batch]:
        for number, event in enumerate(begun):
            event.set()
            yield Batch(fresh_bytes=number)

    async def run() -> list[int]:
        found = []
        async with contextlib.aclosing(_ahead(read())) as batches:
            async for batch in batches:
                found.append(batch.fresh_bytes)
                following = begun[min(batch.fresh_bytes + 1, 2)]
                assert await asyncio.to_thread(following.wait, 10)
        return found

    assert asyncio.run(run()) == [0, 1, 2]


def test_what_a_reader_finds_wrong_comes_at_its_place() -> None:
    """Goal: an error neither overtakes a batch nor is lost, and none is left behind by one who stops early. Method:
    a reader that fails after one batch, read to its end and left after the first batch."""

    def read() -> Iterator[Batch]:
        yield Batch(fresh_bytes=1)
        raise PayloadChanged("it changed")

    async def run(*, stop: bool) -> list[int]:
        found = []
        async with contextlib.aclosing(_ahead(read())) as batches:
            async for batch in batches:
                found.append(batch.fresh_bytes)
                if stop:
                    break
        return found

    assert asyncio.run(run(stop=True)) == [1]
    with pytest.raises(PayloadChanged, match="it changed"):
        asyncio.run(run(stop=False))


def test_a_reader_that_waits_is_left_behind_by_nobody() -> None:
    """Goal: who stops early waits for the thread, and the thread for no room. Method: left while two batches wait
    unread; then the source has been closed."""
    read = []

    def source() -> Iterator[Batch]:
        for number in range(100):
            read.append(number)
            yield Batch(fresh_bytes=number)

    async def run() -> None:
        async with contextlib.aclosing(_ahead(source())) as batches:
            async for _batch in batches:
                break

    asyncio.run(run())
    assert len(read) <= 4
