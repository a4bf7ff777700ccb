"""One machine of the simulated world: a process that hosts a replica, its disk and its timers.

It does with a replica's outputs what the production driver does, and loses power
wherever the seed says: before a group is written, after the write, inside the
sync, after it, and between the frames that the sync released.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from dwcp.consensus.core.logformat import Journal
from dwcp.consensus.ledger.ledger import Snapshot
from dwcp.consensus.ledger.outputs import Output
from dwcp.consensus.sim.disks import SimDisk

CRASH_POINTS = ("before_write", "after_write", "in_sync", "after_sync", "in_release")


class HostStatus(Protocol):
    """What the bounds and the coverage look at; `ledger.replica.ReplicaStatus` is one."""

    @property
    def index(self) -> int: ...
    @property
    def view(self) -> int: ...
    @property
    def held_effects(self) -> int: ...
    @property
    def pending_bytes(self) -> int: ...


class Host(Protocol):
    """What a node runs: `ledger.replica.Replica`, or a toy with the same surface."""

    def start(self, *, now_ms: int, journal: Sequence[bytes]) -> list[Output]: ...
    def peer_frame(self, sender: int, frame: bytes, *, now_ms: int) -> list[Output]: ...
    def client_frame(self, connection: int, frame: bytes, *, now_ms: int) -> list[Output]: ...
    def client_closed(self, connection: int) -> None: ...
    def timer(self, name: str, *, now_ms: int) -> list[Output]: ...
    def durable(self, sequence: int, *, now_ms: int) -> list[Output]: ...
    def rotated(self, *, now_ms: int) -> list[Output]: ...
    def snapshot_durable(self, index: int, *, now_ms: int) -> list[Output]: ...
    def status(self) -> HostStatus: ...


Distort = Callable[[tuple[int, ...], bytes], list[tuple[tuple[int, ...], bytes]]]


@dataclass(slots=True)
class Node:
    """`incarnation` counts starts: what was scheduled for an earlier one never happens.

    `host` is None while the machine is down. `distort` turns each frame that a
    liar's honest code would send into what it sends instead.
    """

    place: int
    replica: int
    rng: Random
    disk: SimDisk
    honest: bool = True
    learner: bool = False
    distort: Distort | None = None
    host: Host | None = None
    journal: Journal | None = None
    snapshots: list[Snapshot] = field(default_factory=list)
    incarnation: int = 0
    timers: dict[str, int] = field(default_factory=dict)
    skew_us: int = 0
    paused_until: int = 0
    sync_us: int = 500
    old_disk: dict[str, bytes] | None = None
    old_snapshots: list[Snapshot] = field(default_factory=list)
    connections: dict[int, int] = field(default_factory=dict)  # connection: client

    @property
    def up(self) -> bool:
        return self.host is not None

    def down(self) -> None:
        """The process is gone; the disk keeps what it keeps."""
        self.host = None
        self.journal = None
        self.incarnation += 1
        self.timers.clear()
        self.connections.clear()
        self.paused_until = 0

    def save(self, snapshot: Snapshot, *, keep_from: int) -> None:
        """Newest last; older ones stay from `keep_from` on."""
        kept = [each for each in self.snapshots if keep_from <= each.index != snapshot.index]
        self.snapshots = sorted([*kept, snapshot], key=lambda each: each.index)

    def remember(self) -> None:
        """Keep an image of the disk that a rollback may bring back."""
        self.old_disk = self.disk.image()
        self.old_snapshots = list(self.snapshots)

    def roll_back(self) -> None:
        if self.old_disk is not None:
            self.disk.restore(self.old_disk)
            self.snapshots = list(self.old_snapshots)
