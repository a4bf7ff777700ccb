"""The allocator over HTTP, in process: answers, refusals, and metrics that exist before the first event."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from dwcp.api import allocator as api
from dwcp.api.allocator import ModelInfo, NodeState, PlaceAnswer, PlaceRequest, Released, SeenNodes
from dwcp.api.requests import Request, answer, refusal
from dwcp.api.workloads import Capacity
from dwcp.runtime.clock import ManualClock
from dwcp.runtime.http import Health, application
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.allocator.desk import Desk
from dwcp.services.allocator.routes import add_routes
from dwcp.services.allocator.stage import Stage

CAPACITY = Capacity(cpu_milli=1000, memory_mib=64, storage_mib=64, bandwidth_mbps=10)
NODE = NodeState(name="oslo", site="oslo", capacity=CAPACITY)
WANTED = PlaceRequest(workload="w", demand=CAPACITY, nodes=(NODE,))


class Service:
    """The app with the clock in the test's hands."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        telemetry = Telemetry("maddpg-allocator", version="0")
        stage = Stage(telemetry=telemetry, clock=self.clock, use_shipped=False)
        desk = Desk(policy="balance-wan", clock=self.clock, telemetry=telemetry, stage=stage)
        self.app = application(Health("maddpg-allocator", version="0", clock=self.clock), telemetry)
        add_routes(self.app, desk)

    def send(self, wanted: Request) -> httpx.Response:
        async def exchange() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://allocator") as client:
                return await client.request(
                    wanted.method, wanted.path, content=wanted.body, headers=wanted.headers
                )

        return asyncio.run(exchange())


def test_place_reserves_and_release_frees() -> None:
    """Goal: two askers do not pick one gap. Method: place twice, release, place again, and let time pass."""
    service = Service()
    other = msgspec.structs.replace(WANTED, workload="other")

    assert answer(PlaceAnswer, service.send(api.place(WANTED)).content).node == "oslo"
    assert answer(PlaceAnswer, service.send(api.place(other)).content).node == ""
    assert answer(Released, service.send(api.release("w")).content).released
    assert answer(PlaceAnswer, service.send(api.place(other)).content).node == "oslo"
    service.clock.advance(5_001)
    assert answer(PlaceAnswer, service.send(api.place(WANTED)).content).node == "oslo"


def test_nodes_shows_what_was_told_last() -> None:
    """Goal: the service says that it knows only what it was told. Method: before and after a request."""
    service = Service()

    assert answer(SeenNodes, service.send(api.nodes()).content).age_ms == -1
    service.send(api.place(WANTED))
    service.clock.advance(7)
    seen = answer(SeenNodes, service.send(api.nodes()).content)
    assert (seen.age_ms, seen.nodes[0].reserved, seen.reservations[0].workload) == (7, CAPACITY, "w")


def test_the_model_is_none_and_says_so() -> None:
    """Goal: nobody takes the heuristic for a learned policy. Method: read `/v1/model`."""
    info = answer(ModelInfo, Service().send(api.model()).content)

    assert info.model == "none"
    assert "no learned model" in info.detail
    assert "balance-wan" in info.policies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"workload": 1}',
        msgspec.json.encode({"workload": "w", "extra": 1}),
        b"[" * 9999,
    ],
)
def test_junk_gets_a_sentence(body: bytes) -> None:
    """Goal: malformed requests are refused as JSON. Method: several kinds of junk."""
    got = Service().send(Request("POST", "/v1/place", body))

    assert got.status_code == 422
    assert refusal(got.content, status=422).code == "malformed"


def test_an_absurd_fleet_gets_a_sentence() -> None:
    """Goal: arithmetic never sees it. Method: negative capacity and an unknown policy."""
    negative = msgspec.structs.replace(NODE, capacity=msgspec.structs.replace(CAPACITY, cpu_milli=-1))
    for wrong in (
        msgspec.structs.replace(WANTED, nodes=(negative,)),
        msgspec.structs.replace(WANTED, policy="x"),
    ):
        assert Service().send(api.place(wrong)).status_code == 422


def test_optimization_metrics_exist_at_zero() -> None:
    """Goal: `grep optimization` finds live series at once. Method: scrape before and after a placement."""
    service = Service()

    def value(line: str) -> Any:
        text = service.send(Request("GET", "/metrics")).text
        return next(row.split()[-1] for row in text.splitlines() if row.startswith(line))

    assert value('dwcp_maddpg_optimization_total{policy="balance-wan"}') == "0.0"
    assert value("dwcp_maddpg_optimization_reward") == "0.0"
    service.send(api.place(WANTED))
    assert value('dwcp_maddpg_optimization_total{policy="balance-wan"}') == "1.0"
    assert value("dwcp_maddpg_optimization_seconds_count") == "1.0"
