"""Who chooses a transfer's codecs: the learned selector, or this host's table where it cannot be loaded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from dwcp.compression import calibration as calibrations
from dwcp.compression import codecs
from dwcp.compression.calibration import Calibration
from dwcp.compression.codecs import Codec
from dwcp.compression.container import BLOCK_HEADER_BYTES, pack_block
from dwcp.compression.errors import ModelInvalid
from dwcp.compression.model import Model
from dwcp.compression.model_shipped import shipped
from dwcp.compression.selector import Selector, selection_seconds
from dwcp.compression.table import TIER, Table
from dwcp.runtime.choosing_learned import PROBE_ABOVE_BPS, Chosen, LearnedChooser, Told, hopeless
from dwcp.runtime.durable import replace_private

RATE_CHANGE = 1.5  # the table is asked again at once where the link's rate has changed by more
_CORES_MAX = 2  # a transfer of three streams packs with two while one sends
_SEGMENT_PACKS = 4  # and after so many packs


class TableChooser:
    """The host's own table; never fails. `trouble`: why it has to do, "" where it was wanted."""

    def __init__(self, table: Table, *, trouble: str = "", told: Told | None = None) -> None:
        self.table = table
        self.trouble = trouble
        self.told = told or (lambda _: None)

    @property
    def basis(self) -> str:
        """What choices rest on, for people."""
        return f"table: {self.trouble}" if self.trouble else "table"

    def begin(self, *, peer: str = "", allowed: frozenset[str] = frozenset()) -> TableChoice:
        del peer  # the table remembers nothing
        return TableChoice(self, allowed)


class TableChoice:
    """One transfer by the table, asked again after some packs and where the link's rate has changed much."""

    def __init__(self, chooser: TableChooser, allowed: frozenset[str]) -> None:
        self._chooser = chooser
        self._allowed = allowed
        self._codec = codecs.NONE
        self._packs = 0
        self._rate_bps = 0.0

    async def pack(
        self, raw: bytes, *, stream_id: bytes, index: int, left_bytes: int, rate_bps: float
    ) -> bytes:
        codec = self._choose(raw, left_bytes=left_bytes, rate_bps=rate_bps)
        frame, cpu_s = await asyncio.to_thread(_timed, raw, codec, stream_id, index)
        return self._tell(raw, frame, cpu_s, left_bytes, rate_bps)

    def pack_now(
        self, raw: bytes, *, stream_id: bytes, index: int, left_bytes: int, rate_bps: float
    ) -> bytes:
        """The same for threads without a loop."""
        codec = self._choose(raw, left_bytes=left_bytes, rate_bps=rate_bps)
        frame, cpu_s = _timed(raw, codec, stream_id, index)
        return self._tell(raw, frame, cpu_s, left_bytes, rate_bps)

    def _tell(self, raw: bytes, frame: bytes, cpu_s: float, left_bytes: int, rate_bps: float) -> bytes:
        name = codecs.by_wire(frame[1]).name
        packed = len(frame) - BLOCK_HEADER_BYTES
        self._chooser.told(Chosen(name, TIER, raw, packed, 0.0, 0.0, cpu_s, left_bytes, rate_bps))
        return frame

    def _choose(self, raw: bytes, *, left_bytes: int, rate_bps: float) -> Codec:
        if rate_bps > PROBE_ABOVE_BPS and hopeless(raw):
            return codecs.NONE
        steady = self._rate_bps / RATE_CHANGE < rate_bps < self._rate_bps * RATE_CHANGE
        if not steady or self._packs % _SEGMENT_PACKS == 0:
            size = max(left_bytes, len(raw))
            found = self._chooser.table.choose(rate_bps=rate_bps, size_bytes=size, allowed=self._allowed)
            self._codec, self._packs, self._rate_bps = found.codec, 0, rate_bps
        self._packs += 1
        return self._codec


def _timed(raw: bytes, codec: Codec, stream_id: bytes, index: int) -> tuple[bytes, float]:
    """(the frame, thread CPU seconds of packing it)."""
    begun = time.thread_time()
    return pack_block(raw, codec, stream_id=stream_id, index=index), time.thread_time() - begun


def _share() -> float:
    """Of a core that one more thread may hope for, by the load of the last minute."""
    return min(1.0, (os.cpu_count() or 1) / (os.getloadavg()[0] + 1))


HostChooser = LearnedChooser | TableChooser


def of_this_host(
    data_dir: Path,
    *,
    told: Told | None = None,
    races: bool = True,
    load: Callable[[], Model] = shipped,
) -> HostChooser:
    """The learned selector with this host's speeds and its own cost as measured here, else the table.

    `races`: whether trials may hide behind a link. Blocking; the first use on a host measures its speeds
    (under 2 s). Once for a process.
    """
    found = calibrated(data_dir)
    speeds = {name: (speed.pack_bps, speed.unpack_bps) for name, speed in found.speeds.items()}
    try:
        selector = Selector(load(), speeds=speeds)
    except ModelInvalid as exc:
        return TableChooser(Table(found), trouble=str(exc), told=told)
    block = calibrations.reference_blocks()[0]
    selector.selection_s = selection_seconds(selector, block, cpu=time.thread_time)
    return LearnedChooser(
        selector,
        overhead_s=found.block_overhead_s,
        told=told,
        races=races,
        share=_share(),
        cores=min(_CORES_MAX, os.cpu_count() or 1),
    )


def calibrated(data_dir: Path) -> Calibration:
    """This host's speeds: from the cache below `data_dir`, else measured now (under 2 s) and cached.

    Blocking. A cache that cannot be written costs the measurement at the next start, nothing else.
    """
    path = data_dir / "calibration.json"
    host = calibrations.host_key()
    try:
        cached = calibrations.load(path.read_bytes(), host=host)
    except OSError:
        cached = None
    if cached is not None:
        return cached
    measured = calibrations.measure(host=host)
    with contextlib.suppress(OSError):
        replace_private(path, calibrations.dump(measured))
    return measured
