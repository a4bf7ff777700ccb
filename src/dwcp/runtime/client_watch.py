"""A ledger client's watches: whole revisions in order, across lost connections and slow readers.

Each watch follows one replica at a time. When that one is lost, silent or skips
ahead, it goes on at another from the revision after the last whole one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field

from dwcp.consensus.ledger import messages
from dwcp.consensus.ledger.messages import WatchEvent

QUEUE_FRAMES_MAX = 1024  # frames that a slow reader may leave; then the watch begins again where it is
SILENCE_SECONDS_MAX = 10.0  # then the replica is asked whether it is still there
ANSWER_SECONDS_MAX = 3.0
_RETRY_S = 0.2

Frame = messages.WatchEvents | messages.WatchProgress | messages.WatchClosed | messages.StatusReply
_FINAL = frozenset({"compacted", "permission_denied", "too_many"})


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Every change of one revision under the watched prefix."""

    revision: int
    events: tuple[WatchEvent, ...]


class _Lost(Exception):
    """The replica that a watch follows is gone, silent, or has ended the watch."""


@dataclass(slots=True)
class _Watch:
    number: int
    replica: int
    frames: asyncio.Queue[Frame | None] = field(default_factory=asyncio.Queue)
    broken: bool = False  # frames were lost: nothing after that counts

    def put(self, frame: Frame | None) -> None:
        """None says that frames are lost from here on; what was queued before still counts."""
        if self.broken:
            return
        if self.frames.qsize() >= QUEUE_FRAMES_MAX:
            frame = None
        self.broken = frame is None
        self.frames.put_nowait(frame)


class WatchBoard:
    """Hands a client's watch frames to whoever follows."""

    def __init__(
        self,
        *,
        send: Callable[[int, messages.ClientFrame], None],
        candidates: Callable[[], tuple[int, ...]],
    ) -> None:
        self._send = send
        self._candidates = candidates
        self._watches: dict[int, _Watch] = {}
        self._last_number = 0
        self._closed = False
        self._news = asyncio.Event()  # a replica was connected, or the board closed

    # ----------------------------------------------------------------- the client calls these

    def connected(self, replica: int) -> None:
        del replica
        self._news.set()

    def lost(self, replica: int) -> None:
        for watch in self._watches.values():
            if watch.replica == replica:
                watch.put(None)

    def frame(self, replica: int, frame: messages.ReplicaFrame) -> None:
        match frame:
            case messages.StatusReply():
                for watch in self._watches.values():
                    if watch.replica == replica:
                        watch.put(frame)
            case messages.WatchEvents() | messages.WatchProgress() | messages.WatchClosed():
                found = self._watches.get(frame.watch)
                if found is not None and found.replica == replica:
                    found.put(frame)
            case _:
                return  # nothing a watch is concerned with

    def close(self) -> None:
        self._closed = True
        self._news.set()
        for watch in self._watches.values():
            watch.put(None)

    # ----------------------------------------------------------------- following

    async def follow(
        self, prefix: bytes, from_revision: int
    ) -> AsyncGenerator[WatchBatch | messages.WatchClosed, None]:
        """Batches for ever; a `WatchClosed` that another replica would repeat is the last item."""
        next_revision = from_revision
        avoid = -1
        while not self._closed:
            replica = await self._choose(avoid)
            if replica is None:
                continue
            self._last_number += 1
            watch = self._watches[self._last_number] = _Watch(self._last_number, replica)
            try:
                next_revision = next_revision or await self._present(watch)
                self._send(replica, messages.Watch(watch.number, prefix, next_revision))
                async for item in self._read(watch, next_revision):
                    if isinstance(item, messages.WatchClosed):
                        yield item
                        return
                    next_revision = item.revision + 1
                    if item.events:
                        yield item
            except (_Lost, TimeoutError):
                avoid = replica
            finally:
                del self._watches[watch.number]
                if not self._closed:
                    self._send(replica, messages.Unwatch(watch.number))

    async def _choose(self, avoid: int) -> int | None:
        """A connected replica, another than `avoid` if possible; None after waiting for news."""
        connected = self._candidates()
        choices = [replica for replica in connected if replica != avoid] or list(connected)
        if choices:
            return random.choice(choices)
        self._news.clear()
        try:
            async with asyncio.timeout(1.0):
                await self._news.wait()
        except TimeoutError:
            pass
        return None

    async def _present(self, watch: _Watch) -> int:
        """The revision after the replica's present, so that going on elsewhere leaves no gap."""
        self._send(watch.replica, messages.StatusRequest())
        while True:
            frame = await self._next(watch, ANSWER_SECONDS_MAX)
            if isinstance(frame, messages.StatusReply):
                return frame.revision + 1

    async def _read(
        self, watch: _Watch, next_revision: int
    ) -> AsyncIterator[WatchBatch | messages.WatchClosed]:
        """Whole revisions; a batch without events stands for progress. Raises `_Lost`."""
        events: list[WatchEvent] = []
        asked = False
        while True:
            try:
                frame = await self._next(watch, ANSWER_SECONDS_MAX if asked else SILENCE_SECONDS_MAX)
            except TimeoutError:
                if asked:
                    raise _Lost from None
                asked = True
                self._send(watch.replica, messages.StatusRequest())
                continue
            asked = False
            match frame:
                case messages.WatchEvents():
                    if frame.revision < next_revision:
                        raise _Lost
                    events.extend(frame.events)
                    if frame.complete:
                        next_revision = frame.revision + 1
                        yield WatchBatch(frame.revision, tuple(events))
                        events = []
                case messages.WatchProgress():
                    if frame.revision >= next_revision:
                        next_revision = frame.revision + 1
                        yield WatchBatch(frame.revision, ())
                case messages.WatchClosed():
                    if frame.code in _FINAL:
                        yield frame
                        return
                    await asyncio.sleep(_RETRY_S)
                    raise _Lost
                case messages.StatusReply():
                    continue

    async def _next(self, watch: _Watch, seconds: float) -> Frame:
        """Raises `_Lost` where frames were lost, `TimeoutError` after `seconds`."""
        if watch.frames.empty():
            async with asyncio.timeout(seconds):
                frame = await watch.frames.get()
        else:
            frame = watch.frames.get_nowait()
        if frame is None:
            raise _Lost
        return frame
