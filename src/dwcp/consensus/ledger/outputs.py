"""What a `Replica` asks of its host: the production driver and the simulator do exactly these.

Outputs are in order. Only `WriteGroup`, `RotateLog` and `SaveSnapshot` are
answered (by `durable`, `rotated` and `snapshot_durable`); the rest is fire and forget.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Channel(IntEnum):
    """First byte of every frame on a link between replicas."""

    ENGINE = 0
    PAYLOADS = 1
    SNAPSHOT = 2
    BUNDLES = 3


@dataclass(frozen=True, slots=True)
class ToPeers:
    """One frame to each of `to`. The link may lose it; protocols retransmit."""

    to: tuple[int, ...]
    frame: bytes


@dataclass(frozen=True, slots=True)
class ToClient:
    connection: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class CloseClient:
    connection: int
    reason: str


@dataclass(frozen=True, slots=True)
class WriteGroup:
    """Append one log group and sync it, then call `Replica.durable(sequence)`. One in flight."""

    sequence: int
    records: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RotateLog:
    """Replace the journal by one that holds `records`, atomically and synced, then call `rotated`."""

    records: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SaveSnapshot:
    """Make the state after `index` durable, then call `snapshot_durable(index)`.

    Older ones stay from `keep_from` on: peers that are behind need the newest
    certified one while this replica has already executed further.
    """

    index: int
    state_root: bytes
    parts: tuple[bytes, ...]
    keep_from: int


@dataclass(frozen=True, slots=True)
class SetTimer:
    name: str
    after_ms: int


@dataclass(frozen=True, slots=True)
class CancelTimer:
    name: str


@dataclass(frozen=True, slots=True)
class Observed:
    """For logs and metrics: `event` is dotted, `fields` are plain values."""

    event: str
    fields: dict[str, int | str]


@dataclass(frozen=True, slots=True)
class Accused:
    culprit: int
    kind: str
    proof: bytes


Output = (
    ToPeers
    | ToClient
    | CloseClient
    | WriteGroup
    | RotateLog
    | SaveSnapshot
    | SetTimer
    | CancelTimer
    | Observed
    | Accused
)
