"""Packs in motion: a plan of chunks out of a store as a paced stream, and such a stream into a store.

Both directions hold a bounded number of packs in memory; codecs and disk run in threads.
"""

from __future__ import annotations

import asyncio
import copy
import heapq
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dwcp.compression import codecs, packs
from dwcp.compression.codecs import Codec
from dwcp.compression.container import Header, PackedBlock, Reader, Writer, pack_block
from dwcp.compression.errors import BlockInvalid, ContainerInvalid, SourceLied, UnknownCodec
from dwcp.compression.manifest import Chunk
from dwcp.compression.pacing import Bucket, Shares
from dwcp.compression.packs import PACK_BYTES, PACK_BYTES_MAX, PUSHED_BYTES_MOST, Pack
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.linkmeter import LinkMeter

SLICE_BYTES = 64 << 10
_PACK_BYTES_FIRST = 256 << 10  # little is lost where the first guess of the rate is wrong
_PACK_S_MAX = 16.0  # on the wire, were it sent raw
_PACK_FAST_BPS, _PACK_BYTES_FAST = 400e6, 2 << 20  # the processor's cache, and the cost of each pack
_PACK_LEFT_SHARE = 4  # of what is left, so that the last packs end together
_RECIPES_S, _RECIPES_BYTES_MIN = 0.05, 64 << 10  # a pack of recipes is sent in this time

Load = Callable[[Chunk], bytes]  # where the bytes of a chunk come from; blocking


class Choice(Protocol):
    """The codecs of one transfer."""

    async def pack(
        self, raw: bytes, *, stream_id: bytes, index: int, left_bytes: int, rate_bps: float
    ) -> bytes:
        """The block frame of `raw` with the codec that suits it and the link best.

        `left_bytes` of the transfer, `raw` included. Packs of several connections may be under way at once.
        """
        ...


class Chooser(Protocol):
    """Picks the codecs of transfers. `peer` names who is sent to, where several requests are one transfer;
    `allowed` empty: every codec, and "none" always."""

    def begin(self, *, peer: str = "", allowed: frozenset[str] = frozenset()) -> Choice: ...


@dataclass(frozen=True, slots=True)
class FixedChooser:
    """Always the same codec."""

    name: str

    def begin(self, *, peer: str = "", allowed: frozenset[str] = frozenset()) -> FixedChoice:
        del peer
        return FixedChoice(codecs.by_name(self.name if not allowed or self.name in allowed else "none"))


@dataclass(frozen=True, slots=True)
class FixedChoice:
    """Always the same codec, for one transfer."""

    codec: Codec

    async def pack(
        self, raw: bytes, *, stream_id: bytes, index: int, left_bytes: int, rate_bps: float
    ) -> bytes:
        del left_bytes, rate_bps
        return await asyncio.to_thread(pack_block, raw, self.codec, stream_id=stream_id, index=index)


class PackSizes:
    """How large the next pack of a push is, in raw bytes.

    A codec finds more in a larger pack, but a link waits for the first ones, other streams for the last ones,
    and what breaks off is sent again. Where the link is fast no codec is used that would find more, and a small
    pack stays in the processor's cache. Recipes leave a codec little to find, so a pack of them is small.
    """

    def __init__(self, left_bytes: int) -> None:
        self._left = left_bytes
        self._limit = PACK_BYTES
        self._taken = 0

    def passed(self, size_bytes: int) -> None:
        """So much of the whole is in a pack now, or need not travel."""
        self._left -= size_bytes

    def taken(self) -> None:
        """A pack is on its way. Limits double every other pack, so that packing keeps ahead of the link."""
        self._taken += 1
        if self._taken > 1 and self._taken % 2:
            self._limit = min(2 * self._limit, PUSHED_BYTES_MOST)

    def next(self, rate_bps: float, *, recipes: bool = False) -> int:
        if not self._taken:
            return _PACK_BYTES_FIRST
        if recipes:
            return max(_RECIPES_BYTES_MIN, min(PACK_BYTES, int(rate_bps / 8 * _RECIPES_S)))
        most = (
            _PACK_BYTES_FAST
            if rate_bps > _PACK_FAST_BPS
            else min(PUSHED_BYTES_MOST, int(rate_bps / 8 * _PACK_S_MAX))
        )
        return min(self._limit, max(PACK_BYTES, min(most, self._left // _PACK_LEFT_SHARE)))


class _Line:
    """Pieces that wait for one link. Who is next is decided when the link is free, not before: a transfer
    that has just been served has its next piece in the line by then."""

    def __init__(self, rate_bps: float) -> None:
        self._bucket = Bucket(rate_bps)
        self._shares = Shares()
        self._waiting: list[tuple[float, int, int, asyncio.Event]] = []  # tag, tie-breaker, bytes, its turn
        self._count = itertools.count()
        self._busy_in: asyncio.AbstractEventLoop | None = None

    async def pass_through(self, transfer: object, size_bytes: int, weight: float) -> None:
        tag = self._shares.tag(transfer, size_bytes, weight=weight)
        turn = (tag, next(self._count), size_bytes, asyncio.Event())
        heapq.heappush(self._waiting, turn)
        if self._busy_in is not asyncio.get_running_loop():
            self._serve()
        try:
            await turn[3].wait()
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
                heapq.heapify(self._waiting)
            raise

    def _serve(self) -> None:
        """The link is free: the next piece goes; once it has passed, so to speak, the one after it."""
        self._busy_in = None
        if not self._waiting:
            return
        tag, _, size_bytes, its_turn = heapq.heappop(self._waiting)
        self._busy_in = asyncio.get_running_loop()
        self._shares.serve(tag)
        its_turn.set()
        wait = self._bucket.take(size_bytes, now_s=self._busy_in.time())
        self._busy_in.call_later(wait, self._serve)


class Pacer:
    """A link shared by all transfers that hold it. `rate_bps` None: as fast as it goes."""

    def __init__(self, rate_bps: float | None = None) -> None:
        self.rate_bps = rate_bps if rate_bps is not None else 10e9
        self._line = _Line(rate_bps) if rate_bps is not None else None
        self._weight = 1.0

    def weighted(self, weight: float) -> Pacer:
        """The same link for one transfer, with a share in proportion to `weight` while others want it too."""
        if weight <= 0:
            raise ValueError(f"a share needs a weight above 0, got {weight}")
        other = copy.copy(self)
        other._weight = weight
        return other

    async def take(self, size_bytes: int) -> None:
        """Returns when it is this transfer's turn and what was sent before fits the link's rate."""
        if self._line is not None:
            await self._line.pass_through(id(self), size_bytes, self._weight)


@dataclass(frozen=True, slots=True)
class Moved:
    """One pack has passed: its index, raw bytes and codec, and the bytes on the wire so far."""

    index: int
    raw_bytes: int
    codec: str
    wire_bytes: int


Report = Callable[[Moved], None]


@dataclass(frozen=True, slots=True)
class Outflow:
    """How a plan is sent. `rate_bps` is what the two ends may use of the link; `meter` knows what it gives."""

    load: Load
    choice: Choice
    pacer: Pacer
    rate_bps: float
    report: Report | None = None
    meter: LinkMeter | None = None

    @property
    def rate_now_bps(self) -> float:
        return min(self.rate_bps, self.meter.rate_bps) if self.meter is not None else self.rate_bps


async def stream(plan: Sequence[Chunk], outflow: Outflow, *, first: int = 0) -> AsyncIterator[bytes]:
    """The container of a plan from pack `first` on; packs the next one while one is sent."""
    groups = packs.group(plan)[first:]
    left = sum(packs.raw_size(group) for group in groups)
    writer = Writer(Header(packs.stream_id(plan), PACK_BYTES_MAX, first, left))
    yield writer.header.encode()
    sender = _Sender(outflow, writer.header.stream_id, left)
    coming = asyncio.ensure_future(sender.prepare(groups[0], first)) if groups else None
    wire = 0
    try:
        for at, group in enumerate(groups):
            assert coming is not None
            frame, codec = await coming
            coming = None
            if at + 1 < len(groups):
                coming = asyncio.ensure_future(sender.prepare(groups[at + 1], first + at + 1))
            failpoint("ship.source.before_pack")
            for start in range(0, len(frame), SLICE_BYTES):
                piece = frame[start : start + SLICE_BYTES]
                await outflow.pacer.take(len(piece))
                yield piece
            failpoint("ship.source.after_pack")
            writer.note(frame)
            wire += len(frame)
            if outflow.report is not None:
                outflow.report(Moved(first + at, packs.raw_size(group), codec, wire))
        yield writer.end()
    finally:
        if coming is not None:
            coming.cancel()


class _Sender:
    """Loads and packs, one pack after another."""

    def __init__(self, outflow: Outflow, stream_id: bytes, left: int) -> None:
        self._outflow = outflow
        self._stream_id = stream_id
        self._left = left

    async def prepare(self, group: Pack, index: int) -> tuple[bytes, str]:
        raw = await asyncio.to_thread(self._load, group)
        left, self._left = self._left, self._left - len(raw)
        frame = await self._outflow.choice.pack(
            raw,
            stream_id=self._stream_id,
            index=index,
            left_bytes=left,
            rate_bps=self._outflow.rate_now_bps,
        )
        return frame, codecs.by_wire(frame[1]).name

    def _load(self, group: Pack) -> bytes:
        return b"".join(self._outflow.load(chunk) for chunk in group)


class Inflow:
    """A plan's stream into a store: every chunk is checked against its address before it is kept.

    `done` is the index of the next pack; a resumed stream begins there.
    """

    def __init__(
        self, plan: Sequence[Chunk], store: ChunkStore, *, first: int = 0, report: Report | None = None
    ) -> None:
        self._groups = packs.group(plan)
        self._stream_id = packs.stream_id(plan)
        self._store = store
        self._report = report
        self._first = first
        self._wire = 0
        self._reader = Reader(
            raw_bytes_max=sum(packs.raw_size(group) for group in self._groups[first:]),
            block_bytes_max=PACK_BYTES_MAX,
        )
        self.done = first

    async def feed(self, data: bytes) -> None:
        """Raises `SourceLied`, or `StoreFull` and the like of the store."""
        self._wire += len(data)
        try:
            for item in self._reader.feed(data):
                if isinstance(item, Header):
                    self._check(item)
                elif isinstance(item, PackedBlock):
                    await self._take(item)
        except (ContainerInvalid, BlockInvalid, UnknownCodec) as exc:
            raise SourceLied(str(exc)) from exc

    def finish(self) -> None:
        """Raises `ContainerInvalid` where the stream broke off, `SourceLied` where it ended too early."""
        self._reader.finish()
        if self.done != len(self._groups):
            raise SourceLied(f"{len(self._groups)} packs were asked for, the stream ended after {self.done}")

    def _check(self, header: Header) -> None:
        if header.stream_id != self._stream_id or header.first_index != self._first:
            raise SourceLied("the stream is not the one that was asked for")

    async def _take(self, block: PackedBlock) -> None:
        if block.index >= len(self._groups):
            raise SourceLied(f"{len(self._groups)} packs were asked for, pack {block.index} came")
        group = self._groups[block.index]
        if block.raw_size != packs.raw_size(group):
            raise SourceLied(
                f"pack {block.index} declares {block.raw_size} bytes, not {packs.raw_size(group)}"
            )
        await asyncio.to_thread(self._keep, group, block)
        self.done = block.index + 1
        if self._report is not None:
            self._report(Moved(block.index, block.raw_size, block.codec.name, self._wire))

    def _keep(self, group: Pack, block: PackedBlock) -> None:
        for name, data in packs.split(group, block.unpack()):
            failpoint("ship.target.before_chunk")
            self._store.put(name, data)
            failpoint("ship.target.after_chunk")
