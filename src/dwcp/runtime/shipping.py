"""Pulling a payload from other agents: only what is missing, every byte verified, resumed after any break.

A pull asks all sources which of the missing chunks they have, takes segments of packs from them side by
side, and goes on where it stopped: with the same plan at the next pack while both processes live, with
the chunks that are still missing after a crash. A source that lies is not asked again; one that fails
is, after a pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec

from dwcp.compression import intake, packs
from dwcp.compression import manifest as manifests
from dwcp.compression.chunking import CHUNK_BYTES_MAX
from dwcp.compression.codecs import CODECS
from dwcp.compression.errors import (
    ContainerInvalid,
    ManifestInvalid,
    PayloadRefused,
    RequestInvalid,
    ShipFailed,
    SourceFailed,
    SourceLied,
    TransferError,
)
from dwcp.compression.manifest import Chunk, Limits, Manifest
from dwcp.compression.pacing import Outlook
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Record
from dwcp.consensus.crypto.hashes import SIZE as ADDRESS_SIZE
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.packflow import SLICE_BYTES, Inflow, Moved, Pacer
from dwcp.runtime.trees import materialise

HAVE_PATH = "/v1/chunks/have"
PACKS_PATH = "/v1/packs"
MANIFESTS_PATH = "/v1/manifests"
Extensions = dict[str, Any] | None  # of a request; Any: httpx's own
_ERROR_BYTES_MAX = 4096
_STREAMS = 2  # of one source: one is packed while the other is sent
_SEGMENT_PACKS = 4


class PackRequest(Record, frozen=True):
    """`POST /v1/packs`: the plan, the first pack wanted, the asker's link and the codecs that it reads."""

    plan: tuple[Chunk, ...]
    first: int
    rate_bps: int
    codecs: tuple[str, ...]


_pack_request: codec.Codec[PackRequest] = codec.Codec(PackRequest)


@dataclass(frozen=True, slots=True)
class Source:
    """Somebody who may have the payload. `url` is the base of its agent, for example https://127.0.0.31:7070."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Raw bytes of the payload that are here, of all, and of these moved by this pull; wire bytes that came;
    seconds left, once known."""

    done_bytes: int
    total_bytes: int
    moved_bytes: int
    wire_bytes: int
    eta_s: float | None
    source: str
    codec: str


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a pull goes on without any progress. Progress starts the count again."""

    failures: int = 12  # in a row, over all sources
    first_pause_s: float = 0.2
    longest_pause_s: float = 5.0
    stall_s: float = 10.0  # silence after which a connection counts as broken

    def pause_s(self, failures: int) -> float:
        return float(min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(failures - 1, 20)))


Tell = Callable[[Progress], None]


def decode_pack_request(data: bytes) -> PackRequest:
    """From anybody. Raises `RequestInvalid`."""
    try:
        request = _pack_request.decode(data)
    except MalformedFrame as exc:
        raise RequestInvalid(f"this is no request for packs: {exc}") from exc
    if len(request.plan) > packs.PLAN_CHUNKS_MAX:
        raise RequestInvalid(f"{len(request.plan)} chunks in one plan, {packs.PLAN_CHUNKS_MAX} are allowed")
    if any(not 0 < chunk.size <= CHUNK_BYTES_MAX for chunk in request.plan):
        raise RequestInvalid("a chunk in the plan has an impossible size")
    if not 0 <= request.first <= len(packs.group(request.plan)):
        raise RequestInvalid(f"pack {request.first} is beyond the end of the plan")
    return request


async def have(
    client: httpx.AsyncClient,
    url: str,
    plan: Sequence[Chunk],
    *,
    stall_s: float = 10.0,
    extensions: Extensions = None,
) -> list[bool]:
    """Which chunks the agent at `url` has. Raises `SourceFailed` or `SourceLied`."""
    found: list[bool] = []
    for start in range(0, len(plan), packs.PLAN_CHUNKS_MAX):
        part = plan[start : start + packs.PLAN_CHUNKS_MAX]
        body = b"".join(chunk.address for chunk in part)
        answer = await exchange(
            client,
            "POST",
            url + HAVE_PATH,
            body=body,
            size_max=len(part),
            stall_s=stall_s,
            extensions=extensions,
        )
        try:
            found += intake.flags(answer, len(part))
        except RequestInvalid as exc:
            raise SourceLied(str(exc)) from exc
    return found


async def pull(
    root: bytes,
    sources: Sequence[Source],
    *,
    store: ChunkStore,
    owner: str,
    client: httpx.AsyncClient,
    pacer: Pacer | None = None,
    tell: Tell | None = None,
    patience: Patience = Patience(),
) -> Manifest:
    """Makes the payload complete and durable in the store, as the owner's; returns its manifest.

    Raises `ShipFailed` when patience has run out or every source has lied, `StoreFull` and other
    errors of the own store at once. Cancelling is safe at any time; what is here stays.
    """
    if await asyncio.to_thread(store.adopt, root, owner=owner):
        return store.manifest(root)
    job = _Pull(sources, store, client, pacer or Pacer(), tell, patience)
    failpoint("ship.target.before_manifest")
    manifest = await job.manifest(root, store.limits)
    failpoint("ship.target.after_manifest")
    with store.hold(manifest.chunks()):
        await job.chunks(manifest)
        failpoint("ship.target.before_complete")
        await asyncio.to_thread(store.commit, manifest, owner=owner)
        failpoint("ship.target.after_complete")
    return manifest


async def download(
    client: httpx.AsyncClient,
    url: str,
    root: bytes,
    directory: Path,
    *,
    tell: Tell | None = None,
    patience: Patience = Patience(failures=4),
    limits: Limits = Limits(),
) -> Manifest:
    """A payload or output from one agent into a new or empty directory, everything verified.

    What has come is kept beside the directory until it is complete, so that the same call goes on.
    """
    await asyncio.to_thread(_require_empty, directory)
    partial = directory.parent / f".{directory.name}.dwcp-partial"
    store = await asyncio.to_thread(ChunkStore.open, partial, limits=limits)
    source = Source(url, url)
    manifest = await pull(
        root,
        [source],
        store=store,
        owner="download",
        client=client,
        tell=tell,
        patience=patience,
    )
    await asyncio.to_thread(materialise, manifest, store, directory)
    await asyncio.to_thread(shutil.rmtree, partial)
    return manifest


def _require_empty(directory: Path) -> None:
    """Before anything is fetched for it."""
    if not directory.is_symlink() and not directory.exists():
        return
    if directory.is_symlink() or not directory.is_dir() or any(directory.iterdir()):
        raise PayloadRefused(f"{directory} exists and is not an empty directory; choose another")


class _Pull:
    """The sources of one pull, what they have done, and the account of progress."""

    def __init__(
        self,
        sources: Sequence[Source],
        store: ChunkStore,
        client: httpx.AsyncClient,
        pacer: Pacer,
        tell: Tell | None,
        patience: Patience,
    ) -> None:
        self._sources = list(sources)
        self._store = store
        self._client = client
        self._pacer = pacer
        self._tell = tell
        self._patience = patience
        self._failures = 0
        self._turn = 0
        self._last = "there is no source"
        self._done = self._at_start = self._total = self._wire = 0
        self._outlook = Outlook(now_s=asyncio.get_running_loop().time())

    async def manifest(self, root: bytes, limits: Limits) -> Manifest:
        """From the first source that has it, verified against the root."""
        while True:
            async with self._attempt() as source:
                url = f"{source.url}{MANIFESTS_PATH}/{root.hex()}"
                data = await self._get(url, limits.manifest_bytes)
                try:
                    manifest = await asyncio.to_thread(manifests.decode, data, limits)
                except ManifestInvalid as exc:
                    raise SourceLied(f"{source.name} sent a manifest that breaks the rules: {exc}") from exc
                if manifests.root(manifest) != root:
                    raise SourceLied(f"{source.name} sent another manifest than {root.hex()[:12]}")
                self._failures = 0
                return manifest

    async def chunks(self, manifest: Manifest) -> None:
        """Until none is missing."""
        plan = intake.plan(manifest)
        self._total = sum(chunk.size for chunk in plan)
        self._outlook = Outlook(now_s=asyncio.get_running_loop().time())
        missing = await asyncio.to_thread(self._store.missing, plan)
        self._done = self._at_start = self._total - sum(chunk.size for chunk in missing)
        while missing:
            self._require_hope()
            before = self._done
            await self._round(missing)
            missing = await asyncio.to_thread(self._store.missing, missing)
            if missing and self._done == before and self._sources:
                await asyncio.sleep(self._patience.pause_s(max(1, self._failures)))
        self._say(Source("", ""), "none")

    async def _round(self, missing: list[Chunk]) -> None:
        """Every source gives what it has, side by side, each segment once, over a few streams a source.

        A source that fails or lies ends its part of the round; what it left is for the next round.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                questions = [tasks.create_task(self._held_by(source, missing)) for source in self._sources]
            shares = [question.result() for question in questions]
            segments = _segments(missing, {chunk.address for _, held in shares for chunk in held})
            async with asyncio.TaskGroup() as tasks:
                for source, held in shares:
                    names = {chunk.address for chunk in held}
                    for _ in range(_STREAMS if held else 0):
                        tasks.create_task(self._take_segments(source, names, segments))
        except BaseExceptionGroup as group:  # of the own store: nothing that another source could mend
            raise _first(group) from group

    async def _held_by(self, source: Source, missing: list[Chunk]) -> tuple[Source, list[Chunk]]:
        try:
            flags = await have(self._client, source.url, missing, stall_s=self._patience.stall_s)
        except SourceFailed as exc:
            self._note(source, exc)
            return source, []
        held = [chunk for chunk, there in zip(missing, flags, strict=True) if there]
        if not held:
            nothing = f"{source.name} has none of the {len(missing)} chunks that are missing"
            self._note(source, SourceFailed(nothing))
        return source, held

    async def _take_segments(self, source: Source, names: set[bytes], segments: deque[list[Chunk]]) -> None:
        """One stream's share: segments of which the source has something, until none is left."""
        passed: list[list[Chunk]] = []
        while segments and source in self._sources:
            segment = segments.popleft()
            plan = [chunk for chunk in segment if chunk.address in names]
            if rest := [chunk for chunk in segment if chunk.address not in names]:
                passed.append(rest)
            try:
                if plan:
                    await self._plan(source, plan)
            except (SourceFailed, ContainerInvalid) as exc:
                self._note(source, exc)
                break
        segments.extend(passed)  # for streams of other sources

    def _note(self, source: Source, exc: SourceFailed | ContainerInvalid) -> None:
        """Counts a failure, or drops a source that lied."""
        if isinstance(exc, SourceLied):
            if source in self._sources:
                self._sources.remove(source)
            self._last = f"{source.name} is not asked again: {exc}"
            return
        self._failures += 1
        self._last = f"{source.name}: {exc}"

    def _require_hope(self) -> None:
        if not self._sources or self._failures >= self._patience.failures:
            raise ShipFailed(f"the payload cannot be had: {self._last}")

    async def _plan(self, source: Source, plan: list[Chunk]) -> None:
        """One plan; a stream that breaks off after some packs is taken up at the next one."""
        done = 0
        while done < len(packs.group(plan)):
            inflow = Inflow(plan, self._store, first=done, report=lambda moved: self._moved(source, moved))
            try:
                await self._stream(source, plan, inflow)
            except (SourceFailed, ContainerInvalid) as exc:
                if isinstance(exc, SourceLied) or inflow.done == done:
                    raise
                self._last = f"{source.name}: {exc}"
            done = inflow.done

    async def _stream(self, source: Source, plan: list[Chunk], inflow: Inflow) -> None:
        request = PackRequest(
            tuple(plan), inflow.done, int(self._pacer.rate_bps), tuple(each.name for each in CODECS)
        )
        timeout = httpx.Timeout(self._patience.stall_s)
        body = codec.encode(request)
        before = self._wire
        try:
            async with self._client.stream(
                "POST", source.url + PACKS_PATH, content=body, timeout=timeout
            ) as response:
                await _require_success(response)
                async for data in response.aiter_raw(SLICE_BYTES):
                    await self._pacer.take(len(data))
                    self._wire += len(data)
                    await inflow.feed(data)
        except (httpx.HTTPError, OSError) as exc:
            raise SourceFailed(
                f"{source.url}: {str(exc) or type(exc).__name__} after {self._wire - before} bytes"
            ) from exc
        inflow.finish()

    async def _get(self, url: str, size_max: int) -> bytes:
        return await exchange(
            self._client,
            "GET",
            url,
            size_max=size_max,
            stall_s=self._patience.stall_s,
            pass_size=self._pacer.take,
        )

    @contextlib.asynccontextmanager
    async def _attempt(self) -> AsyncIterator[Source]:
        """One try with the next source: counts its failure and pauses, or drops it when it lied."""
        source = self._next()
        try:
            yield source
        except (SourceFailed, ContainerInvalid) as exc:
            self._note(source, exc)
            if self._failures < self._patience.failures and not isinstance(exc, SourceLied):
                await asyncio.sleep(self._patience.pause_s(self._failures))

    def _next(self) -> Source:
        self._require_hope()
        source = self._sources[self._turn % len(self._sources)]
        self._turn += 1
        return source

    def _moved(self, source: Source, moved: Moved) -> None:
        self._failures = 0
        self._done += moved.raw_bytes
        self._say(source, moved.codec)

    def _say(self, source: Source, codec_name: str) -> None:
        if self._tell is None:
            return
        moved = self._done - self._at_start
        now_s = asyncio.get_running_loop().time()
        eta = self._outlook.left_s(moved, self._total - self._at_start, now_s=now_s)
        self._tell(Progress(self._done, self._total, moved, self._wire, eta, source.name, codec_name))


def _segments(missing: list[Chunk], names: set[bytes]) -> deque[list[Chunk]]:
    """What can be had somewhere, in stretches that one stream takes at a time."""
    groups = packs.group(chunk for chunk in missing if chunk.address in names)
    return deque(
        [chunk for group in groups[at : at + _SEGMENT_PACKS] for chunk in group]
        for at in range(0, len(groups), _SEGMENT_PACKS)
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


async def exchange(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    size_max: int,
    stall_s: float,
    body: bytes = b"",
    pass_size: Callable[[int], Awaitable[None]] | None = None,
    extensions: Extensions = None,
) -> bytes:
    """A whole answer of at most `size_max` bytes. Raises `SourceFailed` or `SourceLied`."""
    data = bytearray()
    try:
        async with client.stream(
            method, url, content=body, timeout=httpx.Timeout(stall_s), extensions=extensions
        ) as response:
            await _require_success(response)
            async for piece in response.aiter_raw(SLICE_BYTES):
                data += piece
                if len(data) > size_max:
                    raise SourceLied(f"{url} answers with more than {size_max} bytes")
                if pass_size is not None:
                    await pass_size(len(piece))
    except (httpx.HTTPError, OSError) as exc:
        raise SourceFailed(f"{url}: {str(exc) or type(exc).__name__}") from exc
    return bytes(data)


async def _require_success(response: httpx.Response) -> None:
    if response.status_code == httpx.codes.OK:
        return
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > _ERROR_BYTES_MAX:
            break
    raise SourceFailed(sentence(response.status_code, bytes(body)))


class _Detail(msgspec.Struct, frozen=True):
    detail: str


class _Problem(msgspec.Struct, frozen=True):
    error: _Detail


def sentence(status: int, body: bytes) -> str:
    """What a refused request says, for people; never raises, because the peer may be anything."""
    try:
        return msgspec.json.decode(body, type=_Problem).error.detail[:500]
    except (msgspec.DecodeError, RecursionError):
        return f"it answered {status}: {body[:200].decode('utf-8', 'replace').strip() or 'no explanation'}"


def unreachable(url: str, exc: Exception) -> SourceFailed:
    """What a connection that failed means: another try may succeed."""
    return SourceFailed(f"the agent at {url} cannot be reached: {str(exc) or type(exc).__name__}")


def require_taken(url: str, response: httpx.Response) -> None:
    """Raises what an agent's refusal of a payload means: `SourceFailed` where another try may succeed.

    404 is one of those: a chunk that the agent had named may have been swept since; the next try asks anew.
    """
    if response.status_code != httpx.codes.OK:
        kind = SourceFailed if response.status_code in {404, 502, 503} else TransferError
        refused = sentence(response.status_code, response.content)
        raise kind(f"the agent at {url} refused the payload: {refused}")


def address_list(body: bytes) -> tuple[bytes, ...]:
    """The addresses of a request. Raises `RequestInvalid`."""
    if len(body) % ADDRESS_SIZE or len(body) > packs.PLAN_CHUNKS_MAX * ADDRESS_SIZE:
        raise RequestInvalid(
            f"{len(body)} bytes are no list of addresses: "
            f"{ADDRESS_SIZE} bytes each, at most {packs.PLAN_CHUNKS_MAX}"
        )
    return tuple(body[at : at + ADDRESS_SIZE] for at in range(0, len(body), ADDRESS_SIZE))
