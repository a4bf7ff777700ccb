"""How many codec questions a second does compression-api answer on one core, how soon, and how fast does it stream?

A real service process on loopback, for questions bound to one core where there are two; a client process.
Questions are distinct bodies of 16 KiB with a token that is checked; metrics are on. "Network forced" is for
services with a learned model: its answer then always looks at the sample (1 Mbit/s, bulk). Streams go through
`/api/v1/stream/compress` in 1 MiB blocks and are compared with the library called in one thread. Both go over plain
HTTP on loopback, as the service's port 5000 is; the mutual TLS beside it is not measured.

Questions come in five windows, each first as fast as they are answered and then at the fixed rate; every figure is the
median of the windows, and `windows_*` has all of them, with the time of a fixed loop of Python in between: hosts that
are shared differ by a factor of two from one second to the next.

    python benchmarks/bench_compression_api.py --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvloop
from blake3 import blake3

from dwcp import __version__
from dwcp.compression import codecs, container
from dwcp.compression.calibration import reference_blocks
from dwcp.runtime.config import load
from dwcp.runtime.installation import write_configs
from dwcp.runtime.layout import Layout
from dwcp.runtime.tokens import Role, TokenBook
from dwcp.runtime.world import World

BODY_BYTES = 16 << 10
CONNECTIONS = 16
PREDICT = "/api/v1/compression/predict"
BLOCK = 1 << 20
WINDOWS = 5
PAIRS = 25  # each of 0.6 s
YARDSTICK_TURNS = 1_000_000
NET = f"127.{100 + os.getpid() % 100}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each window's two phases")
    parser.add_argument("--rate", type=float, default=500.0, help="questions a second for the latency phase")
    parser.add_argument("--stream-mib", type=int, default=256, help="length of one stream")
    parser.add_argument("--codec", default="zstd-1", help="codec of the stream")
    parser.add_argument("--module", default="dwcp.services.compression_api", help="the service's program")
    arguments = parser.parse_args()
    with asyncio.Runner(
        loop_factory=uvloop.new_event_loop
    ) as runner:  # the caller must not be what is measured
        found = runner.run(measure(arguments))
    print(json.dumps(found) if arguments.json else "\n".join(f"{key}: {found[key]}" for key in found))


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="dwcp-bench-") as folder:
        layout, token = installed(Path(folder) / "state")
        async with serving(layout, arguments.module) as (url, process):
            bodies = distinct(4096)
            windows = [await window(url, token, bodies, arguments, process) for _ in range(WINDOWS)]
            fast = in_the_middle([each[0] for each in windows])
            paced = in_the_middle([each[1] for each in windows])
        async with serving(layout, arguments.module, rated=fast["per_s"] / 4) as (url, process):
            over = await closed_loop(url, token, bodies, seconds=arguments.seconds, process=process)
        async with serving(layout, arguments.module, pinned=False) as (url, process):
            before = cpu_s(process)
            stream = await streamed(url, token, mib=arguments.stream_mib, codec=arguments.codec)
            sent_mib = (1 + PAIRS) * arguments.stream_mib
            stream["stream_cpu_ms_per_mib"] = round(1e3 * (cpu_s(process) - before) / sent_mib, 2)
    return {
        "predict_per_s": fast["per_s"],
        "predict_cpu_us": fast["cpu_us"],
        "tier": fast["tier"],
        "cores": fast["cores"],
        "p50_ms": paced["p50_ms"],
        "p99_ms": paced["p99_ms"],
        "asked_per_s": paced["per_s"],
        "overload_answered": over["answered"],
        "overload_429": over["refused"],
        "overload_lost": over["lost"],
        **stream,
        "windows_predict_per_s": [each[0]["per_s"] for each in windows],
        "windows_p99_ms": [each[1]["p99_ms"] for each in windows],
        "windows_yardstick_ms": [each[2] for each in windows],
        "body_bytes": BODY_BYTES,
        "bodies_digest": blake3(b"".join(bodies)).hexdigest()[:16],
        "version": __version__,
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


async def window(
    url: str, token: str, bodies: list[bytes], arguments: argparse.Namespace, process: subprocess.Popen[bytes]
) -> tuple[dict[str, Any], dict[str, Any], float]:
    """(as fast as they are answered, at the fixed rate, ms that a fixed loop takes)."""
    fast = await closed_loop(url, token, bodies, seconds=arguments.seconds, process=process)
    paced = await open_loop(url, token, bodies, rate=arguments.rate, seconds=arguments.seconds)
    return fast, paced, yardstick_ms()


def yardstick_ms() -> float:
    begun, total = time.perf_counter(), 0
    for turn in range(YARDSTICK_TURNS):
        total += turn
    return round(1e3 * (time.perf_counter() - begun), 1)


def in_the_middle(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Field by field, the median of the windows; of words the first."""
    return {
        name: first if isinstance(first, str) else round(statistics.median(each[name] for each in found), 3)
        for name, first in found[0].items()
    }


def installed(root: Path) -> tuple[Layout, str]:
    """An installation in `root`; only its compression service will run."""
    command = [sys.executable, "-m", "dwcp.cli.main", "init", "--net", NET, "--state", str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    layout = Layout(root)
    write_configs(layout, load(layout.cluster, World))
    return layout, TokenBook(layout.tokens).create("bench", Role.OPERATOR, now_ms=0)


@asynccontextmanager
async def serving(
    layout: Layout, module: str, *, rated: float = 1e9, pinned: bool = True
) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    """The service, on the last core where it is `pinned`. `rated` decisions a second; without limit by default."""
    world = load(layout.cluster, World)
    config = layout.root / "bench.yaml"
    config.write_text(layout.config("compression-api").read_text() + f"rated_per_s: {rated}\n")
    log = (layout.root / "bench.log").open("ab")
    command = [sys.executable, "-m", module, "--config", str(config)]
    process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: ASYNC220  # takes a millisecond
    if pinned and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
    url = f"http://{world.host('0.12')}:5000"
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            await ready(client, url, process)
        yield url, process
    finally:
        process.terminate()
        process.wait(30)
        log.close()


async def ready(client: httpx.AsyncClient, url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("the service ended before it was ready")
        try:
            if (await client.get(f"{url}/ready")).is_success:
                return
        except httpx.HTTPError:
            pass
        await asyncio.sleep(0.05)
    raise SystemExit("the service did not become ready")


def distinct(count: int) -> list[bytes]:
    """Bodies no two of which are equal: text, rows, numbers and noise, each with its number in it."""
    source = random.Random(7)
    kinds = reference_blocks()
    made = []
    for number in range(count):
        raw = kinds[number % len(kinds)]
        at = source.randrange(len(raw) - BODY_BYTES)
        made.append(number.to_bytes(8, "big") + raw[at : at + BODY_BYTES - 8])
    return made


class Asker:
    """One kept connection, spoken to in bare HTTP/1.1: a client library would be what is measured."""

    def __init__(self, url: str, token: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._address = host, int(port)
        self._head = (
            f"POST {PREDICT} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/octet-stream\r\nX-Total-Size: 67108864\r\nX-Bandwidth-Bps: 1000000\r\n"
            f"Content-Length: {BODY_BYTES}\r\n\r\n"
        ).encode()

    async def __aenter__(self) -> Asker:
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._writer.close()

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """(status, answer)."""
        self._writer.write(self._head + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head[9:12]), await self._reader.readexactly(length)


async def closed_loop(
    url: str, token: str, bodies: list[bytes], *, seconds: float, process: subprocess.Popen[bytes]
) -> dict[str, Any]:
    """As many questions as are answered: `CONNECTIONS` of them open at a time."""
    counts = {"answered": 0, "refused": 0, "lost": 0}
    tiers: set[str] = set()
    end = time.perf_counter() + seconds

    async def one(first: int) -> None:
        async with Asker(url, token) as asker:
            number = first
            while time.perf_counter() < end:
                status, answer = await asker.ask(bodies[number % len(bodies)])
                number += CONNECTIONS
                kind = {200: "answered", 429: "refused"}.get(status, "lost")
                counts[kind] += 1
                if kind == "answered" and counts[kind] % 100 == 1:
                    tiers.add(json.loads(answer)["tier"])

    begun, cpu = time.perf_counter(), cpu_s(process)
    await asyncio.gather(*(one(first) for first in range(CONNECTIONS)))
    took, used = time.perf_counter() - begun, cpu_s(process) - cpu
    total = sum(counts.values())
    return {
        **counts,
        "per_s": round(counts["answered"] / took, 1),
        "cpu_us": round(1e6 * used / max(1, total), 1),
        "cores": round(used / took, 2),
        "tier": ",".join(sorted(tiers)),
    }


async def open_loop(
    url: str, token: str, bodies: list[bytes], *, rate: float, seconds: float
) -> dict[str, Any]:
    """Questions at a fixed rate; the latency counts from when one was due, so that a stall is not hidden."""
    taken: list[float] = []
    free: asyncio.Queue[Asker] = asyncio.Queue()
    askers = [await Asker(url, token).__aenter__() for _ in range(CONNECTIONS)]
    for asker in askers:
        free.put_nowait(asker)

    async def one(due: float, body: bytes) -> None:
        asker = await free.get()
        await asker.ask(body)
        free.put_nowait(asker)
        taken.append(time.perf_counter() - due)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(one(due, bodies[number % len(bodies)]))
    took = time.perf_counter() - begun
    for asker in askers:
        await asker.__aexit__()
    cuts = statistics.quantiles(taken, n=100)
    return {
        "p50_ms": round(1e3 * cuts[49], 3),
        "p99_ms": round(1e3 * cuts[98], 3),
        "per_s": round(len(taken) / took, 1),
    }


async def streamed(url: str, token: str, *, mib: int, codec: str) -> dict[str, Any]:
    """MB/s through the service and in the library, alternating after one round that is not counted; medians of the
    pairs. The share is the median of the pairs' own."""
    parts = [reference_blocks()[0] + reference_blocks()[1]] * 8
    block = b"".join(parts)[:BLOCK]
    ratios, ours, library = [], [], []
    cpu = time.process_time()
    await asyncio.to_thread(in_library, block, mib, codec)
    cpu = time.process_time() - cpu
    await asyncio.to_thread(through, url, token, block, mib, codec)
    for _ in range(PAIRS):
        library.append(await asyncio.to_thread(in_library, block, mib, codec))
        ours.append(await asyncio.to_thread(through, url, token, block, mib, codec))
        ratios.append(ours[-1] / library[-1])
    return {
        "stream_codec": codec,
        "stream_mb_per_s": round(statistics.median(ours) / 1e6, 1),
        "library_mb_per_s": round(statistics.median(library) / 1e6, 1),
        "library_cpu_ms_per_mib": round(1e3 * cpu / mib, 2),
        "stream_share": round(statistics.median(ratios), 3),
        "stream_shares": [round(ratio, 3) for ratio in sorted(ratios)],
    }


def in_library(block: bytes, mib: int, codec: str) -> float:
    """Bytes a second of container blocks in one thread."""
    chosen = codecs.by_name(codec)
    begun = time.perf_counter()
    for index in range(mib):
        container.pack_block(block, chosen, stream_id=b"b" * 16, index=index)
    return mib * BLOCK / (time.perf_counter() - begun)


def through(url: str, token: str, block: bytes, mib: int, codec: str) -> float:
    """Bytes a second from the first byte sent to the last byte of the answer. Two threads on a blocking socket: a
    client's event loop beside the service would be what is measured where there are two cores."""
    host, _, port = url.removeprefix("http://").partition(":")
    head = (
        f"POST /api/v1/stream/compress HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        f"X-Codec: {codec}\r\nContent-Length: {mib * BLOCK}\r\nConnection: close\r\n\r\n"
    ).encode()
    with socket.create_connection((host, int(port)), timeout=60) as connection:

        def send() -> None:
            connection.sendall(head)
            for _ in range(mib):
                connection.sendall(block)

        begun = time.perf_counter()
        sending = threading.Thread(target=send)
        sending.start()
        last, buffer = b"", memoryview(bytearray(BLOCK))
        while size := connection.recv_into(buffer):
            last = (last + bytes(buffer[max(0, size - 16) : size]))[-16:]
        took = time.perf_counter() - begun
        sending.join()
    if not last.endswith(b"0\r\n\r\n"):
        raise SystemExit("the stream broke off")
    return mib * BLOCK / took


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
