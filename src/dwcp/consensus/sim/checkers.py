"""What must hold at every step of a history, whatever the weather and the liars do.

Each checker is fed by what honest replicas really do (frames they send, batches
they execute) and by what clients are told; none looks inside an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dwcp.consensus.core.machine import Commit
from dwcp.consensus.ledger.ledger import Executed

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
    """A signed promise: one digest for one (phase, view, slot) of one replica."""

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
            index > self._last[place], "contiguity", f"{place} installed {index} below {self._last[place]}"
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

    def sent(self, replica: int, votes: Sequence[Vote]) -> None:
        for vote in votes:
            key = (replica, vote.phase, vote.view, vote.slot)
            known = self._given.get(key)
            if known is None:
                self._given[key] = vote.digest
                left = self._left.get(replica, 0)
                if vote.view < left:
                    raise Violation(
                        "stale_vote",
                        f"replica {replica} voted in view {vote.view} after it reported to view {left}",
                    )
            elif known != vote.digest:
                raise Violation(
                    "double_vote",
                    f"replica {replica} signed two digests: {vote.phase}, view {vote.view}, slot {vote.slot}",
                )


Operation = tuple[bytes, int, int]  # client, session, sequence
Answered = tuple[int, bytes]  # index, result


class Sessions:
    """Each operation is executed once, and what a client was told stays true."""

    def __init__(self) -> None:
        self.answers: dict[Operation, Answered] = {}
        self.acknowledged = 0

    def executed(self, place: int, executed: Executed) -> None:
        for outcome in executed.outcomes:
            bundle = outcome.bundle
            for answer in outcome.answers:
                key = (bundle.client, bundle.session, answer.sequence)
                value = (answer.index, answer.result)
                known = self.answers.setdefault(key, value)
                if known != value:
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
        self.acknowledged += 1


@dataclass(slots=True)
class Call:
    """One operation as its client saw it; times are virtual microseconds."""

    key: bytes
    write: bytes | None  # None: a read
    invoked_us: int
    returned_us: int = 0
    index: int = 0
    position: int = 0
    seen: bytes | None = None  # what a read answered


class Linearizability:
    """Reads see the latest write before them in an order that respects real time.

    The log's order is the witness, so no search is needed: it must explain every
    answer, and no operation may precede one that had returned before it began.
    """

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._floor = 0  # highest index returned so far
        self._floors: dict[int, int] = {}

    def invoked(self, call: Call) -> None:
        self._floors[id(call)] = self._floor

    def returned(self, call: Call) -> None:
        floor = self._floors.pop(id(call))
        require(
            call.index >= floor,
            "linearizability",
            f"an operation that began after index {floor} had returned was placed at {call.index}",
        )
        self._floor = max(self._floor, call.index)
        self._calls.append(call)

    def conclude(self, writes: Sequence[tuple[int, int, bytes, bytes]]) -> None:
        """`writes`: (index, position, key, value) of the whole log, acknowledged or not."""
        events: list[tuple[int, int, int, object]] = [(i, p, 0, (k, v)) for i, p, k, v in writes]
        events += [(call.index, call.position, 1, call) for call in self._calls if call.write is None]
        events.sort(key=lambda event: event[:3])
        state: dict[bytes, bytes] = {}
        for _, _, _, event in events:
            if isinstance(event, Call):
                expected = state.get(event.key)
                require(
                    event.seen == expected,
                    "linearizability",
                    f"a read at {event.index} of {event.key!r} saw {event.seen!r}, not {expected!r}",
                )
            elif isinstance(event, tuple):
                state[event[0]] = event[1]
