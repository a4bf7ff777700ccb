"""Streams: round trips, and everything that is wrong is refused without a whole answer."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import cast

import httpx
import pytest
from starlette.datastructures import Headers
from tests.unit.services.compression_api.scene import service

from dwcp.compression import codecs
from dwcp.compression.container import Header, Writer
from dwcp.runtime.http import Refusal
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.compression_api.admission import Admission
from dwcp.services.compression_api.deciding import Ask, Decided
from dwcp.services.compression_api.streams import COMPRESS_PATH, DECOMPRESS_PATH, Body, Limits, Streams

NOISE = random.Random(3).randbytes(1 << 20)
DATA = b"a line of text that repeats\n" * 90_000 + NOISE + bytes(1 << 20) + b"end"


def _send(
    folder: Path, path: str, body: bytes, limits: Limits | None = None, **headers: str
) -> httpx.Response:
    async def main() -> httpx.Response:
        async with service(folder, limits=limits or Limits(1 << 30, 60.0)) as running:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await running.ask("POST", path, content=_pieces(body), headers=named)

    return asyncio.run(main())


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 60_000):
        yield body[at : at + 60_000]


def _container(raw: bytes, codec: str = "zstd-3", *, honest: bool = True) -> bytes:
    writer = Writer(Header(b"s" * 16, 1 << 20))
    parts = [writer.header.encode()]
    parts += [
        writer.block(raw[at : at + (1 << 20)], codecs.by_name(codec)) for at in range(0, len(raw), 1 << 20)
    ]
    return b"".join([*parts, writer.end()] if honest else parts)


@pytest.mark.parametrize(
    "headers", [{}, {"X_Bandwidth_Bps": "1e10"}, {"X_Codec": "lz4"}, {"X_Codec": "xz-6"}]
)
@pytest.mark.parametrize("data", [b"", b"x", DATA[: 1 << 20], DATA], ids=["empty", "byte", "block", "mixed"])
def test_round_trips(tmp_path_factory: pytest.TempPathFactory, data: bytes, headers: dict[str, str]) -> None:
    """Goal: what goes in comes out. Method: both ways through the service, chosen and fixed codecs."""
    packed = _send(tmp_path_factory.mktemp("c"), COMPRESS_PATH, data, **headers)
    raw = _send(tmp_path_factory.mktemp("d"), DECOMPRESS_PATH, packed.content)

    assert (packed.status_code, raw.status_code) == (200, 200)
    assert raw.content == data
    assert len(packed.content) < len(data) + 500


def test_what_is_no_container_is_an_error_answer(tmp_path: Path) -> None:
    """Goal: a fault before the first byte has a status. Method: junk."""
    answer = _send(tmp_path, DECOMPRESS_PATH, b"junk" * 100)

    assert answer.status_code == 400
    assert "DWCZ" in answer.json()["error"]["detail"]


@pytest.mark.parametrize("damage", ["flip", "cut", "foreign"])
def test_damage_never_ends_in_a_whole_answer(tmp_path: Path, damage: str) -> None:
    """Goal: no client takes half for all. Method: damage late in the stream; the answer must break off
    (an answer that never says it is complete is an error of the transport) or be an error."""
    good = bytearray(_container(DATA, "lz4"))
    if damage == "flip":
        good[-2_000_000 // 2] ^= 1
    elif damage == "cut":
        del good[-40:]
    else:
        good += b"more"

    try:
        answer = _send(tmp_path, DECOMPRESS_PATH, bytes(good))
    except (AssertionError, httpx.HTTPError):
        return  # the in-process transport asserts that an answer was completed
    assert answer.status_code == 400


def test_bombs_and_limits(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Goal: no stream gives more than was allowed. Method: the caller's limit, the service's, and more raw
    bytes than it takes for compression."""
    bomb = _container(bytes(64 << 20))
    asked = _send(tmp_path_factory.mktemp("a"), DECOMPRESS_PATH, bomb[:200], X_Max_Raw_Bytes="1000")
    small = Limits(1 << 20, 60.0)
    own = _send(tmp_path_factory.mktemp("b"), DECOMPRESS_PATH, bomb[:60], limits=small)
    beyond = _send(tmp_path_factory.mktemp("c"), DECOMPRESS_PATH, b"", limits=small, X_Max_Raw_Bytes="1e9")

    assert asked.status_code == 400
    assert own.status_code == 400
    assert beyond.status_code == 422
    with pytest.raises(AssertionError):  # begun, then broken off
        _send(tmp_path_factory.mktemp("d"), COMPRESS_PATH, bytes(3 << 20), limits=small)


def test_unknown_codec_and_wrong_method(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Goal: sentences before anything is read. Method: a codec that is none, a GET."""
    assert _send(tmp_path_factory.mktemp("a"), COMPRESS_PATH, b"x", X_Codec="snappy").status_code == 422

    async def main() -> None:
        async with service(tmp_path_factory.mktemp("b")) as running:
            assert (await running.ask("GET", COMPRESS_PATH)).status_code == 405
            del running.client.headers["Authorization"]
            assert (await running.ask("POST", COMPRESS_PATH, content=b"x")).status_code == 401

    asyncio.run(main())


def test_places_are_taken_and_given_back() -> None:
    """Goal: a bounded number of streams. Method: two places, a third is refused with a time, one ends."""
    admission = Admission(
        rated_per_s=10, streams_max=2, clock=lambda: 0.0, telemetry=Telemetry("t", version="0")
    )
    admission.__enter__()
    with admission:
        with pytest.raises(Refusal) as caught:
            admission.__enter__()
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "1")
    with admission:
        pass


@pytest.mark.parametrize(
    "codec", [codec for codec in codecs.CODECS if codec.wire], ids=lambda codec: codec.name
)
def test_a_block_that_lies_about_its_size_is_refused(tmp_path: Path, codec: codecs.Codec) -> None:
    """Goal: bombs of every codec. Method: a block whose header says 1 MiB and whose bytes would be 32 MiB; the
    answer is an error and says nothing of the content."""
    bomb = codec.pack(bytes(32 << 20))
    liar = dataclasses.replace(codec, pack=lambda raw: bomb)
    writer = Writer(Header(b"s" * 16, 1 << 20))
    stream = [writer.header.encode(), writer.block(bytes(1 << 20), liar), writer.end()]

    answer = _send(tmp_path, DECOMPRESS_PATH, b"".join(stream))

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_stream")


@pytest.mark.parametrize("codec", codecs.CODECS, ids=lambda codec: codec.name)
def test_every_codec_packs_any_buffer(codec: codecs.Codec) -> None:
    """Goal: a block that the socket wrote is packed where it is. Method: a view of a buffer and the same bytes."""
    raw = DATA[-(2 << 20) - 5000 : -(2 << 20) + 5000]

    packed = codec.pack(cast("bytes", memoryview(bytearray(raw))))

    assert bytes(packed) == bytes(codec.pack(raw))


class Slow:
    """A body whose sender stops after `stop` blocks, and what became of its blocks."""

    def __init__(self, stop: int) -> None:
        self.taken = self.spared = 0
        self._stop = stop

    async def blocks(self, size: int) -> AsyncIterator[memoryview]:
        while self.taken < self._stop:
            self.taken += 1
            yield memoryview(bytearray(size))
        await asyncio.Event().wait()

    def spare(self, block: memoryview) -> None:
        self.spared += len(block) > 0


async def _streaming(stop: int, given: int) -> Slow:
    """The first `given` pieces of the answer to such a body, and time for whatever goes on without a reader."""
    body = Slow(stop)
    with ThreadPoolExecutor(2) as pool:
        limits = Limits(1 << 40, 60.0)
        through = Streams(_never, pool=pool, limits=limits, telemetry=Telemetry("t", version="0"))
        async with aclosing(through.compress(Headers({"X-Codec": "none"}), cast("Body", body))) as pieces:
            for _ in range(given):
                await asyncio.wait_for(anext(pieces), 10)
            for _ in range(100):
                await asyncio.sleep(0)
    return body


def _never(ask: Ask) -> tuple[Decided, float]:
    raise AssertionError(f"a fixed codec asks nobody: {ask}")


def test_no_block_waits_for_the_next() -> None:
    """Goal: what is packed goes out, however slow the sender is. Method: two blocks, then silence; the header and
    both blocks are there."""
    assert asyncio.run(_streaming(2, 3)).spared == 2


def test_a_slow_reader_holds_the_blocks_in_work() -> None:
    """Goal: bounded memory. Method: a sender without end, a reader that takes the header and three blocks."""
    body = asyncio.run(_streaming(10_000, 4))
    assert body.spared == 3
    assert body.taken <= 3 + Limits(1, 1.0).in_work
