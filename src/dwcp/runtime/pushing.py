"""Pushing a tree's chunks to an agent while they are still being read.

    asker               how were the agent's files at our paths cut? some groups of files ahead
    reader (a thread)   files → chunks and their addresses, batch by batch, one ahead of who asks and without a
                        pause between groups; most of what is there is seen here
    asker               which of a batch does the agent lack? some questions ahead, so that no round trip is waited for
    streams             packs of what it lacks, each stream on a connection of its own

All queues are short, so the slowest stage sets the pace and memory is bounded: the sender has about 50 MiB of
batches and, of packs of up to 4 MiB, three in each stream's hands and four before them (55 MiB), beside what the
codecs take; the receiver has three packs for each stream (40 MiB). A codec is chosen for each
pack at the link's rate of that moment. What has arrived is the agent's, whatever happens to us: the same
push again finds it there and sends the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import threading
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from dwcp.compression import deltas, intake, packs
from dwcp.compression import manifest as manifests
from dwcp.compression.chunking import CHUNK_BYTES_MAX
from dwcp.compression.container import STREAM_ID_SIZE, Header, Writer
from dwcp.compression.deltas import Sketch
from dwcp.compression.errors import (
    SourceFailed,
    TransferError,
)
from dwcp.compression.manifest import Chunk, Entry, Kind, Manifest
from dwcp.compression.packs import Part
from dwcp.compression.recall import Cutter, Found, Known, Recall
from dwcp.compression.rolling import RollingHash
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.held import HELD_FILES_MAX, Hint, held, near
from dwcp.runtime.linkmeter import LinkMeter
from dwcp.runtime.packflow import Chooser, Pacer, PackSizes
from dwcp.runtime.shipping import have, require_taken, unreachable
from dwcp.runtime.trees import Node, Tree, reading, require_unchanged

CHUNKS_PATH = "/v1/chunks"
_TELLING_CHUNKS = 2
_BLOCK_BYTES, _BLOCK_BYTES_FAST = 512, 1024  # of sketches
_FAST_BPS = 200e6  # where the time for small blocks is worth more than the bytes that they save
_HINTS_UNMEASURED = 96  # so many are asked with small blocks: on a slow link these may be all there are
STREAMS = 3  # one packs while one sends, and a lost packet stops one of them only
_BATCH_BYTES_FIRST, _BATCH_BYTES = 1 << 20, 8 << 20
_BATCH_CHUNKS = 2048
_ASKED_AHEAD = 3
_GROUP_BYTES, _GROUP_BYTES_MAX = 32 << 20, 256 << 20
_GROUPS_LEFT = 4  # no group is larger than this part of what is left
_GROUPS_AHEAD = 3
_BUFFER_BYTES = 1 << 20  # of a file at once: what was read is still in a core's cache when it is hashed
_SLICE_BYTES = 128 << 10
_SLICE_BYTES_MAX = 4 << 20  # a whole pack: a part of it would be copied
_SLICE_S = 0.01
_ANSWER_S_MAX = 120.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk that the agent's files at our paths have not."""

    chunk: Chunk
    data: bytes
    path: str
    offset: int


@dataclass(slots=True)
class Batch:
    """What was read of some files, or of a part of one."""

    fresh: list[Piece] = field(default_factory=list)
    known: dict[str, list[range]] = field(default_factory=dict)  # by path: numbers of the agent's chunks
    counts: Counter[str] = field(default_factory=Counter)  # chunks by path
    fresh_bytes: int = 0
    there_bytes: int = 0  # what the agent is known to have, or what is on its way already

    def numbers(self, path: str) -> set[int]:
        """Those of the agent's chunks of the file there that stand in this batch unchanged."""
        return set(itertools.chain.from_iterable(self.known.get(path, ())))


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


@dataclass(frozen=True, slots=True)
class Pushed:
    """What is at the agent now, how the agent is told so (`intake.prelude_relative`), and the raw bytes that had
    to travel."""

    manifest: Manifest
    prelude: bytes
    sent_bytes: int


async def push(tree: Tree, road: Road) -> Pushed:
    """Every chunk of the tree to the agent.

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
    assert pushing.told is not None  # the feed has ended
    return Pushed(*pushing.told, pushing.sent_bytes)


def _worst(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a person has to act on comes before what another try may mend."""
    flat = [_worst(exc) if isinstance(exc, BaseExceptionGroup) else exc for exc in group.exceptions]
    return min(flat, key=lambda exc: (isinstance(exc, SourceFailed), not isinstance(exc, TransferError)))


class _Files:
    """The files of a tree as batches of chunks, each address once; and the manifest when all were read."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._entries: list[Entry] = []
        self._seen: set[bytes] = set()
        self._fresh = 0
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._known: dict[str, tuple[int, ...]] = {}  # by path, see `relative.encode`

    def groups(self) -> Iterator[list[Node]]:
        """The tree's nodes in the stretches in which they are asked for and read: larger and larger ones, for
        each costs questions, and small ones at the end, whose answers nothing hides."""
        group: list[Node] = []
        size = files = 0
        left = self._tree.total_bytes
        limit = _GROUP_BYTES
        for node in self._tree.nodes:
            group.append(node)
            size += node.size
            files += node.kind == Kind.FILE
            if size >= limit or files >= HELD_FILES_MAX:
                left -= size
                limit = min(2 * limit, max(_GROUP_BYTES, left // _GROUPS_LEFT), _GROUP_BYTES_MAX)
                yield group
                group, size, files = [], 0, 0
        yield group

    def batches(self, group: list[Node], recalls: dict[str, Recall]) -> Iterator[Batch]:
        """Blocking. Raises `PayloadChanged`."""
        batch = Batch()
        chunks = 0
        for node in group:
            offset = 0
            for found in self._chunks(node, recalls.get(node.path, _NOTHING)):
                if isinstance(found, Known):
                    size = sum(chunk.size for chunk in found.chunks)
                    stretch = range(found.first, found.first + len(found.chunks))
                    batch.known.setdefault(node.path, []).append(stretch)
                    batch.there_bytes += size
                else:
                    stretch = range(1)
                    size = found.chunk.size
                    self._add(batch, found, node.path, offset)
                batch.counts[node.path] += len(stretch)
                chunks += len(stretch)
                offset += size
                if batch.fresh_bytes >= self._batch_bytes or chunks >= _BATCH_CHUNKS:
                    self._fresh += batch.fresh_bytes
                    yield batch
                    batch, chunks = Batch(), 0
        self._fresh += batch.fresh_bytes
        if chunks:
            yield batch

    def _add(self, batch: Batch, found: Found, path: str, offset: int) -> None:
        if found.chunk.address in self._seen:
            batch.there_bytes += found.chunk.size
            return
        self._seen.add(found.chunk.address)
        batch.fresh.append(Piece(found.chunk, found.data, path, offset))
        batch.fresh_bytes += found.chunk.size

    @property
    def _batch_bytes(self) -> int:
        """Of what is new. Small at first: on a slow link the answers about one batch come while the one before
        it is sent, and both take as long as what they speak of is large."""
        return min(_BATCH_BYTES, max(_BATCH_BYTES_FIRST, self._fresh // 2))

    def told(self) -> tuple[Manifest, bytes]:
        """All that was read, and its prelude. Raises `PayloadChanged` where the tree is another by now."""
        require_unchanged(self._tree)
        manifest = manifests.make(self._entries, self._tree.limits)
        return manifest, intake.prelude_relative(manifest, self._known)

    def _chunks(self, node: Node, recall: Recall) -> Iterator[Known | Found]:
        chunks: list[Chunk] = []
        known: list[int] = []
        if node.kind == Kind.FILE:
            with reading(self._tree, node) as fill:
                for found in Cutter(recall, self._buffer).cut(fill, node.size):
                    if isinstance(found, Known):
                        chunks += found.chunks
                        known += range(found.first, found.first + len(found.chunks))
                    else:
                        chunks.append(found.chunk)
                        known.append(-1)
                    yield found
        if any(number >= 0 for number in known):
            self._known[node.path] = tuple(known)
        self._entries.append(Entry(node.path, node.kind, node.mode, node.size, tuple(chunks), node.target))


_NOTHING = Recall()


class _Push:
    def __init__(self, tree: Tree, road: Road) -> None:
        self.reader = _Files(tree)
        self.sent_bytes = 0
        self.told: tuple[Manifest, bytes] | None = None
        self._road = road
        self._packs: asyncio.Queue[list[Part] | None] = asyncio.Queue(maxsize=road.streams)
        loop = asyncio.get_running_loop()
        self._meter = LinkMeter(clock=loop.time, first_bps=min(100e6, road.pacer.rate_bps))
        self._extensions = {"trace": self._meter.trace}
        self._pace_known = asyncio.Event()  # the first pack has left: other streams may begin
        self._sizes = PackSizes(tree.total_bytes)
        self._hinted = 0
        multiplier = secrets.randbits(64) | 1
        self._hashing = [RollingHash(size, multiplier) for size in (_BLOCK_BYTES, _BLOCK_BYTES_FAST)]
        self._sending = 0  # packs that streams have in hand
        self._left = tree.total_bytes
        self._choice = road.chooser.begin()
        self._groups = self.reader.groups()
        self._groups_asked: deque[tuple[list[Node], asyncio.Task[dict[str, Recall]]]] = deque()
        self._ended = False  # nothing more is read

    # reading and asking

    async def feed(self) -> None:
        """Reads, asks, and hands packs to the streams."""
        asked: deque[tuple[Batch, asyncio.Task[dict[bytes, Part]]]] = deque()
        pack = _Pack()
        try:
            async with contextlib.aclosing(self._batches()) as batches:
                async for batch, recalls in batches:
                    asked.append((batch, asyncio.create_task(self._ask(batch, recalls))))
                    if len(asked) > _ASKED_AHEAD:
                        await self._settle(*asked.popleft(), pack)
            while asked:
                await self._settle(*asked.popleft(), pack)
        finally:
            for _batch, question in asked:
                question.cancel()
        if pack.chunks:
            await self._hand_over(pack)
        for _ in range(self._road.streams):
            await self._packs.put(None)
        self.told = await asyncio.to_thread(self.reader.told)  # while the last packs are on their way

    async def _batches(self) -> AsyncGenerator[tuple[Batch, dict[str, Recall]]]:
        """What is read, with what the agent has told about its files."""
        async with contextlib.aclosing(_ahead(self._read(asyncio.get_running_loop()))) as batches:
            try:
                async for each in batches:
                    yield each
            finally:
                self._ended = True
                for _group, question in self._groups_asked:
                    question.cancel()

    def _read(self, loop: asyncio.AbstractEventLoop) -> Iterator[tuple[Batch, dict[str, Recall]]]:
        """Blocking: one group after another; the next one is called for while one is read."""
        coming = asyncio.run_coroutine_threadsafe(self._next_group(), loop)
        while (told := coming.result()) is not None:
            coming = asyncio.run_coroutine_threadsafe(self._next_group(), loop)
            group, recalls = told
            for batch in self.reader.batches(group, recalls):
                yield batch, recalls

    async def _next_group(self) -> tuple[list[Node], dict[str, Recall]] | None:
        """What is read next, and what the agent has there; that is asked some groups ahead."""
        asked = self._groups_asked
        for group in itertools.islice(self._groups, 0 if self._ended else _GROUPS_AHEAD - len(asked)):
            asked.append((group, asyncio.create_task(self._recalls(group))))
        if not asked:
            return None
        group, question = asked[0]
        recalls = await question
        asked.popleft()
        return group, recalls

    async def _recalls(self, group: list[Node]) -> dict[str, Recall]:
        paths = [node.path for node in group if node.kind == Kind.FILE and node.size]
        if not paths:
            return {}
        return await held(self._road.client, self._road.url, paths, extensions=self._extensions)

    async def _ask(self, batch: Batch, recalls: dict[str, Recall]) -> dict[bytes, Part]:
        """What of the batch has to travel, by address: chunks that the agent lacks, or recipes for them."""
        fresh = batch.fresh
        if not fresh:
            return {}
        plan = [piece.chunk for piece in fresh]
        road = self._road
        async with asyncio.TaskGroup() as questions:
            recipes = questions.create_task(self._recipes(changed_a_little(batch, recalls)))
            flags = await have(road.client, road.url, plan, extensions=self._extensions)
        lacking = [piece for piece, there in zip(fresh, flags, strict=True) if not there]
        said = recipes.result()
        return {piece.chunk.address: said.get(piece.chunk.address, Part(piece.data)) for piece in lacking}

    async def _recipes(self, changed: list[Changed]) -> dict[bytes, Part]:
        """Those chunks that can be said shorter."""
        if not changed:
            return {}
        fast = self._hinted > _HINTS_UNMEASURED and self._meter.rate_bps > _FAST_BPS
        self._hinted += len(changed)
        hashing = self._hashing[fast]
        sketches = await near(
            self._road.client,
            self._road.url,
            [each.hint for each in changed],
            hashing=hashing,
            extensions=self._extensions,
        )
        return await asyncio.to_thread(_shorter, changed, sketches, hashing)

    async def _settle(self, batch: Batch, question: asyncio.Task[dict[bytes, Part]], pack: _Pack) -> None:
        parts = await question
        there = batch.there_bytes + sum(p.chunk.size for p in batch.fresh if p.chunk.address not in parts)
        if there:
            self._road.settled(there, 0)
            self._sizes.passed(there)
        rate_bps = self._meter.rate_bps  # not for each chunk: it has its cost
        for piece in batch.fresh:
            part = parts.get(piece.chunk.address)
            if part is None:
                continue
            pack.add(part, piece.chunk.size)
            self._sizes.passed(piece.chunk.size)
            if pack.is_full(self._sizes.next(rate_bps, recipes=pack.said)):
                await self._hand_over(pack)
                rate_bps = self._meter.rate_bps
        if pack.chunks and not self._sending and self._packs.empty():  # the link is idle
            await self._hand_over(pack)

    async def _hand_over(self, pack: _Pack) -> None:
        self._sizes.taken()
        await self._packs.put(pack.take())

    # sending

    async def stream(self, *, first: bool) -> None:
        """One connection's share of the packs, until there are no more."""
        if not first:
            await self._pace_known.wait()
        begin = await self._next()
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
            raise unreachable(self._road.url, exc) from exc
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
                rate_bps=await self._rate_bps(shown=not _is_said(pack)),
            )
            failpoint("ship.push.before_pack")
            slice_bytes = self._slice_bytes()
            for at in range(0, len(frame), slice_bytes):
                piece = frame[at : at + slice_bytes]
                await self._road.pacer.take(len(piece))
                yield piece
            failpoint("ship.push.after_pack")
            writer.note(frame)
            size = sum(len(part.data) for part in pack)
            self.sent_bytes += size
            self._left -= size
            self._pace_known.set()
            self._road.settled(size, size)
            self._sending -= 1
            pack = await self._next()
        yield writer.end()

    async def _rate_bps(self, *, shown: bool) -> float:
        """For the first pack a guess; for those behind it what the link has shown meanwhile, which is waited
        for where the codec matters."""
        if self.sent_bytes and shown:
            await self._meter.shown()
        return min(self._meter.rate_bps, self._road.pacer.rate_bps)

    async def _next(self) -> list[Part] | None:
        pack = await self._packs.get()
        self._sending += pack is not None
        return pack

    def _slice_bytes(self) -> int:
        """Small where others share a slow link, large where each write's own cost shows."""
        rate = min(self._meter.rate_bps, self._road.pacer.rate_bps)
        return max(_SLICE_BYTES, min(_SLICE_BYTES_MAX, int(rate / 8 * _SLICE_S)))


async def _ahead(source: Iterator[_T]) -> AsyncGenerator[_T]:
    """What the source gives, read in a thread: one waits here and another is read while one is in hand."""
    loop = asyncio.get_running_loop()
    found: asyncio.Queue[_T | None] = asyncio.Queue()
    room = threading.Semaphore(1)
    stopped = threading.Event()

    def read() -> None:
        try:
            for each in source:
                loop.call_soon_threadsafe(found.put_nowait, each)
                room.acquire()
                if stopped.is_set():
                    return
        finally:
            loop.call_soon_threadsafe(found.put_nowait, None)

    reading = asyncio.ensure_future(asyncio.to_thread(read))
    try:
        while (each := await found.get()) is not None:
            room.release()
            yield each
        await reading
    finally:
        stopped.set()
        room.release()
        await asyncio.gather(reading, return_exceptions=True)


def _is_said(pack: Sequence[Part]) -> bool:
    """Whether it is recipes for the most part."""
    return 2 * sum(part.is_recipe for part in pack) > len(pack)


class _Pack:
    """The pack under way."""

    def __init__(self) -> None:
        self.chunks: list[Part] = []
        self._size = 0
        self._rebuilt = 0
        self._recipes = 0

    @property
    def said(self) -> bool:
        """Whether it is recipes for the most part."""
        return 2 * self._recipes > len(self.chunks)

    def add(self, part: Part, chunk_size: int) -> None:
        self.chunks.append(part)
        self._recipes += part.is_recipe
        self._size += len(part.data)
        self._rebuilt += chunk_size

    def is_full(self, limit: int) -> bool:
        full = self._size >= limit or len(self.chunks) >= packs.PARCEL_CHUNKS_MAX
        return full or self._rebuilt > packs.PARCEL_REBUILT_MAX - CHUNK_BYTES_MAX

    def take(self) -> list[Part]:
        taken, self.chunks = self.chunks, []
        self._size = self._rebuilt = self._recipes = 0
        return taken


@dataclass(frozen=True, slots=True)
class Changed:
    """A chunk that may be like what the agent has at its place; `at`: its offset less that of the first of
    these chunks in the agent's file."""

    piece: Piece
    hint: Hint
    at: int


def changed_a_little(batch: Batch, recalls: Mapping[str, Recall]) -> list[Changed]:
    """Chunks that may be like what the agent has at their places: in files of which it has something in this
    batch, and in files too small to tell. A file of which nothing is there was replaced; asking would cost
    more. Chunks that are there unchanged are not what became of another."""
    known = {path: batch.numbers(path) for path in {piece.path for piece in batch.fresh}}
    changed = []
    for piece in batch.fresh:
        recall = recalls.get(piece.path)
        if recall is None or (not known[piece.path] and batch.counts[piece.path] > _TELLING_CHUNKS):
            continue
        numbers = recall.around(piece.offset, piece.chunk.size)
        gone = [number for number in numbers if number not in known[piece.path]] or numbers
        if gone:
            first = gone[0]
            span = min(gone[-1] + 1 - first, deltas.BASES_MAX)
            at = piece.offset - recall.starts[first]
            changed.append(Changed(piece, Hint(piece.path, first, span), at))
    return changed


def _shorter(
    changed: Sequence[Changed], sketches: Sequence[tuple[Sketch, ...]], hashing: RollingHash
) -> dict[bytes, Part]:
    """In a thread: the recipes that save something."""
    found = {}
    for each, bases in zip(changed, sketches, strict=True):
        made = deltas.recipe(each.piece.data, bases, hashing, at=each.at) if bases else None
        if made is not None:
            found[each.piece.chunk.address] = Part(made, is_recipe=True)
    return found
