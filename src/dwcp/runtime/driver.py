"""Hosts one `Replica`: the only code that turns its outputs into frames, records and timers.

Everything happens in one task's turns: inputs wait in an inbox, a turn carries
all of them through the replica, then every connection is written once. The disk
has its own threads and answers through the inbox. No rule of the protocol lives here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from dwcp.consensus.ledger.ledger import Snapshot
from dwcp.consensus.ledger.outputs import (
    Accused,
    CancelTimer,
    CloseClient,
    Observed,
    Output,
    RotateLog,
    SaveSnapshot,
    SetTimer,
    ToClient,
    ToPeers,
    WriteGroup,
)
from dwcp.runtime.clock import Clock
from dwcp.runtime.disk import DiskThread
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.storage import GroupLog, SnapshotStore

INBOX_BYTES_MAX = 64 * 1024 * 1024  # above it peers' frames are dropped; they retransmit


class Host(Protocol):
    """What the driver hosts; `consensus.ledger.replica.Replica` is one."""

    def start(self, *, now_ms: int, journal: Sequence[bytes]) -> list[Output]: ...
    def peer_frame(self, sender: int, frame: bytes, *, now_ms: int) -> list[Output]: ...
    def client_frames(self, frames: Iterable[tuple[int, bytes]], *, now_ms: int) -> list[Output]: ...
    def client_closed(self, connection: int) -> None: ...
    def timer(self, name: str, *, now_ms: int) -> list[Output]: ...
    def durable(self, sequence: int, *, now_ms: int) -> list[Output]: ...
    def rotated(self, *, now_ms: int) -> list[Output]: ...
    def snapshot_durable(self, index: int, *, now_ms: int) -> list[Output]: ...


class Peers(Protocol):
    def send(self, to: Sequence[int], frame: bytes) -> None: ...
    def flush(self) -> None: ...


class ClientConnections(Protocol):
    def send(self, connection: int, frame: bytes) -> None: ...
    def flush(self) -> None: ...
    def shut(self, connection: int) -> None: ...


class Observer(Protocol):
    """Logs and counts; must not raise."""

    def observed(self, event: str, fields: dict[str, int | str]) -> None: ...
    def accused(self, culprit: int, kind: str, proof: bytes) -> None: ...
    def written(self, size: int) -> None: ...


class Driver:
    """Between `start` and `close`, outputs are performed in the order in which the replica gave them.

    The first failure (disk, invariant) ends it: nothing is performed any more and
    `failed` holds the exception, because a replica that goes on after either may lie.
    """

    def __init__(
        self, *, replica: Host, journal: GroupLog, snapshots: SnapshotStore, clock: Clock, observer: Observer
    ) -> None:
        self._replica = replica
        self._journal = journal
        self._snapshots = snapshots
        self._clock = clock
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Callable[[int], list[Output]]] = deque()
        self._requests: list[tuple[int, bytes]] = []  # clients' frames, carried together
        self._frame_bytes = 0  # bytes of the frames that wait
        self._scheduled = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._disk = DiskThread("journal", failed=self._fail)
        self._snapshot_disk = DiskThread("snapshots", failed=self._fail)
        self._closed = False
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self.dropped_frames = 0  # peers' frames that came while the inbox was full

    # ----------------------------------------------------------------- life

    def start(self, *, peers: Peers, clients: ClientConnections, records: Sequence[bytes]) -> None:
        """Recover from the journal's records and begin. Inputs may come from now on."""
        self._peers = peers
        self._clients = clients
        self._acts: dict[type, Callable[..., None]] = {
            ToPeers: self._to_peers,
            ToClient: self._to_client,
            CloseClient: lambda output: clients.shut(output.connection),
            WriteGroup: self._write_group,
            RotateLog: self._rotate,
            SaveSnapshot: self._save,
            SetTimer: self._set_timer,
            CancelTimer: self._cancel_timer,
            Observed: lambda output: self._observer.observed(output.event, output.fields),
            Accused: lambda output: self._observer.accused(output.culprit, output.kind, output.proof),
        }
        self._put(lambda now_ms: self._replica.start(now_ms=now_ms, journal=records))
        self._turn()

    async def close(self) -> None:
        """Timers end, what the disks were asked for is finished, nothing else is performed."""
        self._closed = True
        self.failed.cancel()
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
        self._inbox.clear()
        await self._disk.close()
        await self._snapshot_disk.close()

    # ----------------------------------------------------------------- inputs

    def peer_frames(self, peer: int, frames: list[bytes]) -> None:
        """What a link brought. Over `INBOX_BYTES_MAX` it is dropped: protocols retransmit."""
        if self._frame_bytes > INBOX_BYTES_MAX:
            self.dropped_frames += len(frames)
            return
        for frame in frames:
            self._put_frame(peer, frame)

    def client_frames(self, connection: int, frames: list[bytes]) -> None:
        """What a client sent. Over the bound the connection is closed: its client tries again."""
        if self._frame_bytes > INBOX_BYTES_MAX:
            self._clients.shut(connection)
            return
        for frame in frames:
            self._requests.append((connection, frame))
            self._frame_bytes += len(frame)
        self._schedule()

    def client_gone(self, connection: int) -> None:
        """The connection has ended; what it sent before is not carried any more."""
        dropped = sum(len(frame) for source, frame in self._requests if source == connection)
        if dropped:
            self._frame_bytes -= dropped
            self._requests = [request for request in self._requests if request[0] != connection]

        def gone(now_ms: int) -> list[Output]:
            del now_ms
            self._replica.client_closed(connection)
            return []

        self._put(gone)

    def _put_frame(self, peer: int, frame: bytes) -> None:
        self._frame_bytes += len(frame)

        def carry(now_ms: int) -> list[Output]:
            self._frame_bytes -= len(frame)
            return self._replica.peer_frame(peer, frame, now_ms=now_ms)

        self._put(carry)

    def _put(self, action: Callable[[int], list[Output]]) -> None:
        self._inbox.append(action)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    # ----------------------------------------------------------------- a turn

    def _turn(self) -> None:
        """Carry everything that waits through the replica, then write to every connection once."""
        self._scheduled = False
        if self._closed:
            return
        try:
            now_ms = self._clock.now_ms()
            inbox, acts = self._inbox, self._acts
            if self._requests:
                # Before the votes: what a vote lets this replica propose then holds these requests too.
                inbox.appendleft(self._carry_requests())
            while inbox:
                for output in inbox.popleft()(now_ms):
                    acts[type(output)](output)
            self._peers.flush()
            self._clients.flush()
        except Exception as exc:  # noqa: BLE001  whatever it is, this replica may not go on
            self._fail(exc)

    def _carry_requests(self) -> Callable[[int], list[Output]]:
        requests, self._requests = self._requests, []
        self._frame_bytes -= sum(len(frame) for _, frame in requests)
        return lambda now_ms: self._replica.client_frames(requests, now_ms=now_ms)

    def _fail(self, exc: Exception) -> None:
        self._closed = True
        if not self.failed.done():
            self.failed.set_exception(exc)

    # ----------------------------------------------------------------- outputs

    def _to_peers(self, output: ToPeers) -> None:
        failpoint("node.send.before")
        self._peers.send(output.to, output.frame)

    def _to_client(self, output: ToClient) -> None:
        failpoint("node.reply.before")
        self._clients.send(output.connection, output.frame)

    def _write_group(self, output: WriteGroup) -> None:
        records, sequence = output.records, output.sequence
        self._observer.written(sum(map(len, records)))
        self._disk.submit(
            lambda: self._append(records),
            lambda: self._put(lambda now_ms: self._replica.durable(sequence, now_ms=now_ms)),
        )

    def _append(self, records: Sequence[bytes]) -> None:
        """In the disk's thread: one group, durable when this returns."""
        failpoint("node.journal.before_write")
        self._journal.append(records)
        failpoint("node.journal.after_write")
        failpoint("node.journal.before_sync")
        self._journal.sync()
        failpoint("node.journal.after_sync")

    def _rotate(self, output: RotateLog) -> None:
        self._disk.submit(
            lambda: self._journal.rewrite(output.records),
            lambda: self._put(lambda now_ms: self._replica.rotated(now_ms=now_ms)),
        )

    def _save(self, output: SaveSnapshot) -> None:
        snapshot = Snapshot(output.index, output.state_root, output.parts)
        self._snapshot_disk.submit(
            lambda: self._snapshots.save(snapshot, keep_from=output.keep_from),
            lambda: self._put(lambda now_ms: self._replica.snapshot_durable(snapshot.index, now_ms=now_ms)),
        )

    def _set_timer(self, output: SetTimer) -> None:
        old = self._timers.get(output.name)
        if old is not None:
            old.cancel()
        self._timers[output.name] = self._loop.call_later(output.after_ms / 1000, self._fire, output.name)

    def _cancel_timer(self, output: CancelTimer) -> None:
        handle = self._timers.pop(output.name, None)
        if handle is not None:
            handle.cancel()

    def _fire(self, name: str) -> None:
        self._timers.pop(name, None)
        self._put(lambda now_ms: self._replica.timer(name, now_ms=now_ms))
