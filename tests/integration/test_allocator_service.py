"""The allocator over real sockets, many clients at once: nothing is ever overfull, and a reload drops nothing."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import uvloop
from tests.unit.allocation.serving import placers
from tests.unit.services.allocator.desks import Bench, nodes

from dwcp.api import allocator as api
from dwcp.api.requests import Request, answer
from dwcp.api.workloads import Capacity
from dwcp.runtime.http import Health, application, serve
from dwcp.services.allocator import routes

pytestmark = pytest.mark.process

HOST = f"127.{16 + os.getpid() % 200}.201.1"
PORT = 8080
NODES, CLIENTS = 12, 6
FIELDS = ("cpu_milli", "memory_mib", "storage_mib", "bandwidth_mbps")


class Line:
    """A keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls) -> Line:
        return cls(*await asyncio.open_connection(HOST, PORT, limit=2**22))

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def send(self, wanted: Request) -> bytes:
        head = f"{wanted.method} {wanted.path} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(wanted.body)}\r\n\r\n"
        self._writer.write(head.encode() + wanted.body)
        told = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        body = await self._reader.readexactly(int(told.partition("content-length:")[2].split("\r\n")[0]))
        assert told.startswith("http/1.1 200"), f"{told}{body[:300]!r}"
        return body


class Ledger:
    """What the clients know to be placed: never more than there really is, as releases are written off first."""

    def __init__(self, told: tuple[api.NodeState, ...]) -> None:
        self.capacity = {node.name: node.capacity for node in told}
        self.used = {node.name: Counter[str]() for node in told}
        self.placed = 0
        self.by: Counter[str] = Counter()

    def add(self, wanted: api.PlaceRequest, got: api.PlaceAnswer) -> bool:
        self.by[got.by] += 1
        self.placed += bool(got.node)
        if not got.node:
            return False
        used = self.used[got.node]
        for field in FIELDS:
            used[field] += getattr(wanted.demand, field)
            assert used[field] <= getattr(self.capacity[got.node], field), f"{got.node} is overfull: {field}"
        return True

    def remove(self, wanted: api.PlaceRequest, node: str) -> None:
        for field in FIELDS:
            self.used[node][field] -= getattr(wanted.demand, field)


async def client(number: int, fleet: Callable[[], str], ledger: Ledger, most: int) -> None:
    """Singles and batches of random sizes, released in random order, until enough is placed."""
    rng, line = np.random.default_rng(number), await Line.open()
    running: list[tuple[api.PlaceRequest, str]] = []
    count = 0
    while ledger.placed < most:
        items = []
        for _ in range(int(rng.integers(1, 17))):
            count += 1
            demand = Capacity(*(int(one) for one in rng.integers(0, (3000, 6000, 30_000, 300))))
            items.append(
                api.PlaceRequest(f"w{number}-{count}", demand, priority=int(rng.integers(1, 6)), commit=True)
            )
        if len(items) == 1:
            single = msgspec.structs.replace(items[0], fleet=fleet())
            answers = [answer(api.PlaceAnswer, await line.send(api.place(single)))]
        else:
            batch = api.BatchRequest(items=tuple(items), fleet=fleet())
            answers = list(answer(api.BatchAnswer, await line.send(api.place_batch(batch))).answers)
        assert len(answers) == len(items)
        running += [
            (item, got.node) for item, got in zip(items, answers, strict=True) if ledger.add(item, got)
        ]
        while running and (rng.random() < 0.6 or len(running) > 20):
            item, node = running.pop(int(rng.integers(len(running))))
            ledger.remove(item, node)
            assert answer(api.Released, await line.send(api.release(item.workload))).released
    await line.close()


async def meanwhile(bench: Bench, digests: list[str], done: asyncio.Event) -> int:
    """Another model, a node that drains and comes back, time that passes; again and again."""
    registry, turns = bench.stage.registry, 0
    assert registry is not None
    while not done.is_set():
        turns += 1
        digest = digests[turns % len(digests)]
        await asyncio.to_thread(
            registry.change, lambda state, to=digest: msgspec.structs.replace(state, active=to)
        )
        await bench.stage.refresh()
        name = f"n{turns % NODES:03}"
        change = (
            api.NodesChange(drain=(name,))
            if turns % 2
            else api.NodesChange(ready=bench.desk.fleet.roster.names)
        )
        bench.desk.change(change)
        bench.clock.advance(50)
        await asyncio.sleep(0.05)
    return turns


async def scene(folder: Path, most: int) -> None:
    bench = Bench(folder)
    digests = [
        bench.stage.registry.admit(placers.made(seed, tuned=True), signer=bench.key).digest
        for seed in range(3)
    ]  # type: ignore[union-attr]
    told = nodes(NODES)
    bench.tell(told)
    app = application(Health("maddpg-allocator", version="0"), bench.telemetry)
    routes.add_routes(app, bench.desk)
    stop, started, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    paths = (routes.PLACE_PATH, routes.BATCH_PATH, routes.RELEASE_PATH)
    serving = asyncio.create_task(
        serve(app, stop=stop, telemetry=bench.telemetry, plain=(HOST, PORT), pure=paths, started=started)
    )
    await started.wait()
    changing = asyncio.create_task(meanwhile(bench, digests, done))
    ledger = Ledger(told)
    try:
        await asyncio.gather(
            *(client(number, lambda: bench.desk.revision, ledger, most) for number in range(CLIENTS))
        )
    finally:
        done.set()
        turns = await changing
        stop.set()
        await serving

    assert ledger.placed >= most
    assert turns >= 3
    assert ledger.by["model"] > 0, "models decided, and were exchanged meanwhile"
    assert bench.desk.fleet.overfull() == 0
    assert bench.value('dwcp_maddpg_model_reload_total{result="ok"}') >= 3
    assert bench.value('dwcp_maddpg_model_reload_total{result="failed"}') == 0


def run(folder: Path, most: int) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scene(folder, most))


def test_many_clients_never_overfill_a_node_while_models_are_exchanged(tmp_path: Path) -> None:
    """Goal: capacity holds and a reload drops nothing, under load. Method: six clients over sockets, 2,000 placements,
    each answer entered into a ledger; models are exchanged and nodes drained all the time."""
    run(tmp_path, 2_000)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_placements(tmp_path: Path) -> None:
    """Goal: the same at length. Method: 100,000 placements."""
    run(tmp_path, 100_000)
