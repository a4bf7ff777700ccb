"""The allocator's routes over one `Desk`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from dwcp.allocation.fleet import FleetMalformed
from dwcp.allocation.serving.state import FleetFull, NodeUnknown
from dwcp.api import allocator as api
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.http import Refusal, json_response
from dwcp.services import bodies
from dwcp.services.allocator.desk import DecisionUnknown, Desk, FleetStale, PolicyUnknown

PLACE_PATH, BATCH_PATH, RELEASE_PATH = "/v1/place", "/v1/place:batch", "/v1/release"
NODES_PATH, SIMULATE_PATH, WHATIF_PATH = "/v1/nodes", "/v1/simulate", "/v1/whatif"
PURE_PATHS = (SIMULATE_PATH, WHATIF_PATH)  # they answer and change nothing

Route = Callable[[Request], Awaitable[Response]]


def add_routes(app: FastAPI, desk: Desk) -> None:
    """Everything but models and the extender."""

    async def place(request: Request) -> Response:
        failpoint("allocator.place.before")
        answer = desk.place(await bodies.read(request, api.PlaceRequest))
        failpoint("allocator.place.after")
        return json_response(answer)

    async def batch(request: Request) -> Response:
        return json_response(desk.batch(await bodies.read(request, api.BatchRequest)))

    async def release(request: Request) -> Response:
        wanted = await bodies.read(request, api.ReleaseRequest)
        return json_response(api.Released(released=desk.release(wanted.workload)))

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
        except (FleetMalformed, PolicyUnknown) as exc:
            raise Refusal(422, "malformed", str(exc)) from exc
        except FleetStale as exc:
            raise Refusal(409, "stale_fleet", str(exc)) from exc
        except (NodeUnknown, DecisionUnknown) as exc:
            raise Refusal(404, "unknown", str(exc)) from exc
        except FleetFull as exc:
            raise Refusal(429, "full", str(exc)) from exc

    return answered
