"""The key-value machine against a model of a dozen lines, and rule by rule."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.unit.consensus.ledger.scene import failure, genesis_of

from dwcp.api import kv
from dwcp.api.kv import Compare, DeleteRange, Put, Range, Relation, Target, Txn
from dwcp.consensus.ledger.clients import Client, from_genesis
from dwcp.consensus.ledger.kv import VERSION_OVERHEAD, Store

EVERYONE = from_genesis(genesis_of())[1]
KEYS = st.sampled_from([b"a", b"a/1", b"a/2", b"b", b"b/1", b"c"])
ENDS = st.sampled_from([b"", b"\0", b"a/2", b"b", b"c", b"d"])
VALUES = st.binary(max_size=3)


def store_of(**params: int) -> Store:
    return Store(genesis_of(**params).params)


class Model(RuleBasedStateMachine):
    """A whole copy of the state for every revision: slow, obvious, unbounded."""

    def __init__(self) -> None:
        super().__init__()
        self.store = store_of(history_revisions_kept=8)
        self.revision = 1
        self.states: dict[int, dict[bytes, tuple[int, int, int, bytes]]] = {1: {}}
        self.compacted = 1

    def _range(self, state: dict[bytes, Any], key: bytes, end: bytes) -> list[bytes]:
        if not end:
            return [key] if key in state else []
        return [each for each in sorted(state) if each >= key and (end == b"\0" or each < end)]

    def _apply(self, ops: list[Any]) -> None:
        """One transaction of puts and deletes."""
        state = dict(self.states[self.revision])
        changed = False
        for op in ops:
            if isinstance(op, Put):
                old = state.get(op.key)
                create, version = (old[0], old[2] + 1) if old else (self.revision + 1, 1)
                state[op.key] = (create, self.revision + 1, version, op.value)
                changed = True
            elif isinstance(op, DeleteRange):
                for key in self._range(state, op.key, op.end):
                    del state[key]
                    changed = True
        if changed:
            self.revision += 1
            self.states[self.revision] = state
            self.compacted = max(self.compacted, self.revision - 8)

    @rule(key=KEYS, value=VALUES)
    def put(self, key: bytes, value: bytes) -> None:
        assert self.store.put(Put(key, value), EVERYONE) == kv.PutDone(self.revision + 1)
        self._apply([Put(key, value)])

    @rule(key=KEYS, end=ENDS)
    def delete(self, key: bytes, end: bytes) -> None:
        doomed = len(self._range(self.states[self.revision], key, end))
        self._apply([DeleteRange(key, end)])
        assert self.store.delete(DeleteRange(key, end), EVERYONE) == kv.DeleteDone(self.revision, doomed)

    @rule(
        key=KEYS,
        mod=st.integers(0, 4),
        puts=st.dictionaries(KEYS, VALUES, max_size=3),
        delete=st.tuples(KEYS, ENDS),
    )
    def txn(self, key: bytes, mod: int, puts: dict[bytes, bytes], delete: tuple[bytes, bytes]) -> None:
        present = self.states[self.revision].get(key, (0, 0, 0, b""))
        guard = Compare(key, Target.MOD, Relation.GREATER_EQUAL, present[1] - mod + 2)
        holds = mod >= 2
        ops = tuple(Put(each, value) for each, value in puts.items())
        other = (DeleteRange(*delete), Range(b"", b"\0"))
        done = self.store.txn(Txn((guard,), ops, other), EVERYONE, time_ms=5)
        assert isinstance(done, kv.TxnDone)
        assert done.succeeded == holds
        self._apply(list(ops if holds else other))
        assert done.revision == self.revision
        if not holds:
            assert isinstance(done.results[1], kv.RangeDone)
            assert [each.key for each in done.results[1].kvs] == sorted(self.states[self.revision])

    @rule(back=st.integers(-1, 5))
    def compact(self, back: int) -> None:
        target = self.revision - back
        code = failure(self.store.compact(kv.Compact(target)))
        if target > self.revision:
            assert code == "future_revision"
        elif target < self.compacted:
            assert code == "compacted"
        else:
            assert not code
            self.compacted = target

    @rule()
    def next_batch(self) -> None:
        self.store.keys_left, self.store.bytes_left = 10**6, 10**6

    @rule(key=KEYS, end=ENDS, back=st.integers(0, 12), limit=st.integers(0, 3))
    def read(self, key: bytes, end: bytes, back: int, limit: int) -> None:
        at = max(self.revision - back, 0)
        found = self.store.range(Range(key, end, limit, at), EVERYONE)
        if 0 < at < self.compacted:
            assert failure(found) == "compacted"
            return
        state = self.states[at or self.revision]
        keys = self._range(state, key, end)
        shown = keys[:limit] if limit else keys
        assert isinstance(found, kv.RangeDone)
        assert [(e.key, e.create_revision, e.mod_revision, e.version, e.value) for e in found.kvs] == [
            (each, *state[each]) for each in shown
        ]
        assert (found.count, found.more) == (len(keys), len(shown) < len(keys))

    @rule()
    def restore(self) -> None:
        """A store rebuilt from its versions goes on exactly like the one it was made from."""
        items = [(key, tuple(self.store.versions(key) or ())) for key in self.store.ordered_keys()]
        old = self.store
        self.store = Store.restored(
            old._params, items, revision=old.revision, compacted=old.compacted, trimmed=old.trimmed
        )
        assert self.store.size == old.size

    @invariant()
    def agrees(self) -> None:
        assert self.store.revision == self.revision
        assert self.store.compacted == self.store.trimmed == self.compacted
        versions = [len(self.store.versions(key) or ()) for key in self.store.ordered_keys()]
        assert sum(versions) <= 6 + (self.revision - self.compacted) * 6
        self._changes_tell_history()

    def _changes_tell_history(self) -> None:
        state = {key: each[3] for key, each in self.states[self.compacted].items()}
        for revision, writes in self.store.changes(self.compacted, self.revision):
            for key, version in writes:
                state.pop(key, None)
                if version[3] is not None:
                    state[key] = version[3]
            assert state == {key: each[3] for key, each in self.states[revision].items()}


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestModel = Model.TestCase


# --------------------------------------------------------------------------- rule by rule


def test_revisions_count_mutating_transactions() -> None:
    """Goal: spec §4.1, one revision each, shared inside a transaction.

    Method: mix reads, no-ops and writes.
    """
    store = store_of()
    store.put(Put(b"a", b"1"), EVERYONE)
    store.delete(DeleteRange(b"absent"), EVERYONE)
    store.range(Range(b"a"), EVERYONE)
    store.txn(Txn((), (Range(b"a"),), ()), EVERYONE, time_ms=0)
    assert store.revision == 2

    store.txn(Txn((), (Put(b"b", b""), Put(b"c", b""), DeleteRange(b"a")), ()), EVERYONE, time_ms=0)
    found = store.range(Range(b"", b"\0"), EVERYONE)
    assert isinstance(found, kv.RangeDone)
    assert {each.mod_revision for each in found.kvs} == {3}
    assert store.revision == 3


def test_version_and_create_revision_begin_anew_after_a_deletion() -> None:
    """Goal: as etcd: a deleted key that returns is a new key. Method: put, put, delete, put."""
    store = store_of()
    for _ in range(2):
        store.put(Put(b"a", b"x"), EVERYONE)
    store.delete(DeleteRange(b"a"), EVERYONE)
    store.put(Put(b"a", b"y"), EVERYONE)
    found = store.range(Range(b"a"), EVERYONE)

    assert isinstance(found, kv.RangeDone)
    assert found.kvs == (kv.KeyValue(b"a", b"y", 5, 5, 1),)


@pytest.mark.parametrize(
    ("target", "operand"),
    [(Target.VALUE, b"v"), (Target.VERSION, 2), (Target.CREATE, 2), (Target.MOD, 3), (Target.TIME, 77)],
)
def test_every_target_and_relation(target: Target, operand: Any) -> None:
    """Goal: each comparison means what its name says. Method: equal, above and below each target."""
    store = store_of()
    store.put(Put(b"k", b"u"), EVERYONE)
    store.put(Put(b"k", b"v"), EVERYONE)
    above = operand + b"x" if isinstance(operand, bytes) else operand + 1
    expected = {
        Relation.EQUAL: (True, False),
        Relation.NOT_EQUAL: (False, True),
        Relation.LESS: (False, True),
        Relation.GREATER: (False, False),
        Relation.LESS_EQUAL: (True, True),
        Relation.GREATER_EQUAL: (True, False),
    }
    for relation, (equal, smaller) in expected.items():
        for value, holds in ((operand, equal), (above, smaller)):
            done = store.txn(Txn((Compare(b"k", target, relation, value),)), EVERYONE, time_ms=77)
            assert isinstance(done, kv.TxnDone)
            assert done.succeeded == holds, (relation, value)


def test_absent_key_compares_as_empty_and_zero() -> None:
    """Goal: MOD == 0 means "does not exist", also after a deletion. Method: create-if-absent twice."""
    store = store_of()
    create = Txn((Compare(b"k", Target.MOD, Relation.EQUAL, 0),), (Put(b"k", b"v"),))

    def succeeds() -> bool:
        done = store.txn(create, EVERYONE, time_ms=0)
        assert isinstance(done, kv.TxnDone)
        return done.succeeded

    assert succeeds()
    assert not succeeds()
    store.delete(DeleteRange(b"k"), EVERYONE)
    assert succeeds()


def test_range_in_a_transaction_sees_its_writes_and_a_failed_one_leaves_nothing() -> None:
    """Goal: atomicity. Method: the last operation of a branch is refused after others were applied."""
    store = store_of(range_bytes_max=1_600_000)
    store.put(Put(b"big", bytes(1_000_000)), EVERYONE)
    before = (store.revision, store.size, list(store.ordered_keys()))
    txn = Txn((), (Put(b"new", b"v"), DeleteRange(b"big"), Put(b"huge", bytes(1_000_000)), Range(b"huge")))
    too_much = Txn((), (*txn.success, Range(b"huge", b"\0")))

    assert failure(store.txn(too_much, EVERYONE, time_ms=0)) == "too_large"
    assert (store.revision, store.size, list(store.ordered_keys())) == before
    assert list(store.changes(2, store.revision)) == []
    done = store.txn(txn, EVERYONE, time_ms=0)
    assert isinstance(done, kv.TxnDone)
    assert isinstance(done.results[3], kv.RangeDone)
    assert done.results[3].kvs[0].mod_revision == done.revision == 3


@pytest.mark.parametrize(
    "branch",
    [
        (Put(b"a", b"1"), Put(b"a", b"2")),
        (Put(b"a", b"1"), DeleteRange(b"a")),
        (DeleteRange(b"a", b"c"), Put(b"b", b"")),
        (DeleteRange(b"a", b"\0"), Put(b"z", b"")),
    ],
)
def test_a_branch_writes_a_key_once(branch: tuple[Any, ...]) -> None:
    """Goal: duplicate_key, in whichever branch, taken or not. Method: as success and as failure."""
    store = store_of()

    assert failure(store.txn(Txn((), branch), EVERYONE, time_ms=0)) == "duplicate_key"
    assert failure(store.txn(Txn((), (), branch), EVERYONE, time_ms=0)) == "duplicate_key"
    assert store.revision == 1


def test_limits_are_refused() -> None:
    """Goal: every bound of one operation has a refusal. Method: one step over each."""
    store = store_of(
        key_bytes_max=8,
        value_bytes_max=8,
        txn_operations_max=2,
        range_keys_max=3,
        delete_keys_max=2,
        range_bytes_max=130,
    )

    def code(operation: Any) -> str:
        store.keys_left, store.bytes_left = 12, 130
        match operation:
            case Put():
                return failure(store.put(operation, EVERYONE))
            case Range():
                return failure(store.range(operation, EVERYONE))
            case DeleteRange():
                return failure(store.delete(operation, EVERYONE))
            case _:
                return failure(store.txn(operation, EVERYONE, time_ms=0))

    assert code(Put(b"k" * 9, b"")) == "too_large"
    assert code(Put(b"k", bytes(9))) == "too_large"
    assert code(Put(b"", b"")) == "malformed"
    assert code(Txn((), (Put(b"k", bytes(9)),))) == "too_large"
    assert code(Txn((), (), (Range(b"a"),) * 3)) == "too_large"
    assert code(Txn((Compare(b"k", Target.MOD, Relation.EQUAL, 0),) * 3)) == "too_large"
    assert code(Txn((Compare(b"k", Target.MOD, Relation.EQUAL, b""),))) == "malformed"
    assert code(Txn((Compare(b"k", Target.VALUE, Relation.EQUAL, 0),))) == "malformed"
    assert code(Range(b"a", limit=-1)) == "malformed"
    assert code(Range(b"a", revision=9)) == "future_revision"
    for key in (b"a", b"b", b"c"):
        assert not code(Put(key, bytes(8)))
    assert not code(Range(b"a", b"\0"))
    assert code(DeleteRange(b"a", b"\0")) == "too_large"
    assert not code(Put(b"d", bytes(8)))
    assert code(Range(b"a", b"\0")) == "too_large"
    assert not code(DeleteRange(b"a", b"c"))


def test_quota_refuses_puts_and_allows_deletes() -> None:
    """Goal: a full store can be emptied again. Method: fill, delete, compact, put."""
    store = store_of(quota_bytes=2_000_000, history_revisions_kept=10_000)
    for i in range(3):
        store.put(Put(b"k%d" % i, bytes(650_000)), EVERYONE)
    assert failure(store.put(Put(b"more", bytes(650_000)), EVERYONE)) == "no_space"
    assert failure(store.txn(Txn((), (Put(b"more", bytes(650_000)),)), EVERYONE, time_ms=0)) == "no_space"

    assert not failure(store.delete(DeleteRange(b"k", b"l"), EVERYONE))
    assert not failure(store.compact(kv.Compact(store.revision)))
    assert store.size == 0
    assert not failure(store.put(Put(b"more", bytes(650_000)), EVERYONE))


def test_history_makes_room_before_the_quota_is_reached() -> None:
    """Goal: overwriting one key for ever never ends in no_space. Method: write twenty times the quota."""
    store = store_of(quota_bytes=20_000_000, history_revisions_kept=10_000)
    for _ in range(400):
        assert not failure(store.put(Put(b"k", bytes(1_000_000)), EVERYONE))

    assert store.size <= 20_000_000


def test_compaction_is_done_in_bounded_pieces() -> None:
    """Goal: no single operation forgets an unbounded history.

    Method: compact 2,000 revisions, count per step.
    """
    store = store_of()
    for i in range(2000):
        store.put(Put(b"k", b"%d" % i), EVERYONE)
    counts = [len(store.versions(b"k") or ())]
    store.compact(kv.Compact(store.revision))
    while store.trimmed < store.compacted:
        counts.append(len(store.versions(b"k") or ()))
        store.put(Put(b"other", b""), EVERYONE)

    assert max(before - after for before, after in pairwise(counts)) <= 256
    assert len(store.versions(b"k") or ()) == 1
    assert store.size == 2 * VERSION_OVERHEAD + len(b"k1999") + len(b"other") + (len(counts) - 2) * (
        VERSION_OVERHEAD + len(b"other")
    )


GUEST = Client(b"g" * 32, "guest", (b"r/", b"rw/"), (b"w/", b"rw/"), False, False, 0)


@pytest.mark.parametrize(
    ("operation", "allowed"),
    [
        (Put(b"w/1", b""), True),
        (Put(b"r/1", b""), False),
        (Put(b"x", b""), False),
        (Range(b"r/1"), True),
        (Range(b"r/", b"r0"), True),
        (Range(b"r/", b"r1"), False),
        (Range(b"r/", b"\0"), False),
        (Range(b"r/1", b"rw/5"), False),
        (Range(b"w/1"), False),
        (DeleteRange(b"w/", b"w0"), True),
        (DeleteRange(b"w/", b"\0"), False),
        (DeleteRange(b"r/1"), False),
        (Txn((Compare(b"r/1", Target.MOD, Relation.EQUAL, 0),)), True),
        (Txn((Compare(b"w/1", Target.MOD, Relation.EQUAL, 0),)), True),
        (Txn((Compare(b"x", Target.MOD, Relation.EQUAL, 0),)), False),
        (Txn((Compare(b"x", Target.TIME, Relation.EQUAL, 0),)), True),
        (Txn((), (Put(b"w/1", b""),), (Put(b"x", b""),)), False),
        (Txn((), (), (Range(b"x"),)), False),
    ],
)
def test_grants_cover_prefixes(operation: Any, allowed: bool) -> None:
    """Goal: no operation reaches outside its grants, in either branch. Method: one by one."""
    store = store_of()
    match operation:
        case Put():
            result: kv.Result = store.put(operation, GUEST)
        case Range():
            result = store.range(operation, GUEST)
        case DeleteRange():
            result = store.delete(operation, GUEST)
        case _:
            result = store.txn(operation, GUEST, time_ms=0)

    assert failure(result) == ("" if allowed else "permission_denied")
    assert allowed or store.revision == 1
