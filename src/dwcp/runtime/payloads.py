"""Handing a payload to an agent: files are named first, then only those chunks travel that it lacks.

Both sides compute the manifest's root from the bytes that they hold, so the submitter knows that the
agent has exactly its files. An upload that broke off goes on when it is repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from urllib.parse import quote

import httpx
import msgspec

from dwcp.api.workloads import Shape
from dwcp.compression import intake
from dwcp.compression import manifest as manifests
from dwcp.compression.chunking import address
from dwcp.compression.errors import (
    ContainerInvalid,
    PayloadChanged,
    RequestInvalid,
    SourceFailed,
    SourceLied,
    StoreFull,
    TransferError,
)
from dwcp.compression.manifest import Chunk, Kind, Manifest
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.packflow import Chooser, FixedChooser, Inflow, Outflow, Pacer, stream
from dwcp.runtime.shipping import have, sentence
from dwcp.runtime.trees import Node, Tree, index, read_at, read_tree

__all__ = ["Uploaded", "read_tree", "receive", "upload"]

PAYLOADS_PATH = "/v1/payloads"
_PAUSES_S = (0.2, 1.0, 2.0, 4.0, 8.0)  # between tries: an agent that was killed is back within seconds
_ANSWER_S_MAX = 120.0  # the agent syncs every chunk before it answers


class Uploaded(Shape, frozen=True):
    """The agent's answer: what it holds now. `received_bytes` is what had to travel."""

    root: str
    bytes: int
    files: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class Handed:
    """How far a submission is. `stage` is "reading" or "sending"; bytes are raw."""

    stage: str
    done_bytes: int
    total_bytes: int


Tell = Callable[[Handed], None]


async def upload(
    client: httpx.AsyncClient,
    url: str,
    tree: Tree,
    *,
    workload: str,
    tell: Tell | None = None,
    chooser: Chooser = FixedChooser("lz4"),
    pacer: Pacer | None = None,
) -> Uploaded:
    """Gives the tree to the agent at `url` on behalf of a workload.

    Raises `PayloadChanged`, or `TransferError` with the agent's sentence.
    """
    progress = _Handing(tree.total_bytes, tell)
    manifest = await asyncio.to_thread(index, tree, advance=progress.reading)
    for pause_s in (*_PAUSES_S, None):
        try:
            return await _send(client, url, tree, manifest, workload, progress, chooser, pacer or Pacer())
        except SourceFailed:
            if pause_s is None:
                raise
            await asyncio.sleep(pause_s)
    raise AssertionError("unreachable")


async def receive(body: AsyncIterator[bytes], store: ChunkStore, *, owner: str) -> Uploaded:
    """Takes an upload from anybody into the store and commits it.

    Raises `TransferError`. After a failure what came is kept for the next try, unless the disk is full.
    """
    prelude = intake.PreludeReader(store.limits)
    async for data in body:
        opened = prelude.feed(data)
        if opened is not None:
            break
    else:
        raise RequestInvalid("the upload is cut before its end; send it again")
    manifest, sent, first = opened
    with store.hold(manifest.chunks()):
        try:
            await _take(body, first, sent, store)
            root = await asyncio.to_thread(store.commit, manifest, owner=owner)
        except StoreFull as exc:
            failure = exc
        else:
            received = sum(chunk.size for chunk in sent)
            return Uploaded(root.hex(), manifest.total_bytes, manifest.file_count, received)
    await asyncio.to_thread(store.sweep)  # a full disk must not stay full of what failed
    raise failure


async def _take(body: AsyncIterator[bytes], first: bytes, sent: tuple[Chunk, ...], store: ChunkStore) -> None:
    inflow = Inflow(sent, store)
    try:
        await inflow.feed(first)
        async for data in body:
            await inflow.feed(data)
        inflow.finish()
    except SourceLied as exc:
        raise RequestInvalid(f"the upload does not hold what its manifest says: {exc}") from exc
    except ContainerInvalid as exc:
        raise RequestInvalid(f"the upload broke off: {exc}; send it again") from exc


async def _send(
    client: httpx.AsyncClient,
    url: str,
    tree: Tree,
    manifest: Manifest,
    workload: str,
    progress: _Handing,
    chooser: Chooser,
    pacer: Pacer,
) -> Uploaded:
    plan = intake.plan(manifest)
    there = await have(client, url, plan)
    sent = tuple(chunk for chunk, held in zip(plan, there, strict=True) if not held)
    places = _Places(tree, manifest)
    progress.sending(sent)
    outflow = Outflow(
        places.load,
        chooser,
        pacer,
        pacer.rate_bps,
        report=lambda moved: progress.sent(moved.raw_bytes),
    )

    own: list[
        TransferError
    ] = []  # what went wrong on this side; whatever the agent then says follows from it

    async def body() -> AsyncIterator[bytes]:
        yield intake.prelude(manifest, {chunk.address for chunk in sent})
        try:
            async for piece in stream(sent, outflow):
                yield piece
        except TransferError as exc:
            own.append(exc)
            raise

    address_of = f"{url}{PAYLOADS_PATH}?workload={quote(workload, safe='')}"
    timeout = httpx.Timeout(_ANSWER_S_MAX, connect=10.0)
    try:
        response = await client.post(address_of, content=body(), timeout=timeout)
    except (httpx.HTTPError, OSError) as exc:
        if own:
            raise own[0] from exc
        raise SourceFailed(f"the agent at {url} cannot be reached: {str(exc) or type(exc).__name__}") from exc
    if own:
        raise own[0]
    return _answer(url, response, manifest)


def _answer(url: str, response: httpx.Response, manifest: Manifest) -> Uploaded:
    if response.status_code != httpx.codes.OK:
        refused = sentence(response.status_code, response.content)
        # A chunk that the agent had promised may have been swept meanwhile: that is worth another try.
        kind = SourceFailed if response.status_code in {404, 502, 503} else TransferError
        raise kind(f"the agent at {url} refused the payload: {refused}")
    try:
        answer = msgspec.json.decode(response.content, type=Uploaded)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise SourceFailed(f"the agent at {url} answers something else: {exc}") from exc
    if answer.root != manifests.root(manifest).hex():
        raise SourceLied(f"the agent at {url} holds another payload than the one that was sent")
    return answer


class _Places:
    """Where in the tree the bytes of each chunk are, to read them a second time."""

    def __init__(self, tree: Tree, manifest: Manifest) -> None:
        self._tree = tree
        self._places: dict[bytes, tuple[Node, int]] = {}
        nodes = {node.path: node for node in tree.nodes}
        for entry in manifest.entries:
            offset = 0
            for chunk in entry.chunks if entry.kind == Kind.FILE else ():
                self._places.setdefault(chunk.address, (nodes[entry.path], offset))
                offset += chunk.size

    def load(self, chunk: Chunk) -> bytes:
        """Raises `PayloadChanged` where the file no longer holds it."""
        node, offset = self._places[chunk.address]
        data = read_at(self._tree, node, offset, chunk.size)
        if address(data) != chunk.address:
            raise PayloadChanged(
                f"payload changed while it was read: {manifests.shown(node.path)}; submit again"
            )
        return data


class _Handing:
    """Adds up the two stages of a submission."""

    def __init__(self, total_bytes: int, tell: Tell | None) -> None:
        self._tell = tell or (lambda _: None)
        self._total = total_bytes
        self._done = 0

    def reading(self, size: int) -> None:
        self._done += size
        self._tell(Handed("reading", self._done, self._total))

    def sending(self, sent: tuple[Chunk, ...]) -> None:
        self._done, self._total = 0, sum(chunk.size for chunk in sent)
        self._tell(Handed("sending", 0, self._total))

    def sent(self, size: int) -> None:
        self._done += size
        self._tell(Handed("sending", self._done, self._total))
