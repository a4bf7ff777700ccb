"""The routes of a service's models: list, show, deploy, try on some, withdraw; the same for every service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from dwcp.api import models as api
from dwcp.models.artefact import ModelRefused
from dwcp.models.lifecycle import GateClosed
from dwcp.runtime.errors import RuntimeFault
from dwcp.runtime.http import Refusal, json_response
from dwcp.runtime.registry import NoSuchModel
from dwcp.services import bodies

MODELS_PATH = "/" + "/".join(api.PREFIX)
DEPLOY_PATH = MODELS_PATH + "/deploy"  # its body is bounded here: models are larger than other requests


class StagingFailed(RuntimeFault):
    """The staging instance did not start, ended, or answered wrongly: the message names its log. Nothing changed."""


class Models(Protocol):
    """What a service can do with its models. May raise `GateClosed`, `ModelRefused`, `NoSuchModel`, `StagingFailed`."""

    def view(self) -> api.Models: ...  # blocking

    def show(self, prefix: str, /) -> api.Shown: ...  # blocking

    async def deploy(self, upload: api.Upload, /) -> api.Changed: ...

    async def canary(self, step: api.Step, /) -> api.Changed: ...

    async def roll_back(self, step: api.Step, /) -> api.Changed: ...


def add_model_routes(app: FastAPI, models: Models) -> None:
    """Mounts the routes under `MODELS_PATH`."""

    async def listed(_request: Request) -> Response:
        return json_response(await asyncio.to_thread(models.view))

    async def shown(request: Request) -> Response:
        return json_response(await asyncio.to_thread(models.show, request.path_params["digest"]))

    async def deployed(request: Request) -> Response:
        upload = await bodies.read(request, api.Upload, most=api.UPLOAD_BYTES_MAX)
        return json_response(await models.deploy(upload))

    async def tried_on_some(request: Request) -> Response:
        return json_response(await models.canary(await bodies.read(request, api.Step)))

    async def withdrawn(request: Request) -> Response:
        return json_response(await models.roll_back(await bodies.read(request, api.Step)))

    for path, route, method in (
        (MODELS_PATH, listed, "GET"),
        (MODELS_PATH + "/{digest}", shown, "GET"),
        (DEPLOY_PATH, deployed, "POST"),
        (MODELS_PATH + "/canary", tried_on_some, "POST"),
        (MODELS_PATH + "/rollback", withdrawn, "POST"),
    ):
        app.add_api_route(path, _guarded(route), methods=[method], response_model=None)


def _guarded(route: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Faults of models and gates as answers."""

    async def answered(request: Request) -> Response:
        try:
            return await route(request)
        except GateClosed as exc:
            raise Refusal(409, "gate_closed", str(exc)) from exc
        except ModelRefused as exc:
            raise Refusal(422, "model_refused", str(exc)) from exc
        except StagingFailed as exc:
            raise Refusal(424, "staging_failed", str(exc)) from exc
        except NoSuchModel as exc:
            raise Refusal(404, "no_such_model", str(exc)) from exc

    return answered
