"""A control log in one file and payloads in one folder, for tests of the agent in one or many processes."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dwcp.api.kv import Compare, KeyValue, Put, PutDone, Range, RangeDone, Relation, Target, Txn, TxnDone
from dwcp.api.manager import EventKind, StoredReceipt
from dwcp.api.workloads import (
    Allocation,
    Capacity,
    Demand,
    Job,
    Limits,
    PayloadRef,
    Placed,
    Retry,
    Spec,
    State,
    WorkloadState,
    allocation_key,
    spec_key,
    state_key,
)
from dwcp.runtime.clock import SystemClock
from dwcp.services.agent.ports import (
    Captured,
    Committed,
    Hint,
    LogUnsure,
    OutputRefused,
    PayloadDelayed,
    PayloadLost,
    Progress,
)

T = TypeVar("T")


@dataclass
class FileLog:
    """Keys with revisions and committed time, as the ledger has them; every call is one locked file access.

    `unsure` makes that many next transactions answer `LogUnsure`, in turn after and before they happen.
    """

    path: Path
    down: bool = False
    unsure: int = 0
    skew_ms: int = 0
    history: list[Txn] = field(default_factory=list)

    @contextmanager
    def _state(self) -> Any:
        with self.path.with_suffix(".lock").open("a+") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            text = self.path.read_text() if self.path.exists() else ""
            state = json.loads(text) if text else {"revision": 0, "keys": {}, "events": []}
            yield state
            changed = json.dumps(state)
            if changed != text:  # by renaming, because whoever writes may be killed while it does
                self.path.with_suffix(".new").write_text(changed)
                self.path.with_suffix(".new").rename(self.path)

    def apply(self, txn: Txn) -> TxnDone:
        with self._state() as state:
            time_ms = SystemClock().now_ms() + self.skew_ms
            good = all(self._holds(state, guard, time_ms) for guard in txn.compare)
            results: list[Any] = []
            branch = txn.success if good else txn.failure
            if any(isinstance(part, Put) for part in branch):
                state["revision"] += 1
            for part in branch:
                if isinstance(part, Put):
                    self._put(state, part)
                    results.append(PutDone(state["revision"]))
                elif isinstance(part, Range):
                    results.append(self._range(state, part.key))
            return TxnDone(state["revision"], time_ms, good, tuple(results))

    def _holds(self, state: Any, guard: Compare, time_ms: int) -> bool:
        entry = state["keys"].get(guard.key.decode(), {"mod": 0})
        value = time_ms if guard.target is Target.TIME else entry["mod"]
        assert guard.target in (Target.TIME, Target.MOD)
        assert isinstance(guard.operand, int)
        return {
            Relation.EQUAL: value == guard.operand,
            Relation.LESS_EQUAL: value <= guard.operand,
            Relation.GREATER_EQUAL: value >= guard.operand,
            Relation.GREATER: value > guard.operand,
        }[guard.relation]

    def _put(self, state: Any, put: Put) -> None:
        key = put.key.decode()
        known = state["keys"].get(key, {"create": state["revision"], "version": 0})
        state["keys"][key] = {
            "value": put.value.decode(),
            "mod": state["revision"],
            "create": known["create"],
            "version": known["version"] + 1,
        }
        state["events"].append([state["revision"], key, put.value.decode()])

    def _range(self, state: Any, key: bytes) -> RangeDone:
        entry = state["keys"].get(key.decode())
        if entry is None:
            return RangeDone(state["revision"], (), 0, False)
        kv = KeyValue(key, entry["value"].encode(), entry["create"], entry["mod"], entry["version"])
        return RangeDone(state["revision"], (kv,), 1, False)

    def get(self, key: bytes, shape: type[T]) -> T | None:
        with self._state() as state:
            found = self._range(state, key)
        return msgspec.json.decode(found.kvs[0].value, type=shape) if found.kvs else None

    def keys(self) -> dict[str, Any]:
        with self._state() as state:
            found: dict[str, Any] = state["keys"]
        return found

    def values(self, key: bytes) -> list[str]:
        """Everything ever written to one key."""
        with self._state() as state:
            return [value for _, name, value in state["events"] if name == key.decode()]

    # ------------------------------------------------------------------ the port

    async def txn(self, txn: Txn, *, receipt: bool, timeout_s: float) -> Committed:
        await self._answer_or_not(timeout_s)
        self.history.append(txn)
        unsure, self.unsure = self.unsure, max(0, self.unsure - 1)
        if unsure and unsure % 2 == 0:
            raise LogUnsure("not sent")
        done = self.apply(txn)
        if unsure:
            raise LogUnsure("the answer got lost")
        return Committed(done, {"revision": done.revision} if receipt else None)

    async def read(self, key: bytes, *, linearizable: bool, timeout_s: float) -> RangeDone:
        await self._answer_or_not(timeout_s)
        with self._state() as state:
            return self._range(state, key)

    async def watch(self, prefix: bytes) -> AsyncIterator[Hint]:
        with self._state() as state:
            seen = state["revision"]
        while True:
            await asyncio.sleep(0.05)
            if self.down:
                raise LogUnsure("the watch broke")
            with self._state() as state:
                news = [event for event in state["events"] if event[0] > seen]
                seen = state["revision"]
            for revision, key, value in news:
                if key.encode().startswith(prefix):
                    yield Hint(key.encode(), revision, value.encode())

    async def _answer_or_not(self, timeout_s: float) -> None:
        await asyncio.sleep(0)
        if self.down:
            await asyncio.sleep(min(timeout_s, 0.2))
            raise LogUnsure("nobody answers")

    # ------------------------------------------------------------------ a manager's acts

    def submit(self, spec: Spec) -> None:
        pending = WorkloadState(state=State.PENDING)
        self.apply(Txn(success=(_put(spec_key(spec.id), spec), _put(state_key(spec.id), pending))))

    def place(self, workload: str, node: str, *, lease_ms: int) -> None:
        state = self.state(workload)
        attempt = state.attempt + 1
        placed = msgspec.structs.replace(
            state,
            state=State.PLACED,
            attempt=attempt,
            node=node,
            lease_deadline_ms=SystemClock().now_ms() + lease_ms,
        )
        held = self.get(allocation_key(node), Allocation) or Allocation()
        entry = Placed(workload, attempt, Capacity(1000, 64, 16, 0))
        self.apply(
            Txn(
                success=(
                    _put(state_key(workload), placed),
                    _put(allocation_key(node), Allocation((*held.placed, entry))),
                )
            )
        )

    def change(self, workload: str, change: Callable[[WorkloadState], WorkloadState]) -> None:
        self.apply(Txn(success=(_put(state_key(workload), change(self.state(workload))),)))

    def cancel(self, workload: str) -> None:
        self.change(workload, lambda state: msgspec.structs.replace(state, cancel=True))

    def state(self, workload: str) -> WorkloadState:
        found = self.get(state_key(workload), WorkloadState)
        assert found is not None
        return found

    def placed(self, node: str) -> tuple[str, ...]:
        return tuple(
            entry.workload for entry in (self.get(allocation_key(node), Allocation) or Allocation()).placed
        )

    def outputs(self, workload: str) -> list[str]:
        return sorted(key for key in self.keys() if key.startswith(f"/w/{workload}/out/"))


def _put(key: bytes, value: Any) -> Put:
    return Put(key, msgspec.json.encode(value))


@dataclass
class FolderGoods:
    """Payload `root` is the folder of that name; outputs are copied below `published`, by their hash."""

    payloads: Path
    published: Path
    delays: int = 0
    released: list[str] = field(default_factory=list)
    claimed: list[str] = field(default_factory=list)

    async def fetch(
        self, payload: PayloadRef, into: Path, *, owner: str, progress: Progress, priority: int = 2
    ) -> None:
        source = self.payloads / payload.root
        if not source.is_dir():
            raise PayloadLost(f"no source has {payload.root}")
        if self.delays:
            self.delays -= 1
            raise PayloadDelayed("the source does not answer")
        progress(0, payload.bytes)
        await asyncio.to_thread(shutil.copytree, source, into, dirs_exist_ok=True)
        progress(payload.bytes, payload.bytes)

    async def capture(self, folder: Path, *, owner: str) -> Captured:
        return await asyncio.to_thread(self._capture, folder)

    def _capture(self, folder: Path) -> Captured:
        digest = hashlib.sha256()
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if any(path.is_symlink() for path in folder.rglob("*")):
            raise OutputRefused("a link in the output")
        for path in files:
            digest.update(os.fsencode(path.relative_to(folder)) + b"\0" + path.read_bytes())
        root = digest.hexdigest()
        shutil.copytree(folder, self.published / root, dirs_exist_ok=True)
        return Captured(root, sum(path.stat().st_size for path in files), len(files))

    async def release(self, owner: str) -> None:
        self.released.append(owner)

    async def claims(self) -> list[str]:
        return self.claimed


@dataclass
class Listener:
    """Events and receipts, kept."""

    events: list[tuple[str, int, str, dict[str, Any]]] = field(default_factory=list)
    receipts: list[StoredReceipt] = field(default_factory=list)

    def tell(self, workload: str, attempt: int, kind: EventKind, **fields: int | float | str) -> None:
        self.events.append((workload, attempt, kind.value, fields))

    def keep(self, receipt: StoredReceipt) -> None:
        self.receipts.append(receipt)

    def has(self, workload: str, attempt: int, kind: str) -> bool:
        return any((r.workload, r.attempt, r.kind) == (workload, attempt, kind) for r in self.receipts)

    def kinds(self) -> list[str]:
        return [kind for _, _, kind, _ in self.events]


def spec(
    workload: str,
    script: str,
    *,
    retry: Retry = Retry.NEVER,
    payload: str = "",
    wall: str = "20s",
    deadline: str = "",
) -> Spec:
    """A small job running `script`."""
    job = Job(
        name="t",
        demand=Demand(cpu=1, memory_mib=64, storage_mib=16),
        run=("sh", "-c", script),
        retry=retry,
        limits=Limits(wall=wall),
        deadline=deadline,
    )
    ref = PayloadRef(payload, 4, 1, "oslo", "dwcp-agent-oslo") if payload else None
    return Spec(workload, job, ref, SystemClock().now_ms(), "test")
