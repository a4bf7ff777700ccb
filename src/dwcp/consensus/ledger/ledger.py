"""The ledger: executes committed batches, once each, into the key-value state and its history."""

from __future__ import annotations

from dataclasses import dataclass

from dwcp.consensus.core.machine import Commit
from dwcp.consensus.ledger.genesis import Genesis
from dwcp.consensus.ledger.messages import Answer, Material, WatchEvent
from dwcp.consensus.ledger.operations import Bundle


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one payload of a batch, for the reply to its client.

    `answers` is in sequence order; `materials` is empty unless the bundle asked for a receipt.
    """

    bundle: Bundle
    digest: bytes
    answers: tuple[Answer, ...]
    materials: tuple[Material, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """Every write of one revision, in key order."""

    revision: int
    events: tuple[WatchEvent, ...]


@dataclass(frozen=True, slots=True)
class Executed:
    """The effect of one committed batch. `state_root` is present at checkpoints only."""

    index: int
    epoch: int
    time_ms: int
    previous_history: bytes
    history_digest: bytes
    batch_digest: bytes
    results_root: bytes
    state_root: bytes | None
    outcomes: tuple[Outcome, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after `index`. `parts[0]` lists the digests of the others, under `root`."""

    index: int
    root: bytes
    parts: tuple[bytes, ...]


class Ledger:
    """Sans-IO application over any engine: `apply` is its only way forward."""

    def __init__(self, genesis: Genesis) -> None:
        raise NotImplementedError

    @property
    def index(self) -> int:
        """The last executed position; 0 at genesis."""
        raise NotImplementedError

    @property
    def revision(self) -> int:
        """The key-value revision; 1 at genesis."""
        raise NotImplementedError

    @property
    def time_ms(self) -> int:
        """Committed time of the last non-null batch."""
        raise NotImplementedError

    @property
    def history_digest(self) -> bytes:
        raise NotImplementedError

    def apply(self, commit: Commit) -> Executed:
        """Execute the position after `index`. Invariants: contiguous, final, bodies present."""
        raise NotImplementedError

    def knows(self, client: bytes) -> bool:
        """Whether the client is registered now; the admission check before any signature."""
        raise NotImplementedError

    def answered(self, bundle: Bundle) -> tuple[Answer, ...] | None:
        """Kept answers, where every operation of `bundle` has one (a retry); else None: order it."""
        raise NotImplementedError

    def materials(self, bundle: Bundle) -> tuple[Material, ...]:
        """What receipts of the bundle's operations need, as far as this replica still holds it."""
        raise NotImplementedError

    def query(self, client: bytes, data: bytes) -> bytes:
        """An encoded `kv.Result` of an encoded `kv.Range` on the executed state, under grants."""
        raise NotImplementedError

    def snapshot(self) -> Snapshot:
        """The state at the last checkpoint; parts unchanged since an earlier one are the same objects."""
        raise NotImplementedError

    def install(self, parts: tuple[bytes, ...], root: bytes) -> int:
        """Replace the state by a snapshot; the index it stands at.

        Raises `SnapshotInvalid` and changes nothing unless every part matches `root`.
        """
        raise NotImplementedError
