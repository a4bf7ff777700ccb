"""Dictionaries over HTTP; the caller is the tenant, so each of these needs a token or a certificate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from dwcp.compression.errors import BombRefused, TransferError
from dwcp.runtime.http import Refusal, json_response, principal
from dwcp.runtime.telemetry import Telemetry
from dwcp.services import bodies
from dwcp.services.compression_api.admission import Admission
from dwcp.services.compression_api.dictionaries import (
    DICTIONARY_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    Dictionaries,
    Samples,
)

DICTIONARIES_PATH = "/api/v1/dictionaries"
_BODY_BYTES_MAX = 17 << 20  # samples in base64 and the rest
_FRAME_SLACK = 64 << 10


def add_dictionary_routes(
    app: FastAPI, kept: Dictionaries, *, admission: Admission, telemetry: Telemetry
) -> None:
    """Mounts the routes under `DICTIONARIES_PATH`."""

    async def listed(request: Request) -> Response:
        entries = await asyncio.to_thread(kept.entries, _tenant(request))
        return json_response({"dictionaries": entries, "size_bytes_max": DICTIONARY_BYTES_MAX})

    async def trained(request: Request) -> Response:
        tenant = _tenant(request)
        with admission:
            body = await bodies.bounded(request, _BODY_BYTES_MAX)
            try:
                asked = msgspec.json.decode(body, type=Samples)
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                raise Refusal(422, "malformed", f"the body is no Samples: {exc}") from exc
            entry = await asyncio.to_thread(kept.train, tenant, asked)
        telemetry.gauge("dwcp_compression_dictionaries", kept.count())
        return json_response(entry, 201)

    async def given(request: Request) -> Response:
        content = await asyncio.to_thread(kept.content, _tenant(request), request.path_params["digest"])
        return Response(content, media_type="application/octet-stream")

    async def deleted(request: Request) -> Response:
        digest = request.path_params["digest"]
        await asyncio.to_thread(kept.delete, _tenant(request), digest)
        telemetry.gauge("dwcp_compression_dictionaries", kept.count())
        return json_response({"deleted": digest})

    async def compressed(request: Request) -> Response:
        return await _message(request, kept.compress, MESSAGE_BYTES_MAX)

    async def decompressed(request: Request) -> Response:
        return await _message(request, kept.decompress, MESSAGE_BYTES_MAX + _FRAME_SLACK)

    async def _message(request: Request, work: Callable[[str, str, bytes], bytes], most: int) -> Response:
        tenant, digest = _tenant(request), request.path_params["digest"]
        admission.decisions()
        body = await bodies.bounded(request, most)
        try:
            found = await asyncio.to_thread(work, tenant, digest, body)
        except TransferError as exc:
            reason = "bomb" if isinstance(exc, BombRefused) else "invalid"
            telemetry.count("dwcp_compression_refused_total", reason=reason)
            raise Refusal(exc.status, "invalid_message", str(exc)) from exc
        return Response(found, media_type="application/octet-stream")

    one = DICTIONARIES_PATH + "/{digest}"
    for path, route, method in (
        (DICTIONARIES_PATH, listed, "GET"),
        (DICTIONARIES_PATH, trained, "POST"),
        (one, given, "GET"),
        (one, deleted, "DELETE"),
        (one + "/compress", compressed, "POST"),
        (one + "/decompress", decompressed, "POST"),
    ):
        app.add_api_route(path, route, methods=[method], response_model=None)


def _tenant(request: Request) -> str:
    """The caller; kinds keep a person and a process of one name apart. Raises `Refusal` 401."""
    caller = principal(request)
    if caller.kind == "anonymous":
        raise Refusal(
            401, "no_token", "dictionaries belong to whoever trained them: say who you are with a token"
        )
    return f"{caller.kind}:{caller.name}"
