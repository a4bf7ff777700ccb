"""Streams through the service: bytes in, a container out, and back; bounded memory, back-pressure, no trust.

A few blocks are in work at a time and go out in order; when the reader of the answer is slow, nothing more is
read from the sender. A fault before the first byte of the answer is an error answer; after it the connection
is closed without the chunked encoding's end, which no client takes for a whole answer.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

import structlog
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dwcp.compression import codecs, container
from dwcp.compression.codecs import Codec
from dwcp.compression.container import End, Header, PackedBlock, Reader, Writer
from dwcp.compression.errors import BombRefused, TransferError, UnknownCodec
from dwcp.compression.table import BLOCK_BYTES
from dwcp.runtime.bodies import BLOCKS, BlockBody, Lender
from dwcp.runtime.http import Refusal, refused
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.compression_api import asking
from dwcp.services.compression_api.admission import Admission
from dwcp.services.compression_api.deciding import Ask, Decided

STREAM_PREFIX = "/api/v1/stream/"
COMPRESS_PATH = STREAM_PREFIX + "compress"
DECOMPRESS_PATH = STREAM_PREFIX + "decompress"
RATIO_MAX = 100_000  # raw bytes for a packed one, over the whole stream
RATIO_FROM_BYTES = 64 << 20  # checked from here on: short streams of zeros are no attack
_SAMPLE_BYTES = asking.SAMPLE_BYTES_MAX
_PIECE_BYTES = 256 << 10
_IDLE_S_MAX = 60.0  # without a byte from the sender
CONTAINER_TYPE = "application/vnd.dwcp.container"

Transform = Callable[[Headers, "Body"], AsyncGenerator[bytes, None]]
Decide = Callable[[Ask], tuple[Decided, float]]
Choose = Callable[[memoryview], Codec]
Begun = tuple[Awaitable[bytes], memoryview]  # what a thread will give, and the memory that it reads
_NOTHING = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of one stream, uncompressed, and seconds of its whole life. `in_work`: blocks of a stream that are packed
    or wait for it. The loop gets a processor only when the scheduler takes one from a packing thread, milliseconds
    later where all are busy; what waits must last the packing threads until then."""

    raw_bytes_max: int
    seconds_max: float
    in_work: int = 6


class StreamEndpoint(Response):
    """An answer that is made while the body is read; it keeps nothing of a request, so one serves all.

    Starlette's streaming answer cannot do that: it reads the body itself, to notice a caller that has gone.
    """

    def __init__(self, transform: Transform, *, admission: Admission, limits: Limits, kind: str) -> None:
        super().__init__()
        self._transform = transform
        self._admission = admission
        self._limits = limits
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(send, self._kind)
        try:
            with self._admission:
                async with asyncio.timeout(self._limits.seconds_max):
                    async with aclosing(
                        self._transform(Headers(scope=scope), Body(scope, receive))
                    ) as pieces:
                        async for piece in pieces:
                            await answer.write(piece)
                    await answer.end()
        except Refusal as refusal:
            await answer.fail(refusal, scope, receive)
        except TimeoutError:
            late = Refusal(408, "timeout", "the stream took longer than this service allows")
            await answer.fail(late, scope, receive)
        except TransferError as exc:
            await answer.fail(Refusal(exc.status, "invalid_stream", str(exc)), scope, receive)
        except _Gone:
            return


class _Gone(Exception):
    """The caller has closed the connection; nobody is left to be answered."""


class _Answer:
    """Sends the head with the first piece, so that what fails before it gets a status of its own."""

    def __init__(self, send: Send, kind: str) -> None:
        self._send = send
        self._kind = kind
        self._begun = False

    async def write(self, piece: bytes) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, refusal: Refusal, scope: Scope, receive: Receive) -> None:
        if not self._begun:
            answer = refused(refusal)
            answer.headers["Connection"] = "close"  # what the caller still sends is not read
            await answer(scope, receive, self._send)
            return
        structlog.get_logger().warning("stream.failed", code=refusal.code, detail=refusal.detail)

    async def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            headers = [(b"content-type", self._kind.encode())]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})


class Body:
    """What the caller sends: read from the socket into blocks where the connection lends it, else as messages."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._lend: Lender | None = scope.get("extensions", {}).get(BLOCKS)
        self._receive = receive
        self._lent: BlockBody | None = None

    async def blocks(self, size: int) -> AsyncIterator[memoryview]:
        """The bytes in blocks of `size`, the last one shorter. `spare` takes a block back."""
        self._lent = self._lend(size) if self._lend else None
        source = _filled(self._lent, whole=True) if self._lent else _blocks(_messages(self._receive), size)
        async for block in source:
            yield block

    async def pieces(self) -> AsyncIterator[memoryview]:
        """The bytes as they come. A piece is good until the next one is asked for."""
        self._lent = self._lend(_PIECE_BYTES) if self._lend else None
        if self._lent is None:
            async for piece in _messages(self._receive):
                yield memoryview(piece)
            return
        async for block in _filled(self._lent, whole=False):
            yield block
            self._lent.spare(block)

    def spare(self, block: memoryview) -> None:
        """The block's memory may be written again."""
        if self._lent is not None:
            self._lent.spare(block)


async def _filled(body: BlockBody, *, whole: bool) -> AsyncIterator[memoryview]:
    while True:
        try:
            block = await body.take(whole=whole, idle_s=_IDLE_S_MAX)
        except TimeoutError as exc:
            raise _silent() from exc
        if block is None:
            raise _Gone
        if not block:
            return
        yield block


async def _messages(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(_IDLE_S_MAX):
                message = await receive()
        except TimeoutError as exc:
            raise _silent() from exc
        if message["type"] == "http.disconnect":
            raise _Gone
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body", False):
            return


def _silent() -> Refusal:
    return Refusal(408, "timeout", f"no byte of the stream came for {_IDLE_S_MAX:g} s")


class Streams:
    """The two transformations. Codecs run in `pool`, which they leave the interpreter lock for."""

    def __init__(
        self,
        decide: Decide,
        *,
        pool: ThreadPoolExecutor,
        limits: Limits,
        telemetry: Telemetry,
    ) -> None:
        self._decide = decide
        self._pool = pool
        self._limits = limits
        self._telemetry = telemetry

    async def compress(self, headers: Headers, body: Body) -> AsyncGenerator[bytes, None]:
        """Raw bytes to a container. `X-Codec` fixes the codec; else each block of 1 MiB is decided on
        for the link of `X-Bandwidth-Bps`."""
        choose = self._chooser(headers)
        writer = Writer(Header(secrets.token_bytes(container.STREAM_ID_SIZE), BLOCK_BYTES))
        yield writer.header.encode()
        async with aclosing(self._in_order(self._packing(body, choose, writer))) as packed:
            async for frame, raw in packed:
                body.spare(raw)
                writer.note(frame)
                self._telemetry.count(
                    "dwcp_compression_stream_packed_bytes_total", len(frame), way="compress"
                )
                yield frame
        yield writer.end()

    async def _packing(self, body: Body, choose: Choose, writer: Writer) -> AsyncGenerator[Begun, None]:
        """Each block of the body as work that has begun."""
        total = index = 0
        async for raw in body.blocks(BLOCK_BYTES):
            total += len(raw)
            if total > self._limits.raw_bytes_max:
                raise Refusal(413, "too_large", f"a stream may have {self._limits.raw_bytes_max} bytes")
            yield self._run(_pack, raw, choose(raw), writer.header.stream_id, index), raw
            index += 1
        self._telemetry.count("dwcp_compression_stream_raw_bytes_total", total, way="compress")

    async def decompress(self, headers: Headers, body: Body) -> AsyncGenerator[bytes, None]:
        """A container to raw bytes, each block verified before it goes out."""
        most = int(
            asking.header(
                headers,
                "X-Max-Raw-Bytes",
                default=self._limits.raw_bytes_max,
                most=self._limits.raw_bytes_max,
            )
        )
        reader = Reader(raw_bytes_max=most)
        try:
            async with aclosing(self._in_order(self._unpacking(reader, body))) as unpacked:
                async for raw, _ in unpacked:
                    yield raw
            reader.finish()
        except BombRefused:
            self._telemetry.count("dwcp_compression_refused_total", reason="bomb")
            raise
        except TransferError:
            self._telemetry.count("dwcp_compression_refused_total", reason="invalid")
            raise

    async def _unpacking(self, reader: Reader, body: Body) -> AsyncGenerator[Begun, None]:
        """Each block of the container as work that has begun."""
        taken = given = 0
        async for piece in body.pieces():
            taken += len(piece)
            for item in reader.feed(cast("bytes", piece)):
                if isinstance(item, Header | End):
                    continue
                given += item.raw_size
                if given > RATIO_FROM_BYTES and given > RATIO_MAX * taken:
                    raise BombRefused(f"the stream grows more than {RATIO_MAX} times")
                yield self._run(_unpack, item), _NOTHING
        self._telemetry.count("dwcp_compression_stream_raw_bytes_total", given, way="decompress")
        self._telemetry.count("dwcp_compression_stream_packed_bytes_total", taken, way="decompress")

    async def _in_order(
        self, work: AsyncGenerator[Begun, None]
    ) -> AsyncGenerator[tuple[bytes, memoryview], None]:
        """What comes of the work, in its order and as soon as it is there, however slowly more comes in; `in_work`
        pieces of it are begun ahead. A fault of the input ends it at once, whatever is still in work."""
        begun: asyncio.Queue[Begun | None] = asyncio.Queue()
        room = asyncio.Semaphore(self._limits.in_work)

        async def feed() -> None:
            try:
                await room.acquire()
                async with aclosing(work):
                    async for each in work:
                        begun.put_nowait(each)
                        await room.acquire()
            finally:
                begun.put_nowait(None)

        feeding = asyncio.create_task(feed())
        try:
            while (each := await begun.get()) is not None:
                done = await each[0]
                if feeding.done():
                    feeding.result()
                yield done, each[1]
                room.release()
            await feeding
        finally:
            feeding.cancel()
            await asyncio.wait({feeding})
            if not feeding.cancelled():
                feeding.exception()  # where the work failed first, that is what is raised

    def _chooser(self, headers: Headers) -> Choose:
        name = headers.get("X-Codec", "auto")
        if name != "auto":
            try:
                fixed = codecs.by_name(name)
            except UnknownCodec as exc:
                raise Refusal(422, "unknown_codec", str(exc)) from exc
            return lambda raw: fixed  # noqa: ARG005  # a codec that was asked for looks at nothing
        rate_bps = asking.rate(headers)
        stream_id = headers.get("X-Stream-Id", "")[:200]

        def choose(raw: memoryview) -> Codec:
            ask = Ask(len(raw), rate_bps, sample=_sample(raw), stream_id=stream_id)
            return self._decide(ask)[0].codec

        return choose

    def _run(self, work: Callable[..., bytes], *args: object) -> Awaitable[bytes]:
        return asyncio.get_running_loop().run_in_executor(self._pool, work, *args)


def add_routes(app: FastAPI, streams: Streams, *, admission: Admission, limits: Limits) -> None:
    """Mounts both ways."""
    for path, transform, kind in (
        (COMPRESS_PATH, streams.compress, CONTAINER_TYPE),
        (DECOMPRESS_PATH, streams.decompress, "application/octet-stream"),
    ):
        endpoint = StreamEndpoint(transform, admission=admission, limits=limits, kind=kind)
        app.add_api_route(path, _answering(endpoint), methods=["POST"], response_model=None)


def _answering(endpoint: StreamEndpoint) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return endpoint

    return answer


def _pack(raw: memoryview, codec: Codec, stream_id: bytes, index: int) -> bytes:
    # every codec reads any buffer: a test holds them to it
    return container.pack_block(cast("bytes", raw), codec, stream_id=stream_id, index=index)


def _unpack(block: PackedBlock) -> bytes:
    return block.unpack()


def _sample(raw: memoryview) -> bytes:
    """Eight pieces spread over the block: archives and executables begin with headers."""
    if len(raw) <= _SAMPLE_BYTES:
        return bytes(raw)
    piece = _SAMPLE_BYTES // 8
    stride = (len(raw) - piece) // 7
    return b"".join(raw[at * stride : at * stride + piece] for at in range(8))


async def _blocks(body: AsyncIterator[bytes], size: int) -> AsyncIterator[memoryview]:
    """The same bytes in blocks of `size`, the last one shorter; each byte is copied once."""
    pieces: list[memoryview] = []
    held = 0
    async for piece in body:
        rest = memoryview(piece)
        while held + len(rest) >= size:
            cut = size - held
            yield memoryview(b"".join([*pieces, rest[:cut]]))
            pieces, held, rest = [], 0, rest[cut:]
        if rest:
            pieces.append(rest)
            held += len(rest)
    if pieces:
        yield memoryview(b"".join(pieces))
