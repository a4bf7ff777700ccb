"""Packs in motion: a plan of chunks out of a store as a paced stream, and such a stream into a store.

Both directions hold a bounded number of packs in memory; codecs and disk run in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dwcp.compression import codecs, packs
from dwcp.compression.codecs import Codec
from dwcp.compression.container import Header, PackedBlock, Reader, Writer, pack_block
from dwcp.compression.errors import BlockInvalid, ContainerInvalid, SourceLied, UnknownCodec
from dwcp.compression.manifest import Chunk
from dwcp.compression.pacing import Bucket
from dwcp.compression.packs import PACK_BYTES_MAX, Pack
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.linkmeter import LinkMeter

SLICE_BYTES = 64 << 10
_SEGMENT_PACKS = 4  # a codec is chosen again after so many packs: content changes along a payload
_SAMPLE_BYTES = 64 << 10
RATE_CHANGE = 1.5  # a codec is chosen again at once where the link's rate has changed by more
PROBE_ABOVE_BPS = 50e6  # below, a codec that works for nothing costs nothing: the probe sees repeats only

Load = Callable[[Chunk], bytes]  # where the bytes of a chunk come from; blocking


class Chooser(Protocol):
    """Picks the codec for what comes next on a link."""

    async def choose(
        self, sample: bytes, *, total_bytes: int, rate_bps: float, allowed: frozenset[str]
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class FixedChooser:
    """Always the same codec."""

    name: str

    async def choose(
        self, sample: bytes, *, total_bytes: int, rate_bps: float, allowed: frozenset[str]
    ) -> str:
        del sample, total_bytes, rate_bps
        return self.name if not allowed or self.name in allowed else "none"


class Pacer:
    """A link shared by all transfers that hold it. `rate_bps` None: as fast as it goes."""

    def __init__(self, rate_bps: float | None = None) -> None:
        self.rate_bps = rate_bps if rate_bps is not None else 10e9
        self._bucket = Bucket(rate_bps) if rate_bps is not None else None

    async def take(self, size_bytes: int) -> None:
        """Returns once the bytes fit the link's rate."""
        if self._bucket is None:
            return
        wait = self._bucket.take(size_bytes, now_s=asyncio.get_running_loop().time())
        if wait > 0:
            await asyncio.sleep(wait)


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
    """How a plan is sent. `allowed` empty: every codec. `rate_bps` is what the two ends may use of the link;
    `meter` knows what the link gives."""

    load: Load
    chooser: Chooser
    pacer: Pacer
    rate_bps: float
    allowed: frozenset[str] = frozenset()
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
    """Loads, chooses and packs; the choice holds for a segment of packs."""

    def __init__(self, outflow: Outflow, stream_id: bytes, left: int) -> None:
        self._outflow = outflow
        self._stream_id = stream_id
        self._left = left
        self._codec = codecs.NONE
        self._packs = 0
        self._chosen_bps = 0.0

    async def prepare(self, group: Pack, index: int) -> tuple[bytes, str]:
        raw = await asyncio.to_thread(self._load, group)
        rate = self._outflow.rate_now_bps
        steady = self._chosen_bps / RATE_CHANGE < rate < self._chosen_bps * RATE_CHANGE
        if not steady or self._packs % _SEGMENT_PACKS == 0:
            self._codec = await self._choose(raw, rate)
            self._chosen_bps = rate
        self._packs += 1
        self._left -= len(raw)
        frame = await asyncio.to_thread(self._pack, raw, index)
        return frame, codecs.by_wire(frame[1]).name

    async def _choose(self, raw: bytes, rate_bps: float) -> Codec:
        middle = max(0, (len(raw) - _SAMPLE_BYTES) // 2)
        name = await self._outflow.chooser.choose(
            raw[middle : middle + _SAMPLE_BYTES],
            total_bytes=self._left,
            rate_bps=rate_bps,
            allowed=self._outflow.allowed,
        )
        return codecs.by_name(name)

    def _load(self, group: Pack) -> bytes:
        return b"".join(self._outflow.load(chunk) for chunk in group)

    def _pack(self, raw: bytes, index: int) -> bytes:
        hopeless = self._chosen_bps > PROBE_ABOVE_BPS and codecs.looks_incompressible(raw)
        codec = codecs.NONE if hopeless else self._codec
        return pack_block(raw, codec, stream_id=self._stream_id, index=index)


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
