"""The key-value state machine: what every replica does to its state for each operation.

Semantics follow etcd: one revision for each mutating transaction, compare and
swap, history until it is compacted. Every operation has a bound on the keys it
looks at and the bytes it answers, so that no batch can stall execution.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import eq, ge, gt, itemgetter, le, lt, ne

from dwcp.api import kv
from dwcp.consensus.ledger.clients import Client
from dwcp.consensus.ledger.genesis import Params
from dwcp.consensus.ledger.keyindex import KeyIndex

# One write of a key: (mod revision, create revision, version, value). Value None: deleted.
Version = tuple[int, int, int, bytes | None]

Write = kv.Put | kv.DeleteRange
Branch = Sequence[kv.Put | kv.Range | kv.DeleteRange]

FIRST_REVISION = 1
BATCH_RANGES = 4  # a batch may look at as many keys as this many largest operations
KEY_VALUE_OVERHEAD = 32  # bytes that a key in an answer counts besides key and value
VERSION_OVERHEAD = 64  # bytes that one version counts against the quota besides key and value
TRIM_MAX = 256  # history entries that one operation forgets at most (a whole revision always)
PRESSED_STEP = 16  # revisions that each write compacts once three quarters of the quota are used
_RELATIONS = {
    kv.Relation.EQUAL: eq,
    kv.Relation.NOT_EQUAL: ne,
    kv.Relation.LESS: lt,
    kv.Relation.GREATER: gt,
    kv.Relation.LESS_EQUAL: le,
    kv.Relation.GREATER_EQUAL: ge,
}
_ABSENT: Version = (0, 0, 0, None)


class _Refusal(Exception):
    """Ends one operation; never leaves this module."""

    def __init__(self, code: str, detail: str) -> None:
        self.failed = kv.Failed(code, detail)


class Store:
    """Keys with their versions. Invariants:

    versions of a key ascend by mod revision and hold at most one per revision;
    every write after `trimmed` is in the log, in revision order, keys ascending;
    `trimmed` ≤ `compacted` ≤ `revision`; reads below `compacted` are refused.
    """

    __slots__ = (
        "_head",
        "_index",
        "_log",
        "_params",
        "_table",
        "bytes_left",
        "compacted",
        "keys_left",
        "revision",
        "size",
        "touched",
        "trimmed",
    )

    def __init__(self, params: Params) -> None:
        self._params = params
        self._table: dict[bytes, list[Version]] = {}
        self._index = KeyIndex()
        self._log: list[tuple[bytes, ...]] = []  # keys written in revision trimmed + 1 + i - _head
        self._head = 0
        self.revision = FIRST_REVISION
        self.compacted = FIRST_REVISION
        self.trimmed = FIRST_REVISION
        self.size = 0  # bytes counted against the quota
        self.touched: set[bytes] = set()  # keys changed since the owner last cleared it
        # What the operations to come may still look at and answer; the owner renews both.
        self.keys_left = params.range_keys_max * BATCH_RANGES
        self.bytes_left = params.range_bytes_max

    # ----------------------------------------------------------------- operations

    def put(self, operation: kv.Put, client: Client) -> kv.PutDone | kv.Failed:
        key = operation.key
        if not key.startswith(client.write):
            return _denied(key)
        refusal = self._put_refusal(operation)
        if refusal is not None:
            return refusal
        self._write(key, operation.value)
        self._finish((key,))
        return kv.PutDone(self.revision)

    def peek(self, operation: kv.Range, client: Client) -> kv.RangeDone | kv.Failed:
        """A read outside the log: what batches may still look at stays the same at every replica."""
        left = self.keys_left, self.bytes_left
        self.keys_left, self.bytes_left = self._params.range_keys_max, self._params.range_bytes_max
        try:
            return self.range(operation, client)
        finally:
            self.keys_left, self.bytes_left = left

    def range(self, operation: kv.Range, client: Client) -> kv.RangeDone | kv.Failed:
        try:
            self._check_range(operation, client)
            return self._range(operation, self.revision)
        except _Refusal as refusal:
            return refusal.failed

    def delete(self, operation: kv.DeleteRange, client: Client) -> kv.DeleteDone | kv.Failed:
        try:
            self._check_delete(operation, client)
            written = self._delete(operation)
        except _Refusal as refusal:
            return refusal.failed
        if written:
            self._finish(written)
        return kv.DeleteDone(self.revision, len(written))

    def txn(self, operation: kv.Txn, client: Client, *, time_ms: int) -> kv.TxnDone | kv.Failed:
        try:
            self._check_txn(operation, client)
            succeeded = all(self._holds(guard, time_ms) for guard in operation.compare)
            results = self._run(operation.success if succeeded else operation.failure)
        except _Refusal as refusal:
            return refusal.failed
        return kv.TxnDone(self.revision, time_ms, succeeded, results)

    def compact(self, operation: kv.Compact) -> kv.Done | kv.Failed:
        if operation.revision > self.revision:
            return kv.Failed("future_revision", f"the store is at revision {self.revision}")
        if operation.revision < self.compacted:
            return kv.Failed("compacted", f"already compacted below revision {self.compacted}")
        self.compacted = operation.revision
        self._trim()
        return kv.Done(self.revision)

    # ----------------------------------------------------------------- history

    def changes(self, after: int, upto: int) -> Iterator[tuple[int, list[tuple[bytes, Version]]]]:
        """Writes of the revisions in (after, upto], keys ascending; needs `after` ≥ `compacted`."""
        offset = self._head - self.trimmed - 1
        for revision in range(after + 1, upto + 1):
            keys = self._log[revision + offset]
            yield revision, [(key, self._at(key, revision)) for key in keys]

    def versions(self, key: bytes) -> list[Version] | None:
        """Every kept version of a key, oldest first; not to be changed."""
        return self._table.get(key)

    def ordered_keys(self) -> Iterator[bytes]:
        """Every key that has a kept version, ascending."""
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._table)

    @classmethod
    def restored(
        cls,
        params: Params,
        items: Iterable[tuple[bytes, tuple[Version, ...]]],
        *,
        revision: int,
        compacted: int,
        trimmed: int,
    ) -> Store:
        """The store that has exactly these versions; the log is derived from them."""
        store = cls(params)
        store.revision, store.compacted, store.trimmed = revision, compacted, trimmed
        log: list[list[bytes]] = [[] for _ in range(revision - trimmed)]
        for key, versions in items:
            store._table[key] = list(versions)
            for version in versions:
                store.size += _weight(key, version[3])
                if version[0] > trimmed:
                    log[version[0] - trimmed - 1].append(key)
        store._index = KeyIndex(store._table)
        store._log = [tuple(sorted(keys)) for keys in log]
        return store

    # ----------------------------------------------------------------- checks

    def _put_refusal(self, operation: kv.Put) -> kv.Failed | None:
        params = self._params
        if not operation.key:
            return kv.Failed("malformed", "a key must not be empty")
        if len(operation.key) > params.key_bytes_max:
            return kv.Failed("too_large", f"a key has at most {params.key_bytes_max} bytes")
        if len(operation.value) > params.value_bytes_max:
            return kv.Failed("too_large", f"a value has at most {params.value_bytes_max} bytes")
        if self.size + _weight(operation.key, operation.value) > params.quota_bytes:
            return kv.Failed("no_space", f"the store is at its quota of {params.quota_bytes} bytes")
        return None

    def _check_range(self, operation: kv.Range, client: Client) -> None:
        if not client.reads(operation.key, operation.end):
            raise _Refusal("permission_denied", f"no grant to read {operation.key!r}")
        if operation.limit < 0 or operation.revision < 0:
            raise _Refusal("malformed", "limit and revision are not negative")
        if operation.revision > self.revision:
            raise _Refusal("future_revision", f"the store is at revision {self.revision}")
        if operation.revision and operation.revision < self.compacted:
            raise _Refusal("compacted", f"history begins at revision {self.compacted}")

    def _check_delete(self, operation: kv.DeleteRange, client: Client) -> None:
        if not client.writes(operation.key, operation.end):
            raise _Refusal("permission_denied", f"no grant to write {operation.key!r}")

    def _check_txn(self, operation: kv.Txn, client: Client) -> None:
        most = self._params.txn_operations_max
        if max(len(operation.compare), len(operation.success), len(operation.failure)) > most:
            raise _Refusal(
                "too_large", f"a transaction has at most {most} guards, and operations in a branch"
            )
        for guard in operation.compare:
            self._check_guard(guard, client)
        for branch in (operation.success, operation.failure):
            self._check_branch(branch, client)

    def _check_guard(self, guard: kv.Compare, client: Client) -> None:
        if isinstance(guard.operand, bytes) != (guard.target is kv.Target.VALUE):
            raise _Refusal("malformed", "a guard on VALUE takes bytes, any other an integer")
        if guard.target is not kv.Target.TIME and not (client.reads(guard.key) or client.writes(guard.key)):
            raise _Refusal("permission_denied", f"no grant to read {guard.key!r}")

    def _check_branch(self, branch: Branch, client: Client) -> None:
        puts: set[bytes] = set()
        deletes: list[kv.DeleteRange] = []
        weight = 0
        for operation in branch:
            if isinstance(operation, kv.Put):
                self._check_put(operation, client)
                if operation.key in puts:
                    raise _Refusal("duplicate_key", f"{operation.key!r} is written twice")
                puts.add(operation.key)
                weight += _weight(operation.key, operation.value)
            elif isinstance(operation, kv.Range):
                self._check_range(operation, client)
            else:
                self._check_delete(operation, client)
                deletes.append(operation)
        if puts and self.size + weight > self._params.quota_bytes:
            raise _Refusal("no_space", f"the store is at its quota of {self._params.quota_bytes} bytes")
        for delete in deletes:
            for key in puts:
                if _within(key, delete.key, delete.end):
                    raise _Refusal("duplicate_key", f"{key!r} is both put and deleted")

    def _check_put(self, operation: kv.Put, client: Client) -> None:
        if not client.writes(operation.key):
            raise _Refusal("permission_denied", f"no grant to write {operation.key!r}")
        refusal = self._put_refusal(operation)
        if refusal is not None:
            raise _Refusal(refusal.code, refusal.detail)

    def _holds(self, guard: kv.Compare, time_ms: int) -> bool:
        mod, create, version, value = self._present(guard.key)
        actual: bytes | int
        match guard.target:
            case kv.Target.VALUE:
                actual = value if value is not None else b""
            case kv.Target.VERSION:
                actual = version if value is not None else 0
            case kv.Target.CREATE:
                actual = create if value is not None else 0
            case kv.Target.MOD:
                actual = mod if value is not None else 0
            case kv.Target.TIME:
                actual = time_ms
        return bool(_RELATIONS[guard.relation](actual, guard.operand))

    # ----------------------------------------------------------------- execution

    def _run(self, branch: Branch) -> tuple[kv.PutDone | kv.RangeDone | kv.DeleteDone, ...]:
        """Apply a branch in one revision; on a refusal nothing of it remains."""
        written: list[bytes] = []
        left = self.bytes_left
        results: list[kv.PutDone | kv.RangeDone | kv.DeleteDone] = []
        try:
            for operation in branch:
                revision = self.revision + 1 if written else self.revision
                if isinstance(operation, kv.Put):
                    self._write(operation.key, operation.value)
                    written.append(operation.key)
                    results.append(kv.PutDone(self.revision + 1))
                elif isinstance(operation, kv.Range):
                    results.append(self._range(operation, revision))
                else:
                    deleted = self._delete(operation)
                    written.extend(deleted)
                    results.append(kv.DeleteDone(self.revision + bool(written), len(deleted)))
        except _Refusal:
            self._undo(written)
            self.bytes_left = left
            raise
        if written:
            self._finish(tuple(sorted(written)))
        return tuple(results)

    def _write(self, key: bytes, value: bytes | None) -> None:
        revision = self.revision + 1
        versions = self._table.get(key)
        if versions is None:
            self._table[key] = [(revision, revision, 1, value)]
            self._index.add(key)
        else:
            last = versions[-1]
            if last[3] is None:
                versions.append((revision, revision, 1, value))
            else:
                versions.append((revision, last[1], last[2] + 1, value))
        self.size += _weight(key, value)
        self.touched.add(key)

    def _undo(self, written: list[bytes]) -> None:
        for key in written:
            versions = self._table[key]
            self.size -= _weight(key, versions.pop()[3])
            if not versions:
                del self._table[key]
                self._index.remove(key)

    def _finish(self, written: tuple[bytes, ...]) -> None:
        """Close the revision that `written` belongs to (keys ascending)."""
        self.revision += 1
        self._log.append(written)
        floor = self.revision - self._params.history_revisions_kept
        if self.size * 4 > self._params.quota_bytes * 3:  # make room while there still is some
            floor = max(floor, min(self.compacted + PRESSED_STEP, self.revision - 1))
        if floor > self.compacted:
            self.compacted = floor
        if self.trimmed < self.compacted:
            self._trim()

    def _trim(self) -> None:
        """Forget versions that no read at or above `compacted` can see; a bounded piece at a time.

        Whole revisions only: then `trimmed` alone says what is left to do, and a
        restored store goes on exactly where this one would.
        """
        budget = TRIM_MAX
        while self.trimmed < self.compacted and budget > 0:
            self.trimmed += 1
            keys = self._log[self._head]
            self._head += 1
            budget -= len(keys)
            for key in keys:
                self._forget(key, self.trimmed)
        if self._head > 4096 and self._head * 2 > len(self._log):
            del self._log[: self._head]
            self._head = 0

    def _forget(self, key: bytes, revision: int) -> None:
        """Drop what `key` held before its write at `revision`, and that write if it was a deletion."""
        versions = self._table[key]
        while versions[0][0] < revision:
            self.size -= _weight(key, versions.pop(0)[3])
            self.touched.add(key)
        if versions[0][3] is None:
            self.size -= _weight(key, None)
            del versions[0]
            self.touched.add(key)
            if not versions:
                del self._table[key]
                self._index.remove(key)

    def _delete(self, operation: kv.DeleteRange) -> tuple[bytes, ...]:
        """Write deletions of every present key in the range; the keys."""
        doomed = [key for key, _ in self._scan(operation.key, operation.end, 0)]
        if len(doomed) > self._params.delete_keys_max:
            most = self._params.delete_keys_max
            raise _Refusal("too_large", f"one operation deletes at most {most} keys: narrow the range")
        for key in doomed:
            self._write(key, None)
        return tuple(doomed)

    def _range(self, operation: kv.Range, revision: int) -> kv.RangeDone:
        """Raises `_Refusal` where the answer would hold more than `bytes_left`."""
        room = self.bytes_left
        kvs: list[kv.KeyValue] = []
        count = 0
        for key, (mod, create, version, value) in self._scan(
            operation.key, operation.end, operation.revision
        ):
            count += 1
            if operation.limit and count > operation.limit:
                continue
            assert value is not None
            room -= len(key) + len(value) + KEY_VALUE_OVERHEAD
            if room < 0:
                raise _Refusal("too_large", "the answer is too large: narrow the range or set a limit")
            kvs.append(kv.KeyValue(key, value, create, mod, version))
        self.bytes_left = room
        return kv.RangeDone(revision, tuple(kvs), count, count > len(kvs))

    def _scan(self, key: bytes, end: bytes, revision: int) -> Iterator[tuple[bytes, Version]]:
        """Keys of the range that exist at `revision` (0: now) with their version then."""
        if not end:
            version = self._at(key, revision) if revision else self._present(key)
            if version[3] is not None:
                yield key, version
            return
        most = min(self._params.range_keys_max, self.keys_left)
        for looked, each in enumerate(self._index.between(key, None if end == b"\0" else end)):
            if looked == most:
                raise _Refusal(
                    "too_large", f"this may look at {most} keys only: narrow the range, or try later"
                )
            self.keys_left -= 1
            version = self._at(each, revision) if revision else self._table[each][-1]
            if version[3] is not None:
                yield each, version

    def _present(self, key: bytes) -> Version:
        versions = self._table.get(key)
        return versions[-1] if versions else _ABSENT

    def _at(self, key: bytes, revision: int) -> Version:
        """The newest version at or below `revision`; absent where there is none."""
        versions = self._table.get(key, ())
        position = bisect_right(versions, revision, key=itemgetter(0))
        return versions[position - 1] if position else _ABSENT


def _weight(key: bytes, value: bytes | None) -> int:
    return len(key) + (len(value) if value else 0) + VERSION_OVERHEAD


def _within(key: bytes, start: bytes, end: bytes) -> bool:
    if not end:
        return key == start
    return key >= start and (end == b"\0" or key < end)


def _denied(key: bytes) -> kv.Failed:
    return kv.Failed("permission_denied", f"no grant to write {key!r}")
