"""The checkpoint window: which positions messages may be about, and what may be forgotten.

`stable` is the highest position whose state a quorum certified; positions in
(stable, stable + size] are open. What lies at or below `floor` is gone for good.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from dwcp.consensus.core.views.votes import Arrival, Signed, VoteBox


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `index`: its root and the committed time of its last batch."""

    index: int
    state_root: bytes
    time_ms: int


@dataclass(frozen=True, slots=True)
class StableCheckpoint:
    """A checkpoint with a quorum's signatures."""

    checkpoint: Checkpoint
    votes: tuple[Signed, ...]


class CheckpointWindow:
    """Positions that are open, and the checkpoints that are being agreed on.

    Invariant: `floor ≤ stable index`; at most size/interval checkpoints are collected at a time.
    """

    __slots__ = ("_boxes", "floor", "interval", "own", "size", "snapshot", "stable")

    def __init__(self, *, interval: int, size: int) -> None:
        if size < 2 * interval:
            raise ValueError(f"the window ({size}) must hold two checkpoint intervals ({interval})")
        self.interval = interval
        self.size = size
        self.stable: StableCheckpoint | None = None
        self.snapshot = 0  # this replica's own newest durable snapshot
        self.floor = 0
        self.own: dict[int, tuple[Checkpoint, bytes]] = {}  # index: what this replica signed
        self._boxes: dict[int, VoteBox] = {}

    @property
    def low(self) -> int:
        return self.stable.checkpoint.index if self.stable is not None else 0

    @property
    def high(self) -> int:
        return self.low + self.size

    @property
    def low_ms(self) -> int:
        return self.stable.checkpoint.time_ms if self.stable is not None else 0

    def collects(self, index: int) -> bool:
        """Whether votes for a checkpoint at `index` are kept."""
        return self.low < index <= self.high and index % self.interval == 0

    def add(
        self,
        sender: int,
        checkpoint: Checkpoint,
        signature: bytes,
        *,
        fresh: Callable[[Container[int], int], bool],
    ) -> Arrival:
        box = self._boxes.setdefault(checkpoint.index, VoteBox())
        return box.add(sender, key_of(checkpoint), signature, view=0, fresh=fresh)

    def sign_own(self, me: int, checkpoint: Checkpoint, signature: bytes) -> None:
        self.own[checkpoint.index] = (checkpoint, signature)
        self._boxes.setdefault(checkpoint.index, VoteBox()).add_own(me, key_of(checkpoint), signature)

    def box(self, index: int) -> VoteBox | None:
        """The votes about `index`; their digests are `key_of` the checkpoints."""
        return self._boxes.get(index)

    def settle(self, stable: StableCheckpoint) -> None:
        """Move the window; what was collected up to the new checkpoint is forgotten."""
        self.stable = stable
        low = stable.checkpoint.index
        self._boxes = {i: box for i, box in self._boxes.items() if i > low}
        self.own = {i: own for i, own in self.own.items() if i > low}


def key_of(checkpoint: Checkpoint) -> bytes:
    """Distinguishes checkpoints of one index inside a box."""
    return checkpoint.state_root + checkpoint.time_ms.to_bytes(8, "big")
