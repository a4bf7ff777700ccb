"""Request bodies as shapes: strict, with a sentence for whoever sent something else."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from fastapi import Request

from dwcp.runtime.http import Refusal

T = TypeVar("T")
B = TypeVar("B", bytes, bytearray)


async def read(request: Request, shape: type[T], *, empty: T | None = None, most: int | None = None) -> T:
    """The body as `shape`; `empty` stands for no body at all. Raises `Refusal` 422, or 413 above `most` bytes
    where the server does not bound this path's bodies itself."""
    body = await request.body() if most is None else await bounded(request, most)
    if not body and empty is not None:
        return empty
    return decoded(body, shape)


def decoded(body: bytes, shape: type[T]) -> T:
    """The body as `shape`. Raises `Refusal` 422."""
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise Refusal(422, "malformed", f"the body is no {shape.__name__}: {exc}") from exc


async def bounded(request: Request, most: int) -> bytes:
    """The body; raises `Refusal` 413 as soon as it exceeds `most` bytes."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        fitting(data, most)
    return bytes(data)


def fitting(body: B, most: int) -> B:
    """`body`; raises `Refusal` 413 where it exceeds `most` bytes."""
    if len(body) > most:
        raise Refusal(413, "too_large", f"this request may have {most} bytes")
    return body


def number(request: Request, key: str, *, default: float, most: float) -> float:
    """A query value between 0 and `most`; raises `Refusal` 422."""
    text = request.query_params.get(key, "")
    try:
        value = float(text) if text else default
    except ValueError as exc:
        raise Refusal(422, "malformed", f"{key}: {text[:40]!r} is no number") from exc
    if not 0 <= value <= most:
        raise Refusal(422, "malformed", f"{key}: {text[:40]}; it is between 0 and {most:g}")
    return value
