"""Handing a payload to an agent: only those chunks travel that it lacks.

Chunks travel while the files are still being read (`runtime.pushing`); the manifest names them at the end.
Both sides compute its root from the bytes that they hold, so the submitter knows that the agent has exactly
its files. An upload that broke off goes on when it is repeated.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx
import msgspec

from dwcp.api.workloads import Shape
from dwcp.compression import intake
from dwcp.compression import manifest as manifests
from dwcp.compression.errors import (
    ContainerInvalid,
    RequestInvalid,
    SourceFailed,
    SourceLied,
    StoreFull,
)
from dwcp.compression.manifest import Chunk, Manifest
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.held import newest
from dwcp.runtime.packflow import Chooser, FixedChooser, Inflow, Outflow, Pacer, stream
from dwcp.runtime.pushing import Pushed, Road, push
from dwcp.runtime.shipping import require_taken, sentence, unreachable
from dwcp.runtime.trees import Tree, read_tree

__all__ = ["Uploaded", "read_tree", "receive", "upload"]

PAYLOADS_PATH = "/v1/payloads"
SENT_PATH = "/v1/sent"
SENT = "sent-"  # owners of payloads that somebody sent under a name
_PAUSES_S = (0.2, 1.0, 2.0, 4.0, 8.0)  # between tries: an agent that was killed is back within seconds
_ANSWER_S_MAX = 120.0  # the agent syncs every chunk before it answers


class Uploaded(Shape, frozen=True):
    """The agent's answer: what it holds now. `received_bytes` is what had to travel."""

    root: str
    bytes: int
    files: int
    received_bytes: int


class Sent(Shape, frozen=True):
    """A payload that an agent holds under a name."""

    name: str
    root: str
    bytes: int
    files: int


class SentList(Shape, frozen=True):
    """`GET /v1/sent`."""

    sent: tuple[Sent, ...]


@dataclass(frozen=True, slots=True)
class Handed:
    """How far a submission is. `stage` is "sending" or "checking"; bytes are raw, those that are at the
    agent, those of all files, and those that had to travel."""

    stage: str
    done_bytes: int
    total_bytes: int
    sent_bytes: int


Tell = Callable[[Handed], None]


async def upload(
    client: httpx.AsyncClient,
    url: str,
    tree: Tree,
    *,
    workload: str = "",
    name: str = "",
    tell: Tell | None = None,
    chooser: Chooser = FixedChooser("zstd-3"),
    pacer: Pacer | None = None,
) -> Uploaded:
    """Gives the tree to the agent at `url` on behalf of a workload, or under a name.

    Raises `PayloadChanged`, or `TransferError` with the agent's sentence.
    """
    own = secrets.token_hex(16)
    query = urlencode({"workload": workload, "name": name, "push": own})
    for pause_s in (*_PAUSES_S, None):
        progress = _Handing(tree.total_bytes, tell)
        road = Road(client, url, chooser, pacer or Pacer(), progress.settled, own)
        try:
            pushed = await push(tree, road)
            progress.checking()
            answer = await _commit(client, url, pushed, query)
            return msgspec.structs.replace(answer, received_bytes=pushed.sent_bytes)
        except SourceFailed:
            if pause_s is None:
                raise
            await asyncio.sleep(pause_s)
    raise AssertionError("unreachable")


async def receive(body: AsyncIterator[bytes], store: ChunkStore, *, owner: str) -> Uploaded:
    """Takes an upload from anybody into the store and commits it.

    Raises `TransferError`. After a failure what came is kept for the next try, unless the disk is full.
    """
    prelude = intake.PreludeReader(store.limits, lambda path: newest(store, path))
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


async def _commit(client: httpx.AsyncClient, url: str, pushed: Pushed, query: str) -> Uploaded:
    """Names the payload whose chunks the agent has; the answer comes when all of it is durable there."""
    outflow = Outflow(_nothing, FixedChooser("none").begin(), Pacer(), rate_bps=1.0)

    async def body() -> AsyncIterator[bytes]:
        yield pushed.prelude
        async for piece in stream((), outflow):
            yield piece

    address_of = f"{url}{PAYLOADS_PATH}?{query}"
    timeout = httpx.Timeout(_ANSWER_S_MAX, connect=10.0)
    try:
        response = await client.post(address_of, content=body(), timeout=timeout)
    except (httpx.HTTPError, OSError) as exc:
        raise unreachable(url, exc) from exc
    return _answer(url, response, pushed.manifest)


async def sent_list(client: httpx.AsyncClient, url: str) -> tuple[Sent, ...]:
    """What the agent holds under names. Raises `SourceFailed`."""
    try:
        response = await client.get(url + SENT_PATH)
    except (httpx.HTTPError, OSError) as exc:
        raise unreachable(url, exc) from exc
    if response.status_code != httpx.codes.OK:
        raise SourceFailed(f"the agent at {url}: {sentence(response.status_code, response.content)}")
    try:
        return msgspec.json.decode(response.content, type=SentList).sent
    except (msgspec.DecodeError, RecursionError) as exc:
        raise SourceFailed(f"the agent at {url} answers something else: {exc}") from exc


def _nothing(chunk: Chunk) -> bytes:
    raise AssertionError(f"a stream without chunks asks for {chunk.address.hex()}")


def _answer(url: str, response: httpx.Response, manifest: Manifest) -> Uploaded:
    require_taken(url, response)
    try:
        answer = msgspec.json.decode(response.content, type=Uploaded)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise SourceFailed(f"the agent at {url} answers something else: {exc}") from exc
    if answer.root != manifests.root(manifest).hex():
        raise SourceLied(f"the agent at {url} holds another payload than the one that was sent")
    return answer


class _Handing:
    """Adds up how far a submission is."""

    def __init__(self, total_bytes: int, tell: Tell | None) -> None:
        self._tell = tell or (lambda _: None)
        self._total = total_bytes
        self._done = 0
        self._sent = 0
        self._tell(Handed("sending", 0, total_bytes, 0))

    def settled(self, size: int, sent: int) -> None:
        self._done += size
        self._sent += sent
        self._tell(Handed("sending", self._done, self._total, self._sent))

    def checking(self) -> None:
        self._tell(Handed("checking", self._done, self._total, self._sent))
