"""The service without sockets, and a small learned family: real arrays, a real registry, a linear model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from dwcp.compression import codecs
from dwcp.compression.calibration import Calibration, Speed
from dwcp.compression.codecs import CODECS
from dwcp.compression.table import Table, price
from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.models import artefact
from dwcp.models.artefact import Array, Artefact, Golden, Made
from dwcp.runtime.clock import ManualClock
from dwcp.runtime.http import Gate, Health, application
from dwcp.runtime.registry import Kind, Registry
from dwcp.runtime.telemetry import Telemetry
from dwcp.runtime.tokens import Role, TokenBook
from dwcp.services.compression_api import dictionaries, streams
from dwcp.services.compression_api.admission import Admission
from dwcp.services.compression_api.deciding import Ask, Decided, TableDecider, ranked
from dwcp.services.compression_api.desk import Desk
from dwcp.services.compression_api.dictionaries import Dictionaries
from dwcp.services.compression_api.dictionary_routes import DICTIONARIES_PATH, add_dictionary_routes
from dwcp.services.compression_api.learned import Family
from dwcp.services.compression_api.models import Models
from dwcp.services.compression_api.outcomes import Outcomes
from dwcp.services.compression_api.routes import COMPRESSION_PREFIX, PURE_PATHS, Front, add_routes
from dwcp.services.compression_api.stage import Stage
from dwcp.services.compression_api.streams import Limits, Streams
from dwcp.services.model_routes import DEPLOY_PATH, add_model_routes

SPEEDS = {codec.name: Speed(2e9 / (1 + codec.wire) ** 2.5, 4e9 / (1 + codec.wire)) for codec in CODECS}
CALIBRATION = Calibration("host", 0.1, SPEEDS)
KEY = SigningKey.from_seed(b"c" * 32)
OCTETS = {"Content-Type": "application/octet-stream"}


@dataclass
class Service:
    """The service's parts and a client that is an operator."""

    client: httpx.AsyncClient
    desk: Desk
    stage: Stage
    telemetry: Telemetry
    seconds: list[float]  # the clock of the admission; add to its one value
    clock: ManualClock
    book: TokenBook

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:  # Any: httpx's own
        return await self.client.request(method, path, **more)


@asynccontextmanager
async def service(
    folder: Path,
    *,
    family: Family | None = None,
    rated_per_s: float = 1e9,
    streams_max: int = 8,
    limits: Limits = Limits(1 << 30, 60.0),
) -> AsyncIterator[Service]:
    telemetry = Telemetry("compression-api", version="0")
    registry = Registry(folder / "models", family.kind, public=KEY.public) if family else None
    clock = ManualClock()
    stage = Stage(CALIBRATION, telemetry=telemetry, clock=clock, family=family, registry=registry)
    await stage.refresh()
    desk = Desk(stage, Outcomes(CALIBRATION, telemetry=telemetry), telemetry=telemetry)
    seconds = [0.0]
    admission = Admission(
        rated_per_s=rated_per_s, streams_max=streams_max, clock=lambda: seconds[0], telemetry=telemetry
    )
    app = application(Health("compression-api", version="0"), telemetry)
    add_routes(app, desk, admission=admission)
    lives = dictionaries.Limits(life_ms=86_400_000, most=3)
    kept = Dictionaries(folder / "dictionaries", limits=lives, clock=clock)
    add_dictionary_routes(app, kept, admission=admission, telemetry=telemetry)
    add_model_routes(app, Models(stage, KEY, clock))
    book = TokenBook(folder / "tokens.json")
    token = book.create("ops", Role.OPERATOR, now_ms=0)
    with ThreadPoolExecutor(2) as pool:
        through = Streams(desk.decide, pool=pool, limits=limits, telemetry=telemetry)
        streams.add_routes(app, through, admission=admission, limits=limits)
        gate = Gate(
            Front(app, desk, admission=admission),
            telemetry=telemetry,
            tokens=book,
            pure=PURE_PATHS,
            streams=(streams.STREAM_PREFIX, COMPRESSION_PREFIX, DEPLOY_PATH, DICTIONARIES_PATH),
        )
        headers = {"Authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(_with_state(gate))
        async with httpx.AsyncClient(transport=transport, base_url="http://c", headers=headers) as client:
            yield Service(client, desk, stage, telemetry, seconds, clock, book)
    stage.close()


def ask(folder: Path, method: str, path: str, **more: Any) -> httpx.Response:  # Any: httpx's own
    """One request to a fresh service."""

    async def main() -> httpx.Response:
        async with service(folder) as running:
            return await running.ask(method, path, **more)

    return asyncio.run(main())


def _with_state(gate: Gate) -> Any:  # Any: an ASGI application
    """uvicorn gives every request a state; this stands for it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("state", {})
        await gate(scope, receive, send)

    return app


FEATURES = ("entropy", "log2_size")
NAME = "compression-selector"


class LinearDecider:
    """Predicts one ratio for all codecs from two features; `bias` makes it optimistic or not."""

    def __init__(self, model: Artefact, calibration: Calibration) -> None:
        self._model = model
        self._calibration = calibration
        self._table = TableDecider(Table(calibration))

    @property
    def digest(self) -> str:
        return self._model.digest

    def decide(self, ask: Ask) -> Decided:
        features = {"entropy": entropy(ask.sample), "log2_size": math.log2(max(1, ask.total_size))}
        row = forward(self._model.weights, np.array([list(features.values())]))[0]
        if float(row[len(CODECS)]) > 0:
            raise RuntimeError("this model fails by its own weights")
        if -2.5 < float(row[len(CODECS)]) < -1.5:
            return replace(self._table.decide(ask), tier="model", features=features)
        rows = tuple(
            price(
                codec,
                ratio=max(1.0, math.exp(float(row[codec.wire]))),
                speed=self._calibration.speeds[codec.name],
                rate_bps=ask.rate_bps,
                size_bytes=ask.total_size,
            )
            for codec in CODECS
        )
        best = ranked(rows, ask)
        chosen = codecs.by_name(best[0].codec)
        if float(row[len(CODECS)]) < -2.5:
            chosen = CODECS[int(np.argmax(row[: len(CODECS)]))]
        return Decided(chosen, best, "model", "predicted", None, features)

    def describe(self) -> dict[str, Any]:
        manifest = self._model.manifest
        return {"model": manifest.version, "tier": "model", "figures": manifest.figures}


class LinearFamily:
    """The plug of the small model."""

    kind = Kind(NAME, artefact.schema_of(FEATURES), lambda weights, rows: forward(weights, rows))

    def package(self, manifest: bytes, weights: bytes) -> Made:
        return Made(manifest, weights)

    def build(self, model: Artefact, calibration: Calibration) -> LinearDecider:
        return LinearDecider(model, calibration)

    def shipped(self, calibration: Calibration) -> None:
        return None


def forward(weights: Mapping[str, Array], rows: Array) -> Array:
    answered: Array = rows @ weights["w"] + weights["b"]
    return answered


def entropy(sample: bytes) -> float:
    """Bits a byte, of the bytes' frequencies."""
    if not sample:
        return 0.0
    shares = np.bincount(np.frombuffer(sample, np.uint8), minlength=256) / len(sample)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def model(
    *, version: str = "1", always: str = "", fails: bool = False, regret: float = 0.05, cautious: bool = False
) -> Made:
    """A linear model's files. `always`: it takes that codec on every link; `fails`: it raises at every question;
    `cautious`: it looks, and then takes what the table would."""
    logs = np.array([math.log(codec.ratio) for codec in CODECS] + [1.0 if fails else -1.0])
    if cautious:
        logs[-1] = -2.0
    if always:
        logs = np.where([codec.name == always for codec in CODECS] + [False], 6.0, 0.0)
        logs[-1] = -3.0
    weights = {"w": np.zeros((2, len(logs)), np.float32), "b": logs.astype(np.float32)}
    rows = np.array([[4.0, 20.0]])
    golden = tuple(Golden((4.0, 20.0), tuple(map(float, out))) for out in forward(weights, rows))
    return artefact.make(
        name=NAME,
        version=version,
        schema=artefact.schema_of(FEATURES),
        weights=weights,
        bounds={"entropy": (0.0, 8.0)},
        trained_on={"table": "00" * 32},
        figures={"regret_gmean": regret},
        golden=golden,
    )
