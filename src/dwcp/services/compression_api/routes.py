"""The compression service's routes: questions, what-ifs, outcomes, and what the answers rest on.

Every route is the app's, so that its description lists it; the hot one is answered before the app is asked.
"""

from __future__ import annotations

import msgspec
from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dwcp.runtime.connections import AtOnce
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.http import Receive, Refusal, Scope, Send, json_response, refused
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
_HEAD = "dwcp.question"  # key in a scope: what its headers say
_JSON = ((b"content-type", b"application/json"),)
PURE_PATHS = (PREDICT_PATH, BATCH_PATH, EXPLAIN_PATH, SIMULATE_PATH)  # a POST only computes an answer


class Front:
    """The app with the one hot route before it: on its way through the app a question would cost half as much again
    as it does. What comes whole is answered at once, the rest (a body in chunks, `Expect`) by the call."""

    def __init__(self, app: FastAPI, desk: Desk, *, admission: Admission) -> None:
        self._app = app
        self._desk = desk
        self._admission = admission
        self.at_once = (AtOnce(PREDICT_PATH, asking.BODY_BYTES_MAX, self._admitted),)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PREDICT_PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            self._admission.decisions()
            answer = self._predict(scope, await _whole(receive))
        except Refusal as refusal:
            await refused(refusal)(scope, receive, send)
        except ClientDisconnect:
            return
        else:
            headers = [*_JSON, (b"content-length", b"%d" % len(answer))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer})

    def _admitted(self, scope: Scope, body: bytes) -> bytes:
        self._admission.decisions()
        return self._predict(scope, body)

    def _predict(self, scope: Scope, body: bytes) -> bytes:
        failpoint("compression.predict.before")
        head: asking.Head | None = scope.get(_HEAD)
        if head is None:
            raw = scope["headers"]
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
            head = scope[_HEAD] = asking.head(headers)
        found = self._desk.answer(asking.of(head, body))
        failpoint("compression.predict.after")
        return msgspec.json.encode(found)


async def _whole(receive: Receive) -> bytes:
    """The body. Raises `Refusal` 413 as soon as it is too long, `ClientDisconnect`."""
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False) and len(body) <= asking.BODY_BYTES_MAX:
        message = await receive()
        body += message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return bodies.fitting(body, asking.BODY_BYTES_MAX)


def add_routes(app: FastAPI, desk: Desk, *, admission: Admission) -> None:
    """Mounts the routes of questions."""

    async def predict(request: Request) -> Response:
        admission.decisions()
        return json_response(desk.answer(await asking.question(request)))

    async def batch(request: Request) -> Response:
        body = await bodies.bounded(request, asking.BATCH_BYTES_MAX)
        asked: asking.Batch = asking.decode(body, asking.Batch)
        admission.decisions(len(asked.items))
        answers = desk.batch(asked.items)
        failed = sum("error" in answer for answer in answers)
        return json_response({"answers": answers, "failed": failed})

    async def explain(request: Request) -> Response:
        admission.decisions()
        return json_response(desk.explain(await asking.question(request)))

    async def simulate(request: Request) -> Response:
        body = await bodies.bounded(request, asking.BODY_BYTES_MAX)
        asked: asking.WhatIf = asking.decode(body, asking.WhatIf)
        admission.decisions(max(1, len(asked.bandwidths_bps)))
        return json_response(desk.simulate(asked))

    async def feedback(request: Request) -> Response:
        return json_response(desk.report(await bodies.read(request, Outcome)))

    async def algorithms() -> Response:
        return json_response({"tier": desk.stage.tier, "algorithms": desk.algorithms()})

    async def model() -> Response:
        return json_response(desk.model(refused=admission.refused))

    for path, asked in (
        (PREDICT_PATH, predict),
        (BATCH_PATH, batch),
        (EXPLAIN_PATH, explain),
        (SIMULATE_PATH, simulate),
        (FEEDBACK_PATH, feedback),
    ):
        app.add_api_route(path, asked, methods=["POST"], response_model=None)
    app.add_api_route(ALGORITHMS_PATH, algorithms, methods=["GET"], response_model=None)
    app.add_api_route(MODEL_PATH, model, methods=["GET"], response_model=None)
