"""Questions as they arrive: bytes with headers, JSON, the form of earlier clients, and batches of them."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request

from dwcp.api.workloads import Shape
from dwcp.compression import codecs
from dwcp.compression.errors import UnknownCodec
from dwcp.runtime.http import Refusal
from dwcp.services import bodies
from dwcp.services.compression_api.deciding import Ask, Objective

SAMPLE_BYTES_MAX = 64 << 10
BODY_BYTES_MAX = 160 << 10  # a sample in base64 and the rest
BATCH_ITEMS_MAX = 1000
BATCH_BYTES_MAX = 16 << 20
RATE_BPS_DEFAULT = 100e6
RATE_BPS_MAX = 1e13
SIZE_BYTES_MAX = 2**50
COMPATIBLE = (
    "answered from the table: data_type and latency are accepted and not used, it goes by bandwidth and size"
)

Size = Annotated[int, Meta(ge=0, le=SIZE_BYTES_MAX)]
Rate = Annotated[float, Meta(gt=0, le=RATE_BPS_MAX)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
StreamId = Annotated[str, Meta(max_length=200)]


class Link(Shape, frozen=True):
    """`bandwidth_bps` in bit/s, the round trip in ms; the loss is accepted and not used."""

    bandwidth_bps: Rate = RATE_BPS_DEFAULT
    rtt_ms: Seconds = 0.0
    loss: float = 0.0


class Question(Shape, frozen=True):
    """The JSON form. `allowed` empty: every codec. A limit belongs to an objective."""

    total_size: Size
    link: Link = Link()
    sample_b64: str = ""
    allowed: tuple[str, ...] = ()
    objective: Objective = Objective.TIME
    max_cpu_s: Seconds | None = None
    deadline_ms: Seconds | None = None
    stream_id: StreamId = ""


class OldQuestion(Shape, frozen=True):
    """The form of earlier clients: `size` in bytes, `latency` in ms, `bandwidth` in Mbit/s."""

    data_type: str
    size: Size
    latency: float
    bandwidth: Annotated[float, Meta(gt=0, le=RATE_BPS_MAX / 1e6)]


class WhatIf(Question, frozen=True):
    """A question over several bandwidths, bit/s."""

    bandwidths_bps: Annotated[tuple[Rate, ...], Meta(max_length=64)] = ()


class Batch(Shape, frozen=True):
    """Questions of any JSON form, each judged alone."""

    items: Annotated[tuple[msgspec.Raw, ...], Meta(max_length=BATCH_ITEMS_MAX)]


_KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OLD = msgspec.json.Decoder(OldQuestion)
_QUESTION = msgspec.json.Decoder(Question)


async def question(request: Request) -> Ask:
    """A sample with headers, or one of the JSON forms, by the content type. Raises `Refusal`."""
    return asked(request.headers, await bodies.bounded(request, BODY_BYTES_MAX))


def asked(headers: Mapping[str, str], body: bytes) -> Ask:
    """The same from its parts; names of headers in small letters. Raises `Refusal`."""
    return of(head(headers), body)


@dataclass(frozen=True, slots=True)
class Head:
    """What the headers of a question say. `sample`: its body is one, and the rest is said here; `total_size` None:
    as long as the sample."""

    sample: bool
    total_size: int | None = None
    rate_bps: float = RATE_BPS_DEFAULT
    stream_id: str = ""


def head(headers: Mapping[str, str]) -> Head:
    """Names in small letters. Raises `Refusal`."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in {"application/json", ""}:
        return Head(sample=False)
    if kind != "application/octet-stream":
        raise Refusal(
            415, "content_type", f"{kind[:60]!r}: send application/octet-stream or application/json"
        )
    size = None
    if headers.get("x-total-size"):
        size = int(header(headers, "X-Total-Size", default=0.0, most=SIZE_BYTES_MAX))
    return Head(True, size, rate(headers), headers.get("x-stream-id", "")[:200])


def of(head: Head, body: bytes) -> Ask:
    """The question of a head and a body. Raises `Refusal`."""
    if not head.sample:
        return of_json(body)
    _require_sample(len(body))
    size = len(body) if head.total_size is None else head.total_size
    return Ask(size, head.rate_bps, sample=body, stream_id=head.stream_id)


def of_json(body: bytes | msgspec.Raw) -> Ask:
    """Either JSON form. Raises `Refusal`."""
    old = asked = None
    try:
        if "data_type" in _KEYS.decode(body):
            old = _OLD.decode(body)
        else:
            asked = _QUESTION.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise Refusal(422, "malformed", f"the body is no question: {exc}") from exc
    if old is not None:
        return Ask(old.size, old.bandwidth * 1e6, reason=COMPATIBLE)
    assert asked is not None
    return of_question(asked)


def of_question(asked: Question) -> Ask:
    """Raises `Refusal` for a sample or a codec that cannot be."""
    try:
        sample = base64.b64decode(asked.sample_b64, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Refusal(422, "malformed", f"sample_b64 is not base64: {exc}") from exc
    _require_sample(len(sample))
    return Ask(
        asked.total_size,
        asked.link.bandwidth_bps,
        sample=sample,
        allowed=_names(asked.allowed),
        objective=asked.objective,
        limit=_limit(asked),
        rtt_s=asked.link.rtt_ms / 1000,
        stream_id=asked.stream_id,
    )


def decode(body: bytes, shape: type[WhatIf] | type[Batch]) -> Any:  # Any: an instance of `shape`
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise Refusal(422, "malformed", f"the body is no {shape.__name__}: {exc}") from exc


def header(headers: Mapping[str, str], name: str, *, default: float, most: float) -> float:
    """A header between 0 and `most`; raises `Refusal` 422."""
    text = headers.get(name.lower(), "")
    try:
        value = float(text) if text else default
    except ValueError as exc:
        raise Refusal(422, "malformed", f"{name}: {text[:40]!r} is no number") from exc
    if not math.isfinite(value) or not 0 <= value <= most:
        raise Refusal(422, "malformed", f"{name}: {text[:40]!r}; it is between 0 and {most:g}")
    return value


def rate(headers: Mapping[str, str]) -> float:
    """`X-Bandwidth-Bps`, bit/s."""
    found = header(headers, "X-Bandwidth-Bps", default=RATE_BPS_DEFAULT, most=RATE_BPS_MAX)
    if not found:
        raise Refusal(422, "malformed", "X-Bandwidth-Bps: a link needs a rate above 0 bit/s")
    return found


def _limit(asked: Question) -> float:
    wanted = {
        Objective.TIME_UNDER_CPU: ("max_cpu_s", asked.max_cpu_s),
        Objective.BYTES_UNDER_DEADLINE: ("deadline_ms", asked.deadline_ms),
    }.get(asked.objective)
    if wanted is None:
        return math.inf
    name, value = wanted
    if value is None:
        raise Refusal(422, "malformed", f"the objective {asked.objective} needs {name}")
    return value / 1000 if name == "deadline_ms" else value


def _names(allowed: tuple[str, ...]) -> frozenset[str]:
    try:
        return frozenset(codecs.by_name(name).name for name in allowed)
    except UnknownCodec as exc:
        raise Refusal(422, "unknown_codec", str(exc)) from exc


def _require_sample(size: int) -> None:
    if size > SAMPLE_BYTES_MAX:
        raise Refusal(413, "too_large", f"a sample may have {SAMPLE_BYTES_MAX} bytes, this one has {size}")
