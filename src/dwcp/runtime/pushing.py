"""Pushing a tree's chunks to an agent while they are still being read.

    reader (a thread)   files → chunks and their addresses, batch by batch
    asker               which of a batch does the agent lack? some questions ahead, so that no round trip is waited for
    streams             packs of what it lacks, each stream on a connection of its own

All queues are short, so memory is bounded and the slowest stage sets the pace. A codec is chosen for each
pack at the link's rate of that moment. What has arrived is the agent's, whatever happens to us: the same
push again finds it there and sends the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from dwcp.compression import deltas, packs
from dwcp.compression import manifest as manifests
from dwcp.compression.chunking import CHUNK_BYTES_MAX, address, cut_stream
from dwcp.compression.container import STREAM_ID_SIZE, Header, PackedBlock, Writer
from dwcp.compression.container import Reader as BlockReader
from dwcp.compression.deltas import Sketch
from dwcp.compression.errors import (
    BombRefused,
    ChunkMissing,
    RequestInvalid,
    SourceFailed,
    SourceLied,
    StoreFull,
    TransferError,
)
from dwcp.compression.manifest import Chunk, Entry, Kind, Manifest
from dwcp.compression.packs import Part
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Record
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.linkmeter import LinkMeter
from dwcp.runtime.packflow import Chooser, Pacer
from dwcp.runtime.shipping import exchange, have, require_taken
from dwcp.runtime.trees import Node, Tree, read_file, require_unchanged

CHUNKS_PATH = "/v1/chunks"
NEAR_PATH = "/v1/chunks/near"
NEAR_HINTS_MAX = 1024
NEAR_BYTES_MAX = 32 << 20
_TELLING_CHUNKS = 2
_SLACK_BYTES = 4 << 10
_RECIPES_BELOW_BPS = 500e6  # above, finding them takes longer than sending what they save
PUSHES_MAX = 256  # under way at one agent
STREAMS = 3  # one packs while one sends, and a lost packet stops one of them only
_BATCH_BYTES = 8 << 20
_BATCH_CHUNKS = 2048
_ASKED_AHEAD = 3
_SLICE_BYTES = 128 << 10
_FIRST_PACK_BYTES = 256 << 10  # little is lost where the first guess of the rate is wrong
_ANSWER_S_MAX = 120.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk as it was read. `data` is empty where an equal chunk is on its way already."""

    chunk: Chunk
    data: bytes
    path: str
    offset: int


Settled = Callable[[int, int], None]  # (raw bytes that are now at the agent, of these: sent by us)


@dataclass(frozen=True, slots=True)
class Road:
    """Where to, and how: what a push needs beside the tree."""

    client: httpx.AsyncClient
    url: str
    chooser: Chooser
    pacer: Pacer
    settled: Settled
    name: str  # of this push: what it sent is held until it is committed under the same name
    streams: int = STREAMS


async def push(tree: Tree, road: Road) -> tuple[Manifest, int]:
    """Every chunk of the tree to the agent. Returns the manifest and the raw bytes that had to travel.

    Raises `PayloadChanged`, `SourceFailed` where another try may succeed, or `TransferError` with the
    agent's sentence.
    """
    pushing = _Push(tree, road)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pushing.feed())
            for number in range(road.streams):
                tasks.create_task(pushing.stream(first=number == 0))
    except BaseExceptionGroup as group:
        raise _worst(group) from group
    await asyncio.to_thread(require_unchanged, tree)
    return pushing.reader.manifest(), pushing.sent_bytes


def _worst(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a person has to act on comes before what another try may mend."""
    flat = [_worst(exc) if isinstance(exc, BaseExceptionGroup) else exc for exc in group.exceptions]
    return min(flat, key=lambda exc: (isinstance(exc, SourceFailed), not isinstance(exc, TransferError)))


class _Files:
    """The files of a tree as batches of chunks, each address once; and the manifest when all were read."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._entries: list[Entry] = []

    def batches(self) -> Iterator[list[Piece]]:
        """Blocking. Raises `PayloadChanged`."""
        seen: set[bytes] = set()
        batch: list[Piece] = []
        size = 0
        for node in self._tree.nodes:
            offset = 0
            for chunk, data in self._chunks(node):
                batch.append(Piece(chunk, b"" if chunk.address in seen else data, node.path, offset))
                seen.add(chunk.address)
                offset += chunk.size
                size += chunk.size
                if size >= _BATCH_BYTES or len(batch) >= _BATCH_CHUNKS:
                    yield batch
                    batch, size = [], 0
        yield batch

    def manifest(self) -> Manifest:
        return manifests.make(self._entries, self._tree.limits)

    def _chunks(self, node: Node) -> Iterator[tuple[Chunk, bytes]]:
        found: list[Chunk] = []
        if node.kind == Kind.FILE:
            for data in cut_stream(read_file(self._tree, node)):
                found.append(Chunk(address(data), len(data)))
                yield found[-1], data
        self._entries.append(Entry(node.path, node.kind, node.mode, node.size, tuple(found), node.target))


class _Push:
    def __init__(self, tree: Tree, road: Road) -> None:
        self.reader = _Files(tree)
        self.sent_bytes = 0
        self._road = road
        self._packs: asyncio.Queue[list[Part] | None] = asyncio.Queue(maxsize=road.streams)
        loop = asyncio.get_running_loop()
        self._meter = LinkMeter(clock=loop.time, first_bps=min(100e6, road.pacer.rate_bps))
        self._extensions = {"trace": self._meter.trace}
        self._pace_known = asyncio.Event()  # the first pack has left: other streams may begin
        self._anything_there = False  # else nothing there can be like what we have
        self._packed = 0
        self._left = tree.total_bytes
        self._choice = road.chooser.begin()

    # reading and asking

    async def feed(self) -> None:
        """Reads, asks, and hands packs to the streams."""
        batches = self.reader.batches()
        asked: deque[tuple[list[Piece], asyncio.Task[dict[bytes, Part]]]] = deque()
        pack = _Pack()
        try:
            while True:
                batch: list[Piece] = await asyncio.to_thread(next, batches, [])
                if not batch:
                    break
                asked.append((batch, asyncio.create_task(self._ask(batch))))
                if len(asked) > _ASKED_AHEAD:
                    await self._settle(*asked.popleft(), pack)
            while asked:
                await self._settle(*asked.popleft(), pack)
        finally:
            for _batch, question in asked:
                question.cancel()
        if pack.chunks:
            await self._packs.put(pack.take())
        for _ in range(self._road.streams):
            await self._packs.put(None)

    async def _ask(self, batch: list[Piece]) -> dict[bytes, Part]:
        """What of the batch has to travel, by address: chunks that the agent lacks, or recipes for them."""
        fresh = [piece for piece in batch if piece.data]
        plan = [piece.chunk for piece in fresh]
        road = self._road
        flags = await have(road.client, road.url, plan, extensions=self._extensions)
        self._anything_there = self._anything_there or any(flags)
        lacking = [piece for piece, there in zip(fresh, flags, strict=True) if not there]
        parts = {piece.chunk.address: Part(piece.data) for piece in lacking}
        if lacking and self._anything_there and self._meter.rate_bps < _RECIPES_BELOW_BPS:
            changed = _changed_a_little(fresh, flags)
            hints = tuple(Hint(piece.path, piece.offset, piece.chunk.size) for piece in changed)
            sketches = await near(road.client, road.url, hints, extensions=self._extensions)
            parts |= await asyncio.to_thread(_recipes, changed, sketches)
        return parts

    async def _settle(
        self, batch: list[Piece], question: asyncio.Task[dict[bytes, Part]], pack: _Pack
    ) -> None:
        parts = await question
        for piece in batch:
            part = parts.get(piece.chunk.address) if piece.data else None
            if part is None:
                self._road.settled(piece.chunk.size, 0)
                continue
            pack.add(part, piece.chunk.size)
            limit = _FIRST_PACK_BYTES if self._packed == 0 else packs.PACK_BYTES
            if pack.is_full(limit):
                self._packed += 1
                await self._packs.put(pack.take())

    # sending

    async def stream(self, *, first: bool) -> None:
        """One connection's share of the packs, until there are no more."""
        if not first:
            await self._pace_known.wait()
        begin = await self._packs.get()
        if begin is None:
            self._pace_known.set()
            return
        try:
            response = await self._road.client.post(
                f"{self._road.url}{CHUNKS_PATH}?push={self._road.name}",
                content=self._body(begin),
                timeout=httpx.Timeout(_ANSWER_S_MAX, connect=10.0),
                extensions=self._extensions,
            )
        except (httpx.HTTPError, OSError) as exc:
            detail = str(exc) or type(exc).__name__
            raise SourceFailed(f"the agent at {self._road.url} cannot be reached: {detail}") from exc
        finally:
            self._pace_known.set()
        require_taken(self._road.url, response)

    async def _body(self, begin: list[Part]) -> AsyncIterator[bytes]:
        writer = Writer(Header(secrets.token_bytes(STREAM_ID_SIZE), packs.PARCEL_BYTES_MAX))
        yield writer.header.encode()
        pack: list[Part] | None = begin
        while pack is not None:
            raw = packs.parcel(pack)
            frame = await self._choice.pack(
                raw,
                stream_id=writer.header.stream_id,
                index=writer.next_index,
                left_bytes=max(self._left, len(raw)),
                rate_bps=await self._rate_bps(),
            )
            failpoint("ship.push.before_pack")
            for at in range(0, len(frame), _SLICE_BYTES):
                piece = frame[at : at + _SLICE_BYTES]
                await self._road.pacer.take(len(piece))
                yield piece
            failpoint("ship.push.after_pack")
            writer.note(frame)
            size = sum(len(part.data) for part in pack)
            self.sent_bytes += size
            self._left -= size
            self._pace_known.set()
            self._road.settled(size, size)
            pack = await self._packs.get()
        yield writer.end()

    async def _rate_bps(self) -> float:
        """For the first pack a guess; for those behind it what the link has shown meanwhile."""
        if self.sent_bytes:
            await self._meter.shown()
        return min(self._meter.rate_bps, self._road.pacer.rate_bps)


class _Pack:
    """The pack under way."""

    def __init__(self) -> None:
        self.chunks: list[Part] = []
        self._size = 0
        self._rebuilt = 0

    def add(self, part: Part, chunk_size: int) -> None:
        self.chunks.append(part)
        self._size += len(part.data)
        self._rebuilt += chunk_size

    def is_full(self, limit: int) -> bool:
        full = self._size >= limit or len(self.chunks) >= packs.PARCEL_CHUNKS_MAX
        return full or self._rebuilt > packs.PARCEL_REBUILT_MAX - CHUNK_BYTES_MAX

    def take(self) -> list[Part]:
        taken, self.chunks, self._size, self._rebuilt = self.chunks, [], 0, 0
        return taken


def _changed_a_little(fresh: list[Piece], flags: list[bool]) -> list[Piece]:
    """Chunks that are missing where an older version may be near: in files of which something is there, and
    in files too small to tell. A file of which nothing is there was replaced; asking would cost more."""
    held = {piece.path for piece, there in zip(fresh, flags, strict=True) if there}
    count = Counter(piece.path for piece in fresh)
    lacking = (piece for piece, there in zip(fresh, flags, strict=True) if not there)
    return [piece for piece in lacking if piece.path in held or count[piece.path] <= _TELLING_CHUNKS]


def _recipes(lacking: list[Piece], sketches: tuple[tuple[Sketch, ...], ...]) -> dict[bytes, Part]:
    """In a thread: those chunks that can be said shorter."""
    found = {}
    for piece, bases in zip(lacking, sketches, strict=True):
        made = deltas.recipe(piece.data, bases) if bases else None
        if made is not None:
            found[piece.chunk.address] = Part(made, is_recipe=True)
    return found


class Hint(Record, frozen=True):
    """Where a chunk that the agent lacks is: an older version may be there."""

    path: str
    offset: int
    size: int


class NearRequest(Record, frozen=True):
    """`POST /v1/chunks/near`."""

    hints: tuple[Hint, ...]


class NearAnswer(Record, frozen=True):
    """For each hint what the agent holds around there."""

    sketches: tuple[tuple[Sketch, ...], ...]


_near_request: codec.Codec[NearRequest] = codec.Codec(NearRequest)
_near_answer: codec.Codec[NearAnswer] = codec.Codec(NearAnswer)


async def near(
    client: httpx.AsyncClient,
    url: str,
    hints: tuple[Hint, ...],
    *,
    extensions: dict[str, Any] | None = None,  # Any: httpx's own
) -> tuple[tuple[Sketch, ...], ...]:
    """Sketches of what the agent has at these places. Raises `SourceFailed` or `SourceLied`."""
    found: list[tuple[Sketch, ...]] = []
    for start in range(0, len(hints), NEAR_HINTS_MAX):
        part = hints[start : start + NEAR_HINTS_MAX]
        answer = await exchange(
            client,
            "POST",
            url + NEAR_PATH,
            body=codec.encode(NearRequest(part)),
            size_max=NEAR_BYTES_MAX,
            stall_s=10.0,
            extensions=extensions,
        )
        try:
            sketches = _near_answer.decode(answer).sketches
        except MalformedFrame as exc:
            raise SourceLied(f"{url} answers with something else than sketches: {exc}") from exc
        if len(sketches) != len(part):
            raise SourceLied(f"{url} was asked about {len(part)} places and answers about {len(sketches)}")
        found += sketches
    return tuple(found)


def near_answer(body: bytes, store: ChunkStore) -> bytes:
    """The other side, blocking: an answer for a request from anybody. Raises `RequestInvalid`."""
    try:
        hints = _near_request.decode(body).hints
    except MalformedFrame as exc:
        raise RequestInvalid(f"this is no question about places: {exc}") from exc
    if len(hints) > NEAR_HINTS_MAX:
        raise RequestInvalid(f"{len(hints)} places in one question, {NEAR_HINTS_MAX} are allowed")
    return codec.encode(NearAnswer(tuple(_around(hint, store) for hint in hints)))


def _around(hint: Hint, store: ChunkStore) -> tuple[Sketch, ...]:
    """Of the newest file at the path, the chunks that overlap the place, a chunk's length to either side."""
    for entry in store.entries_at(hint.path)[:1]:
        sketches: list[Sketch] = []
        offset = 0
        for chunk in entry.chunks:
            overlaps = (
                offset < hint.offset + hint.size + _SLACK_BYTES
                and offset + chunk.size > hint.offset - _SLACK_BYTES
            )
            offset += chunk.size
            if overlaps and len(sketches) < deltas.BASES_MAX:
                with contextlib.suppress(ChunkMissing):
                    sketches.append(deltas.sketch(chunk.address, store.get(chunk.address)))
        return tuple(sketches)
    return ()


@dataclass(slots=True)
class _Begun:
    """One push as its receiver knows it: what it holds, its open streams, and why it cannot go on."""

    store: ChunkStore
    heard_s: float
    holds: contextlib.ExitStack
    streams: int = 0
    full: StoreFull | None = None


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
                begun.holds.close()
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
            begun.holds.close()

    def _of(self, store: ChunkStore, name: str) -> _Begun:
        now_s = self._clock()
        idle = sorted((begun.heard_s, other) for other, begun in self._begun.items() if not begun.streams)
        too_many = max(0, len(self._begun) - PUSHES_MAX)
        for at, (heard_s, other) in enumerate(idle):
            if at < too_many or now_s - heard_s > self._kept_s:
                self.end(other)
        begun = self._begun.setdefault(name, _Begun(store, now_s, contextlib.ExitStack()))
        if begun.store is not store:
            raise RequestInvalid(f"push {name} belongs to somebody else")
        return begun


def _keep(block: PackedBlock, begun: _Begun) -> int:
    """In a thread: checks a pack and keeps its chunks."""
    rebuilt = 0
    for part in packs.unparcel(block.unpack()):
        chunk = deltas.rebuild(part.data, begun.store.get) if part.is_recipe else part.data
        rebuilt += len(chunk)
        if rebuilt > packs.PARCEL_REBUILT_MAX:
            raise BombRefused(f"the recipes of one pack make more than {packs.PARCEL_REBUILT_MAX} bytes")
        name = address(chunk)
        begun.holds.enter_context(begun.store.hold((name,)))
        failpoint("ship.target.before_chunk")
        begun.store.keep(name, chunk)
        failpoint("ship.target.after_chunk")
    return block.raw_size
