"""The driver: outputs become I/O in order, inputs are carried in turns, failures end it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import pytest

from dwcp.consensus.core.errors import DiskFailed
from dwcp.consensus.ledger.outputs import (
    CancelTimer,
    CloseClient,
    Output,
    RotateLog,
    SaveSnapshot,
    SetTimer,
    ToClient,
    ToPeers,
    WriteGroup,
)
from dwcp.runtime.clock import ManualClock
from dwcp.runtime.disk import RealDisk
from dwcp.runtime.driver import Driver
from dwcp.runtime.storage import SnapshotStore


class ScriptedReplica:
    """Notes what it is told; answers by what a test put into `answers`, by event name."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.answers: dict[str, list[Output]] = {}
        self.news = asyncio.Event()

    def _note(self, name: str, *details: object) -> list[Output]:
        self.told.append((name, *details))
        self.news.set()
        return self.answers.get(name, [])

    def start(self, *, now_ms: int, journal: Sequence[bytes]) -> list[Output]:
        return self._note("start", tuple(journal))

    def peer_frame(self, sender: int, frame: bytes, *, now_ms: int) -> list[Output]:
        return self._note("peer", sender, frame)

    def client_frames(self, frames: Iterable[tuple[int, bytes]], *, now_ms: int) -> list[Output]:
        return self._note("clients", *frames)

    def client_closed(self, connection: int) -> None:
        self._note("closed", connection)

    def timer(self, name: str, *, now_ms: int) -> list[Output]:
        return self._note("timer", name)

    def durable(self, sequence: int, *, now_ms: int) -> list[Output]:
        return self._note("durable", sequence)

    def rotated(self, *, now_ms: int) -> list[Output]:
        return self._note("rotated")

    def snapshot_durable(self, index: int, *, now_ms: int) -> list[Output]:
        return self._note("snapshot", index)


class Wire:
    """Peers and clients in one: what was sent, and where flushes fell."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, to: Sequence[int] | int, frame: bytes) -> None:
        self.sent.append((to, frame))

    def flush(self) -> None:
        if self.sent and self.sent[-1] != "flush":
            self.sent.append("flush")

    def shut(self, connection: int) -> None:
        self.sent.append(("shut", connection))


class MemoryLog:
    """A journal in memory that can be told to fail."""

    def __init__(self) -> None:
        self.groups: list[tuple[bytes, ...]] = []
        self.synced = 0
        self.failing = False

    def append(self, records: Sequence[bytes]) -> None:
        self.groups.append(tuple(records))

    def sync(self) -> None:
        if self.failing:
            raise DiskFailed("the disk is gone; check it before starting again")
        self.synced = len(self.groups)

    def rewrite(self, records: Sequence[bytes]) -> None:
        self.groups = [tuple(records)]
        self.synced = 1


class Silent:
    """An observer that keeps nothing."""

    def observed(self, event: str, fields: dict[str, int | str]) -> None: ...
    def accused(self, culprit: int, kind: str, proof: bytes) -> None: ...
    def written(self, size: int) -> None: ...


class Stage:
    """A driver with everything around it scripted."""

    def __init__(self, folder: Path) -> None:
        self.replica = ScriptedReplica()
        self.journal = MemoryLog()
        self.peers, self.clients = Wire(), Wire()
        self.disk = RealDisk(folder / "snapshots")
        self.snapshots = SnapshotStore(self.disk, chain_id=b"c" * 32)
        self.driver = Driver(
            replica=self.replica,
            journal=self.journal,
            snapshots=self.snapshots,
            clock=ManualClock(),
            observer=Silent(),
        )

    def start(self, records: Sequence[bytes] = ()) -> None:
        self.driver.start(peers=self.peers, clients=self.clients, records=records)

    async def told(self, *event: object) -> None:
        """Wait until the replica has been told this."""
        async with asyncio.timeout(5):
            while event not in self.replica.told:
                self.replica.news.clear()
                await self.replica.news.wait()

    async def close(self) -> None:
        await self.driver.close()
        self.disk.close()


def play(folder: Path, scenario: Callable[[Stage], Awaitable[None]]) -> Stage:
    async def main() -> Stage:
        stage = Stage(folder)
        try:
            await scenario(stage)
        finally:
            await stage.close()
        return stage

    return asyncio.run(main())


def test_a_group_is_synced_before_the_replica_hears_of_it(tmp_path: Path) -> None:
    """Goal: the persist barrier holds in I/O. Method: at `durable`, the journal has synced the group."""

    async def scenario(stage: Stage) -> None:
        stage.replica.answers["start"] = [WriteGroup(7, (b"vote",))]
        stage.start((b"old",))
        assert stage.replica.told == [("start", (b"old",))]
        await stage.told("durable", 7)
        assert (stage.journal.groups, stage.journal.synced) == ([(b"vote",)], 1)

    play(tmp_path, scenario)


def test_one_turn_writes_each_connection_once(tmp_path: Path) -> None:
    """Goal: many inputs, one flush. Method: three frames in one turn, each answered by a frame."""

    async def scenario(stage: Stage) -> None:
        stage.start()
        stage.replica.answers["peer"] = [ToPeers((1, 2), b"x"), ToClient(5, b"y")]
        stage.driver.peer_frames(1, [b"a", b"b"])
        stage.driver.peer_frames(2, [b"c"])
        await stage.told("peer", 2, b"c")
        assert stage.peers.sent == [((1, 2), b"x")] * 3 + ["flush"]
        assert stage.clients.sent == [(5, b"y")] * 3 + ["flush"]

    play(tmp_path, scenario)


def test_clients_frames_of_a_turn_are_carried_together_and_first(tmp_path: Path) -> None:
    """Goal: requests that came together share a batch. Method: two connections and a peer in one turn."""

    async def scenario(stage: Stage) -> None:
        stage.start()
        stage.driver.peer_frames(1, [b"vote"])
        stage.driver.client_frames(5, [b"p", b"q"])
        stage.driver.client_frames(6, [b"r"])
        await stage.told("peer", 1, b"vote")
        assert stage.replica.told[1:] == [("clients", (5, b"p"), (5, b"q"), (6, b"r")), ("peer", 1, b"vote")]

    play(tmp_path, scenario)


def test_a_closed_connection_says_nothing_any_more(tmp_path: Path) -> None:
    """Goal: a dead connection is never made known again. Method: a frame and its end in one turn."""

    async def scenario(stage: Stage) -> None:
        stage.start()
        stage.driver.client_frames(5, [b"hello"])
        stage.driver.client_frames(6, [b"hello"])
        stage.driver.client_gone(5)
        await stage.told("closed", 5)
        assert stage.replica.told[1:] == [("clients", (6, b"hello")), ("closed", 5)]

    play(tmp_path, scenario)


def test_a_failed_sync_stops_everything(tmp_path: Path) -> None:
    """Goal: after a failed sync nothing is promised. Method: fail, then offer input; nothing is carried."""

    async def scenario(stage: Stage) -> None:
        stage.journal.failing = True
        stage.start()
        stage.replica.answers["peer"] = [WriteGroup(1, (b"vote",))]
        stage.driver.peer_frames(1, [b"a"])
        with pytest.raises(DiskFailed, match="the disk is gone"):
            await stage.driver.failed
        stage.driver.peer_frames(1, [b"b"])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stage.replica.told == [("start", ()), ("peer", 1, b"a")]

    play(tmp_path, scenario)


def test_our_own_fault_stops_everything(tmp_path: Path) -> None:
    """Goal: an impossible state is never worked around. Method: an output that no one can perform."""

    async def scenario(stage: Stage) -> None:
        stage.start()
        stage.replica.answers["peer"] = [object()]  # type: ignore[list-item]
        stage.driver.peer_frames(1, [b"a"])
        with pytest.raises(KeyError):
            await stage.driver.failed

    play(tmp_path, scenario)


def test_timers_fire_are_replaced_and_cancelled(tmp_path: Path) -> None:
    """Goal: names are timers. Method: set two, replace one, cancel the other; one firing remains."""

    async def scenario(stage: Stage) -> None:
        stage.replica.answers["start"] = [
            SetTimer("a", 60_000),
            SetTimer("b", 0),
            SetTimer("a", 0),
            CancelTimer("b"),
            CancelTimer("unknown"),
        ]
        stage.start()
        await stage.told("timer", "a")
        assert stage.replica.told[1:] == [("timer", "a")]

    play(tmp_path, scenario)


def test_rotation_and_snapshots_are_answered_once_durable(tmp_path: Path) -> None:
    """Goal: both requests are done, then told. Method: rewrite the journal; save three snapshots, two stay."""

    async def scenario(stage: Stage) -> None:
        saves = [SaveSnapshot(index, b"r" * 32, (b"part", b"%d" % index), index) for index in (128, 256, 384)]
        stage.replica.answers["start"] = [RotateLog((b"kept",)), *saves]
        stage.start()
        await stage.told("rotated")
        await stage.told("snapshot", 384)
        assert stage.journal.groups == [(b"kept",)]
        assert stage.snapshots.indexes() == [256, 384]
        assert stage.snapshots.load(384).parts == (b"part", b"384")

    play(tmp_path, scenario)


def test_a_close_is_passed_on(tmp_path: Path) -> None:
    """Goal: the replica may end a connection. Method: `CloseClient` reaches the port."""

    async def scenario(stage: Stage) -> None:
        stage.replica.answers["start"] = [CloseClient(9, "junk")]
        stage.start()
        assert stage.clients.sent[0] == ("shut", 9)

    play(tmp_path, scenario)


def test_a_full_inbox_sheds_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: memory is bounded. Method: a bound of 10 bytes; peers' frames drop, clients are closed."""
    monkeypatch.setattr("dwcp.runtime.driver.INBOX_BYTES_MAX", 10)

    async def scenario(stage: Stage) -> None:
        stage.start()
        stage.driver.peer_frames(1, [b"x" * 11])
        stage.driver.peer_frames(1, [b"y"])
        stage.driver.client_frames(5, [b"z"])
        await stage.told("peer", 1, b"x" * 11)
        assert stage.driver.dropped_frames == 1
        assert stage.clients.sent[0] == ("shut", 5)
        stage.driver.peer_frames(1, [b"again"])
        await stage.told("peer", 1, b"again")

    play(tmp_path, scenario)
