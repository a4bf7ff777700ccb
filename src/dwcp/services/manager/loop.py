"""The manager's tasks: watch and reconcile, probe. Time and waiting live here, decisions elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from dwcp.api.workloads import NODES, WORKLOADS, State
from dwcp.control.errors import ClockSkewed
from dwcp.control.moving import under_way
from dwcp.control.reconcile import next_due_ms
from dwcp.control.recovery import Recovery
from dwcp.runtime.clock import Clock
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.manager.coordinator import Coordinator
from dwcp.services.manager.dependencies import ALLOCATOR, CONTROL_LOG, Dependencies
from dwcp.services.manager.ports import LogRefused, LogUnreachable

IDLE_REFRESH_MS = 60_000  # without work under way a fresh read each minute is enough: watches bring the rest
WAKE_MS_MIN = 5  # changes that arrive together are decided on together
OVERDUE_MS = 50  # committed time may trail this clock a little: asking at once would be refused


class Watcher(Protocol):
    """The control log's watch, narrowed: (key, value or None, revision), in order, for ever.

    `from_revision` is the first one wanted. Raises `LogUnreachable`, or `LogRefused` where that is forgotten.
    """

    def watch(
        self, prefix: bytes, *, from_revision: int
    ) -> AsyncIterator[tuple[bytes, bytes | None, int]]: ...


@dataclass(slots=True)
class Condition:
    """What the last round came to, for `/health`; `at_ms` is monotonic, of the log's last answer."""

    problem: str = "the control log has not been read yet"
    at_ms: int = -1


@dataclass(slots=True)
class Loop:
    """Runs one coordinator until cancelled."""

    coordinator: Coordinator
    watcher: Watcher
    dependencies: Dependencies
    clock: Clock
    telemetry: Telemetry
    log: structlog.stdlib.BoundLogger
    targets: Callable[[], dict[str, str]]  # whom to probe: name -> url
    reconcile_ms: int
    probe_ms: int
    condition: Condition = field(default_factory=Condition)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _read: asyncio.Event = field(default_factory=asyncio.Event)
    _read_ms: int | None = None
    _suspects: set[str] = field(default_factory=set)
    _probe_soon: asyncio.Event = field(default_factory=asyncio.Event)

    def lease_missed(self, node: str) -> None:
        """A node that let a lease run out is asked at once whether it is still there."""
        self.dependencies.lease_missed(node)
        self._suspects.add(node)  # an answer to a probe that was already out says nothing about now
        self._probe_soon.set()

    def wake(self) -> None:
        """Something changed: decide soon."""
        self._wake.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reconcile())
            tasks.create_task(self._follow(WORKLOADS))
            tasks.create_task(self._follow(NODES))
            tasks.create_task(self._probe())

    async def _reconcile(self) -> None:
        recovery = Recovery()
        while True:
            try:
                await self._round()
                recovery.forget("round")
                wait_ms = self._wait_ms()
            except (LogUnreachable, LogRefused, ClockSkewed) as exc:
                self._read_ms = None  # what was committed is not known: read before deciding again
                self.condition.problem = str(exc)
                if not isinstance(exc, ClockSkewed):
                    self.dependencies.failed(CONTROL_LOG, str(exc))
                wait_ms = recovery.failed("round", now_ms=self.clock.monotonic_ms())
                self.log.warning("reconcile.failed", error=str(exc), again_in_ms=wait_ms)
                await asyncio.sleep(wait_ms / 1000)
                continue
            await _wait(self._wake, wait_ms)
            await asyncio.sleep(WAKE_MS_MIN / 1000)
            self._wake.clear()

    async def _round(self) -> None:
        now_ms = self.clock.monotonic_ms()
        every_ms = self.reconcile_ms if self.coordinator.busy else IDLE_REFRESH_MS
        if self._read_ms is None or now_ms - self._read_ms >= every_ms:
            await self.coordinator.refresh(linearizable=True)
            self._read_ms = now_ms
            self._read.set()
            self._answered()
        elif now_ms - self.condition.at_ms >= self.probe_ms:
            await self.coordinator.confirm()
            self._answered()
        await self.coordinator.step()
        self.condition.problem = ""
        self._show()

    def _answered(self) -> None:
        """The log has answered: only that makes it well, not that there was nothing to ask."""
        self.dependencies.succeeded(CONTROL_LOG)
        self.condition.at_ms = self.clock.monotonic_ms()

    def _wait_ms(self) -> int:
        """Until the clock alone gives reason to decide again."""
        now_ms = self.clock.now_ms()
        due = [self.coordinator.next_retry_ms(), next_due_ms(self.coordinator.inventory, now_ms=now_ms)]
        waits = [when - now_ms + OVERDUE_MS for when in due if when is not None]
        return max(WAKE_MS_MIN, min([self.reconcile_ms, *waits]))

    async def _follow(self, prefix: bytes) -> None:
        """Watches are hints: one that breaks costs only the time to the next read."""
        recovery = Recovery()
        await self._read.wait()
        while True:
            since = self.coordinator.read_revision + 1
            try:
                async for key, value, revision in self.watcher.watch(prefix, from_revision=since):
                    recovery.forget("watch")
                    self.coordinator.heard(key, value, revision)
                    self.wake()
            except (LogUnreachable, LogRefused) as exc:
                self.log.warning("watch.failed", prefix=prefix.decode(), error=str(exc))
            self._read_ms = None  # what was missed is found by reading
            self.wake()
            wait_ms = recovery.failed("watch", now_ms=self.clock.monotonic_ms())
            await asyncio.sleep(wait_ms / 1000)

    async def _probe(self) -> None:
        """All every `probe_ms`; who does not answer is asked again after 1 s, 2 s, then every 4 s."""
        recovery = Recovery()
        full_ms = self.clock.monotonic_ms()
        while True:
            self._probe_soon.clear()
            missing, targets = self.dependencies.unreachable() | self._suspects, self.targets()
            self._suspects.clear()
            if self.clock.monotonic_ms() >= full_ms:
                full_ms = self.clock.monotonic_ms() + self.probe_ms
                await self.dependencies.probe(targets, among=targets)
            else:
                await self.dependencies.probe(
                    {name: targets[name] for name in missing & targets.keys()}, among=targets
                )
            still = self.dependencies.unreachable()
            if missing - still:
                self.wake()  # somebody came back: waiting work may fit now
            await self._until_next_probe(recovery, full_ms, failing=bool(still))

    async def _until_next_probe(self, recovery: Recovery, full_ms: int, *, failing: bool) -> None:
        now_ms = self.clock.monotonic_ms()
        wait_ms = max(0, full_ms - now_ms)
        if failing:
            wait_ms = min(wait_ms, recovery.failed("probe", now_ms=now_ms))
        else:
            recovery.forget("probe")
        await _wait(self._probe_soon, wait_ms)

    def _show(self) -> None:
        counts = dict.fromkeys(State, 0)
        for entry in self.coordinator.inventory.workloads():
            counts[entry.state.state] += 1
        self.telemetry.gauge("dwcp_manager_moves_under_way", len(under_way(self.coordinator.inventory)))
        for state, count in counts.items():
            self.telemetry.gauge("dwcp_manager_workloads", count, state=state.value)


async def _wait(event: asyncio.Event, wait_ms: int) -> None:
    """Until the event or the time. `asyncio.wait_for` could swallow a cancellation that comes with the event."""
    with suppress(TimeoutError):
        async with asyncio.timeout(wait_ms / 1000):
            await event.wait()


def targets(coordinator: Coordinator, *, allocator: str, expected: dict[str, str]) -> dict[str, str]:
    """Whom to probe: the allocator, the agents of the configuration, and those that joined."""
    joined = {entry.name: f"https://{entry.node.address}" for entry in coordinator.inventory.nodes()}
    return {ALLOCATOR: allocator, **expected, **joined}
