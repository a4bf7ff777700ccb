"""Request bodies as shapes: strict, with a sentence for whoever sent something else."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from fastapi import Request

from dwcp.runtime.http import Refusal

T = TypeVar("T")


async def read(request: Request, shape: type[T], *, empty: T | None = None) -> T:
    """The body as `shape`; `empty` stands for no body at all. Raises `Refusal` 422."""
    body = await request.body()
    if not body and empty is not None:
        return empty
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise Refusal(422, "malformed", f"the body is no {shape.__name__}: {exc}") from exc


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
