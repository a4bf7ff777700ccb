"""The compression service's routes: predictions, the codecs, and what the predictions rest on."""

from __future__ import annotations

import base64
import binascii
import math
import time
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Request, Response
from msgspec import Meta

from dwcp import __version__
from dwcp.api.workloads import Shape
from dwcp.compression import codecs
from dwcp.compression.errors import UnknownCodec
from dwcp.compression.table import BLOCK_BYTES, RATES_BPS, SIZES_BYTES, TIER, Choice, Estimate, Table
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.http import Refusal, json_response
from dwcp.runtime.telemetry import Telemetry

PREDICT_PATH = "/api/v1/compression/predict"
ALGORITHMS_PATH = "/api/v1/compression/algorithms"
MODEL_PATH = "/api/v1/model/info"
SAMPLE_BYTES_MAX = 64 << 10
BODY_BYTES_MAX = 160 << 10  # a sample in base64 and the rest
RATE_BPS_DEFAULT = 100e6
RATE_BPS_MAX = 1e13
SIZE_BYTES_MAX = 2**50
NO_MODEL = "no learned model is loaded; a table of this host's codec speeds answers by link rate and size"
NOT_LOOKED_AT = "the table goes by link rate and size; it does not look at the data"
COMPATIBLE = "data_type and latency are accepted and not used: the table goes by bandwidth and size"

Size = Annotated[int, Meta(ge=0, le=SIZE_BYTES_MAX)]
Rate = Annotated[float, Meta(gt=0, le=RATE_BPS_MAX)]


class Link(Shape, frozen=True):
    """`bandwidth_bps` in bit/s; the round trip and the loss are accepted and not used yet."""

    bandwidth_bps: Rate = RATE_BPS_DEFAULT
    rtt_ms: float = 0.0
    loss: float = 0.0


class Question(Shape, frozen=True):
    """The JSON form of a prediction. `allowed` empty: every codec."""

    total_size: Size
    link: Link = Link()
    sample_b64: str = ""
    allowed: tuple[str, ...] = ()


class OldQuestion(Shape, frozen=True):
    """The form of earlier clients: `size` in bytes, `latency` in ms, `bandwidth` in Mbit/s."""

    data_type: str
    size: Size
    latency: float
    bandwidth: Annotated[float, Meta(gt=0, le=RATE_BPS_MAX / 1e6)]


class Selector:
    """Answers from the table and counts what it answers."""

    def __init__(self, table: Table, *, telemetry: Telemetry) -> None:
        self.table = table
        self._telemetry = telemetry

    def predict(
        self, *, total_size: int, rate_bps: float, allowed: Iterable[str] = (), reason: str = NOT_LOOKED_AT
    ) -> dict[str, Any]:
        """The answer as JSON values. Raises `UnknownCodec`."""
        started_ns = time.perf_counter_ns()
        names = frozenset(codecs.by_name(name).name for name in allowed)
        choice = self.table.choose(rate_bps=rate_bps, size_bytes=total_size, allowed=names)
        took_us = (time.perf_counter_ns() - started_ns) / 1000
        self._telemetry.count("dwcp_compression_predictions_total", codec=choice.codec.name, tier=TIER)
        exact = self.table.estimate(rate_bps=rate_bps, size_bytes=total_size)
        mine = next(row for row in exact if row.codec == choice.codec.name)
        return {
            "codec": choice.codec.name,
            "level": choice.codec.level,
            "block_bytes": BLOCK_BYTES,
            "tier": TIER,
            "reason": reason,
            "predicted": _shown(mine),
            "ranked": [_shown(row) for row in _allowed(exact, names)[:5]],
            "bin": _bin(choice),
            "calibration": self.table.calibration.host,
            "selection_us": round(took_us, 1),
            "version": __version__,
        }

    def algorithms(self) -> list[dict[str, Any]]:
        speeds = self.table.calibration.speeds
        return [
            {
                "name": codec.name,
                "wire": codec.wire,
                "level": codec.level,
                "ratio": codec.ratio,
                "compress_bytes_per_s": round(speeds[codec.name].pack_bps),
                "decompress_bytes_per_s": round(speeds[codec.name].unpack_bps),
            }
            for codec in codecs.CODECS
        ]

    def model(self) -> dict[str, Any]:
        calibration = self.table.calibration
        return {
            "name": "compression-selector",
            "model": "none",
            "tier": TIER,
            "detail": NO_MODEL,
            "version": __version__,
            "accuracy": None,  # nothing was learned, so there is nothing to score
            "calibration": {
                "host": calibration.host,
                "seconds": calibration.seconds,
                "complete": calibration.complete,
            },
            "ratios": "aggregates of a reference corpus of 160 MB; speeds measured on this host",
            "rates_bps": [round(rate) for rate in RATES_BPS],
            "sizes_bytes": list(SIZES_BYTES),
        }


def add_routes(app: FastAPI, selector: Selector) -> None:
    """Mounts the service's own routes."""

    async def predict(request: Request) -> Response:
        failpoint("compression.predict.before")
        try:
            found = await _answer(request, selector)
        except UnknownCodec as exc:
            raise Refusal(422, "unknown_codec", str(exc)) from exc
        failpoint("compression.predict.after")
        return json_response(found)

    async def algorithms() -> Response:
        return json_response({"tier": TIER, "algorithms": selector.algorithms()})

    async def model() -> Response:
        return json_response(selector.model())

    app.add_api_route(PREDICT_PATH, predict, methods=["POST"], response_model=None)
    app.add_api_route(ALGORITHMS_PATH, algorithms, methods=["GET"], response_model=None)
    app.add_api_route(MODEL_PATH, model, methods=["GET"], response_model=None)


async def _answer(request: Request, selector: Selector) -> dict[str, Any]:
    """A sample with headers, or one of the two JSON forms, by the content type."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await _body(request)
    if kind == "application/octet-stream":
        return _answer_sample(request, body, selector)
    if kind in {"application/json", ""}:
        return _answer_json(body, selector)
    raise Refusal(415, "content_type", f"{kind[:60]!r}: send application/octet-stream or application/json")


def _answer_sample(request: Request, sample: bytes, selector: Selector) -> dict[str, Any]:
    _require_sample(len(sample))
    size = _header(request, "X-Total-Size", default=len(sample), most=SIZE_BYTES_MAX)
    rate = _header(request, "X-Bandwidth-Bps", default=RATE_BPS_DEFAULT, most=RATE_BPS_MAX)
    if not rate:
        raise Refusal(422, "malformed", "X-Bandwidth-Bps: a link needs a rate above 0 bit/s")
    return selector.predict(total_size=int(size), rate_bps=rate)


def _answer_json(body: bytes, selector: Selector) -> dict[str, Any]:
    try:
        keys = msgspec.json.decode(body, type=dict[str, Any])  # Any: only the keys are looked at
        if "data_type" in keys:
            old = msgspec.json.decode(body, type=OldQuestion)
            return selector.predict(total_size=old.size, rate_bps=old.bandwidth * 1e6, reason=COMPATIBLE)
        asked = msgspec.json.decode(body, type=Question)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise Refusal(422, "malformed", f"the body is no question: {exc}") from exc
    try:
        _require_sample(len(base64.b64decode(asked.sample_b64, validate=True)))
    except (binascii.Error, ValueError) as exc:
        raise Refusal(422, "malformed", f"sample_b64 is not base64: {exc}") from exc
    return selector.predict(
        total_size=asked.total_size, rate_bps=asked.link.bandwidth_bps, allowed=asked.allowed
    )


def _require_sample(size: int) -> None:
    if size > SAMPLE_BYTES_MAX:
        raise Refusal(413, "too_large", f"a sample may have {SAMPLE_BYTES_MAX} bytes, this one has {size}")


def _header(request: Request, name: str, *, default: float, most: float) -> float:
    text = request.headers.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError as exc:
        raise Refusal(422, "malformed", f"{name}: {text[:40]!r} is no number") from exc
    if not math.isfinite(value) or not 0 <= value <= most:
        raise Refusal(422, "malformed", f"{name}: {text[:40]!r}; it is between 0 and {most:g}")
    return value


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > BODY_BYTES_MAX:
            raise Refusal(413, "too_large", f"a question may have {BODY_BYTES_MAX} bytes")
    return bytes(data)


def _allowed(rows: tuple[Estimate, ...], names: frozenset[str]) -> list[Estimate]:
    return [row for row in rows if not names or row.codec in names or row.codec == "none"]


def _shown(row: Estimate) -> dict[str, Any]:
    return {
        "codec": row.codec,
        "ratio": row.ratio,
        "compress_s": round(row.compress_s, 6),
        "send_s": round(row.send_s, 6),
        "decompress_s": round(row.decompress_s, 6),
        "total_s": round(row.total_s, 6),
    }


def _bin(choice: Choice) -> dict[str, int]:
    return {"rate_bps": round(choice.rate_bps), "size_bytes": choice.size_bytes}
