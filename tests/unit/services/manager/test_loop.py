"""The manager's tasks on a real event loop: wakes, recoveries, watches that break, probes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import msgspec
import structlog
from tests.unit.services.manager.stage import FakeLog, add_node, coordinator

from dwcp.api.manager import Submission
from dwcp.api.workloads import Demand, Job, State, WorkloadState, state_key
from dwcp.control.breaker import BreakerLimits
from dwcp.runtime.clock import SystemClock
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.manager.coordinator import Coordinator
from dwcp.services.manager.dependencies import Dependencies
from dwcp.services.manager.loop import Loop
from dwcp.services.manager.ports import LogRefused, LogUnreachable

ID = "w-aaaaaaaaaa"
JOB = Job(name="j", demand=Demand(cpu=1, memory_mib=64, storage_mib=64), run=("true",))


class Watches:
    """A watch that the test feeds; an exception in the queue breaks it."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[bytes, bytes | None, int] | Exception] = asyncio.Queue()
        self.began: list[int] = []

    async def watch(
        self, prefix: bytes, *, from_revision: int
    ) -> AsyncIterator[tuple[bytes, bytes | None, int]]:
        self.began.append(from_revision)
        if prefix != b"/w/":
            await asyncio.Event().wait()
        while True:
            item = await self.queue.get()
            if isinstance(item, Exception):
                raise item
            yield item


class Scene:
    """A loop over a log in memory whose time is real."""

    def __init__(self) -> None:
        self.log = FakeLog()
        self.clock = SystemClock()
        self.log.now_ms = self.clock.now_ms()
        add_node(self.log, "oslo")
        self.watches = Watches()
        telemetry = Telemetry("dwcp-manager", version="0")
        self.probed: list[str] = []
        self.dependencies = Dependencies(
            limits=BreakerLimits(),
            clock=self.clock,
            telemetry=telemetry,
            probe_ms=60_000,
            client=httpx.AsyncClient(transport=httpx.MockTransport(self.dependency)),
        )
        self.down: set[str] = set()
        self.manager: Coordinator = coordinator(
            self.log, now_ms=self.clock.now_ms, unreachable=self.dependencies.unreachable, lease_ms=60_000
        )
        self.loop = Loop(
            coordinator=self.manager,
            watcher=self.watches,
            dependencies=self.dependencies,
            clock=self.clock,
            telemetry=telemetry,
            log=structlog.wrap_logger(None, processors=[_silent]),
            targets=lambda: {"oslo": "https://oslo"},
            reconcile_ms=60_000,
            probe_ms=60_000,
        )

    def dependency(self, request: httpx.Request) -> httpx.Response:
        self.probed.append(request.url.host)
        if request.url.host in self.down:
            raise httpx.ConnectError("refused")
        return httpx.Response(200)

    def play(self, scenario: Callable[[], object]) -> None:
        """Runs the loop beside the scenario, which is a coroutine function; ends with it."""

        async def run() -> None:
            running = asyncio.create_task(self.loop.run())
            async with asyncio.timeout(20):
                await scenario()  # type: ignore[misc]
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        asyncio.run(run())

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.log.now_ms = self.clock.now_ms()
            await asyncio.sleep(0.005)

    def state(self) -> State | None:
        raw = self.log.get(state_key(ID))
        return msgspec.json.decode(raw, type=WorkloadState).state if raw else None


def _silent(_logger: object, _method: str, _event: object) -> str:
    raise structlog.DropEvent


def test_a_wake_is_acted_on_at_once() -> None:
    """Goal: a submission does not wait for the next read. Method: reads a minute apart, submit, wake."""
    scene = Scene()

    async def scenario() -> None:
        await scene.until(lambda: scene.manager.loaded)
        await scene.manager.submit(Submission(id=ID, job=JOB), by="t")
        scene.loop.wake()
        await scene.until(lambda: scene.state() is State.PLACED)

    scene.play(scenario)


def test_what_a_watch_tells_is_acted_on() -> None:
    """Goal: another manager's submission is placed without waiting for a read. Method: only the watch tells."""
    scene = Scene()

    async def scenario() -> None:
        await scene.until(lambda: scene.manager.loaded and len(scene.watches.began) == 2)
        other = coordinator(scene.log, now_ms=scene.clock.now_ms)
        await other.refresh(linearizable=True)
        await other.submit(Submission(id=ID, job=JOB), by="t")
        for kv in [kv for kv in scene.log.data.values() if kv.key.startswith(b"/w/")]:
            scene.watches.queue.put_nowait((kv.key, kv.value, kv.mod_revision))
        await scene.until(lambda: scene.state() is State.PLACED)

    scene.play(scenario)


def test_a_log_that_is_away_is_asked_again_and_said_to_be_away() -> None:
    """Goal: an outage ends by itself; meanwhile health says so. Method: fail the log, then mend it."""
    scene = Scene()
    scene.log.failing = LogUnreachable("no quorum")

    async def scenario() -> None:
        await scene.until(lambda: scene.loop.condition.problem == "no quorum")
        assert not scene.manager.loaded
        scene.log.failing = None
        await scene.until(lambda: scene.loop.condition.problem == "" and scene.manager.loaded)

    scene.play(scenario)


def test_a_log_that_dies_in_quiet_times_is_noticed() -> None:
    """Goal: health never rests on having had nothing to ask. Method: reads a minute apart, no work; the log stops
    answering between them, and comes back."""
    scene = Scene()
    scene.loop.reconcile_ms, scene.loop.probe_ms = 20, 20

    async def scenario() -> None:
        await scene.until(lambda: scene.manager.loaded and scene.loop.condition.at_ms >= 0)
        scene.log.failing = LogUnreachable("no answer")
        await scene.until(lambda: scene.loop.condition.problem == "no answer")
        scene.log.failing = None
        await scene.until(lambda: scene.loop.condition.problem == "")

    scene.play(scenario)


def test_a_broken_watch_begins_again_after_what_was_read() -> None:
    """Goal: no gap after compaction or a lost replica. Method: break it; the log grew in between."""
    scene = Scene()

    async def scenario() -> None:
        await scene.until(lambda: len(scene.watches.began) == 2)
        scene.log.put(b"/w/x/other", b"1")
        scene.watches.queue.put_nowait(LogRefused("compacted"))
        await scene.until(lambda: len(scene.watches.began) == 3)
        assert scene.watches.began[0] == 2, "the node's entry is revision 1, and was read"
        await scene.until(lambda: scene.manager.read_revision == 2)

    scene.play(scenario)


def test_a_node_that_missed_its_lease_is_probed_at_once_until_it_answers() -> None:
    """Goal: its fate is known in a second, not at the next round of probes. Method: probes a minute apart."""
    scene = Scene()

    async def scenario() -> None:
        await scene.until(lambda: len(scene.probed) == 1)
        scene.down.add("oslo")
        scene.loop.lease_missed("oslo")
        await scene.until(lambda: len(scene.probed) >= 3)
        assert scene.dependencies.unreachable() == {"oslo"}
        scene.down.clear()
        await scene.until(lambda: not scene.dependencies.unreachable())

    scene.play(scenario)


def test_the_data_folder_is_not_needed(tmp_path: Path) -> None:
    """Goal: all state comes back from the log. Method: a second loop over the same log knows the job."""
    first = Scene()

    async def submit() -> None:
        await first.until(lambda: first.manager.loaded)
        await first.manager.submit(Submission(id=ID, job=JOB), by="t")

    first.play(submit)
    second = Scene()
    second.log.data = first.log.data
    second.log.revision = first.log.revision
    second.play(lambda: second.until(lambda: second.state() is State.PLACED))
    assert not list(tmp_path.iterdir())
