"""What an agent answers beyond payloads: logs of its attempts, its receipts, what it works on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from dwcp.api.agent import KeptReceipts
from dwcp.api.workloads import Shape
from dwcp.runtime.attempts import STREAMS, AttemptDirectory, AttemptStore
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.http import Refusal, json_response, principal, require
from dwcp.runtime.tokens import Role
from dwcp.services.agent.dispatch import Dispatch

FOLLOW_S = 0.3
PIECE_BYTES = 65536
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,80}")


class Work(Shape, frozen=True):
    """`GET /v1/attempts`: attempts that are worked on now."""

    node: str
    attempts: tuple[str, ...]


def guarded(store: ChunkStore) -> Callable[[Request], ChunkStore]:
    """The store, for the operator and for other agents: nobody else has business with users' files."""

    def store_of(request: Request) -> ChunkStore:
        caller = principal(request)
        if not caller.node:
            require(request, Role.OPERATOR)
        return store

    return store_of


def find(store: AttemptStore, name: str) -> AttemptDirectory:
    """By `WORKLOAD-ATTEMPT`, or the newest attempt of `WORKLOAD`. Raises `Refusal`."""
    if _NAME.fullmatch(name):
        found = [attempt for attempt in store.all() if name in (attempt.name, attempt.workload)]
        if found:
            return max(found, key=lambda attempt: attempt.number)
    raise Refusal(404, "not_found", f"this agent has no attempt of {name[:80]!r}; see `dwcp workloads`")


async def tail(attempt: AttemptDirectory, stream: str, *, follow: bool) -> AsyncIterator[bytes]:
    """What the command wrote; with `follow`, until it has ended."""
    offset = 0
    while True:
        over = not follow or (attempt.exit() is not None or attempt.is_closed)
        while piece := await asyncio.to_thread(_read, attempt.file(stream), offset):
            offset += len(piece)
            yield piece
        if over:
            return
        await asyncio.sleep(FOLLOW_S)


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)
    except FileNotFoundError:
        return b""


def mount(
    app: FastAPI, *, node: str, store: AttemptStore, dispatch: Dispatch, busy: Callable[[], list[str]]
) -> None:
    """Adds the routes. Logs are users' data: only the operator's certificate opens them."""

    async def attempts(request: Request) -> Response:
        require(request, Role.OPERATOR)
        return json_response(Work(node, tuple(busy())))

    async def logs(request: Request, name: str, stream: str = "stdout", follow: bool = False) -> Response:
        require(request, Role.OPERATOR)
        if stream not in STREAMS:
            raise Refusal(422, "invalid", f"stream: {stream[:40]!r} is none of {', '.join(STREAMS)}")
        attempt = find(store, name)
        return StreamingResponse(
            tail(attempt, stream, follow=follow),
            media_type="application/octet-stream",
            headers={"X-Attempt": attempt.name},
        )

    async def receipts(request: Request, workload: str) -> Response:
        require(request, Role.OPERATOR)
        found = await asyncio.to_thread(dispatch.of, workload)
        return json_response(KeptReceipts(tuple(msgspec.to_builtins(receipt) for receipt in found)))

    app.add_api_route("/v1/attempts", attempts, methods=["GET"], response_model=None)
    app.add_api_route("/v1/attempts/{name}/logs", logs, methods=["GET"], response_model=None)
    app.add_api_route("/v1/receipts/{workload}", receipts, methods=["GET"], response_model=None)
