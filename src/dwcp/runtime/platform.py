"""One installation as a whole: bring it up, see how it is, bring it down."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec

from dwcp.api.health import Verdict, worst
from dwcp.runtime import installation
from dwcp.runtime.clock import Clock
from dwcp.runtime.errors import Contradiction, NotRunning, RuntimeFault
from dwcp.runtime.http_client import client
from dwcp.runtime.layout import Layout
from dwcp.runtime.leftovers import stop_attempts
from dwcp.runtime.supervision import ServiceState, Supervisor, exclusive
from dwcp.runtime.world import OPERATOR, ServicePlan, World, check_net, default_world, services, url

READY_SECONDS_MAX = 90
_POLL_SECONDS = 0.25
_STARTS_MAX = 3  # a service that ends this often before it is ready will not become ready


class StartFailed(RuntimeFault):
    """A service did not become ready; its log tells more: `dwcp logs NAME`."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller asked of the world; None leaves it as it is, or as it is by default."""

    net: str | None = None
    replicas: int | None = None
    testing: bool | None = None
    lease_ms: int | None = None


class ServiceStatus(msgspec.Struct, frozen=True):
    """How one service is. `verdict` is unknown where it could not be asked."""

    name: str
    state: str
    pid: int
    ready: bool
    verdict: Verdict
    address: str
    rss_mb: float
    detail: str


class PlatformStatus(msgspec.Struct, frozen=True):
    state: str
    net: str
    running: bool
    verdict: Verdict
    console: str
    services: tuple[ServiceStatus, ...]

    @property
    def ready(self) -> bool:
        return bool(self.services) and all(service.ready for service in self.services)


class Platform:
    """An installation and its processes."""

    def __init__(self, layout: Layout, clock: Clock) -> None:
        self.layout = layout
        self._clock = clock
        self.supervisor = Supervisor(layout)

    def initialise(self, wishes: Wishes) -> bool:
        """Makes the installation unless it exists; says whether it did. Raises `Contradiction`."""
        with exclusive(self.layout):
            return self._initialise(wishes)

    def up(self, wishes: Wishes, *, progress: Callable[[str, int, int], None]) -> PlatformStatus:
        """Starts what does not run and waits until all is ready; `progress` gets (service, ready, all).

        Raises `AddressTaken`, `KeyUnusable`, `Contradiction`, `StartFailed`.
        """
        with exclusive(self.layout):
            self._initialise(wishes)
            world = installation.open_world(self.layout)
            plans = installation.write_configs(self.layout, world)
            started = not self.supervisor.is_running()
            if started:
                self.supervisor.start(plans)
            else:
                self.supervisor.start_missing()
            try:
                asyncio.run(self._wait_ready(plans, progress))
            except BaseException:
                if started:
                    self.supervisor.stop()
                raise
        return self.status()

    def down(self) -> list[str]:
        """Stops every process of the installation; returns a line for each that had to be killed."""
        with exclusive(self.layout):
            killed = self.supervisor.stop()
            return killed + stop_attempts(self.layout)

    def status(self) -> PlatformStatus:
        """Raises `NotRunning` where there is no installation."""
        if not installation.exists(self.layout):
            raise NotRunning(
                f"there is no installation in {self.layout.root}: make and start one with `dwcp up`"
            )
        world = installation.open_world(self.layout)
        plans = services(world, self.layout)
        running = self.supervisor.is_running()
        states = {state.name: state for state in self.supervisor.states()} if running else {}
        found = asyncio.run(self._ask_all(plans, states))
        return PlatformStatus(
            state=str(self.layout.root),
            net=world.net,
            running=running,
            verdict=worst([service.verdict for service in found]),
            console=f"http://{world.host('0.14')}:8081",
            services=tuple(found),
        )

    def plan(self, name: str) -> ServicePlan:
        """One service's plan. Raises `Contradiction` naming the services there are."""
        plans = services(installation.open_world(self.layout), self.layout)
        for plan in plans:
            if plan.name == name:
                return plan
        names = ", ".join(plan.name for plan in plans)
        raise Contradiction(f"no service is named {name!r}; there are {names}")

    def _initialise(self, wishes: Wishes) -> bool:
        if installation.exists(self.layout):
            _check_wishes(wishes, installation.open_world(self.layout), self.layout)
            return False
        world = default_world(
            net=wishes.net or "127.0",
            replicas=wishes.replicas or 4,
            testing=bool(wishes.testing),
            lease_ms=wishes.lease_ms or 30_000,
        )
        installation.create(self.layout, world, now_ms=self._clock.now_ms())
        return True

    # ------------------------------------------------------------------ waiting and asking

    async def _wait_ready(
        self, plans: tuple[ServicePlan, ...], progress: Callable[[str, int, int], None]
    ) -> None:
        pending = {plan.name: plan for plan in plans}
        pids: dict[str, set[int]] = {name: set() for name in pending}
        deadline = time.monotonic() + READY_SECONDS_MAX
        async with client(self.layout.tls(OPERATOR), timeout_s=2) as http:
            while pending:
                for state in self.supervisor.states():
                    self._check_alive(state, pids.get(state.name, set()), state.name in pending)
                answers = await asyncio.gather(*(_is_ready(http, plan) for plan in pending.values()))
                for plan, ready in zip(list(pending.values()), answers, strict=True):
                    if ready:
                        del pending[plan.name]
                        progress(plan.name, len(plans) - len(pending), len(plans))
                if pending and time.monotonic() > deadline:
                    raise StartFailed(self._why_not_ready(sorted(pending)))
                await asyncio.sleep(_POLL_SECONDS if pending else 0)

    def _check_alive(self, state: ServiceState, pids: set[int], pending: bool) -> None:
        if state.pid:
            pids.add(state.pid)
        if pending and (state.gave_up or len(pids) > _STARTS_MAX):
            raise StartFailed(f"{state.name} does not start: {last_words(self.layout.log(state.name))}")

    def _why_not_ready(self, names: list[str]) -> str:
        words = "; ".join(f"{name}: {last_words(self.layout.log(name))}" for name in names)
        return f"not ready after {READY_SECONDS_MAX} s: {words}"

    async def _ask_all(
        self, plans: tuple[ServicePlan, ...], states: dict[str, ServiceState]
    ) -> list[ServiceStatus]:
        async with client(self.layout.tls(OPERATOR), timeout_s=3) as http:
            return await asyncio.gather(*(_ask(http, plan, states.get(plan.name)) for plan in plans))


def services_of(platform: Platform) -> tuple[ServicePlan, ...]:
    """Every service of an installation that exists. Raises `NotRunning`."""
    if not installation.exists(platform.layout):
        raise NotRunning(f"there is no installation in {platform.layout.root}: make one with `dwcp up`")
    return services(installation.open_world(platform.layout), platform.layout)


async def _is_ready(http: httpx.AsyncClient, plan: ServicePlan) -> bool:
    try:
        return (await http.get(base_url(plan) + "/ready")).status_code == 200
    except httpx.HTTPError:
        return False


async def _ask(http: httpx.AsyncClient, plan: ServicePlan, state: ServiceState | None) -> ServiceStatus:
    verdict, detail = Verdict.UNKNOWN, "not started" if state is None else state.detail
    ready = False
    if state is not None and state.pid:
        try:
            answer = await http.get(base_url(plan) + "/health")
            verdict, detail = _judge(answer.content)
            ready = await _is_ready(http, plan)
        except httpx.HTTPError as exc:
            detail = f"does not answer: {str(exc) or type(exc).__name__}"
    return ServiceStatus(
        name=plan.name,
        state=state.state.lower() if state else "stopped",
        pid=state.pid if state else 0,
        ready=ready,
        verdict=verdict,
        address=base_url(plan),
        rss_mb=_rss_mb(state.pid) if state and state.pid else 0.0,
        detail=detail,
    )


def _judge(report: bytes) -> tuple[Verdict, str]:
    """The verdict of a `/health` answer, and the details of whatever is not ok."""
    try:
        found = json.loads(report)
        checks = found.get("checks", {})
        bad = [
            f"{name}: {c.get('detail') or c['verdict']}" for name, c in checks.items() if c["verdict"] != "ok"
        ]
        return Verdict(found["verdict"]), "; ".join(bad)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Verdict.UNKNOWN, "its health report cannot be read"


def base_url(plan: ServicePlan) -> str:
    """Where the command line asks a service: plain HTTP where it has it."""
    address = plan.plain or plan.mutual
    assert address is not None
    return url(address, tls=plan.plain is None)


def last_words(log: Path) -> str:
    """The last line of a log, without its JSON; a service that refuses to start says why there."""
    try:
        lines = log.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:
            return line
        if isinstance(event, dict) and event.get("level") in {"error", "critical"}:
            return str(event.get("error") or event.get("event"))
    return lines[-1] if lines else "its log is empty"


def _rss_mb(pid: int) -> float:
    import psutil

    try:
        return round(psutil.Process(pid).memory_info().rss / 1_048_576, 1)
    except psutil.Error:
        return 0.0


def _check_wishes(wishes: Wishes, world: World, layout: Layout) -> None:
    if wishes.net is not None:
        check_net(wishes.net)
    meant = {
        "--net": (wishes.net, world.net),
        "--replicas": (wishes.replicas, len(world.replicas)),
        "--testing": (wishes.testing or None, world.testing),
        "--lease": (wishes.lease_ms, world.lease_ms),
    }
    for option, (wished, actual) in meant.items():
        if wished is not None and wished != actual:
            raise Contradiction(
                f"{option} {wished}: the installation in {layout.root} was made with {actual}; leave it out, "
                "or make another installation with --state DIR"
            )
