"""How fast each codec is on this host: thread CPU time, the best of a few runs, within two seconds.

Thread time and the minimum repeat well on a busy host. The reference blocks are made here from a
seed, so that every host packs the same bytes: text, rows, numbers, noise.
"""

from __future__ import annotations

import platform
import queue
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version

import msgspec
from blake3 import blake3

from dwcp.compression.codecs import CODECS, Codec

BUDGET_S = 2.0
_BLOCK_BYTES = 64 << 10
_REPEATS = 8
_REPEATS_MIN = 3  # fewer are no calibration to rely on
_LIBRARIES = ("zstandard", "lz4", "brotli")
_SCHEMA = 2
_HANDOVERS = 60
_SLICE_BYTES = 64 << 10
_HANDOVER_BYTES = 16 << 10  # fits any socket's buffer at once
BLOCK_OVERHEAD_S = 0.0004  # where it was not measured: 0.2 ms at each end


class Speed(msgspec.Struct, frozen=True):
    """Raw bytes per second of CPU, one thread."""

    pack_bps: float
    unpack_bps: float


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measured speeds and what they hold for. `host` is the key of the cache; `block_overhead_s` is what a
    block costs beside its bytes: hand-overs between threads and system calls."""

    host: str
    seconds: float
    speeds: dict[str, Speed]
    block_overhead_s: float = BLOCK_OVERHEAD_S
    complete: bool = True  # False: the time ran out, some speeds come from one run
    schema: int = _SCHEMA


def host_key() -> str:
    """Changes when the machine, the interpreter or a codec library does."""
    libraries = [f"{name} {version(name)}" for name in _LIBRARIES]
    facts = [platform.node(), platform.machine(), _processor(), sys.version, *libraries, str(_SCHEMA)]
    return blake3("\n".join(facts).encode()).hexdigest()[:16]


def load(data: bytes, *, host: str) -> Calibration | None:
    """A cached calibration, or None where it is damaged or of another host: then measure again."""
    try:
        calibration = msgspec.json.decode(data, type=Calibration)
    except (msgspec.DecodeError, RecursionError):
        return None
    known = {codec.name for codec in CODECS}
    sound = all(speed.pack_bps > 0 and speed.unpack_bps > 0 for speed in calibration.speeds.values())
    sound = sound and 0 <= calibration.block_overhead_s < 1
    fits = calibration.host == host and calibration.schema == _SCHEMA and set(calibration.speeds) == known
    return calibration if fits and sound else None


def dump(calibration: Calibration) -> bytes:
    return msgspec.json.format(msgspec.json.encode(calibration), indent=2) + b"\n"


def measure(
    *,
    host: str,
    budget_s: float = BUDGET_S,
    cpu: Callable[[], float] = time.thread_time,
    wall: Callable[[], float] = time.monotonic,
) -> Calibration:
    """Measures every codec at least once; repeats while the budget lasts."""
    blocks = reference_blocks()
    started = wall()
    best: dict[str, Speed] = {}
    rounds = 0
    while rounds < _REPEATS and (not rounds or wall() - started < budget_s * 0.7):
        for codec in CODECS:
            if rounds and wall() - started >= budget_s * 0.8:
                break
            best[codec.name] = _faster(best.get(codec.name), _measure(codec, blocks, cpu))
        rounds += 1
    overhead_s = round(_handover_s(), 6)
    return Calibration(host, round(wall() - started, 3), best, overhead_s, complete=rounds >= _REPEATS_MIN)


def _handover_s() -> float:
    """Median seconds for one block's way: to a worker thread, through a socket, back with the answer."""
    jobs: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    near, far = socket.socketpair()

    def work() -> None:
        while (raw := jobs.get()) is not None:
            near.sendall(raw)
            done.put(len(far.recv(_SLICE_BYTES)))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    taken = []
    with near, far:
        for _ in range(_HANDOVERS):
            begun = time.perf_counter()
            jobs.put(bytes(_HANDOVER_BYTES))
            done.get()
            taken.append(time.perf_counter() - begun)
        jobs.put(None)
        worker.join()
    return sorted(taken)[len(taken) // 2]


def reference_blocks() -> tuple[bytes, ...]:
    """Four blocks of 64 KiB, the same everywhere."""
    source = random.Random(20)
    return (_text(source), _rows(source), _numbers(source), source.randbytes(_BLOCK_BYTES))


def _measure(codec: Codec, blocks: tuple[bytes, ...], cpu: Callable[[], float]) -> Speed:
    pack = unpack = 1e-9
    for raw in blocks:
        start = cpu()
        packed = codec.pack(raw)
        middle = cpu()
        if len(packed) < len(raw):
            codec.unpack(packed, raw_size=len(raw))
        unpack += cpu() - middle
        pack += middle - start
    total = sum(len(raw) for raw in blocks)
    return Speed(total / pack, total / unpack)


def _faster(old: Speed | None, new: Speed) -> Speed:
    if old is None:
        return new
    return Speed(max(old.pack_bps, new.pack_bps), max(old.unpack_bps, new.unpack_bps))


def _text(source: random.Random) -> bytes:
    """Words of a Zipf-like vocabulary in lines."""
    words = ["".join(source.choices("etaoinshrdlucmfw", k=source.randint(2, 9))) for _ in range(2000)]
    weights = [1 / rank for rank in range(1, 2001)]
    text = " ".join(source.choices(words, weights, k=16_000))
    return text.replace(" the", "\nthe").encode()[:_BLOCK_BYTES].ljust(_BLOCK_BYTES)


def _rows(source: random.Random) -> bytes:
    rows = (
        f'{{"id": {n}, "node": "n{source.randint(1, 40)}", "ms": {source.random() * 900:.2f}}}\n'
        for n in range(2000)
    )
    return "".join(rows).encode()[:_BLOCK_BYTES].ljust(_BLOCK_BYTES)


def _numbers(source: random.Random) -> bytes:
    value = 100_000
    numbers = bytearray()
    while len(numbers) < _BLOCK_BYTES:
        value = max(0, value + source.randint(-300, 300))
        numbers += value.to_bytes(4, "little")
    return bytes(numbers)


def _processor() -> str:
    return platform.processor() or platform.machine()
