"""Watches: changes under a prefix, in revision order, whole revisions, no gaps, no duplicates.

A watch is a cursor: nothing is queued here. Opening one replays kept history
up to a bound; where more is missing the client is told to resume, so that a
client far behind sets its own pace. What a slow connection may hold back is
the host's to bound: it closes the connection, and the client resumes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dwcp.consensus.ledger.ledger import Change, Compacted, Ledger
from dwcp.consensus.ledger.messages import (
    ReplicaFrame,
    Watch,
    WatchClosed,
    WatchEvent,
    WatchEvents,
    WatchProgress,
)

Frame = ReplicaFrame
Out = list[tuple[int, Frame]]  # connection, frame


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """Bounds of one replica's watches."""

    watches_max: int = 64  # per connection
    replay_bytes_max: int = 4 * 1024 * 1024  # history that opening one watch sends at most
    replay_revisions_max: int = 4096  # revisions that opening one watch looks at most
    frame_bytes_max: int = 1024 * 1024  # events of one frame, unless one alone is larger


class _Cursor:
    """Invariant: every event under `prefix` with a revision ≤ `sent` has been sent."""

    __slots__ = ("client", "connection", "number", "prefix", "sent")

    def __init__(self, connection: int, number: int, prefix: bytes, client: bytes) -> None:
        self.connection = connection
        self.number = number
        self.prefix = prefix
        self.client = client
        self.sent = 0


class Watches:
    """The watches of every connection to this replica."""

    __slots__ = ("_by_prefix", "_connections", "_ledger", "_lengths", "_limits", "_sent")

    def __init__(self, ledger: Ledger, limits: WatchLimits | None = None) -> None:
        self._ledger = ledger
        self._limits = limits or WatchLimits()
        self._sent = ledger.revision  # every watch is at least here, or starts in the future
        self._connections: dict[int, dict[int, _Cursor]] = {}
        self._by_prefix: dict[bytes, list[_Cursor]] = {}
        self._lengths: list[int] = []

    def __len__(self) -> int:
        return sum(map(len, self._connections.values()))

    def open(self, connection: int, client: bytes, request: Watch) -> list[Frame]:
        """Begin a watch: the replay of history, then progress. A number in use is replaced."""
        number, prefix = request.watch, request.prefix
        self.close(connection, number)
        registered = self._ledger.client(client)
        if registered is None or not registered.reads(prefix):
            detail = f"no grant to read {prefix!r}"
            return [WatchClosed(number, "permission_denied", detail, request.from_revision)]
        if len(self._connections.get(connection, ())) >= self._limits.watches_max:
            detail = f"a connection has at most {self._limits.watches_max} watches"
            return [WatchClosed(number, "too_many", detail, request.from_revision)]
        cursor = _Cursor(connection, number, prefix, client)
        cursor.sent = (request.from_revision or self._ledger.revision + 1) - 1
        frames: list[Frame] = []
        if cursor.sent < self._ledger.revision:
            try:
                complete = self._replay(cursor, frames)
            except Compacted as exc:
                return [WatchClosed(number, "compacted", str(exc), self._ledger.compacted + 1)]
            if not complete:
                detail = "more history than one replay sends: resume"
                return [*frames, WatchClosed(number, "slow", detail, cursor.sent + 1)]
            frames.append(WatchProgress(number, cursor.sent))
        self._add(cursor)
        return frames

    def changed(self) -> Out:
        """Events of everything executed since the last call."""
        before, now = self._sent, self._ledger.revision
        self._sent = now
        if before >= now or not self._by_prefix:
            return []
        out: Out = []
        try:
            for change in self._ledger.changes(before, now):
                self._dispatch(change, out)
        except Compacted as exc:  # a batch larger than the history kept
            self._close_all("compacted", str(exc), before, out)
        return out

    def reset(self) -> Out:
        """After a snapshot was installed: what happened in between is unknown here, so all watches end."""
        before, self._sent = self._sent, self._ledger.revision
        out: Out = []
        self._close_all("slow", "this replica has skipped ahead: resume", before, out)
        return out

    def close(self, connection: int, number: int) -> None:
        own = self._connections.get(connection, {})
        cursor = own.pop(number, None)
        if cursor is None:
            return
        if not own:
            del self._connections[connection]
        same = self._by_prefix[cursor.prefix]
        same.remove(cursor)
        if not same:
            del self._by_prefix[cursor.prefix]
            self._lengths = sorted({len(prefix) for prefix in self._by_prefix})

    def drop(self, connection: int) -> None:
        """The connection is gone."""
        for number in list(self._connections.get(connection, {})):
            self.close(connection, number)

    def _add(self, cursor: _Cursor) -> None:
        self._connections.setdefault(cursor.connection, {})[cursor.number] = cursor
        self._by_prefix.setdefault(cursor.prefix, []).append(cursor)
        self._lengths = sorted({len(prefix) for prefix in self._by_prefix})

    def _replay(self, cursor: _Cursor, frames: list[Frame]) -> bool:
        """Send kept history after `cursor.sent`; False where the bound cut it."""
        room = self._limits.replay_bytes_max
        upto = min(self._ledger.revision, cursor.sent + self._limits.replay_revisions_max)
        for change in self._ledger.changes(cursor.sent, upto):
            events = [event for event in change.events if event.key.startswith(cursor.prefix)]
            room -= sum(map(_size, events))
            if room < 0 and frames:
                return False
            frames.extend(self._frames(cursor.number, change.revision, events))
            cursor.sent = change.revision
        return cursor.sent == self._ledger.revision

    def _dispatch(self, change: Change, out: Out) -> None:
        """One revision to every watch it concerns, under the grants of now: a revoked client gets nothing."""
        matched: dict[int, tuple[_Cursor, list[WatchEvent]]] = {}
        for event in change.events:
            for length in self._lengths:
                for cursor in self._by_prefix.get(event.key[:length], ()) if length <= len(event.key) else ():
                    if cursor.sent < change.revision:
                        matched.setdefault(id(cursor), (cursor, []))[1].append(event)
        for cursor, events in matched.values():
            client = self._ledger.client(cursor.client)
            if client is None or not client.reads(cursor.prefix):
                detail = "the grant was withdrawn"
                closed = WatchClosed(cursor.number, "permission_denied", detail, change.revision)
                out.append((cursor.connection, closed))
                self.close(cursor.connection, cursor.number)
                continue
            out.extend(
                (cursor.connection, frame) for frame in self._frames(cursor.number, change.revision, events)
            )
            cursor.sent = change.revision

    def _frames(self, number: int, revision: int, events: Iterable[WatchEvent]) -> list[Frame]:
        """One revision's events, cut into frames; only the last is `complete`."""
        pieces: list[list[WatchEvent]] = [[]]
        size = 0
        for event in events:
            if pieces[-1] and size + _size(event) > self._limits.frame_bytes_max:
                pieces.append([])
                size = 0
            pieces[-1].append(event)
            size += _size(event)
        if not pieces[0]:
            return []
        last = len(pieces) - 1
        return [
            WatchEvents(number, revision, tuple(piece), position == last)
            for position, piece in enumerate(pieces)
        ]

    def _close_all(self, code: str, detail: str, before: int, out: Out) -> None:
        for own in list(self._connections.values()):
            for cursor in list(own.values()):
                resume = max(cursor.sent, before) + 1
                out.append((cursor.connection, WatchClosed(cursor.number, code, detail, resume)))
                self.close(cursor.connection, cursor.number)


def _size(event: WatchEvent) -> int:
    return len(event.key) + len(event.value or b"") + 16
