"""The data path of an agent over HTTP: taking payloads, and giving chunks, manifests and outputs.

Mounted by the agent on its mutual TLS listener. `STREAM_PATHS` have bodies that the routes here
limit themselves.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from dwcp.compression import manifest as manifests
from dwcp.compression.errors import (
    ChunkDamaged,
    ChunkMissing,
    ManifestMissing,
    RequestInvalid,
    TransferError,
)
from dwcp.compression.intake import bitmap
from dwcp.compression.manifest import Chunk, Kind, Manifest
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.held import HELD_PATH, NEAR_PATH, held_answer, near_answer
from dwcp.runtime.http import Refusal, json_response, principal
from dwcp.runtime.linkmeter import LinkMeter
from dwcp.runtime.packflow import Chooser, Moved, Outflow, Pacer, stream
from dwcp.runtime.payloads import PAYLOADS_PATH, SENT, SENT_PATH, Sent, SentList, receive
from dwcp.runtime.pushes import Pushes
from dwcp.runtime.pushing import CHUNKS_PATH
from dwcp.runtime.shipping import (
    HAVE_PATH,
    MANIFESTS_PATH,
    PACKS_PATH,
    address_list,
    decode_pack_request,
)
from dwcp.runtime.telemetry import Telemetry

SHARING_PATHS = (PACKS_PATH, HAVE_PATH)  # asked by other agents; payloads come from submitters alone
STREAM_PATHS = (PAYLOADS_PATH, CHUNKS_PATH, *SHARING_PATHS)
OUTPUTS_PATH = "/v1/outputs"
REQUEST_BYTES_MAX = 4 << 20
_STREAMS_MAX = 16  # each holds up to two packs in memory
_METERS_MAX = 256
_DRAIN_BYTES_MAX = 16 << 20
_DRAIN_S_MAX = 5.0

_SENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_PUSH = re.compile(r"[0-9a-f]{32}")
_WORKLOAD = re.compile(r"w-[a-z0-9]{1,32}")

StoreOf = Callable[[Request], ChunkStore]


def routes(
    store_of: StoreOf | ChunkStore,
    *,
    chooser: Chooser,
    uplink: Pacer,
    telemetry: Telemetry | None = None,
    expect: Callable[[], None] = lambda: None,
) -> APIRouter:
    """`store_of` gives the store of the caller's tenant, or is the only store. `expect` is called when a payload
    comes in that will be asked for: `chooser` may then get ready."""
    routes_ = _Routes(store_of, chooser, uplink, telemetry, expect)
    router = APIRouter()
    for method, path, route in (
        ("POST", PAYLOADS_PATH, routes_.take_payload),
        ("POST", CHUNKS_PATH, routes_.take_chunks),
        ("POST", HELD_PATH, routes_.say_how_files_were_cut),
        ("POST", NEAR_PATH, routes_.say_what_is_near),
        ("POST", HAVE_PATH, routes_.say_what_is_here),
        ("POST", PACKS_PATH, routes_.send_packs),
        ("GET", MANIFESTS_PATH + "/{root}", routes_.send_manifest),
        ("GET", SENT_PATH, routes_.list_sent),
        ("DELETE", SENT_PATH + "/{name}", routes_.remove_sent),
        ("GET", OUTPUTS_PATH + "/{root}", routes_.list_output),
        ("GET", OUTPUTS_PATH + "/{root}/files/{path:path}", routes_.send_file),
    ):
        router.add_api_route(path, route, methods=[method], response_model=None)
    return router


class _Routes:
    """The handlers and what they share."""

    def __init__(
        self,
        store_of: StoreOf | ChunkStore,
        chooser: Chooser,
        uplink: Pacer,
        telemetry: Telemetry | None,
        expect: Callable[[], None],
    ) -> None:
        self._store_of = store_of
        self._expect = expect
        self._chooser = chooser
        self._uplink = uplink
        self._telemetry = telemetry
        self._streams = 0
        self._meters: dict[str, LinkMeter] = {}
        self._pushes = Pushes(clock=time.monotonic)

    async def take_payload(
        self, request: Request, workload: str = "", push: str = "", name: str = ""
    ) -> Response:
        """For a workload, whose end gives it back; or under a name, until it is removed or sent again."""
        owner = SENT + name if _SENT_NAME.fullmatch(name) and not workload else workload
        if not name and not _WORKLOAD.fullmatch(workload):  # any other claim would never be given back
            raise Refusal(400, "request_invalid", "say which workload the payload is for: ?workload=w-…")
        if not owner:
            raise Refusal(400, "request_invalid", f"{name[:80]!r} is no name: letters, digits, '.', '_', '-'")
        store = self._store(request)
        self._expect()
        try:
            uploaded = await receive(request.stream(), store, owner=owner)
        except TransferError as exc:
            await _drain(request)  # or the submitter would see a broken connection instead of the sentence
            raise self._refused(exc) from exc
        except ClientDisconnect as exc:
            raise Refusal(400, "cut", "the submitter went away; what came is kept for its next try") from exc
        self._count("in", uploaded.received_bytes)
        self._pushes.end(push)
        if owner.startswith(SENT):
            await asyncio.to_thread(_release_others, store, owner, bytes.fromhex(uploaded.root))
        return json_response(uploaded)

    async def list_sent(self, request: Request) -> Response:
        """What is held under names."""
        return json_response(await asyncio.to_thread(_sent_in, self._store(request)))

    async def remove_sent(self, request: Request, name: str) -> Response:
        """Gives a named payload back; one that is not there is gone already."""
        if not _SENT_NAME.fullmatch(name):
            raise Refusal(400, "request_invalid", f"{name[:80]!r} is no name: letters, digits, '.', '_', '-'")
        await asyncio.to_thread(self._store(request).release_owner, SENT + name)
        return json_response(SentList(()))

    async def take_chunks(self, request: Request, push: str) -> Response:
        """Packs of a push: kept loose until a payload names their chunks."""
        if not _PUSH.fullmatch(push):
            raise Refusal(400, "request_invalid", "a push has a name of 32 hexadecimal digits")
        if self._streams >= _STREAMS_MAX:
            raise Refusal(503, "busy", f"{_STREAMS_MAX} transfers run here already; try again")
        self._streams += 1
        try:
            raw = await self._pushes.take(push, request.stream(), self._store(request))
        except TransferError as exc:
            await _drain(request)
            raise self._refused(exc) from exc
        except ClientDisconnect as exc:
            raise Refusal(400, "cut", "the sender went away; what came is kept for its next try") from exc
        finally:
            self._streams -= 1
        self._count("in", raw)
        return json_response({"bytes": raw})

    async def say_what_is_here(self, request: Request) -> Response:
        store = self._store(request)
        try:
            names = address_list(await _body(request))
        except TransferError as exc:
            raise self._refused(exc) from exc
        held = await asyncio.to_thread(lambda: [store.has(name) for name in names])
        return Response(bitmap(held), media_type="application/octet-stream")

    async def say_how_files_were_cut(self, request: Request) -> Response:
        return await self._said(request, held_answer)

    async def say_what_is_near(self, request: Request) -> Response:
        return await self._said(request, near_answer)

    async def _said(self, request: Request, answer_of: Callable[[bytes, ChunkStore], bytes]) -> Response:
        try:
            body = await _body(request)
            answer = await asyncio.to_thread(answer_of, body, self._store(request))
        except TransferError as exc:
            raise self._refused(exc) from exc
        return Response(answer, media_type="application/octet-stream")

    async def send_packs(self, request: Request) -> Response:
        store = self._store(request)
        try:
            wanted = decode_pack_request(await _body(request))
            absent = await asyncio.to_thread(store.missing, wanted.plan)
            if absent:
                raise ChunkMissing(f"{len(absent)} of {len(wanted.plan)} chunks are not here; ask what is")
        except TransferError as exc:
            raise self._refused(exc) from exc
        if self._streams >= _STREAMS_MAX:
            raise Refusal(503, "busy", f"{_STREAMS_MAX} transfers run from here already; try again")
        rate = min(float(max(1, wanted.rate_bps)), self._uplink.rate_bps)

        def load(chunk: Chunk) -> bytes:
            try:
                return store.get(chunk.address)
            except ChunkDamaged:
                store.recheck(each.address for each in wanted.plan)
                raise

        outflow = Outflow(
            load,
            self._chooser.begin(peer=principal(request).name, allowed=frozenset(wanted.codecs)),
            self._uplink,
            rate,
            report=self._sent(),
            meter=self._meter(request, rate),
        )
        body = self._counted(wanted.plan, stream(wanted.plan, outflow, first=wanted.first), store)
        return StreamingResponse(body, media_type="application/vnd.dwcp.container")

    async def send_manifest(self, request: Request, root: str) -> Response:
        manifest = self._manifest(request, root)
        encoded = await asyncio.to_thread(manifests.encode, manifest)

        async def paced() -> AsyncIterator[bytes]:
            for at in range(0, len(encoded), 64 << 10):
                await self._uplink.take(len(encoded[at : at + (64 << 10)]))
                yield encoded[at : at + (64 << 10)]

        return StreamingResponse(paced(), media_type="application/octet-stream")

    async def list_output(self, request: Request, root: str) -> Response:
        manifest = self._manifest(request, root)
        entries = [_shown(entry) for entry in manifest.entries]
        return json_response(
            {
                "root": root,
                "bytes": manifest.total_bytes,
                "files": manifest.file_count,
                "entries": entries,
            }
        )

    async def send_file(self, request: Request, root: str, path: str) -> Response:
        manifest = self._manifest(request, root)
        store = self._store(request)
        found = next((e for e in manifest.entries if e.path == path and e.kind == Kind.FILE), None)
        if found is None:
            raise Refusal(404, "file_missing", f"{manifests.shown(path)} is no file of {root[:12]}")

        async def content() -> AsyncIterator[bytes]:
            for chunk in found.chunks:
                data = await asyncio.to_thread(store.get, chunk.address)
                await self._uplink.take(len(data))
                yield data

        headers = {"Content-Length": str(found.size)}
        return StreamingResponse(content(), headers=headers, media_type="application/octet-stream")

    # inside

    def _store(self, request: Request) -> ChunkStore:
        return self._store_of if isinstance(self._store_of, ChunkStore) else self._store_of(request)

    def _manifest(self, request: Request, root: str) -> Manifest:
        if not re.fullmatch(r"[0-9a-f]{64}", root):
            raise Refusal(400, "request_invalid", "a root is 64 hexadecimal digits")
        try:
            return self._store(request).manifest(bytes.fromhex(root))
        except ManifestMissing as exc:
            raise self._refused(exc) from exc

    async def _counted(
        self, plan: tuple[Chunk, ...], body: AsyncIterator[bytes], store: ChunkStore
    ) -> AsyncIterator[bytes]:
        """Holds the chunks and a place among the streams while it runs."""
        self._streams += 1
        try:
            with store.hold(chunk.address for chunk in plan):
                async for piece in body:
                    yield piece
        finally:
            self._streams -= 1

    def _meter(self, request: Request, rate_bps: float) -> LinkMeter | None:
        """The link to the caller, over all its connections; None where there is no socket to ask."""
        link = getattr(request.state, "link", None)
        if link is None:
            return None
        name = principal(request).name
        if name not in self._meters and len(self._meters) >= _METERS_MAX:
            self._meters.clear()
        meter = self._meters.setdefault(name, LinkMeter(clock=time.monotonic, first_bps=min(100e6, rate_bps)))
        meter.watch(link)
        return meter

    def _sent(self) -> Callable[[Moved], None]:
        wire = 0

        def report(moved: Moved) -> None:
            nonlocal wire
            self._count("out", moved.raw_bytes, moved.wire_bytes - wire)
            wire = moved.wire_bytes

        return report

    def _count(self, direction: str, raw: int, wire: int = 0) -> None:
        if self._telemetry is None:
            return
        self._telemetry.count("dwcp_ship_raw_bytes_total", raw, direction=direction)
        if wire:
            self._telemetry.count("dwcp_ship_wire_bytes_total", wire, direction=direction)

    def _refused(self, exc: TransferError) -> Refusal:
        code = code_of(exc)
        if self._telemetry is not None:
            self._telemetry.count("dwcp_ship_refused_total", reason=code)
        return Refusal(exc.status, code, str(exc))


def _release_others(store: ChunkStore, owner: str, root: bytes) -> None:
    """One payload a name: the new one is durable, the old ones go."""
    for other, owners in store.roots().items():
        if owner in owners and other != root:
            store.release(other, owner=owner)


def _sent_in(store: ChunkStore) -> SentList:
    found = []
    for root, owners in store.roots().items():
        manifest = store.manifest(root)
        found += [
            Sent(owner.removeprefix(SENT), root.hex(), manifest.total_bytes, manifest.file_count)
            for owner in owners
            if owner.startswith(SENT)
        ]
    return SentList(tuple(sorted(found, key=lambda each: each.name)))


def code_of(exc: TransferError) -> str:
    """`ChunkMissing` → `chunk_missing`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(exc).__name__).lower()


def _shown(entry: manifests.Entry) -> dict[str, Any]:
    shown = {"path": entry.path, "kind": Kind(entry.kind).name.lower(), "mode": f"{entry.mode:04o}"}
    return shown | ({"target": entry.target} if entry.target else {"size": entry.size})


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > REQUEST_BYTES_MAX:
            raise RequestInvalid(f"the request has more than {REQUEST_BYTES_MAX} bytes")
    return bytes(data)


async def _drain(request: Request) -> None:
    """Reads on for a while, bounded in bytes and time."""
    seen = 0
    try:
        async with asyncio.timeout(_DRAIN_S_MAX):
            async for piece in request.stream():
                seen += len(piece)
                if seen > _DRAIN_BYTES_MAX:
                    return
    except Exception:  # noqa: BLE001  # the stream may be consumed, cut or slow: the refusal goes out anyway
        return
