"""What the coordinator needs from outside, as small protocols: the control log, a placer, a receipt store.

The real ones are built in the composition root; tests bring their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from dwcp.api.allocator import PlaceAnswer, PlaceRequest
from dwcp.api.kv import KeyValue, Txn, TxnDone
from dwcp.api.manager import StoredReceipt


class LogUnreachable(Exception):
    """The control log did not answer in time; whether the transaction happened is not known. Try again."""


class LogRefused(Exception):
    """The control log refused the operation as it stands; the message says why (grants, limits, quota)."""


class ReceiptUnwanted(ValueError):
    """That is no receipt of a workload; send workload, attempt, kind and the receipt's JSON."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A transaction's answer; `receipt` is the receipt's JSON where one was asked for and gathered."""

    done: TxnDone
    index: int
    receipt: dict[str, Any] | None = None  # Any: the ledger's own format


class ControlLog(Protocol):
    """The ledger, narrowed. Both raise `LogUnreachable` or `LogRefused`."""

    async def txn(self, txn: Txn, *, receipt: bool = False) -> Committed: ...

    async def read(self, prefix: bytes, *, linearizable: bool) -> tuple[list[KeyValue], int]:
        """Every key under `prefix`, and the revision at which that was so."""
        ...


class Placer(Protocol):
    """Proposes nodes. Never raises: where the allocator does not answer it decides locally and says so."""

    async def place(self, wanted: PlaceRequest) -> PlaceAnswer: ...

    async def release(self, workload: str) -> None: ...


class ReceiptStore(Protocol):
    """Keeps receipts, one per (workload, attempt, kind); the first stays."""

    async def keep(self, receipt: StoredReceipt) -> None: ...

    def has(self, workload: str, attempt: int, kind: str) -> bool: ...

    async def of(self, workload: str) -> list[StoredReceipt]: ...
