"""How fast does the allocator place? Its own process, its own HTTP listener, keep-alive connections on loopback.

    python benchmarks/bench_serving.py --json
    python benchmarks/bench_serving.py --nodes 1000 --singles 2000 --batches 200

Singles: one client, one workload at a time, `--nodes` nodes told beforehand and named by their revision. Batches: two
clients, 32 workloads at a time, 100 nodes; each batch is released again. Without `--model` the release's placer serves
if it ships one; without that one a network of the shipped size with random weights does, and the line says so:
speed does not depend on what was learned. A model decides only for as many nodes as it was validated on: where
`--nodes` are more, `single_…` are the rule's answers (`single_model_share` says so), and `validated_single_…` are the
same at the largest fleet that the model was validated for. `…_cpu_ms` is the service's CPU per request (a batch's
release counted in): on a machine that others use, compare that. Every answer is checked: nothing may be overfull at
the end.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import platform
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import msgspec  # noqa: E402  # the number of threads is read when NumPy is loaded
import numpy as np  # noqa: E402  # the number of threads is read when NumPy is loaded

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dwcp.api import allocator as api  # noqa: E402  # the number of threads is read when NumPy is loaded
from dwcp.api.requests import Request, answer  # noqa: E402  # the number of threads is read when NumPy is loaded
from dwcp.api.workloads import Capacity  # noqa: E402  # the number of threads is read when NumPy is loaded

HOST = "127.0.0.1"
SITES = 5
BATCH_NODES = 100
RELEASE_PATH = "/bench/release"  # many at once: what is measured is placing


def nodes(count: int, *, seed: int) -> tuple[api.NodeState, ...]:
    rng = np.random.default_rng(seed)
    cores = rng.choice([32, 64, 96, 104], count)
    return tuple(
        api.NodeState(
            f"node-{row:04}",
            f"site-{row % SITES}",
            Capacity(int(core) * 1000, int(core) * 4096, int(core) * 61_440, int(core) * 120),
        )
        for row, core in enumerate(cores)
    )


def workloads(count: int, *, seed: int, fleet: str) -> list[api.PlaceRequest]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        cores = int(rng.choice([1, 2, 4, 8], p=[0.45, 0.3, 0.15, 0.1]))
        found.append(
            api.PlaceRequest(
                workload=f"w-{seed}-{number}",
                demand=Capacity(cores * 1000, cores * 2048, cores * 10_240, cores * 10),
                data_site=f"site-{int(rng.integers(SITES))}",
                data_bytes=int(rng.lognormal(19.0, 1.5)),
                priority=int(rng.integers(1, 6)),
                predicted_s=float(rng.lognormal(7.5, 1.5)),
                fleet=fleet,
                commit=True,
            )
        )
    return found


def server(pipe: Connection, model: str) -> None:
    """The service as its composition root builds it, without tokens and files. Says its port and what serves."""
    import uvloop

    uvloop.run(_serve(pipe, model))


async def _serve(pipe: Connection, model: str) -> None:
    from dwcp.allocation import shipped
    from dwcp.allocation.serving.chain import Served
    from dwcp.allocation.serving.scene import Terrain
    from dwcp.models.artefact import Made
    from dwcp.runtime.clock import SystemClock
    from dwcp.runtime.http import Health, application, bind, serve
    from dwcp.runtime.telemetry import Telemetry
    from dwcp.services.allocator import routes
    from dwcp.services.allocator.desk import Desk
    from dwcp.services.allocator.routes import add_direct_route
    from dwcp.services.allocator.stage import Stage

    telemetry, clock = Telemetry("maddpg-allocator", version="bench"), SystemClock()
    stage = Stage(telemetry=telemetry, clock=clock)
    source = "release"
    if model:
        folder = Path(model)
        made = Made((folder / "manifest.json").read_bytes(), (folder / "weights.safetensors").read_bytes())
        stage.active, source = Served(shipped.load(made)), model
    elif stage.active is None:
        from tests.unit.allocation.serving import placers

        stage.active, source = Served(shipped.load(placers.made(wide=64, tuned=True))), "random weights"
    links = {f"site-{number}": (100.0, 50.0 + 40.0 * number) for number in range(SITES)}
    desk = Desk(clock=clock, telemetry=telemetry, stage=stage, terrain=Terrain(links=links))
    app = application(Health("maddpg-allocator", version="bench"), telemetry)
    routes.add_routes(app, desk)

    async def release(request: Any) -> Any:  # Any: FastAPI's own types
        from dwcp.runtime.http import json_response

        names = msgspec.json.decode(await request.body(), type=list[str])
        return json_response(sum(desk.release(name) for name in names))

    from fastapi import Request as Asked

    release.__annotations__["request"] = Asked
    add_direct_route(app, RELEASE_PATH, release, method="POST")
    probe = bind(HOST, 0)
    port = probe.getsockname()[1]
    probe.close()
    gc.collect()
    gc.freeze()  # as the composition root does
    stop, started = asyncio.Event(), asyncio.Event()
    paths = (routes.PLACE_PATH, routes.BATCH_PATH, routes.NODES_PATH, routes.RELEASE_PATH, RELEASE_PATH)
    asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)
    task = asyncio.create_task(
        serve(
            app,
            stop=stop,
            telemetry=telemetry,
            plain=(HOST, port),
            pure=paths,
            at_once=routes.at_once(desk),
            started=started,
        )
    )
    await started.wait()
    validated = (0, 0) if stage.active is None else stage.active.nodes
    pipe.send((port, source, desk.policy, validated))
    await task
    fleet = desk.fleet
    pipe.send((fleet.overfull(), time.process_time(), stage.shadow.model_share))


class Line:
    """One keep-alive connection; the least that HTTP needs, so that the client costs little."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Line:
        return cls(*await asyncio.open_connection(HOST, port, limit=2**24))

    async def send(self, wanted: Request) -> bytes:
        head = f"{wanted.method} {wanted.path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(wanted.body)}\r\n\r\n"
        self._writer.write(head.encode() + wanted.body)
        answered = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(answered.partition("content-length:")[2].split("\r\n")[0])
        body = await self._reader.readexactly(length)
        if not answered.startswith("http/1.1 200"):
            raise SystemExit(f"the allocator refused: {body[:300].decode('utf-8', 'replace')}")
        return body

    def close(self) -> None:
        self._writer.close()


def cpu_s(pid: int) -> float:
    """Seconds of CPU that the process has had: on a shared machine it says more than the time on the wall."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


async def singles(port: int, *, count: int, fleet_size: int, pid: int) -> dict[str, Any]:
    """One at a time."""
    line = await Line.open(port)
    told = api.NodesChange(upsert=nodes(fleet_size, seed=1), replace=True)
    fleet = answer(api.FleetRevision, await line.send(api.change_nodes(told))).fleet
    took, by_model, placed = [], 0, 0
    asked = workloads(count + 50, seed=2, fleet=fleet)
    spent = cpu_s(pid)
    for number, one in enumerate(asked):
        wanted = api.place(one)
        started = time.perf_counter()
        body = await line.send(wanted)
        if number >= 50:  # the first ones warm caches
            took.append(time.perf_counter() - started)
            got = answer(api.PlaceAnswer, body)
            by_model += got.by == "model"
            placed += bool(got.node)
        if number % 100 == 99:  # so that the fleet never fills up
            await line.send(
                Request("POST", RELEASE_PATH, msgspec.json.encode([w.workload for w in asked[: number + 1]]))
            )
    spent = cpu_s(pid) - spent
    line.close()
    times = np.sort(np.array(took)) * 1000
    return {
        "single_nodes": fleet_size,
        "single_ms_p50": round(float(np.quantile(times, 0.5)), 3),
        "single_ms_p99": round(float(np.quantile(times, 0.99)), 3),
        "single_cpu_ms": round(spent / len(asked) * 1000, 3),
        "single_model_share": round(by_model / count, 4),
        "single_placed": placed,
    }


async def batches(port: int, *, count: int, pid: int, clients: int = 2) -> dict[str, Any]:
    """Batches of 32 by two clients at once, so that the service is never idle."""
    line = await Line.open(port)
    told = api.NodesChange(upsert=nodes(BATCH_NODES, seed=3), replace=True)
    fleet = answer(api.FleetRevision, await line.send(api.change_nodes(told))).fleet
    line.close()
    asked = [_batch(100 + number, fleet) for number in range(count)]
    answers: list[bytes] = []
    took: list[float] = []

    async def client(which: int) -> None:
        own = await Line.open(port)
        for number in range(which, count, clients):
            wanted, released = asked[number]
            began = time.perf_counter()
            answers.append(await own.send(wanted))
            took.append(time.perf_counter() - began)
            await own.send(released)
        own.close()

    await client(0)  # warm
    answers.clear()
    took.clear()
    spent, started = cpu_s(pid), time.perf_counter()
    await asyncio.gather(*(client(which) for which in range(clients)))
    elapsed, spent = time.perf_counter() - started, cpu_s(pid) - spent
    got = [one for body in answers for one in answer(api.BatchAnswer, body).answers]
    by_model = sum(one.by == "model" for one in got)
    placed = sum(bool(one.node) for one in got)
    return {
        "batch_nodes": BATCH_NODES,
        "placements_per_s": round(count * api.BATCH_MAX / elapsed),
        "batch_cpu_ms": round(spent / count * 1000, 3),
        "batch_ms_p50": round(float(np.quantile(took, 0.5)) * 1000, 2),
        "batch_ms_p99": round(float(np.quantile(took, 0.99)) * 1000, 2),
        "batch_model_share": round(by_model / (count * api.BATCH_MAX), 4),
        "batch_placed": placed,
    }


def _batch(seed: int, fleet: str) -> tuple[Request, Request]:
    """Placing 32, and releasing them: made before the clock runs, since the client's work is not the service's."""
    items = workloads(api.BATCH_MAX, seed=seed, fleet="")
    release = Request("POST", RELEASE_PATH, msgspec.json.encode([one.workload for one in items]))
    return api.place_batch(api.BatchRequest(items=tuple(items), fleet=fleet)), release


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--singles", type=int, default=1000)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--model", default="", metavar="FOLDER", help="manifest.json and weights.safetensors")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    mine, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=server, args=(theirs, options.model), daemon=True)
    process.start()
    pid = process.pid or 0
    port, source, rule, (fewest, most) = mine.recv()
    found: dict[str, Any] = {
        "model": source,
        "model_nodes_min": fewest,
        "model_nodes_max": most,
        "rule": rule,
    }
    found |= asyncio.run(singles(port, count=options.singles, fleet_size=options.nodes, pid=pid))
    within = min(max(options.nodes, fewest), most)
    inside = {}
    if within:
        inside = asyncio.run(singles(port, count=options.singles, fleet_size=within, pid=pid))
    found |= {f"validated_{key}": value for key, value in inside.items()}
    found |= asyncio.run(batches(port, count=options.batches, pid=pid))
    mine.send("stop")
    overfull, cpu_s, share = mine.recv()
    process.join(10)
    found |= {"overfull_nodes": overfull, "server_cpu_s": round(cpu_s, 2), "model_share": round(share, 4)}
    found["machine"] = f"{platform.machine()} Python {platform.python_version()} numpy {np.__version__}"
    print(json.dumps(found) if options.json else "\n".join(f"{key}: {value}" for key, value in found.items()))
    return 1 if overfull else 0


if __name__ == "__main__":
    sys.exit(main())
