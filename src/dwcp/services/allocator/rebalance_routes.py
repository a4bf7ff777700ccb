"""`POST /v1/rebalance:plan`: which moves would lower the fleet's cost, or empty some nodes. Nothing is kept."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request, Response

from dwcp.allocation import rebalance
from dwcp.allocation.fleet import FleetMalformed
from dwcp.api.rebalance import PlanRequest
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.http import Refusal, json_response
from dwcp.services import bodies

PLAN_PATH = "/v1/rebalance:plan"


def add_rebalance_routes(app: FastAPI) -> None:
    """Plans are computed one at a time in a thread: placements go on beside them."""
    one = asyncio.Lock()

    async def plan(request: Request) -> Response:
        failpoint("allocator.plan.before")
        wanted = await bodies.read(request, PlanRequest)
        try:
            async with one:
                made = await asyncio.to_thread(rebalance.plan, wanted)
        except FleetMalformed as exc:
            raise Refusal(422, "malformed", str(exc)) from exc
        failpoint("allocator.plan.after")
        return json_response(made)

    app.add_api_route(PLAN_PATH, plan, methods=["POST"], response_model=None)
