"""Client sessions: every sequence number is executed at most once, and its answer kept for retries.

Part of the replicated state. A session remembers the last `WINDOW` sequences;
it expires by committed time alone. A session number that is gone is never
opened again (`Client.session_floor`), so an old bundle cannot be replayed.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from dwcp.consensus.crypto.codec import Codec, Record
from dwcp.consensus.ledger.messages import Answer

WINDOW = 64

Key = tuple[bytes, int]  # client, session


class SessionRecord(Record, frozen=True):
    """A session as it stands in a snapshot; `answers` ascend by sequence."""

    client: bytes
    session: int
    ttl_ms: int
    expires_ms: int
    low: int
    used_index: int
    answers: tuple[Answer, ...]


SESSIONS: Codec[tuple[SessionRecord, ...]] = Codec(tuple[SessionRecord, ...])


class Session:
    """Invariant: every kept answer's sequence is in [low, low + WINDOW)."""

    __slots__ = ("answers", "client", "expires_ms", "low", "session", "ttl_ms", "used_index")

    def __init__(self, client: bytes, session: int, ttl_ms: int) -> None:
        self.client = client
        self.session = session
        self.ttl_ms = ttl_ms
        self.expires_ms = 0
        self.low = 0  # sequences below are forgotten
        self.used_index = 0
        self.answers: dict[int, Answer] = {}

    def keep(self, answer: Answer) -> None:
        """Remember the answer of a sequence that has none yet and is not below `low`."""
        low = answer.sequence - WINDOW + 1
        answers = self.answers
        if low > self.low:
            if low - self.low > WINDOW:
                answers.clear()
            else:
                for sequence in range(self.low, low):
                    answers.pop(sequence, None)
            self.low = low
        answers[answer.sequence] = answer

    def forget_below(self, floor: int) -> None:
        """The client has what it wants of the sequences below: they are neither kept nor executed."""
        if floor > self.low:
            for sequence in [each for each in self.answers if each < floor]:
                del self.answers[sequence]
            self.low = floor

    def record(self) -> SessionRecord:
        kept = tuple(self.answers[sequence] for sequence in sorted(self.answers))
        return SessionRecord(
            self.client, self.session, self.ttl_ms, self.expires_ms, self.low, self.used_index, kept
        )


class Sessions:
    """All open sessions. `touched` collects those changed since the owner last cleared it."""

    __slots__ = ("_by_client", "_deadlines", "_per_client_max", "_sessions", "touched")

    def __init__(self, *, per_client_max: int, records: Iterable[SessionRecord] = ()) -> None:
        self._per_client_max = per_client_max
        self._sessions: dict[Key, Session] = {}
        self._by_client: dict[bytes, dict[int, Session]] = {}
        # One entry at least for each session, at or before its deadline; which ones
        # there are besides never shows, so a restored table may hold other ones.
        self._deadlines: list[tuple[int, bytes, int]] = []
        self.touched: set[Key] = set()
        for record in records:
            self._restore(record)
        heapify(self._deadlines)

    def find(self, client: bytes, session: int) -> Session | None:
        return self._sessions.get((client, session))

    def open(self, client: bytes, session: int, *, ttl_ms: int, now_ms: int, index: int) -> list[int]:
        """Add a session; the numbers of the client's least recently used ones that had to go."""
        own = self._by_client.setdefault(client, {})
        evicted = []
        while len(own) >= self._per_client_max:
            oldest = min(own.values(), key=lambda each: (each.used_index, each.session))
            self._remove(oldest)
            evicted.append(oldest.session)
        opened = Session(client, session, ttl_ms)
        self._sessions[client, session] = own[session] = opened
        self.use(opened, now_ms=now_ms, index=index)
        heappush(self._deadlines, (opened.expires_ms, client, session))
        self._by_client[client] = own
        return evicted

    def use(self, session: Session, *, now_ms: int, index: int) -> None:
        """Any bundle of the session, executed or repeated, renews it."""
        session.expires_ms = now_ms + session.ttl_ms
        session.used_index = index
        self.touched.add((session.client, session.session))

    def expire(self, now_ms: int) -> list[Key]:
        """Remove every session whose deadline is before `now_ms` (committed time); which ones."""
        expired = []
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] < now_ms:
            _, client, number = heappop(deadlines)
            session = self._sessions.get((client, number))
            if session is None:
                continue
            if session.expires_ms < now_ms:
                self._remove(session)
                expired.append((client, number))
            else:
                heappush(deadlines, (session.expires_ms, client, number))
        return expired

    def close_all(self, client: bytes) -> list[int]:
        """Remove every session of a client; their numbers."""
        own = list(self._by_client.get(client, {}).values())
        for session in own:
            self._remove(session)
        return [session.session for session in own]

    def keys(self) -> Iterable[Key]:
        return self._sessions.keys()

    def __len__(self) -> int:
        return len(self._sessions)

    def _remove(self, session: Session) -> None:
        key = (session.client, session.session)
        del self._sessions[key]
        own = self._by_client[session.client]
        del own[session.session]
        if not own:
            del self._by_client[session.client]
        self.touched.add(key)

    def _restore(self, record: SessionRecord) -> None:
        session = Session(record.client, record.session, record.ttl_ms)
        session.expires_ms = record.expires_ms
        session.low = record.low
        session.used_index = record.used_index
        session.answers = {answer.sequence: answer for answer in record.answers}
        self._sessions[record.client, record.session] = session
        self._by_client.setdefault(record.client, {})[record.session] = session
        self._deadlines.append((record.expires_ms, record.client, record.session))
