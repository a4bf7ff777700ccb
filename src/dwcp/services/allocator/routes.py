"""The allocator's routes over one `Desk`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from dwcp.allocation.fleet import FleetMalformed
from dwcp.allocation.serving.state import FleetFull, NodeUnknown
from dwcp.api import allocator as api
from dwcp.runtime.connections import AtOnce, Scope
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.http import BODY_BYTES_MAX, Refusal, json_response
from dwcp.services import bodies
from dwcp.services.allocator.desk import DecisionUnknown, Desk, FleetStale, PolicyUnknown

PLACE_PATH, BATCH_PATH, RELEASE_PATH = "/v1/place", "/v1/place:batch", "/v1/release"
NODES_PATH, SIMULATE_PATH, WHATIF_PATH = "/v1/nodes", "/v1/simulate", "/v1/whatif"
PURE_PATHS = (SIMULATE_PATH, WHATIF_PATH)  # they answer and change nothing

Route = Callable[[Request], Awaitable[Response]]


def add_routes(app: FastAPI, desk: Desk) -> None:
    """Everything but models and the extender."""

    hot = _Hot(desk)

    async def place(request: Request) -> Response:
        return _json(hot.place(await request.body()))

    async def batch(request: Request) -> Response:
        return _json(hot.batch(await request.body()))

    async def release(request: Request) -> Response:
        return _json(hot.release(await request.body()))

    async def simulate(request: Request) -> Response:
        return json_response(desk.simulate(await bodies.read(request, api.PlaceRequest)))

    async def whatif(request: Request) -> Response:
        return json_response(desk.whatif(await bodies.read(request, api.WhatIf)))

    async def change(request: Request) -> Response:
        return json_response(desk.change(await bodies.read(request, api.NodesChange)))

    async def nodes(_request: Request) -> Response:
        return json_response(desk.nodes())

    async def model(_request: Request) -> Response:
        return json_response(desk.model())

    async def day(_request: Request) -> Response:
        return json_response(desk.told_day())

    async def decision(request: Request) -> Response:
        return json_response(desk.explain(request.path_params["identity"]))

    for path, route, method in (
        (PLACE_PATH, place, "POST"),
        (BATCH_PATH, batch, "POST"),
        (RELEASE_PATH, release, "POST"),
        (SIMULATE_PATH, simulate, "POST"),
        (WHATIF_PATH, whatif, "POST"),
        (NODES_PATH, change, "POST"),
        (NODES_PATH, nodes, "GET"),
        ("/v1/model", model, "GET"),
        ("/v1/day", day, "GET"),
        ("/v1/decisions/{identity}", decision, "GET"),
    ):
        add_direct_route(app, path, guarded(route), method=method)


def at_once(desk: Desk) -> tuple[AtOnce, ...]:
    """The hot routes past the app, which costs as much as a decision among few nodes; answers are the app's."""
    hot = _Hot(desk)

    def direct(answer: Callable[[bytes], bytes]) -> Callable[[Scope, bytes], bytes]:
        def answered(_scope: Scope, body: bytes) -> bytes:
            try:
                return answer(body)
            except _FAULTS as exc:
                raise _refusal(exc) from exc

        return answered

    return tuple(
        AtOnce(path, BODY_BYTES_MAX, direct(answer))
        for path, answer in ((PLACE_PATH, hot.place), (BATCH_PATH, hot.batch), (RELEASE_PATH, hot.release))
    )


class _Hot:
    """From body to body. Raises `Refusal`, and what the desk raises."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def place(self, body: bytes) -> bytes:
        failpoint("allocator.place.before")
        answer = self._desk.place(bodies.decoded(body, api.PlaceRequest))
        failpoint("allocator.place.after")
        return msgspec.json.encode(answer)

    def batch(self, body: bytes) -> bytes:
        return msgspec.json.encode(self._desk.batch(bodies.decoded(body, api.BatchRequest)))

    def release(self, body: bytes) -> bytes:
        wanted = bodies.decoded(body, api.ReleaseRequest)
        return msgspec.json.encode(api.Released(released=self._desk.release(wanted.workload)))


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


class Direct(APIRoute):
    """A route that reads its request and makes its answer itself: FastAPI's parsing of parameters, a tenth of a
    millisecond on every request, is left out."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


def add_direct_route(app: FastAPI, path: str, route: Route, *, method: str) -> None:
    app.router.add_api_route(path, route, methods=[method], response_model=None, route_class_override=Direct)


def guarded(route: Route) -> Route:
    """Faults of the asker as answers."""

    async def answered(request: Request) -> Response:
        try:
            return await route(request)
        except _FAULTS as exc:
            raise _refusal(exc) from exc

    return answered


_FAULTS = (FleetMalformed, PolicyUnknown, FleetStale, NodeUnknown, DecisionUnknown, FleetFull)


def _refusal(fault: Exception) -> Refusal:
    match fault:
        case FleetStale():
            status, code = 409, "stale_fleet"
        case NodeUnknown() | DecisionUnknown():
            status, code = 404, "unknown"
        case FleetFull():
            status, code = 429, "full"
        case _:
            status, code = 422, "malformed"
    return Refusal(status, code, str(fault))
