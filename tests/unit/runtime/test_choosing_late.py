"""A chooser that is loaded by the first pack chooses as the one that it loads, which is loaded once."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dwcp.compression.calibration import Calibration, Speed
from dwcp.compression.codecs import CODECS
from dwcp.compression.table import Table
from dwcp.runtime.choosing import HostChooser, TableChooser
from dwcp.runtime.choosing_late import LateChooser
from dwcp.runtime.packflow import Choice

TEXT = b"words and numbers\n" * 5_000


class Shelf:
    """Counts how often the chooser is taken from it; fails the first `broken` times."""

    def __init__(self, *, broken: int = 0) -> None:
        self.taken = 0
        self.broken = broken
        self.told: list[HostChooser] = []
        self.tried = threading.Event()

    def load(self) -> HostChooser:
        self.taken += 1
        self.tried.set()
        if self.taken <= self.broken:
            raise OSError("no room")
        return table()

    def late(self) -> LateChooser:
        return LateChooser(self.load, loaded=self.told.append)


def table() -> TableChooser:
    return TableChooser(Table(Calibration("x", 0.0, {codec.name: Speed(1e8, 1e8) for codec in CODECS})))


async def pack(choice: Choice, index: int = 0) -> bytes:
    return await choice.pack(TEXT, stream_id=bytes(16), index=index, left_bytes=len(TEXT), rate_bps=1e6)


@pytest.mark.parametrize("allowed", [frozenset(), frozenset({"none", "lz4"})])
def test_packs_as_the_chooser_itself(allowed: frozenset[str]) -> None:
    """Goal: late is as good as at once, codecs that the other side reads included. Method: compare frames, of a
    transfer that began before and of one that began after."""

    async def main() -> list[bytes]:
        late = Shelf().late()
        early = late.begin(peer="rome", allowed=allowed)
        return [await pack(early), await pack(late.begin(peer="rome", allowed=allowed))]

    assert asyncio.run(main()) == [asyncio.run(pack(table().begin(allowed=allowed)))] * 2


def test_is_loaded_once_for_all_who_begin_together() -> None:
    """Goal: connections and transfers share it. Method: eight packs of two transfers at once."""
    shelf = Shelf()

    async def main() -> None:
        late = shelf.late()
        choices = [late.begin(), late.begin()]
        await asyncio.gather(*(pack(choices[number % 2], number) for number in range(8)))

    asyncio.run(main())
    assert shelf.taken == len(shelf.told) == 1


def test_what_could_not_be_loaded_is_tried_again() -> None:
    """Goal: a full disk spoils one transfer, not all. Method: fail once."""
    shelf = Shelf(broken=1)

    async def main() -> bytes:
        late = shelf.late()
        with pytest.raises(OSError, match="no room"):
            await pack(late.begin())
        return await pack(late.begin())

    assert len(asyncio.run(main())) < len(TEXT)
    assert (shelf.taken, len(shelf.told)) == (2, 1)


def test_what_is_expected_is_loaded_beside() -> None:
    """Goal: the first transfer after an upload waits for nothing. Method: expect twice; it is
    loaded, once, before any pack; a failure meanwhile costs the next transfer nothing."""
    shelf, broken = Shelf(), Shelf(broken=1)

    async def main() -> None:
        for each in (shelf, broken):
            late = each.late()
            late.expect()
            late.expect()
            assert await asyncio.to_thread(each.tried.wait, 10), "it was not loaded"
            await pack(late.begin())

    asyncio.run(main())
    assert (shelf.taken, broken.taken) == (1, 2)
    assert len(shelf.told) == len(broken.told) == 1


def test_begins_without_loading() -> None:
    """Goal: a refused or empty transfer costs nothing. Method: begin and send nothing."""
    shelf = Shelf()
    shelf.late().begin()

    assert shelf.taken == 0
