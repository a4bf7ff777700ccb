"""The compression service's routes: questions, what-ifs, outcomes, and what the answers rest on.

The routes are Starlette's own: FastAPI's would cost a question half as much again, and nothing here needs them.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.http import json_response
from dwcp.services import bodies
from dwcp.services.compression_api import asking
from dwcp.services.compression_api.admission import Admission
from dwcp.services.compression_api.desk import Desk
from dwcp.services.compression_api.outcomes import Outcome

COMPRESSION_PREFIX = "/api/v1/compression/"
PREDICT_PATH = COMPRESSION_PREFIX + "predict"
BATCH_PATH = COMPRESSION_PREFIX + "batch"
EXPLAIN_PATH = COMPRESSION_PREFIX + "explain"
SIMULATE_PATH = COMPRESSION_PREFIX + "simulate"
ALGORITHMS_PATH = COMPRESSION_PREFIX + "algorithms"
FEEDBACK_PATH = "/api/v1/feedback"
MODEL_PATH = "/api/v1/model/info"
PURE_PATHS = (PREDICT_PATH, BATCH_PATH, EXPLAIN_PATH, SIMULATE_PATH)  # a POST only computes an answer


def add_routes(app: FastAPI, desk: Desk, *, admission: Admission) -> None:
    """Mounts the routes of questions."""

    async def predict(request: Request) -> Response:
        admission.decisions()
        failpoint("compression.predict.before")
        found = desk.answer(await asking.question(request))
        failpoint("compression.predict.after")
        return json_response(found)

    async def batch(request: Request) -> Response:
        body = await asking.bounded(request, asking.BATCH_BYTES_MAX)
        asked: asking.Batch = asking.decode(body, asking.Batch)
        admission.decisions(len(asked.items))
        answers = desk.batch(asked.items)
        failed = sum("error" in answer for answer in answers)
        return json_response({"answers": answers, "failed": failed})

    async def explain(request: Request) -> Response:
        admission.decisions()
        return json_response(desk.explain(await asking.question(request)))

    async def simulate(request: Request) -> Response:
        body = await asking.bounded(request, asking.BODY_BYTES_MAX)
        asked: asking.WhatIf = asking.decode(body, asking.WhatIf)
        admission.decisions(max(1, len(asked.bandwidths_bps)))
        return json_response(desk.simulate(asked))

    async def feedback(request: Request) -> Response:
        return json_response(desk.report(await bodies.read(request, Outcome)))

    async def algorithms(_request: Request) -> Response:
        return json_response({"tier": "table", "algorithms": desk.algorithms()})

    async def model(_request: Request) -> Response:
        return json_response(desk.model())

    for path, asked in (
        (PREDICT_PATH, predict),
        (BATCH_PATH, batch),
        (EXPLAIN_PATH, explain),
        (SIMULATE_PATH, simulate),
        (FEEDBACK_PATH, feedback),
    ):
        app.router.add_route(path, asked, methods=["POST"])
    app.router.add_route(ALGORITHMS_PATH, algorithms, methods=["GET"])
    app.router.add_route(MODEL_PATH, model, methods=["GET"])
