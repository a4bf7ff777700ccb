"""What probes tell the manager beside that somebody answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from dwcp.api.agent import RealUse
from dwcp.control.breaker import BreakerLimits
from dwcp.runtime.clock import ManualClock
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.manager.dependencies import Dependencies


def test_a_probe_learns_what_a_node_really_uses() -> None:
    """Goal: use comes with the answer, and goes with it. Method: an agent that says it, then says other things, then
    nothing at all; each time look."""
    used = {"cpu_milli": 700, "memory_mib": 12}
    bodies: list[Any] = [
        {"service": "a", "checks": {"node": {"verdict": "ok", "used": used}}},
        {"checks": {"node": {"verdict": "ok", "used": "much"}}},
        {"checks": {"node": {"used": used}}},
        None,
    ]

    def answering(request: httpx.Request) -> httpx.Response:
        told = bodies.pop(0)
        if told is None:
            raise httpx.ConnectError("gone", request=request)
        return httpx.Response(200, content=json.dumps(told))

    async def probes() -> list[RealUse | None]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answering)) as client:
            known = Dependencies(
                limits=BreakerLimits(),
                clock=ManualClock(),
                telemetry=Telemetry("dwcp-manager", version="0"),
                probe_ms=1000,
                client=client,
            )
            found = []
            for _ in range(4):
                await known.probe({"oslo": "http://oslo"})
                found.append(known.used("oslo"))
            return found

    first, odd, again, gone = asyncio.run(probes())
    assert first == again == RealUse(cpu_milli=700, memory_mib=12)
    assert odd is None
    assert gone is None
