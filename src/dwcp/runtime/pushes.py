"""The receiving side of pushes: packs of chunks and recipes from anybody into a tenant's store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from dwcp.compression import deltas, packs
from dwcp.compression.chunking import address
from dwcp.compression.container import PackedBlock
from dwcp.compression.container import Reader as BlockReader
from dwcp.compression.errors import BombRefused, RequestInvalid, StoreFull
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.failpoints import failpoint

PUSHES_MAX = 256  # under way at one agent


@dataclass(slots=True)
class _Begun:
    """One push as its receiver knows it: what it holds, its open streams, and why it cannot go on."""

    store: ChunkStore
    heard_s: float
    pinned: list[bytes] = field(default_factory=list)
    streams: int = 0
    full: StoreFull | None = None

    def pin(self, name: bytes) -> None:
        self.store.pin((name,))
        self.pinned.append(name)

    def unpin(self) -> None:
        pinned, self.pinned = self.pinned, []
        self.store.unpin(pinned)


class Pushes:
    """The receiving side's account of pushes under way: what each has sent is not swept.

    A push that was not heard of for `kept_s` is forgotten, as is the oldest where there are too many;
    its chunks stay while there is room.
    """

    def __init__(self, *, clock: Callable[[], float], kept_s: float = 600.0) -> None:
        self._clock = clock
        self._kept_s = kept_s
        self._begun: dict[str, _Begun] = {}

    async def take(self, name: str, body: AsyncIterator[bytes], store: ChunkStore) -> int:
        """Packs from anybody into the store; returns their chunks' bytes.

        Raises `TransferError`. After `StoreFull` nothing of the push is left once its last stream has ended:
        a full disk must not stay full of what failed.
        """
        begun = self._of(store, name)
        if begun.full is not None:  # a stream of a push that has failed already
            raise begun.full
        begun.streams += 1
        try:
            return await self._take(begun, body)
        except StoreFull as exc:
            begun.full = exc
            raise
        finally:
            begun.streams -= 1
            if begun.full is not None and not begun.streams:
                begun.unpin()
                await asyncio.to_thread(store.sweep)

    async def _take(self, begun: _Begun, body: AsyncIterator[bytes]) -> int:
        """One pack is unpacked while the next one arrives."""
        reader = BlockReader(raw_bytes_max=1 << 62, block_bytes_max=packs.PARCEL_BYTES_MAX)
        raw_bytes = 0
        working: asyncio.Future[int] | None = None
        try:
            async for data in body:
                if begun.full is not None:
                    raise begun.full
                for item in reader.feed(data):
                    if isinstance(item, PackedBlock):
                        if working is not None:
                            raw_bytes += await asyncio.shield(working)
                        begun.heard_s = self._clock()
                        working = asyncio.ensure_future(asyncio.to_thread(_keep, item, begun))
            reader.finish()
            if working is not None:
                raw_bytes += await asyncio.shield(working)
        finally:
            if working is not None:
                await asyncio.gather(working, return_exceptions=True)
        return raw_bytes

    def end(self, name: str) -> None:
        """The push was committed or given up."""
        if begun := self._begun.pop(name, None):
            begun.unpin()

    def _of(self, store: ChunkStore, name: str) -> _Begun:
        now_s = self._clock()
        idle = sorted((begun.heard_s, other) for other, begun in self._begun.items() if not begun.streams)
        too_many = max(0, len(self._begun) - PUSHES_MAX)
        for at, (heard_s, other) in enumerate(idle):
            if at < too_many or now_s - heard_s > self._kept_s:
                self.end(other)
        begun = self._begun.setdefault(name, _Begun(store, now_s))
        if begun.store is not store:
            raise RequestInvalid(f"push {name} belongs to somebody else")
        return begun


def _keep(block: PackedBlock, begun: _Begun) -> int:
    """In a thread: checks a pack and keeps its chunks."""
    rebuilt = 0
    for part in packs.unparcel(block.unpack()):
        chunk = deltas.rebuild(bytes(part.data), begun.store.get) if part.is_recipe else part.data
        rebuilt += len(chunk)
        if rebuilt > packs.PARCEL_REBUILT_MAX:
            raise BombRefused(f"the recipes of one pack make more than {packs.PARCEL_REBUILT_MAX} bytes")
        name = address(chunk)
        begun.pin(name)
        failpoint("ship.target.before_chunk")
        begun.store.keep(name, chunk)
        failpoint("ship.target.after_chunk")
    return block.raw_size
