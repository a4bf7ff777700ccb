"""One agent over the fakes: in this process, or alone as `python -m tests.unit.services.agent.machine`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from tests.unit.services.agent.fakes import FileLog, FolderGoods, Listener

from dwcp.api.workloads import Capacity, Node
from dwcp.runtime import cgroups, failpoints
from dwcp.runtime.attempts import AttemptStore
from dwcp.runtime.clock import SystemClock
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.agent.site import Room, Site
from dwcp.services.agent.station import Station

NODE = "rome"
CAPACITY = Capacity(cpu_milli=2000, memory_mib=256, storage_mib=256, bandwidth_mbps=20)


@dataclass
class Machine:
    """Everything an agent keeps lies below `root`."""

    root: Path
    lease_ms: int = 3000
    armed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("payloads", "published", "data"):
            (self.root / name).mkdir(exist_ok=True)
        self.log = FileLog(self.root / "log.json")
        self.goods = FolderGoods(self.root / "payloads", self.root / "published")
        self.listener = Listener()
        self.store = AttemptStore(self.root / "data" / "attempts")

    def station(self) -> Station:
        shim_words = [
            word for spec in self.armed if spec.startswith("shim.") for word in ("--failpoint", spec)
        ]
        mark = ("--failpoint-directory", str(self.root / "data" / "failpoints"))
        logger: structlog.stdlib.BoundLogger = structlog.get_logger("agent")
        site = Site(
            node=NODE,
            name="dwcp-agent-rome",
            log=self.log,
            goods=self.goods,
            teller=self.listener,
            store=self.store,
            cgroups=cgroups.Cgroups(cgroups.NONE, {}),
            room=Room(CAPACITY),
            clock=SystemClock(),
            telemetry=Telemetry("agent", version="0"),
            logger=logger,
            lease_ms=self.lease_ms,
            ship_stall_ms=1000,
            shim_arguments=(*shim_words, *mark) if shim_words else (),
        )
        return Station(site, Node(NODE, NODE, "127.0.0.32:7070", CAPACITY), attempts_kept=50)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Station]:
        station, stop = self.station(), asyncio.Event()
        task = asyncio.create_task(station.run(stop))
        try:
            yield station
        finally:
            stop.set()
            await task

    async def until_true(self, condition: Callable[[], bool], within_s: float = 8) -> None:
        """Looks again and again; what is waited for happens in other processes."""
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def until(self, workload: str, *states: str, within_s: float = 20) -> str:
        """The state once it is one of these."""
        await self.until_true(lambda: self.log.state(workload).state.value in states, within_s)
        return self.log.state(workload).state.value

    def said(self, workload: str) -> str:
        """Everything its commands wrote, over all attempts."""
        texts = (attempt.file("stdout") for attempt in self.store.all() if attempt.workload == workload)
        return "".join(text.read_text() for text in texts if text.exists())


def main(argv: Sequence[str]) -> None:
    """ROOT [POINT=ACTION]…: runs until killed."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    machine = Machine(Path(argv[0]), armed=tuple(argv[1:]))
    failpoints.arm(argv[1:], machine.root / "data", testing=True)
    print(json.dumps({"pid": os.getpid()}), flush=True)
    asyncio.run(machine.station().run(asyncio.Event()))


if __name__ == "__main__":
    main(sys.argv[1:])
