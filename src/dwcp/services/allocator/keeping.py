"""The day's placements on disk, so that a restart does not lose what the report replays.

One JSON line that says since when, then one for each placement. Written whole every minute and at the end, a few
hundred placements at a time: decisions go on between. What cannot be read is said and left behind: the day is for
reports, and no reason not to start.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from pathlib import Path

import msgspec

from dwcp.allocation.errors import FleetMalformed
from dwcp.allocation.serving.day import Told
from dwcp.api.workloads import Shape
from dwcp.runtime.durable import replace_private
from dwcp.services.allocator.desk import Desk

EVERY_S = 60.0
TOGETHER = 200  # placements between two turns of the loop: a millisecond or two
FILE = "day.jsonl"


class Since(Shape, frozen=True):
    """The file's first line, Unix ms."""

    since_ms: int


def take_up(desk: Desk, path: Path, *, now_ms: int) -> str:
    """Reads the day of the process before. A sentence where it cannot be used, else ""; blocking."""
    try:
        first, *rest = path.read_bytes().splitlines() or [b""]
        since = msgspec.json.decode(first, type=Since)
        decoder = msgspec.json.Decoder(Told)
        desk.day.take_up(since.since_ms, [decoder.decode(line) for line in rest], now_ms=now_ms)
    except FileNotFoundError:
        return ""
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, FleetMalformed) as exc:
        return f"{path}: the day before this start is not known: {exc}"
    return ""


async def keep(desk: Desk, path: Path, *, every_s: float = EVERY_S) -> None:
    """Until cancelled. A full disk is tried again: the day in memory goes on."""
    while True:
        await asyncio.sleep(every_s)
        await save(desk, path)


async def save(desk: Desk, path: Path) -> bool:
    """Writes the day as it stands; whether that could be."""
    told = desk.told()
    pieces = [msgspec.json.encode(Since(desk.day.since_ms)) + b"\n"]
    encoder = msgspec.json.Encoder()
    while chunk := list(islice(told, TOGETHER)):
        pieces.append(encoder.encode_lines(chunk))
        await asyncio.sleep(0)
    try:
        await asyncio.to_thread(replace_private, path, b"".join(pieces), durable=False)
    except OSError:
        return False
    return True
