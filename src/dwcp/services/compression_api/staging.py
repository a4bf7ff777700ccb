"""The staging instance: a process of its own that serves by the model to be staged, asked over HTTP first.

It has its own folder, registry, key and port, lives for one deployment, and takes no question but the gates'. A
model that hangs, crashes or eats memory does so there. It ends when its standard input does, so it cannot
outlive the service that started it.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from dwcp.compression.calibration import reference_blocks
from dwcp.models.artefact import Made
from dwcp.models.lifecycle import GateClosed, Lifecycle
from dwcp.runtime.config import Address, dump
from dwcp.runtime.keys import create_sign_key
from dwcp.runtime.layout import ensure
from dwcp.runtime.registry import Kind, Registry
from dwcp.runtime.tokens import Role, TokenBook
from dwcp.services.compression_api.asking import SAMPLE_BYTES_MAX
from dwcp.services.compression_api.config import CompressionConfig
from dwcp.services.model_routes import StagingFailed

SELECTION_S_MAX = 0.002  # median of one decision
SECONDS_MAX = 150.0  # start, gates and end; half of what `deploy-model` may take
RATES_BPS = (1e6, 1e7, 1e8, 1e9, 1e10)
_ANSWER_S_MAX = 10.0
_END_S_MAX = 5.0
_API = "/api/v1/"
_TOTAL = 1 << 26


@dataclass(frozen=True, slots=True)
class Staging:
    """Starts instances of this service's own program, `module`, beside the service of `config`."""

    config: CompressionConfig
    module: str
    kind: Kind
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def folder(self) -> Path:
        return self.config.data_dir / "staging"

    @property
    def url(self) -> str:
        host = self._host()
        return f"http://{f'[{host}]' if ':' in host else host}:{self.config.staging_port}"

    async def check(self, made: Made, digest: str) -> dict[str, float]:
        """Smoke tests, golden vectors (as it loads), latency. Raises `StagingFailed`, `GateClosed`."""
        async with self._turn:
            try:
                async with asyncio.timeout(SECONDS_MAX):
                    token = await asyncio.to_thread(self._prepare, made, digest)
                    async with self._running(token) as client:
                        return await _gates(client, digest)
            except TimeoutError as exc:
                raise self._failed(f"it was not through after {SECONDS_MAX:g} s") from exc
            except httpx.HTTPError as exc:
                raise self._failed(f"it broke off: {str(exc) or type(exc).__name__}") from exc
            except _Wrong as wrong:
                raise self._failed(str(wrong)) from wrong

    def _failed(self, why: str) -> StagingFailed:
        return StagingFailed(f"the staging instance at {self.url}: {why}; see {self.folder / 'log'}")

    def _host(self) -> str:
        listener = self.config.plain or self.config.mutual
        return listener.host if listener else "127.0.0.1"

    def _prepare(self, made: Made, digest: str) -> str:
        """A folder in which the model is the active one; returns a token that only this instance knows."""
        shutil.rmtree(self.folder, ignore_errors=True)
        data = ensure(self.folder / "data")
        calibration = self.config.data_dir / "calibration.json"
        if calibration.exists():
            shutil.copy(calibration, data / calibration.name)
        key = create_sign_key(data / "models.key")
        registry = Registry(data / "models", self.kind, public=key.public)
        registry.admit(made, signer=key)
        registry.change(lambda _: Lifecycle(active=digest))
        tokens = self.folder / "tokens.json"
        config = msgspec.structs.replace(
            self.config,
            data_dir=data,
            plain=Address(host=self._host(), port=self.config.staging_port),
            mutual=None,
            tokens=tokens,
            run_dir=None,
            staging=True,
        )
        (self.folder / "config.yaml").write_text(dump(config), encoding="utf-8")
        return TokenBook(tokens).create("gates", Role.OPERATOR, now_ms=0)

    @asynccontextmanager
    async def _running(self, token: str) -> AsyncIterator[httpx.AsyncClient]:
        command = [sys.executable, "-m", self.module, "--config", str(self.folder / "config.yaml")]
        with (self.folder / "log").open("ab") as log:
            child = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log
            )
        try:
            headers = {"Authorization": f"Bearer {token}"}
            async with httpx.AsyncClient(
                base_url=self.url, headers=headers, timeout=_ANSWER_S_MAX, trust_env=False
            ) as client:
                await _ready(client, child)
                yield client
        finally:
            await asyncio.shield(_ended(child))


class _Wrong(Exception):
    """What the instance did that it should not."""


async def _ready(client: httpx.AsyncClient, child: asyncio.subprocess.Process) -> None:
    while child.returncode is None:
        try:
            if (await client.get("/ready")).is_success:
                return
        except httpx.ConnectError:
            pass
        await asyncio.sleep(0.05)
    raise _Wrong(f"it ended with {child.returncode} before it was ready")


async def _ended(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.terminate()
    try:
        async with asyncio.timeout(_END_S_MAX):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


async def _gates(client: httpx.AsyncClient, digest: str) -> dict[str, float]:
    info = (await client.get(_API + "model/info")).json()
    if (info["digest"], info["tier"]) != (digest, "model"):
        raise _Wrong(f"it does not serve by the model: {info['detail']}")
    blocks = [block[:SAMPLE_BYTES_MAX] for block in reference_blocks()]
    taken_us = [
        us for block in blocks for rate_bps in RATES_BPS for us in await _twice(client, block, rate_bps)
    ]
    await _smoke(client, blocks)
    middle_s = statistics.median(taken_us) / 1e6
    if middle_s > SELECTION_S_MAX:
        allowed = SELECTION_S_MAX * 1e3
        raise GateClosed(f"a decision takes it {middle_s * 1e3:.1f} ms, {allowed:.0f} ms are allowed")
    worst_s = sorted(taken_us)[int(0.99 * len(taken_us))] / 1e6
    return {
        "staging_answers": float(len(taken_us)),
        "selection_s_p50": middle_s,
        "selection_s_p99": worst_s,
    }


async def _twice(client: httpx.AsyncClient, sample: bytes, rate_bps: float) -> list[float]:
    """The same question has the same answer, and the model's; microseconds of deciding."""
    headers = {
        "Content-Type": "application/octet-stream",
        "X-Total-Size": str(_TOTAL),
        "X-Bandwidth-Bps": f"{rate_bps:.0f}",
    }
    answers = [await client.post(_API + "compression/predict", content=sample, headers=headers) for _ in "ab"]
    told = [_good(answer) for answer in answers]
    if told[0]["codec"] != told[1]["codec"]:
        raise _Wrong(f"one question, two answers: {told[0]['codec']} and {told[1]['codec']}")
    return [answer["selection_us"] for answer in told]


async def _smoke(client: httpx.AsyncClient, blocks: list[bytes]) -> None:
    """Every other form of question, and a stream there and back."""
    asked = {"total_size": _TOTAL, "sample_b64": base64.b64encode(blocks[0]).decode()}
    old = {"data_type": "text", "size": _TOTAL, "latency": 10, "bandwidth": 100}
    for path, body in (
        ("predict", asked),
        ("predict", old),
        ("explain", asked),
        ("simulate", asked),
        ("batch", {"items": [asked, old]}),
    ):
        told = _good(await client.post(_API + "compression/" + path, json=body))
        if told.get("failed"):
            raise _Wrong(f"{path}: {told['answers']}")
    raw = b"".join(blocks)
    packed = await client.post(_API + "stream/compress", content=raw, headers={"X-Bandwidth-Bps": "10000000"})
    back = await client.post(_API + "stream/decompress", content=packed.content)
    if not (packed.is_success and back.is_success) or back.content != raw:
        raise _Wrong("a stream did not come back as it went in")


def _good(answer: httpx.Response) -> dict[str, Any]:
    if not answer.is_success:
        raise _Wrong(f"{answer.request.url.path}: {answer.status_code} {answer.text[:200]}")
    told: dict[str, Any] = answer.json()
    return told


def own_module() -> str | None:
    """The program that this process runs, as `python -m` knows it; None where it was started otherwise."""
    found = getattr(sys.modules["__main__"], "__spec__", None)
    return found.name.removesuffix(".__main__") if found else None
