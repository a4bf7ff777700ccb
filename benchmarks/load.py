"""Closed-loop load: every client has one put outstanding, distinct keys, random values.

Runs as a process of its own, the same for every system measured:

    python load.py SPEC.json

connects and warms up, prints `ready`, waits for a line on standard input, runs for
the measured time, prints one JSON object: operations, latencies in ms, errors.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

Put = Callable[[bytes, bytes], Awaitable[None]]
WARM_UP_S = 1.5


async def client_loop(put: Put, *, name: str, value_bytes: int, until: float) -> list[float]:
    """Puts one after the other until the time is over; their latencies, seconds."""
    values = random.Random(name)
    latencies = []
    number = 0
    while (started := time.perf_counter()) < until:
        await put(b"bench/%s/%d" % (name.encode(), number), values.randbytes(value_bytes))
        latencies.append(time.perf_counter() - started)
        number += 1
    return latencies


async def measure(puts: list[Put], spec: dict[str, Any]) -> dict[str, Any]:
    """Warm up, wait for the word, run."""
    run = spec["run"]

    async def load(phase: str, seconds: float) -> list[list[float]]:
        until = time.perf_counter() + seconds
        loops = (
            client_loop(
                put,
                name=f"{run}/{phase}/{number}",
                value_bytes=spec["value_bytes"],
                until=until,
            )
            for number, put in enumerate(puts)
        )
        return await asyncio.gather(*loops)

    await load("warm-up", WARM_UP_S)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    started = time.perf_counter()
    latencies = await load("measured", spec["seconds"])
    elapsed = time.perf_counter() - started
    every = sorted(latency for lane in latencies for latency in lane)
    return {
        "operations": len(every),
        "elapsed_s": elapsed,
        "p50_ms": every[len(every) // 2] * 1e3,
        "p99_ms": every[int(len(every) * 0.99)] * 1e3,
        "client_cpu_s": time.process_time(),
    }


async def _ledger(spec: dict[str, Any]) -> dict[str, Any]:
    """Each client: its own key, session and connections, through the product's client."""
    from dwcp.api import kv
    from dwcp.consensus.crypto.signatures import SigningKey
    from dwcp.consensus.ledger import genesis as genesis_file
    from dwcp.runtime.client import ClientTls, LedgerClient

    genesis = genesis_file.load(Path(spec["genesis"]))
    tls = ClientTls(**{name: Path(path) for name, path in spec["tls"].items()})
    keys = [SigningKey.from_seed(bytes.fromhex(seed)) for seed in spec["seeds"]]
    clients = [await LedgerClient.open(genesis=genesis, key=key, tls=tls, session_path=None) for key in keys]

    def put_of(client: LedgerClient) -> Put:
        async def put(key: bytes, value: bytes) -> None:
            await client.submit(kv.Put(key, value))

        return put

    found = await measure([put_of(client) for client in clients], spec)
    found["connections"] = sum(len(client.connected) for client in clients)
    await asyncio.gather(*(client.close() for client in clients))
    return found


async def _etcd(spec: dict[str, Any]) -> dict[str, Any]:
    from etcd import connect_clients

    async with connect_clients(spec) as (puts, connections):
        found = await measure(puts, spec)
    found["connections"] = connections
    return found


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    system = _ledger if spec["system"] == "ledger" else _etcd
    # gRPC brings its own poller, which expects asyncio's loop; everything else gets the faster one.
    factory = None if spec.get("driver") == "grpc" else uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        found = runner.run(system(spec))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
