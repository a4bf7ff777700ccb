"""Asks every process how it is, in turn, and remembers the last answers."""

from __future__ import annotations

import asyncio

import httpx
import msgspec

from dwcp.api.health import Verdict
from dwcp.operations.clusters import Probe, Standing
from dwcp.runtime.clock import Clock
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.monitoring.config import Target

ANSWER_BYTES_MAX = 262_144


class _Check(msgspec.Struct, frozen=True):
    verdict: Verdict
    detail: str = ""


class _Report(msgspec.Struct, frozen=True):
    """The part of a `/health` answer that is used here."""

    verdict: Verdict
    checks: dict[str, _Check] = {}


class Prober:
    """The last answer of every target. A new one has asked nobody: all is unknown."""

    def __init__(self, targets: tuple[Target, ...], *, clock: Clock, telemetry: Telemetry) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._targets = targets
        self._last: dict[str, tuple[Probe, int]] = {
            target.name: (Probe(target.name, target.kind, None, 0), clock.monotonic_ms())
            for target in targets
        }

    def probes(self) -> tuple[Probe, ...]:
        """Every target's last answer with its age."""
        now_ms = self._clock.monotonic_ms()
        return tuple(msgspec.structs.replace(probe, age_ms=now_ms - at) for probe, at in self._last.values())

    def asked_all(self) -> bool:
        return all(probe.reached is not None for probe, _ in self._last.values())

    async def ask_all(self, client: httpx.AsyncClient) -> None:
        """One round; targets are asked together, each within the client's timeout."""
        await asyncio.gather(*(self._ask(client, target) for target in self._targets))

    async def _ask(self, client: httpx.AsyncClient, target: Target) -> None:
        started_ms = self._clock.monotonic_ms()
        try:
            probe = await _probe(client, target)
        except (httpx.HTTPError, msgspec.DecodeError, ValueError) as exc:
            detail = f"no usable answer: {str(exc) or type(exc).__name__}"
            probe = Probe(target.name, target.kind, False, 0, detail=detail)
        ended_ms = self._clock.monotonic_ms()
        self._last[target.name] = (probe, ended_ms)
        self._telemetry.gauge("dwcp_up", 1 if probe.reached else 0, component=target.name)
        self._telemetry.observe("dwcp_probe_seconds", (ended_ms - started_ms) / 1000, component=target.name)


async def _probe(client: httpx.AsyncClient, target: Target) -> Probe:
    report = msgspec.json.decode(await _get(client, target.url + "/health"), type=_Report)
    bad = [
        f"{name}: {check.detail or check.verdict}"
        for name, check in report.checks.items()
        if check.verdict is not Verdict.OK
    ]
    standing = None
    if target.kind == "replica":
        standing = msgspec.json.decode(await _get(client, target.url + "/cluster/status"), type=Standing)
    return Probe(target.name, target.kind, True, 0, report.verdict, "; ".join(bad), standing)


async def _get(client: httpx.AsyncClient, url: str) -> bytes:
    """The body of a successful answer, bounded: a broken process must not fill our memory."""
    async with client.stream("GET", url) as answer:
        answer.raise_for_status()
        body = bytearray()
        async for piece in answer.aiter_bytes():
            body += piece
            if len(body) > ANSWER_BYTES_MAX:
                raise ValueError(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)
