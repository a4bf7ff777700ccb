"""An HTTP request as a value: what clients of our services send, without any HTTP library.

Builders in this package return a `Request`; `runtime.http` or a test sends it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

T = TypeVar("T")


class AnswerMalformed(Exception):
    """A service's answer is not of this interface; compare its /version with this program's."""


@dataclass(frozen=True, slots=True)
class Request:
    """`path` begins with "/" and is already quoted; `body` is JSON or empty."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(msgspec.Struct, frozen=True):
    """Every answer of 4xx and 5xx: a word for programs and a sentence for people."""

    code: str
    detail: str


def request(method: str, *segments: str, query: dict[str, Any] | None = None, body: Any = None) -> Request:
    """Segments are quoted one by one, so that an identifier can never leave its place in the path."""
    path = "/" + "/".join(quote(segment, safe="") for segment in segments)
    kept = {key: value for key, value in (query or {}).items() if value not in ("", None)}
    if kept:
        path += "?" + urlencode(kept)
    if body is None:
        return Request(method, path)
    return Request(method, path, msgspec.json.encode(body), {"Content-Type": "application/json"})


def answer(shape: type[T], body: bytes) -> T:
    """The decoded body of a successful answer; raises `AnswerMalformed`."""
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise AnswerMalformed(f"expected {shape.__name__}, got {body[:80]!r}: {exc}") from exc


def refusal(body: bytes, *, status: int) -> Refusal:
    """What a failed answer says; never raises, because the peer may be anything."""
    try:
        return msgspec.json.decode(body, type=_Refused).error
    except (msgspec.DecodeError, RecursionError):
        shown = body[:200].decode("utf-8", "replace").strip() or "no explanation"
        return Refusal(f"http_{status}", shown)


class _Refused(msgspec.Struct, frozen=True):
    error: Refusal
