"""Where a source's codec comes from: the compression service within 300 ms, else this host's own table."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import httpx
import msgspec

from dwcp.compression import calibration as calibrations
from dwcp.compression import codecs
from dwcp.compression.calibration import Calibration
from dwcp.compression.errors import UnknownCodec
from dwcp.compression.table import Table

PREDICT_PATH = "/api/v1/compression/predict"
_ASK_SECONDS_MAX = 0.3
_SILENCE_S = 10.0  # after a failure the service is not asked for this long


class TableChooser:
    """The host's own table; never fails."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def choose(
        self, sample: bytes, *, total_bytes: int, rate_bps: float, allowed: frozenset[str]
    ) -> str:
        del sample  # the table does not look at data
        return self._table.choose(rate_bps=rate_bps, size_bytes=total_bytes, allowed=allowed).codec.name


class ServiceChooser:
    """Asks the compression service; falls back to the table at once, and for a while after a failure."""

    def __init__(self, client: httpx.AsyncClient, url: str, *, fallback: TableChooser) -> None:
        self._client = client
        self._url = url.rstrip("/") + PREDICT_PATH
        self._fallback = fallback
        self._silent_until = 0.0

    async def choose(
        self, sample: bytes, *, total_bytes: int, rate_bps: float, allowed: frozenset[str]
    ) -> str:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._silent_until:
            try:
                async with asyncio.timeout(_ASK_SECONDS_MAX):
                    name = await self._ask(sample, total_bytes=total_bytes, rate_bps=rate_bps)
                if not allowed or name in allowed:
                    return name
            except (httpx.HTTPError, TimeoutError, msgspec.DecodeError, UnknownCodec, OSError):
                self._silent_until = loop.time() + _SILENCE_S
        return await self._fallback.choose(
            sample, total_bytes=total_bytes, rate_bps=rate_bps, allowed=allowed
        )

    async def _ask(self, sample: bytes, *, total_bytes: int, rate_bps: float) -> str:
        response = await self._client.post(
            self._url,
            content=sample,
            headers={
                "Content-Type": "application/octet-stream",
                "X-Total-Size": str(total_bytes),
                "X-Bandwidth-Bps": str(int(rate_bps)),
            },
        )
        response.raise_for_status()
        answer = msgspec.json.decode(response.content, type=_Answer)
        return codecs.by_name(answer.codec).name


class _Answer(msgspec.Struct, frozen=True):
    codec: str


def calibrated(data_dir: Path) -> Calibration:
    """This host's speeds: from the cache below `data_dir`, else measured now (under 2 s) and cached.

    Blocking. A cache that cannot be written costs the measurement at the next start, nothing else.
    """
    path = data_dir / "calibration.json"
    host = calibrations.host_key()
    try:
        cached = calibrations.load(path.read_bytes(), host=host)
    except OSError:
        cached = None
    if cached is not None:
        return cached
    measured = calibrations.measure(host=host)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(calibrations.dump(measured))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
    return measured
