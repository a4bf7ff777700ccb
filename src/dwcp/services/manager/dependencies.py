"""Everybody the manager asks over HTTP: one breaker and one watch on each, and the probes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import httpx
import msgspec

from dwcp.api import agent as agent_api
from dwcp.api import allocator as allocator_api
from dwcp.api import rebalance as rebalance_api
from dwcp.api.agent import RealUse
from dwcp.api.allocator import PlaceAnswer, PlaceRequest
from dwcp.api.manager import BreakerView, Reach
from dwcp.api.rebalance import Plan, PlanRequest
from dwcp.api.requests import AnswerMalformed, Request, answer
from dwcp.control.breaker import Breaker, BreakerLimits, BreakerState
from dwcp.control.health import Condition, Observation, Watchlist
from dwcp.runtime.clock import Clock
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.manager import rules

ANSWER_BYTES_MAX = 8 * 1024 * 1024
PROBE_TIMEOUT_S = 3.0
ALLOCATOR = "maddpg-allocator"
CONTROL_LOG = "control-log"
_LEVEL = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class DependencyFailed(Exception):
    """A dependency did not answer as it should; the message names it. It is tried again by itself."""


class Dependencies:
    """Breakers by name, made on first use; bounded by the nodes there are."""

    def __init__(
        self,
        *,
        limits: BreakerLimits,
        clock: Clock,
        telemetry: Telemetry,
        probe_ms: int,
        client: httpx.AsyncClient,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._telemetry = telemetry
        self._client = client
        self._breakers: dict[str, Breaker] = {}
        self.watchlist = Watchlist(interval_ms=probe_ms)
        self._used: dict[str, RealUse] = {}  # by agent, as its last answer said

    def breaker(self, name: str) -> Breaker:
        if name not in self._breakers:
            self._breakers[name] = Breaker(name, self._limits)
        return self._breakers[name]

    async def call(self, name: str, url: str, wanted: Request, *, timeout_s: float) -> bytes:
        """The body of a 2xx answer. Raises `DependencyFailed`, at once while the breaker is open."""
        breaker = self.breaker(name)
        if not breaker.allows(now_ms=self._clock.monotonic_ms()):
            raise DependencyFailed(f"{name}: its breaker is open after: {breaker.last_error}")
        try:
            body = await self._send(name, url, wanted, timeout_s=timeout_s)
        except DependencyFailed as exc:
            self.failed(name, str(exc))
            raise
        self.succeeded(name)
        return body

    def succeeded(self, name: str) -> None:
        self.breaker(name).succeeded()
        self._show(name)

    def failed(self, name: str, error: str) -> None:
        self.breaker(name).failed(error, now_ms=self._clock.monotonic_ms())
        self._show(name)

    def reset(self, name: str) -> bool:
        """An operator's reset of one, or of all for an empty name; whether there was one of that name."""
        chosen = [name] if name else list(self._breakers)
        known = [breaker for each in chosen if (breaker := self._breakers.get(each)) is not None]
        for breaker in known:
            breaker.reset()
            self._show(breaker.name)
        return bool(known) or not name

    def views(self) -> list[BreakerView]:
        now_ms = self._clock.monotonic_ms()
        return [
            BreakerView(
                name=name,
                state=breaker.state.value,
                failures=breaker.failures,
                successes=breaker.successes,
                retry_after_ms=breaker.retry_after_ms(now_ms=now_ms),
                last_error=breaker.last_error,
            )
            for name, breaker in sorted(self._breakers.items())
        ]

    def reach(self, name: str) -> Reach:
        condition = self.watchlist.condition(name, now_ms=self._clock.monotonic_ms())
        known = {Condition.OK: Reach.REACHABLE, Condition.FAILING: Reach.UNREACHABLE}
        return known.get(condition, Reach.UNKNOWN)

    def used(self, name: str) -> RealUse | None:
        """What that node's commands really use; None where its agent did not say so, or does not answer now."""
        return self._used.get(name) if self.reach(name) is Reach.REACHABLE else None

    def unreachable(self) -> frozenset[str]:
        """Who should get no new work: known to fail, not merely unknown."""
        return frozenset(name for name in self.watchlist.subjects() if self.reach(name) is Reach.UNREACHABLE)

    def lease_missed(self, node: str) -> None:
        """A node that let a lease run out counts as unreachable until a probe says otherwise."""
        observation = Observation(False, self._clock.monotonic_ms(), "it let a lease run out")
        self.watchlist.observed(node, observation)

    async def probe(self, targets: Mapping[str, str], *, among: Mapping[str, str] | None = None) -> None:
        """Asks `/health` of every target (name -> url) at once; forgets who is not `among` all there are."""
        kept = frozenset(targets if among is None else among)
        self.watchlist.keep(kept)
        self._used = {name: used for name, used in self._used.items() if name in kept}
        await asyncio.gather(*(self._probe(name, url) for name, url in sorted(targets.items())))

    async def _probe(self, name: str, url: str) -> None:
        """Probes go out even while the breaker is open: they are what closes it again."""
        started_ms = self._clock.monotonic_ms()
        try:
            body = await self._send(name, url, agent_api.health(), timeout_s=PROBE_TIMEOUT_S)
        except DependencyFailed as exc:
            ok, detail = False, str(exc)
            self.failed(name, detail)
        else:
            ok, detail = True, "answered"
            self._hear(name, body)
            if self.breaker(name).allows(now_ms=self._clock.monotonic_ms()):
                self.succeeded(name)
        now_ms = self._clock.monotonic_ms()
        self.watchlist.observed(name, Observation(ok, now_ms, detail, now_ms - started_ms))
        self._telemetry.gauge("dwcp_up", 1 if ok else 0, component=name)
        self._telemetry.observe("dwcp_probe_seconds", (now_ms - started_ms) / 1000, component=name)

    def _hear(self, name: str, body: bytes) -> None:
        """What an agent says of its use beside that it is well; an answer without it is none the worse."""
        with contextlib.suppress(msgspec.MsgspecError):
            told = msgspec.json.decode(body, type=_Health)
            if told.checks.node.used is not None:
                self._used[name] = told.checks.node.used
                return
        self._used.pop(name, None)

    async def _send(self, name: str, url: str, wanted: Request, *, timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(name, url, wanted)
        except TimeoutError as exc:
            raise DependencyFailed(f"{name}: no answer within {timeout_s:g} s") from exc
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
            raise DependencyFailed(f"{name}: {str(exc) or type(exc).__name__}") from exc

    async def _exchange(self, name: str, url: str, wanted: Request) -> bytes:
        request = self._client.build_request(
            wanted.method, url + wanted.path, content=wanted.body or None, headers=wanted.headers
        )
        got = await self._client.send(request, stream=True)
        try:
            body = b""
            async for part in got.aiter_bytes():
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    raise DependencyFailed(f"{name}: its answer is longer than {ANSWER_BYTES_MAX} bytes")
        finally:
            await got.aclose()
        if not got.is_success:
            raise DependencyFailed(
                f"{name}: answered {got.status_code}: {body[:200].decode('utf-8', 'replace')}"
            )
        return body

    def _show(self, name: str) -> None:
        self._telemetry.gauge("dwcp_breaker_state", _LEVEL[self.breaker(name).state], dependency=name)


class _NodeCheck(msgspec.Struct, frozen=True):
    used: RealUse | None = None


class _Checks(msgspec.Struct, frozen=True):
    node: _NodeCheck = _NodeCheck()


class _Health(msgspec.Struct, frozen=True):
    """As much of an agent's `/health` as is read here; the rest may be anything."""

    checks: _Checks = _Checks()


class AllocatorOrLocal:
    """Placer and planner: the allocator if it answers in time, else the same rules computed here, saying so."""

    def __init__(
        self,
        dependencies: Dependencies,
        *,
        url: str,
        timeout_s: float,
        plan_timeout_s: float,
        noted: Callable[[str], None],
    ) -> None:
        self._dependencies = dependencies
        self._url = url
        self._timeout_s = timeout_s
        self._plan_timeout_s = plan_timeout_s
        self._noted = noted

    async def place(self, wanted: PlaceRequest) -> PlaceAnswer:
        try:
            return answer(PlaceAnswer, await self._call(allocator_api.place(wanted), self._timeout_s))
        except (DependencyFailed, AnswerMalformed) as exc:
            self._noted(str(exc))
            return rules.propose(wanted)

    async def release(self, workload: str) -> None:
        """Best effort: a reservation ends by itself."""
        try:
            await self._call(allocator_api.release(workload), self._timeout_s)
        except DependencyFailed as exc:
            self._noted(str(exc))

    async def plan(self, wanted: PlanRequest) -> Plan:
        try:
            return answer(Plan, await self._call(rebalance_api.plan(wanted), self._plan_timeout_s))
        except (DependencyFailed, AnswerMalformed) as exc:
            self._noted(str(exc))
            return await self.own(wanted, because="the allocator did not answer")

    async def own(self, wanted: PlanRequest, *, because: str) -> Plan:
        """In a thread: placements and watches go on beside it."""
        made = await asyncio.to_thread(rules.plan, wanted)
        return msgspec.structs.replace(made, policy=f"greedy (manager's own: {because})")

    async def _call(self, wanted: Request, timeout_s: float) -> bytes:
        return await self._dependencies.call(ALLOCATOR, self._url, wanted, timeout_s=timeout_s)
