"""The events of the last while, in memory: for people who watch. Nothing is decided from them."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import takewhile

from dwcp.api.manager import Event, EventKind, EventList, Report, Transfer

RING_MAX = 8_192
PAGE_MAX = 1_000
TRANSFERS_MAX = 1_024


class Events:
    """A ring with waiting readers.

    Sequences start at the boot time, so that they grow over restarts and a
    reader's `after` from before one still means "what I have not seen".
    """

    def __init__(self, *, boot_ms: int) -> None:
        self._ring: deque[Event] = deque(maxlen=RING_MAX)
        self._first = boot_ms * 1_000  # a thousand events per millisecond will not happen
        self._next = self._first
        self._arrived = asyncio.Event()
        self._closed = False
        self._transfers: dict[str, Transfer] = {}

    def append(self, source: str, report: Report) -> Event:
        event = Event(sequence=self._next, source=source, report=report)
        self._next += 1
        self._ring.append(event)
        self._note_transfer(report)
        self._arrived.set()
        self._arrived = asyncio.Event()
        return event

    def after(self, sequence: int, *, workload: str = "") -> EventList:
        """Up to a page of what came after `sequence`; 0 means from the oldest kept.

        Read from the newest end: many may wait, and each is woken by each event.
        """
        kept = list(takewhile(lambda event: event.sequence > sequence, reversed(self._ring)))[::-1]
        matching = [event for event in kept if workload in ("", event.report.workload)]
        page = matching[:PAGE_MAX]
        last = page[-1].sequence if len(matching) > PAGE_MAX else self._next - 1
        oldest = self._ring[0].sequence if self._ring else self._next
        lost = 0 < sequence < oldest - 1
        return EventList(events=tuple(page), next_after=max(last, 0), lost=lost)

    async def wait_after(self, sequence: int, *, workload: str, wait_s: float) -> EventList:
        """Like `after`, but waits up to `wait_s` for the first one."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            found = self.after(sequence, workload=workload)
            left = until - loop.time()
            if found.events or left <= 0 or self._closed:
                return found
            arrived = self._arrived
            try:
                async with asyncio.timeout(left):
                    await arrived.wait()
            except TimeoutError:
                continue

    def close(self) -> None:
        """Lets every waiting reader go."""
        self._closed = True
        self._arrived.set()

    def transfers(self) -> list[Transfer]:
        return list(self._transfers.values())

    def _note_transfer(self, report: Report) -> None:
        if report.kind not in (EventKind.SHIPPING, EventKind.SHIPPED):
            return
        moved, total = _whole(report, "bytes"), _whole(report, "total")
        self._transfers.pop(report.workload, None)
        self._transfers[report.workload] = Transfer(
            workload=report.workload,
            attempt=report.attempt,
            node=report.node,
            bytes=moved,
            total=max(total, moved),
            finished=report.kind is EventKind.SHIPPED,
            time_ms=report.time_ms,
        )
        if len(self._transfers) > TRANSFERS_MAX:
            del self._transfers[next(iter(self._transfers))]


def _whole(report: Report, key: str) -> int:
    value = report.fields.get(key, 0)
    return value if isinstance(value, int) and value >= 0 else 0
