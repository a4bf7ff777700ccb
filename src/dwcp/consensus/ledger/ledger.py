"""The ledger: executes committed batches, once each, into the key-value state and its history.

Sans-IO and deterministic: what `apply` answers is a function of the commits so
far. It does not know which engine orders, nor how replies travel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from blake3 import blake3

from dwcp.api import kv
from dwcp.consensus.core.errors import MalformedFrame, invariant
from dwcp.consensus.core.machine import Commit
from dwcp.consensus.crypto import codec, merkle
from dwcp.consensus.crypto.codec import Codec
from dwcp.consensus.crypto.hashes import Domain
from dwcp.consensus.ledger import attest, checkpoint, operations
from dwcp.consensus.ledger.checkpoint import BUCKETS_MIN, ITEMS_PER_SESSION, Buckets, Head, Snapshot
from dwcp.consensus.ledger.clients import Client, Clients, from_genesis
from dwcp.consensus.ledger.genesis import Genesis
from dwcp.consensus.ledger.kv import BATCH_RANGES, Store
from dwcp.consensus.ledger.messages import Answer, Material, WatchEvent
from dwcp.consensus.ledger.operations import Bundle, BundleRefused
from dwcp.consensus.ledger.sessions import Key, Session, Sessions
from dwcp.consensus.ledger.shelf import Shelf

__all__ = [
    "Change",
    "Compacted",
    "Executed",
    "Ledger",
    "Outcome",
    "Snapshot",
    "operation_leaf",
    "result_leaf",
]

_LEAF = Domain.LEAF.value
_EXECUTED = _LEAF + b"\0"
_REPEATED = _LEAF + b"\1"  # a sequence that had been executed before; nothing happened here
ANSWERS_BYTES_MAX = 67_108_864  # what the ranges of one batch answer at most, all together
_encode = codec.encode
_RANGE: Codec[kv.Range] = Codec(kv.Range)


class Outcome(msgspec.Struct, frozen=True):
    """What became of one payload of a batch, for the reply to its client.

    `answers` is in sequence order; `materials` is empty unless the bundle asked for a receipt.
    """

    bundle: Bundle
    digest: bytes
    answers: tuple[Answer, ...]
    materials: tuple[Material, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """Every write of one revision, keys ascending."""

    revision: int
    events: tuple[WatchEvent, ...]


class Compacted(Exception):
    """That part of history is gone: read the present, and follow from there."""


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
    revision_before: int
    revision: int


def operation_leaf(*, client: bytes, session: int, sequence: int, operation: bytes) -> bytes:
    """The leaf of one operation in its batch: who asked, and what."""
    return blake3(
        _LEAF + client + session.to_bytes(8, "big") + sequence.to_bytes(8, "big") + operation
    ).digest()


def result_leaf(result: bytes) -> bytes:
    """The leaf of an executed operation's result."""
    return blake3(_EXECUTED + result).digest()


class Ledger:
    """`apply` and `install` are its only ways forward."""

    def __init__(self, genesis: Genesis) -> None:
        self._params = genesis.params
        self._chain_id = genesis.chain_id
        self._index = 0
        self._epoch = genesis.epoch
        self._time_ms = 0
        self._history = attest.genesis_history(genesis.chain_id)
        self._store = Store(genesis.params)
        self._clients = Clients(from_genesis(genesis), clients_max=genesis.params.clients_max)
        self._sessions = Sessions(per_client_max=genesis.params.sessions_per_client_max)
        self._shelf = Shelf()
        self._key_buckets = self._new_key_buckets(BUCKETS_MIN)
        self._session_buckets = self._new_session_buckets(BUCKETS_MIN)
        self._clients_part = (-1, b"")
        self._snapshot = self._checkpoint()

    # ----------------------------------------------------------------- state

    @property
    def index(self) -> int:
        """The last executed position; 0 at genesis."""
        return self._index

    @property
    def revision(self) -> int:
        """The key-value revision; 1 at genesis."""
        return self._store.revision

    @property
    def compacted(self) -> int:
        """Reads at revisions below are refused."""
        return self._store.compacted

    @property
    def time_ms(self) -> int:
        """Committed time of the last non-null batch."""
        return self._time_ms

    @property
    def history_digest(self) -> bytes:
        return self._history

    @property
    def size(self) -> int:
        """Bytes counted against the quota."""
        return self._store.size

    @property
    def open_sessions(self) -> int:
        return len(self._sessions)

    def client(self, public: bytes) -> Client | None:
        """The registered client, with its grants; None where it is unknown or revoked."""
        return self._clients.find(public)

    def knows(self, client: bytes) -> bool:
        """Whether the client is registered now; the admission check before any signature."""
        return self._clients.find(client) is not None

    # ----------------------------------------------------------------- execution

    def apply(self, commit: Commit) -> Executed:
        """Execute the position after `index`. Invariants: contiguous, final, bodies present."""
        invariant(commit.index == self._index + 1, f"position {commit.index} committed after {self._index}")
        invariant(commit.final, "the ledger executes final positions only")
        self._index = commit.index
        self._epoch = commit.epoch
        revision_before = self._store.revision
        batch = _Batch()
        outcomes = []
        if commit.payloads:
            invariant(commit.time_ms > self._time_ms, "committed time must increase")
            self._time_ms = commit.time_ms
            self._expire()
            self._store.keys_left = self._params.range_keys_max * BATCH_RANGES
            for payload in commit.payloads:
                invariant(payload.body is not None, "a committed payload has its body")
                assert payload.body is not None
                outcome = self._execute(payload.digest, payload.body, batch)
                if outcome is not None:
                    outcomes.append(outcome)
        return self._close(commit, batch, outcomes, revision_before)

    def _close(
        self, commit: Commit, batch: _Batch, outcomes: list[Outcome], revision_before: int
    ) -> Executed:
        previous = self._history
        batch_digest = merkle.bound_root(Domain.BATCH, batch.operations)
        results_root = merkle.bound_root(Domain.RESULT, batch.results)
        self._history = attest.extend_history(
            previous, batch_digest=batch_digest, results_root=results_root, time_ms=commit.time_ms
        )
        if any(outcome.bundle.receipt for outcome in outcomes):
            self._shelf.put(commit, previous, batch.operations, batch.results, batch.places)
            outcomes = [self._with_materials(outcome) for outcome in outcomes]
        root = None
        if commit.index % self._params.checkpoint_interval == 0:
            root = self._checkpoint().root
        return Executed(
            commit.index,
            commit.epoch,
            commit.time_ms,
            previous,
            self._history,
            batch_digest,
            results_root,
            root,
            tuple(outcomes),
            revision_before,
            self._store.revision,
        )

    def _execute(self, address: bytes, body: bytes, batch: _Batch) -> Outcome | None:
        try:
            bundle = operations.decode(body, self._params)
        except BundleRefused:  # a quorum voted for it all the same: it takes a position and does nothing
            batch.operations.append(blake3(_LEAF + address).digest())
            batch.results.append(blake3(_REPEATED).digest())
            return None
        client_key, number = bundle.client, bundle.session
        client = self._clients.find(client_key)
        session = self._sessions.find(client_key, number)
        if session is not None:
            self._sessions.use(session, now_ms=self._time_ms, index=self._index)
            session.forget_below(bundle.floor)
        # The answers of one bundle share a frame, those of a batch memory.
        self._store.bytes_left = allowed = min(self._params.range_bytes_max, batch.bytes_left)
        owner = _LEAF + client_key + number.to_bytes(8, "big")
        answers = []
        sequence = bundle.first_sequence
        for data in bundle.operations:
            batch.operations.append(blake3(owner + sequence.to_bytes(8, "big") + data).digest())
            kept = session.answers.get(sequence) if session is not None else None
            if kept is not None:
                batch.results.append(blake3(_REPEATED + kept.result).digest())
                answers.append(kept)
            else:
                version = self._clients.version
                result = self._once(data, sequence, bundle, client, session)
                if session is None or version != self._clients.version:  # opened, granted or revoked just now
                    client = self._clients.find(client_key)
                    session = self._sessions.find(client_key, number)
                answer = Answer(sequence, self._index, result)
                self._remember(session, answer, data)
                if bundle.flags:
                    batch.places[client_key, number, sequence] = len(batch.results)
                batch.results.append(blake3(_EXECUTED + result).digest())
                answers.append(answer)
            sequence += 1
        batch.bytes_left -= allowed - self._store.bytes_left
        return Outcome(bundle, address, tuple(answers))

    def _once(
        self, data: bytes, sequence: int, bundle: Bundle, client: Client | None, session: Session | None
    ) -> bytes:
        """Execute a sequence for the first time; its encoded result."""
        if client is None:
            return _encode(kv.Failed("permission_denied", "this key is not registered"))
        try:
            operation = operations.decode_operation(data)
        except MalformedFrame as exc:
            return _encode(kv.Failed("malformed", str(exc)))
        if len(data) > self._params.request_bytes_max:
            most = self._params.request_bytes_max
            return _encode(kv.Failed("too_large", f"an operation has at most {most} bytes"))
        if isinstance(operation, kv.OpenSession):
            return _encode(self._open(operation, sequence, bundle, client))
        if session is None:
            return _encode(kv.Failed("expired", "the session is not open"))
        if sequence < session.low:
            return _encode(kv.Failed("expired", f"the session has forgotten sequences below {session.low}"))
        return _encode(self._perform(operation, client))

    def _perform(self, operation: kv.Operation, client: Client) -> kv.Result:
        match operation:
            case kv.Put():
                return self._store.put(operation, client)
            case kv.Range():
                return self._store.range(operation, client)
            case kv.Txn():
                return self._store.txn(operation, client, time_ms=self._time_ms)
            case kv.DeleteRange():
                return self._store.delete(operation, client)
            case kv.Compact() | kv.Grant() | kv.Revoke() if not client.admin:
                return kv.Failed("permission_denied", "only an administrator's key may do this")
            case kv.Compact():
                return self._store.compact(operation)
            case kv.Grant():
                return self._clients.grant(operation) or kv.Done(self._store.revision)
            case kv.Revoke():
                return self._revoke(operation)
            case _:
                return kv.Failed("malformed", "an operation of this kind cannot be executed here")

    def _open(self, operation: kv.OpenSession, sequence: int, bundle: Bundle, client: Client) -> kv.Result:
        if sequence != 0:
            return kv.Failed("malformed", "OpenSession is sequence 0 of the session it opens")
        if not 1 <= operation.ttl_ms <= self._params.session_ttl_ms_max:
            return kv.Failed("too_large", f"a session lasts 1 to {self._params.session_ttl_ms_max} ms")
        known = self._sessions.find(bundle.client, bundle.session)
        if known is not None or bundle.session <= client.session_floor:
            return kv.Failed("expired", "this session number has been used: take a higher one")
        evicted = self._sessions.open(
            bundle.client,
            bundle.session,
            ttl_ms=operation.ttl_ms,
            now_ms=self._time_ms,
            index=self._index,
        )
        self._retire(bundle.client, evicted)
        return kv.Done(self._store.revision)

    def _revoke(self, operation: kv.Revoke) -> kv.Result:
        refusal = self._clients.revoke(operation.client)
        if refusal is not None:
            return refusal
        self._retire(operation.client, self._sessions.close_all(operation.client))
        return kv.Done(self._store.revision)

    def _retire(self, client: bytes, numbers: list[int]) -> None:
        """Sessions that are gone never come back under the same number."""
        if numbers:
            self._clients.raise_floor(client, max(numbers))

    def _expire(self) -> None:
        for client, number in self._sessions.expire(self._time_ms):
            self._clients.raise_floor(client, number)

    def _remember(self, session: Session | None, answer: Answer, data: bytes) -> None:
        """Keep the answer for retries. A large answer of a pure read is not kept: it may run again."""
        if session is None or answer.sequence < session.low:
            return
        if len(answer.result) > self._params.reply_cache_bytes_max:
            if _reads_only(data):
                return
            gone = kv.Failed(
                "expired", f"executed at position {answer.index}; its answer was too large to keep"
            )
            answer = Answer(answer.sequence, answer.index, _encode(gone))
        session.keep(answer)

    # ----------------------------------------------------------------- answers

    def answered(self, bundle: Bundle) -> tuple[Answer, ...] | None:
        """Kept answers, where every operation of `bundle` has one (a retry); else None: order it."""
        session = self._sessions.find(bundle.client, bundle.session)
        if session is None:
            return None
        first = bundle.first_sequence
        answers = [session.answers.get(first + i) for i in range(len(bundle.operations))]
        kept = tuple(answer for answer in answers if answer is not None)
        return kept if len(kept) == len(answers) else None

    def forgotten(self, bundle: Bundle) -> bool:
        """Whether its client has had, or given up, every answer: a late copy, to be dropped."""
        session = self._sessions.find(bundle.client, bundle.session)
        return session is not None and bundle.first_sequence + len(bundle.operations) <= session.low

    def materials(self, bundle: Bundle) -> tuple[Material, ...]:
        """What receipts of the bundle's operations need, as far as this replica still holds it."""
        first = bundle.first_sequence
        found = [
            self._shelf.find((bundle.client, bundle.session, first + i))
            for i in range(len(bundle.operations))
        ]
        return tuple(material for material in found if material is not None)

    def _with_materials(self, outcome: Outcome) -> Outcome:
        if not outcome.bundle.receipt:
            return outcome
        return Outcome(outcome.bundle, outcome.digest, outcome.answers, self.materials(outcome.bundle))

    def query(self, client: bytes, data: bytes) -> bytes:
        """An encoded `kv.Result` of an encoded `kv.Range` on the executed state, under grants."""
        registered = self._clients.find(client)
        if registered is None:
            return _encode(kv.Failed("permission_denied", "this key is not registered"))
        try:
            return _encode(self._store.peek(_RANGE.decode(data), registered))
        except MalformedFrame as exc:
            return _encode(kv.Failed("malformed", str(exc)))

    def changes(self, after: int, upto: int | None = None) -> Iterator[Change]:
        """Writes of the revisions in (after, upto], for watches; raises `Compacted`."""
        if after < self._store.compacted:
            raise Compacted(f"history begins at revision {self._store.compacted}")
        for revision, writes in self._store.changes(after, self.revision if upto is None else upto):
            events = [WatchEvent(key, version[3], revision) for key, version in writes]
            yield Change(revision, tuple(events))

    # ----------------------------------------------------------------- snapshots

    def snapshot(self) -> Snapshot:
        """The state at the last checkpoint; parts unchanged since an earlier one are the same objects.

        Before the first: genesis. Buckets grow at checkpoints alone, so that their number is
        the same at every replica.
        """
        return self._snapshot

    def install(self, parts: tuple[bytes, ...], root: bytes) -> int:
        """Replace the state by a snapshot; the index it stands at.

        Raises `SnapshotInvalid` and changes nothing unless every part matches `root`.
        """
        contents = checkpoint.open_parts(parts, root)
        head = contents.head
        self._store = Store.restored(
            self._params,
            contents.keys,
            revision=head.revision,
            compacted=head.compacted,
            trimmed=head.trimmed,
        )
        self._clients = Clients(contents.clients, clients_max=self._params.clients_max)
        self._sessions = Sessions(
            per_client_max=self._params.sessions_per_client_max, records=contents.sessions
        )
        self._index, self._epoch, self._time_ms = head.index, head.epoch, head.time_ms
        self._history = head.history_digest
        self._shelf = Shelf()
        self._key_buckets = self._new_key_buckets(contents.key_buckets)
        self._key_buckets.update(self._store.ordered_keys())
        self._session_buckets = self._new_session_buckets(contents.session_buckets)
        self._session_buckets.update(self._sessions.keys())
        self._clients_part = (-1, b"")
        self._snapshot = Snapshot(head.index, root, parts)
        return self._index

    def _checkpoint(self) -> Snapshot:
        store, sessions = self._store, self._sessions
        keys, opened = self._key_buckets, self._session_buckets
        count = checkpoint.buckets_for(keys.count, items=len(store), size=store.size)
        keys.renew(count, touched=store.touched, items=store.ordered_keys)
        count = checkpoint.buckets_for(opened.count, items=len(sessions) * ITEMS_PER_SESSION, size=0)
        opened.renew(count, touched=sessions.touched, items=sessions.keys)
        if self._clients_part[0] != self._clients.version:
            self._clients_part = (self._clients.version, _encode(self._clients.ordered()))
        head = Head(
            self._index,
            self._epoch,
            self._time_ms,
            store.revision,
            store.compacted,
            store.trimmed,
            self._history,
        )
        self._snapshot = checkpoint.assemble(head, self._clients_part[1], keys, opened)
        return self._snapshot

    def _new_key_buckets(self, count: int) -> Buckets[bytes]:
        return Buckets(count=count, place=checkpoint.place_key, encode=self._key_item)

    def _key_item(self, key: bytes) -> bytes | None:
        versions = self._store.versions(key)
        return None if versions is None else _encode((key, versions))

    def _new_session_buckets(self, count: int) -> Buckets[Key]:
        return Buckets(count=count, place=checkpoint.place_session, encode=self._session_item)

    def _session_item(self, key: Key) -> bytes | None:
        session = self._sessions.find(*key)
        return None if session is None else _encode(session.record())


class _Batch:
    """Leaves of the batch in execution, and where operations that want receipts are."""

    __slots__ = ("bytes_left", "operations", "places", "results")

    def __init__(self) -> None:
        self.operations: list[bytes] = []
        self.results: list[bytes] = []
        self.places: dict[tuple[bytes, int, int], int] = {}
        self.bytes_left = ANSWERS_BYTES_MAX


def _reads_only(data: bytes) -> bool:
    """Whether the operation can change nothing in either branch, so that running it again is harmless."""
    try:
        operation = operations.decode_operation(data)
    except MalformedFrame:
        return False
    if isinstance(operation, kv.Txn):
        return all(isinstance(each, kv.Range) for each in (*operation.success, *operation.failure))
    return isinstance(operation, kv.Range)
