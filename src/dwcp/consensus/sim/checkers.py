"""What must hold at every step of a history, whatever the weather and the liars do.

Each checker is fed by what honest replicas really do (frames they send, batches
they execute) and by what clients are told; none looks inside an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dwcp.api import kv
from dwcp.consensus.core.machine import Commit, Effect, Persist, Send
from dwcp.consensus.crypto.codec import Codec
from dwcp.consensus.ledger.ledger import Executed
from dwcp.consensus.ledger.operations import decode_operation

RESULT: Codec[kv.Result] = Codec(kv.Result)

HELD_EFFECTS_MAX = 20_000
JOURNAL_BYTES_MAX = 32 * 1024 * 1024


class Violation(Exception):
    """A property is broken: `checker` names it, the text says how."""

    def __init__(self, checker: str, sentence: str) -> None:
        super().__init__(f"{checker}: {sentence}")
        self.checker = checker
        self.sentence = sentence


def require(condition: bool, checker: str, sentence: str) -> None:
    if not condition:
        raise Violation(checker, sentence)


@dataclass(frozen=True, slots=True)
class Vote:
    """A signed promise: one digest for one (phase, view, slot) of one replica; view 0: of no view."""

    phase: str
    view: int
    slot: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """What the first honest replica executed at an index."""

    content: tuple[bytes, ...]
    time_ms: int
    history: bytes
    results: bytes


class Agreement:
    """Agreement per index, contiguity per replica, committed time, equal histories, results and state."""

    def __init__(self) -> None:
        self.positions: dict[int, Position] = {}
        self._roots: dict[int, bytes] = {}
        self._last: dict[int, int] = {}
        self._times: dict[int, tuple[int, int]] = {}

    @property
    def highest(self) -> int:
        return len(self.positions)

    def stands_at(self, place: int, index: int) -> None:
        """A replica (re)starts from its own snapshot."""
        self._last[place] = index
        self._times.pop(place, None)

    def installed(self, place: int, index: int, root: bytes) -> None:
        require(
            index > self._last[place],
            "contiguity",
            f"{place} installed {index}, standing at {self._last[place]}",
        )
        self.state(place, index, root)
        self.stands_at(place, index)

    def state(self, place: int, index: int, root: bytes) -> None:
        known = self._roots.setdefault(index, root)
        require(known == root, "state_root", f"{place} has another state at {index}")

    def executed(self, place: int, commit: Commit, executed: Executed) -> None:
        index = commit.index
        last = self._last[place]
        require(index == last + 1, "contiguity", f"{place} executed {index} after {last}")
        require(commit.final, "finality", f"{place} executed a tentative batch at {index}")
        self._last[place] = index
        self._check_time(place, commit)
        content = tuple(payload.digest for payload in commit.payloads)
        position = Position(content, commit.time_ms, executed.history_digest, executed.results_root)
        known = self.positions.setdefault(index, position)
        if known != position:
            self._explain(place, index, known, position)
        if executed.state_root is not None:
            self.state(place, index, executed.state_root)

    def _explain(self, place: int, index: int, known: Position, position: Position) -> None:
        same = known.content == position.content and known.time_ms == position.time_ms
        checker = "history" if same else "agreement"
        raise Violation(checker, f"{place} executed something else than others at {index}")

    def _check_time(self, place: int, commit: Commit) -> None:
        """Strictly increasing over non-null batches, as one replica sees them."""
        if not commit.payloads:
            return
        before = self._times.get(place)
        require(
            before is None or commit.time_ms > before[1],
            "time",
            f"{place}: committed time at {commit.index} is not above that of {before}",
        )
        self._times[place] = (commit.index, commit.time_ms)


class Votes:
    """No honest replica promises two digests for one (phase, view, slot), crash or not.

    Nor does it vote anew in a view after it reported to the leader of a later one.
    """

    def __init__(self) -> None:
        self._given: dict[tuple[int, str, int, int], bytes] = {}
        self._left: dict[int, int] = {}

    def reported(self, replica: int, view: int) -> None:
        self._left[replica] = max(view, self._left.get(replica, 0))

    def shown(self, replica: int, certificate: Certificate, *, liars: frozenset[int]) -> None:
        """An honest replica shows proofs only of votes that were given, by enough distinct signers."""
        vote, signers = certificate.vote, certificate.signers
        what = f"replica {replica} shows a proof of {vote.phase}, view {vote.view}, slot {vote.slot}"
        distinct = len(set(signers))
        require(distinct >= certificate.need, "certificate", f"{what} with {distinct} signers")
        for signer in signers:
            key = (signer, vote.phase, vote.view, vote.slot)
            if signer == replica:  # its own vote may be durable and lost on its way out: this gives it
                self._given.setdefault(key, vote.digest)
            require(
                signer in liars or self._given.get(key) == vote.digest,
                "certificate",
                f"{what}, but replica {signer} gave no such vote",
            )

    def sent(self, replica: int, votes: Sequence[Vote]) -> None:
        for vote in votes:
            key = (replica, vote.phase, vote.view, vote.slot)
            known = self._given.get(key)
            if known is None:
                self._given[key] = vote.digest
                left = self._left.get(replica, 0)
                if 0 < vote.view < left:
                    raise Violation(
                        "stale_vote",
                        f"replica {replica} voted in view {vote.view} after it reported to view {left}",
                    )
            elif known != vote.digest:
                raise Violation(
                    "double_vote",
                    f"replica {replica} signed two digests: {vote.phase}, view {vote.view}, slot {vote.slot}",
                )


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a replica shows as proof: `signers` are said to have given `vote`; `need` make a proof."""

    vote: Vote
    signers: tuple[int, ...]
    need: int


class Barriers:
    """What an engine emits after a `Persist` leaves only when that record is durable.

    Counts records as the disk made them durable, so it does not trust the outbox.
    """

    def __init__(self) -> None:
        self._emitted: dict[int, int] = {}
        self._durable: dict[int, int] = {}
        self._frames: dict[tuple[int, bytes], int] = {}
        self._commits: dict[tuple[int, int], int] = {}

    def started(self, place: int) -> None:
        self._emitted[place] = self._durable[place] = 0
        self._frames = {key: need for key, need in self._frames.items() if key[0] != place}
        self._commits = {key: need for key, need in self._commits.items() if key[0] != place}

    def emitted(self, place: int, effects: Sequence[Effect]) -> None:
        """The effects of one step, in order; a frame said before may be said again."""
        count = self._emitted[place]
        for effect in effects:
            if isinstance(effect, Send):
                self._frames.setdefault((place, effect.frame), count)
            elif isinstance(effect, Persist):
                count += 1
            elif isinstance(effect, Commit):
                self._commits[place, effect.index] = count
        self._emitted[place] = count

    def synced(self, place: int, records: int) -> None:
        self._durable[place] += records

    def sent(self, place: int, frame: bytes) -> None:
        self._check(place, self._frames.get((place, frame), 0), "a frame")

    def executed(self, place: int, index: int) -> None:
        self._check(place, self._commits.get((place, index), 0), f"position {index}")

    def _check(self, place: int, need: int, what: str) -> None:
        durable = self._durable[place]
        require(need <= durable, "barrier", f"{place} released {what} after {durable} records, not {need}")


Operation = tuple[bytes, int, int]  # client, session, sequence
Answered = tuple[int, bytes]  # index, result


class Sessions:
    """Each operation is executed once, and what a client was told stays true."""

    def __init__(self) -> None:
        self.answers: dict[Operation, Answered] = {}
        self._told: set[Operation] = set()

    @property
    def acknowledged(self) -> int:
        return len(self._told)

    def executed(self, place: int, executed: Executed) -> None:
        for outcome in executed.outcomes:
            bundle = outcome.bundle
            for answer in outcome.answers:
                key = (bundle.client, bundle.session, answer.sequence)
                value = (answer.index, answer.result)
                known = self.answers.setdefault(key, value)
                if known != value and not self._forgotten(key, answer.result):
                    raise Violation(
                        "exactly_once",
                        f"{place}: sequence {answer.sequence} answered at {answer.index}, "
                        f"before at {known[0]}",
                    )

    def acknowledge(self, operation: Operation, answered: Answered) -> None:
        """A client counted f+1 equal replies: some honest replica must have executed exactly that."""
        known = self.answers.get(operation)
        require(
            known == answered,
            "durability",
            f"sequence {operation[2]} was acknowledged at {answered[0]}, honest replicas say "
            f"{known[0] if known else 'nothing'}",
        )
        self._told.add(operation)

    def _forgotten(self, operation: Operation, result: bytes) -> bool:
        """An old bundle ordered again, after its client was told and has moved on: nothing runs."""
        return operation in self._told and _is_expired(RESULT.decode(result))


class Linearizability:
    """What clients saw is one sequential history that respects real time.

    The log's order is the witness, so no search is needed: a plain model must
    answer every operation as the replicas did, in that order, and no operation
    may stand before one that had returned before it was invoked.
    """

    def __init__(self) -> None:
        self._floor = 0  # the highest index returned so far
        self._floors: dict[Operation, int] = {}
        self._log: list[tuple[Operation, kv.Operation, kv.Result]] = []
        self._seen: set[Operation] = set()
        self._logged = 0

    def invoked(self, operation: Operation) -> None:
        self._floors[operation] = self._floor

    def returned(self, operation: Operation, index: int) -> None:
        floor = self._floors.pop(operation, 0)
        require(
            index >= floor,
            "linearizability",
            f"an operation that began after index {floor} had returned was placed at {index}",
        )
        self._floor = max(self._floor, index)

    def executed(self, executed: Executed) -> None:
        """Note the operations of a position, the first time that anyone executes it."""
        if executed.index != self._logged + 1:
            return
        self._logged = executed.index
        for outcome in executed.outcomes:
            first = outcome.bundle.first_sequence
            for answer in outcome.answers:
                if answer.index == executed.index:
                    operation = decode_operation(outcome.bundle.operations[answer.sequence - first])
                    key = (outcome.bundle.client, outcome.bundle.session, answer.sequence)
                    self._note(key, operation, RESULT.decode(answer.result))

    def _note(self, key: Operation, operation: kv.Operation, result: kv.Result) -> None:
        again = key in self._seen
        if again and _is_expired(result):  # refused: `Sessions` checks that its client had been told
            return
        require(not again, "exactly_once", f"sequence {key[2]} was executed twice")
        self._seen.add(key)
        self._log.append((key, operation, result))

    def conclude(self) -> None:
        """Replay the log against the model."""
        model = Model()
        for key, operation, result in self._log:
            sentence = model.disagrees(operation, result)
            require(not sentence, "linearizability", f"sequence {key[2]}: {sentence}")


class Model:
    """A key-value store as plain as possible: values, revisions of last writes, one counter."""

    def __init__(self) -> None:
        self._values: dict[bytes, tuple[bytes, int]] = {}
        self._revision = 1

    def disagrees(self, operation: kv.Operation, result: kv.Result) -> str:
        """How `result` differs from what the model answers; empty where it does not."""
        match operation, result:
            case kv.Put(), kv.PutDone(revision):
                self._revision += 1
                self._values[operation.key] = (operation.value, self._revision)
                return _differs(revision, self._revision)
            case kv.Range(), kv.RangeDone():
                return self._read(operation.key, result)
            case kv.Txn(), kv.TxnDone():
                return self._swap(operation, result)
            case kv.OpenSession(), kv.Done():
                return ""
            case _:
                return f"{operation} was answered by {result}"

    def _read(self, key: bytes, result: kv.RangeDone) -> str:
        held = self._values.get(key)
        found = [(each.value, each.mod_revision) for each in result.kvs]
        return _differs(found, [] if held is None else [held])

    def _swap(self, operation: kv.Txn, result: kv.TxnDone) -> str:
        guard, put = operation.compare[0], operation.success[0]
        holds = self._values.get(guard.key, (b"", 0))[1] < int(guard.operand)
        if result.succeeded != holds:
            return f"the guard was {result.succeeded}, not {holds}"
        answer = result.results[0]
        if holds and isinstance(put, kv.Put) and isinstance(answer, kv.PutDone):
            return self.disagrees(put, answer)
        return self._read(guard.key, answer) if isinstance(answer, kv.RangeDone) else "no read"


def _is_expired(result: kv.Result) -> bool:
    return isinstance(result, kv.Failed) and result.code == "expired"


def _differs(found: object, expected: object) -> str:
    return "" if found == expected else f"answered {found}, the model says {expected}"
