"""Request bodies: their shape, and how much of one is read at most."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from starlette.requests import Request

from dwcp.runtime.http import Refusal
from dwcp.services import bodies


class Point(msgspec.Struct, frozen=True):
    x: int


def _request(*pieces: bytes, endless: bool = False) -> tuple[Request, list[int]]:
    """A request whose body comes in pieces, and what was read of them; `endless`: the last one again and again."""
    left, taken = list(pieces), [0]

    async def receive() -> dict[str, Any]:  # Any: ASGI's messages
        piece = left[0] if endless and len(left) == 1 else left.pop(0)
        taken[0] += len(piece)
        return {"type": "http.request", "body": piece, "more_body": endless or bool(left)}

    return Request({"type": "http", "method": "POST", "headers": []}, receive), taken


def test_a_body_is_its_shape() -> None:
    """Goal: the pieces are put together. Method: one body in two pieces, bounded and not."""
    for most in (None, 100):
        request, _ = _request(b'{"x"', b": 3}")
        assert asyncio.run(bodies.read(request, Point, most=most)) == Point(3)


def test_a_body_without_end_is_read_up_to_the_bound() -> None:
    """Goal: memory is bounded. Method: a body that never ends; it is refused one piece above the bound."""
    request, taken = _request(b"x" * 1000, endless=True)

    with pytest.raises(Refusal) as refused:
        asyncio.run(bodies.read(request, Point, most=10_000))

    assert refused.value.status == 413
    assert taken[0] == 11_000


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[" * 100_000, b'{"x": "y"}', b'{"x": 1' + b"0" * 5000 + b"}"]
)
def test_anything_else_is_a_sentence(body: bytes) -> None:
    """Goal: 422, never a fault. Method: nothing, no text, depth, a wrong type, a huge number."""
    request, _ = _request(body)

    with pytest.raises(Refusal) as refused:
        asyncio.run(bodies.read(request, Point, most=1 << 20))

    assert refused.value.status == 422
