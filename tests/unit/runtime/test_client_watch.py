"""A client's watches: whole revisions, in order, wherever they come from."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from dwcp.consensus.ledger.messages import (
    ClientFrame,
    StatusReply,
    StatusRequest,
    Unwatch,
    Watch,
    WatchClosed,
    WatchEvent,
    WatchEvents,
    WatchProgress,
)
from dwcp.runtime.client_watch import WatchBatch, WatchBoard


class Stage:
    """A board whose replicas are lists: what was sent to them, and who is connected."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, ClientFrame]] = []
        self.up: tuple[int, ...] = (0, 1)
        self.board = WatchBoard(
            send=lambda replica, frame: self.sent.append((replica, frame)), candidates=self.who
        )

    def who(self) -> tuple[int, ...]:
        return self.up

    async def asked(self, kind: type) -> tuple[int, ClientFrame]:
        """The next frame of this kind that the board sends."""
        async with asyncio.timeout(5):
            while True:
                for position, (replica, frame) in enumerate(self.sent):
                    if isinstance(frame, kind):
                        del self.sent[: position + 1]
                        return replica, frame
                await asyncio.sleep(0)


def event(key: bytes, revision: int) -> WatchEvent:
    return WatchEvent(key, b"v", revision)


def play(scenario: Callable[[Stage], Awaitable[None]]) -> None:
    asyncio.run(_play(scenario))


async def _play(scenario: Callable[[Stage], Awaitable[None]]) -> None:
    stage = Stage()
    await scenario(stage)


async def _first(
    stage: Stage, from_revision: int
) -> tuple[asyncio.Task[WatchBatch | WatchClosed], int, Watch]:
    """A follower waiting for its first item, with the replica and the watch it asked for."""
    batches = stage.board.follow(b"k", from_revision)
    task = asyncio.ensure_future(anext(batches))
    replica, frame = await stage.asked(Watch)
    assert isinstance(frame, Watch)
    return task, replica, frame  # type: ignore[return-value]


def test_a_revision_in_pieces_arrives_whole() -> None:
    """Goal: a batch is a whole revision. Method: two incomplete frames, then the complete one."""

    async def scenario(stage: Stage) -> None:
        task, replica, watch = await _first(stage, 5)
        assert watch == Watch(watch.watch, b"k", 5)
        stage.board.frame(replica, WatchEvents(watch.watch, 6, (event(b"k1", 6),), complete=False))
        stage.board.frame(replica, WatchEvents(watch.watch, 6, (event(b"k2", 6),), complete=True))
        assert await task == WatchBatch(6, (event(b"k1", 6), event(b"k2", 6)))

    play(scenario)


def test_a_lost_replica_is_replaced_without_gap_or_repetition() -> None:
    """Goal: resume after the last whole revision, elsewhere. Method: half a revision, then the link is lost."""

    async def scenario(stage: Stage) -> None:
        batches = stage.board.follow(b"k", 5)
        task = asyncio.ensure_future(anext(batches))
        replica, frame = await stage.asked(Watch)
        assert isinstance(frame, Watch)
        stage.board.frame(replica, WatchEvents(frame.watch, 7, (event(b"k1", 7),)))
        assert await task == WatchBatch(7, (event(b"k1", 7),))
        task = asyncio.ensure_future(anext(batches))
        stage.board.frame(replica, WatchEvents(frame.watch, 8, (event(b"k1", 8),), complete=False))
        stage.board.lost(replica)
        other, again = await stage.asked(Watch)
        assert isinstance(again, Watch)
        assert (other, again.from_revision) == (1 - replica, 8)
        stage.board.frame(replica, WatchEvents(frame.watch, 8, (event(b"old", 8),)))
        stage.board.frame(other, WatchEvents(again.watch, 8, (event(b"k1", 8), event(b"k2", 8))))
        assert await task == WatchBatch(8, (event(b"k1", 8), event(b"k2", 8)))

    play(scenario)


def test_progress_moves_the_place_to_resume_from() -> None:
    """Goal: quiet revisions are not asked for again. Method: progress to 90, loss, the next watch says 91."""

    async def scenario(stage: Stage) -> None:
        task, replica, watch = await _first(stage, 5)
        stage.board.frame(replica, WatchProgress(watch.watch, 90))
        await asyncio.sleep(0)
        stage.board.lost(replica)
        _, again = await stage.asked(Watch)
        assert isinstance(again, Watch)
        assert again.from_revision == 91
        task.cancel()

    play(scenario)


def test_from_the_present_is_a_number_before_it_is_asked() -> None:
    """Goal: going on elsewhere leaves no gap even before the first event. Method: status first, then its revision."""

    async def scenario(stage: Stage) -> None:
        batches = stage.board.follow(b"k", 0)
        task = asyncio.ensure_future(anext(batches))
        replica, _ = await stage.asked(StatusRequest)
        stage.board.frame(replica, StatusReply(replica, 0, 1, 0, 12, 40, True))
        _, watch = await stage.asked(Watch)
        assert isinstance(watch, Watch)
        assert watch.from_revision == 41
        stage.board.lost(replica)
        _, again = await stage.asked(Watch)
        assert isinstance(again, Watch)
        assert again.from_revision == 41
        task.cancel()

    play(scenario)


def test_a_compacted_watch_ends_and_a_slow_one_goes_on() -> None:
    """Goal: only what every replica would say ends a watch. Method: `slow`, then `compacted`."""

    async def scenario(stage: Stage) -> None:
        task, replica, watch = await _first(stage, 5)
        stage.board.frame(replica, WatchClosed(watch.watch, "slow", "", 6))
        other, again = await stage.asked(Watch)
        assert isinstance(again, Watch)
        closed = WatchClosed(again.watch, "compacted", "gone", 30)
        stage.board.frame(other, closed)
        assert await task == closed

    play(scenario)


def test_a_slow_reader_costs_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: what a reader leaves is bounded, and it still sees everything once, in order.

    Method: room for 3 frames; whoever is asked brings all revisions from there to 10 at once.
    """
    monkeypatch.setattr("dwcp.runtime.client_watch.QUEUE_FRAMES_MAX", 3)

    async def scenario(stage: Stage) -> None:
        asked = []

        def bring(replica: int, frame: ClientFrame) -> None:
            if isinstance(frame, Watch):
                asked.append(frame.from_revision)
                for revision in range(frame.from_revision, 11):
                    stage.board.frame(replica, WatchEvents(frame.watch, revision, (event(b"k", revision),)))

        stage.board = WatchBoard(send=bring, candidates=stage.who)
        batches = stage.board.follow(b"k", 1)
        seen = [await anext(batches) for _ in range(10)]
        assert [batch.revision for batch in seen if isinstance(batch, WatchBatch)] == list(range(1, 11))
        assert asked == [1, 4, 7, 10]
        await batches.aclose()

    play(scenario)


def test_leaving_a_watch_tells_the_replica() -> None:
    """Goal: nothing is sent to nobody. Method: close the follower, expect `Unwatch`."""

    async def scenario(stage: Stage) -> None:
        batches = stage.board.follow(b"k", 5)
        task = asyncio.ensure_future(anext(batches))
        replica, watch = await stage.asked(Watch)
        assert isinstance(watch, Watch)
        stage.board.frame(replica, WatchEvents(watch.watch, 6, (event(b"k", 6),)))
        await task
        await batches.aclose()
        assert (replica, Unwatch(watch.watch)) in stage.sent

    play(scenario)
