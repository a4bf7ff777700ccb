"""A control log in memory, and a stage on which coroutines are interleaved one await at a time.

The log applies transactions as the real one does: guards, one revision per
transaction, committed time that only grows. Every read and transaction gives
up the stage before and after, so that anybody may run, or die, in between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import msgspec
import structlog

from dwcp.allocation.decide import decide
from dwcp.api.allocator import PlaceAnswer, PlaceRequest
from dwcp.api.kv import (
    Compare,
    DeleteDone,
    DeleteRange,
    KeyValue,
    Put,
    PutDone,
    Range,
    RangeDone,
    Relation,
    Target,
    Txn,
    TxnDone,
)
from dwcp.api.manager import StoredReceipt
from dwcp.api.workloads import Capacity, Node, node_key, prefix_end
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.manager.coordinator import Coordinator
from dwcp.services.manager.events import Events
from dwcp.services.manager.ports import Committed

START_MS = 1_700_000_000_000


def _silent(_logger: Any, _method: str, _event: Any) -> Any:
    raise structlog.DropEvent


class Turn:
    """Awaiting one gives up the stage."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class FakeLog:
    """The key-value application over a dict; `ControlLog` of the manager's ports."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.time_ms = START_MS
        self.revision = 0
        self.data: dict[bytes, KeyValue] = {}
        self.checks: list[Callable[[], None]] = []
        self.commits = 0
        self.staged = False
        self.failing: Exception | None = None

    async def txn(self, txn: Txn, *, receipt: bool = False) -> Committed:
        await self._turn()
        if self.failing is not None:
            raise self.failing
        done = self.apply(txn)
        await self._turn()
        index = self.commits
        return Committed(done, index, {"index": index} if receipt else None)

    async def read(self, prefix: bytes, *, linearizable: bool) -> tuple[list[KeyValue], int]:
        await self._turn()
        if self.failing is not None:
            raise self.failing
        found, revision = list(self._range(Range(prefix, prefix_end(prefix))).kvs), self.revision
        await self._turn()
        return found, revision

    def apply(self, txn: Txn) -> TxnDone:
        self.commits += 1
        self.time_ms = max(self.time_ms + 1, self.now_ms)
        held = all(self._holds(guard) for guard in txn.compare)
        parts = txn.success if held else txn.failure
        writes = [part for part in parts if not isinstance(part, Range)]
        self.revision += 1 if writes else 0
        results = tuple(self._part(part) for part in parts)
        for check in self.checks:
            check()
        return TxnDone(self.revision, self.time_ms, held, results)

    def put(self, key: bytes, value: bytes) -> int:
        self.apply(Txn(success=(Put(key, value),)))
        return self.revision

    def get(self, key: bytes) -> bytes | None:
        kv = self.data.get(key)
        return kv.value if kv else None

    async def _turn(self) -> None:
        if self.staged:
            await Turn()

    def _part(self, part: Put | Range | DeleteRange) -> PutDone | RangeDone | DeleteDone:
        match part:
            case Put(key, value):
                old = self.data.get(key)
                created = old.create_revision if old else self.revision
                self.data[key] = KeyValue(key, value, created, self.revision, (old.version if old else 0) + 1)
                return PutDone(self.revision)
            case Range():
                return self._range(part)
            case DeleteRange(key, end):
                gone = [k for k in self.data if (key <= k < end if end else k == key)]
                for k in gone:
                    del self.data[k]
                return DeleteDone(self.revision, len(gone))

    def _range(self, part: Range) -> RangeDone:
        keys = sorted(k for k in self.data if (part.key <= k < part.end if part.end else k == part.key))
        return RangeDone(self.revision, tuple(self.data[k] for k in keys), len(keys), False)

    def _holds(self, guard: Compare) -> bool:
        kv = self.data.get(guard.key)
        match guard.target:
            case Target.MOD:
                left: Any = kv.mod_revision if kv else 0
            case Target.CREATE:
                left = kv.create_revision if kv else 0
            case Target.VERSION:
                left = kv.version if kv else 0
            case Target.VALUE:
                left = kv.value if kv else b""
            case Target.TIME:
                left = self.time_ms
        right: Any = guard.operand
        return {
            Relation.EQUAL: left == right,
            Relation.NOT_EQUAL: left != right,
            Relation.LESS: left < right,
            Relation.GREATER: left > right,
            Relation.LESS_EQUAL: left <= right,
            Relation.GREATER_EQUAL: left >= right,
        }[guard.relation]


class LocalPlacer:
    """Answers with the real rules; gives up the stage as a call over the network would."""

    def __init__(self, log: FakeLog, policy: str = "") -> None:
        self._log = log
        self._policy = policy
        self.released: list[str] = []

    async def place(self, wanted: PlaceRequest) -> PlaceAnswer:
        if self._log.staged:
            await Turn()
        return decide(msgspec.structs.replace(wanted, policy=self._policy))

    async def release(self, workload: str) -> None:
        self.released.append(workload)


class MemoryReceipts:
    """The receipt store as a dict."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int, str], StoredReceipt] = {}

    async def keep(self, receipt: StoredReceipt) -> None:
        self.kept.setdefault((receipt.workload, receipt.attempt, receipt.kind), receipt)

    def has(self, workload: str, attempt: int, kind: str) -> bool:
        return (workload, attempt, kind) in self.kept

    async def of(self, workload: str) -> list[StoredReceipt]:
        return [receipt for (name, _, _), receipt in self.kept.items() if name == workload]


def coordinator(
    log: FakeLog, *, lease_ms: int = 3_000, receipts: MemoryReceipts | None = None, **more: Any
) -> Coordinator:
    """A coordinator on `log` whose clock is the log's."""
    ports: dict[str, Any] = {
        "placer": LocalPlacer(log),
        "now_ms": lambda: log.now_ms,
        "events": Events(boot_ms=START_MS),
        "telemetry": Telemetry("test", version="0"),
        "logger": structlog.wrap_logger(None, processors=[_silent]),
    }
    return Coordinator(log=log, receipts=receipts or MemoryReceipts(), lease_ms=lease_ms, **(ports | more))


def add_node(log: FakeLog, name: str, *, cpu_milli: int = 2000, memory_mib: int = 1024, **more: Any) -> Node:
    """A node in the log, as its agent would put it."""
    capacity = Capacity(cpu_milli=cpu_milli, memory_mib=memory_mib, storage_mib=4096, bandwidth_mbps=100)
    node = Node(name=name, site=more.pop("site", name), address="127.0.0.1:1", capacity=capacity, **more)
    log.put(node_key(name), msgspec.json.encode(node))
    return node


def finish(work: Coroutine[Any, Any, Any] | Awaitable[Any]) -> Any:
    """Runs a coroutine that never waits for anybody to its end."""
    try:
        work.send(None)  # type: ignore[union-attr]
    except StopIteration as exc:
        return exc.value
    raise AssertionError("the coroutine gave up the stage; set `staged` only with a scheduler")
