"""Dictionaries: smaller messages for their tenant, nothing for anybody else, and no bombs."""

from __future__ import annotations

import asyncio
import base64
import random
from pathlib import Path
from typing import Any

import zstandard
from tests.unit.services.compression_api.scene import Service, service

from dwcp.runtime.tokens import Role
from dwcp.services.compression_api.dictionaries import DICTIONARY_BYTES_MAX, MESSAGE_BYTES_MAX
from dwcp.services.compression_api.dictionary_routes import DICTIONARIES_PATH

SOURCE = random.Random(4)


def _message(number: int) -> bytes:
    """Small, alike, and not the same."""
    node, load = SOURCE.choice(["oslo", "rome", "lima"]), SOURCE.random()
    return (
        f'{{"event": "workload.placed", "workload": "w-{SOURCE.getrandbits(60):x}", "node": "{node}", '
        f'"attempt": {number % 4}, "lease_ms": 30000, "load": {load:.3f}, "reason": "fits best"}}'
    ).encode()


SAMPLES = [_message(number) for number in range(600)]


async def _train(running: Service, samples: list[bytes] = SAMPLES, **more: Any) -> Any:  # Any: the answer
    shown = [base64.b64encode(sample).decode() for sample in samples]
    asked = {"class_name": "events", "samples": shown, "size_bytes": 8192, **more}
    return await running.ask("POST", DICTIONARIES_PATH, json=asked)


def _as(running: Service, name: str) -> dict[str, str]:
    """The header of another tenant."""
    return {"Authorization": f"Bearer {running.book.create(name, Role.OPERATOR, now_ms=0)}"}


def test_small_messages_become_smaller(tmp_path: Path) -> None:
    """Goal: what a dictionary is for. Method: messages that were not trained on, against zstd-3 without it;
    any program that has the dictionary reads the frame."""

    async def main() -> None:
        async with service(tmp_path) as running:
            entry = (await _train(running)).json()
            path = f"{DICTIONARIES_PATH}/{entry['digest']}"
            content = (await running.ask("GET", path)).content
            ours = plain = 0
            for number in range(50):
                message = _message(number)
                frame = (await running.ask("POST", f"{path}/compress", content=message)).content
                back = await running.ask("POST", f"{path}/decompress", content=frame)
                assert back.content == message
                ours += len(frame)
                plain += len(zstandard.ZstdCompressor(level=3).compress(message))
            reader = zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(content))
            assert reader.decompress(frame) == message
            assert ours * 1.8 < plain
            assert entry["size_bytes"] == len(content) <= 8192

    asyncio.run(main())


def test_versions_lists_and_quota(tmp_path: Path) -> None:
    """Goal: each training is a version of its class, and there are only so many. Method: three, then one more."""

    async def main() -> None:
        async with service(tmp_path) as running:
            first = (await _train(running)).json()
            second = (await _train(running, SAMPLES[100:])).json()
            other = (await _train(running, SAMPLES[200:], class_name="receipts")).json()
            assert (first["version"], second["version"], other["version"]) == (1, 2, 1)
            assert len({first["zstd_id"], second["zstd_id"], other["zstd_id"]}) == 3
            assert (await _train(running, SAMPLES[300:])).status_code == 409
            path = f"{DICTIONARIES_PATH}/{first['digest']}"
            assert (await running.ask("DELETE", path)).status_code == 200
            assert (await running.ask("GET", path)).status_code == 404
            listed = (await running.ask("GET", DICTIONARIES_PATH)).json()["dictionaries"]
            assert {each["digest"] for each in listed} == {second["digest"], other["digest"]}

    asyncio.run(main())


def test_nobody_sees_or_uses_another_tenants(tmp_path: Path) -> None:
    """Goal: never across tenants. Method: another operator knows the digest; the answer is that of no such
    dictionary. Strangers are told to say who they are."""

    async def main() -> None:
        async with service(tmp_path) as running:
            digest = (await _train(running)).json()["digest"]
            headers = _as(running, "other")
            path = f"{DICTIONARIES_PATH}/{digest}"
            for method, place in (("GET", path), ("POST", path + "/compress"), ("DELETE", path)):
                answer = await running.ask(method, place, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_dictionary")
            assert (await running.ask("GET", DICTIONARIES_PATH, headers=headers)).json()["dictionaries"] == []
            del running.client.headers["Authorization"]
            assert (await running.ask("GET", path)).status_code == 401

    asyncio.run(main())


def test_a_dictionary_ends(tmp_path: Path) -> None:
    """Goal: what was learned from data does not stay for ever. Method: a day later it is unknown and gone."""

    async def main() -> None:
        async with service(tmp_path) as running:
            digest = (await _train(running)).json()["digest"]
            running.clock.advance(86_400_001)
            answer = await running.ask("POST", f"{DICTIONARIES_PATH}/{digest}/compress", content=b"x")
            assert answer.status_code == 404
            assert list((tmp_path / "dictionaries").glob("*/*")) == []

    asyncio.run(main())


def test_frames_that_lie_are_refused(tmp_path: Path) -> None:
    """Goal: no bomb, no foreign frame. Method: a large declared size, none at all, another dictionary's frame,
    junk, a cut frame, more than a message."""

    async def main() -> None:
        async with service(tmp_path) as running:
            one = (await _train(running)).json()["digest"]
            two = (await _train(running, SAMPLES[100:])).json()["digest"]
            path = f"{DICTIONARIES_PATH}/{one}"
            good = (await running.ask("POST", f"{path}/compress", content=b"hello" * 30)).content
            foreign = await running.ask("POST", f"{DICTIONARIES_PATH}/{two}/decompress", content=good)
            assert "made with dictionary" in foreign.json()["error"]["detail"]
            bomb = zstandard.ZstdCompressor().compress(bytes(MESSAGE_BYTES_MAX + 1))
            unknown = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
            for frame in (bomb, unknown, b"junk", b"", good[:-3], good + b"x", bytes(2 << 20)):
                answer = await running.ask("POST", f"{path}/decompress", content=frame)
                assert answer.status_code in {400, 413}, frame[:20]
            large = await running.ask("POST", f"{path}/compress", content=bytes(MESSAGE_BYTES_MAX + 1))
            assert large.status_code == 413

    asyncio.run(main())


def test_samples_that_cannot_be(tmp_path: Path) -> None:
    """Goal: sentences. Method: too few, all empty, a class that is no word, a size beyond the cap; a file
    that was changed on disk is no dictionary any more."""

    async def main() -> None:
        async with service(tmp_path) as running:
            assert (await _train(running, SAMPLES[:5])).status_code == 422
            assert (await _train(running, [b""] * 20)).json()["error"]["code"] == "untrainable"
            assert (await _train(running, class_name="../x")).status_code == 422
            assert (await _train(running, size_bytes=DICTIONARY_BYTES_MAX + 1)).status_code == 422
            assert (await running.ask("GET", f"{DICTIONARIES_PATH}/..%2Fx")).status_code == 404
            digest = (await _train(running)).json()["digest"]
            (path,) = (tmp_path / "dictionaries").glob("*/*.zdict")
            path.write_bytes(path.read_bytes()[:-1] + b"!")
            assert (await running.ask("GET", f"{DICTIONARIES_PATH}/{digest}")).status_code == 404

    asyncio.run(main())
