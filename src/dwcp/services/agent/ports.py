"""What an agent needs from outside, as small protocols; the composition root builds the real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dwcp.api.kv import RangeDone, Txn, TxnDone
from dwcp.api.manager import EventKind, StoredReceipt
from dwcp.api.workloads import PayloadRef


class LogUnsure(Exception):
    """The control log gave no answer in time; what was sent may still be committed."""


class LogRefused(Exception):
    """The control log refused the operation as it stands; the message says why."""


class PayloadDelayed(Exception):
    """The payload could not be fetched now; another try may succeed."""


class PayloadLost(Exception):
    """The payload cannot be fetched or does not verify; the message is a sentence for the user."""


class OutputRefused(Exception):
    """The output holds something that may not be published; the message names it."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A transaction's answer; `receipt` is the receipt's JSON where one was asked for and gathered."""

    done: TxnDone
    receipt: dict[str, Any] | None = None  # Any: the ledger's own format


@dataclass(frozen=True, slots=True)
class Captured:
    """An output that is durable in this agent's store."""

    root: str
    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Hint:
    """Something under a watched prefix changed, as one replica says; `value` None: deleted."""

    key: bytes
    revision: int
    value: bytes | None = None


class ControlLog(Protocol):
    """The ledger, narrowed. All raise `LogUnsure` or `LogRefused`."""

    async def txn(self, txn: Txn, *, receipt: bool, timeout_s: float) -> Committed: ...

    async def read(self, key: bytes, *, linearizable: bool, timeout_s: float) -> RangeDone: ...

    def watch(self, prefix: bytes) -> AsyncIterator[Hint]: ...


Progress = Callable[[int, int], None]  # bytes here, bytes in all


class Goods(Protocol):
    """Payloads in, outputs out."""

    async def fetch(
        self, payload: PayloadRef, into: Path, *, owner: str, progress: Progress, priority: int = 2
    ) -> None:
        """Materialise a payload into an empty folder; `priority` is its share of the link.

        Raises `PayloadDelayed` or `PayloadLost`.
        """
        ...

    async def capture(self, folder: Path, *, owner: str) -> Captured:
        """Make a folder durable under its root. Raises `OutputRefused`."""
        ...

    async def release(self, owner: str) -> None:
        """Nothing of `owner` is needed any more."""
        ...

    async def claims(self) -> list[str]:
        """Every owner of something in the store: workloads, attempts, `output-ATTEMPT`."""
        ...


class Teller(Protocol):
    """Events and receipts for the manager: best effort, never waits, never raises."""

    def tell(self, workload: str, attempt: int, kind: EventKind, **fields: int | float | str) -> None: ...

    def keep(self, receipt: StoredReceipt) -> None: ...

    def has(self, workload: str, attempt: int, kind: str) -> bool: ...
