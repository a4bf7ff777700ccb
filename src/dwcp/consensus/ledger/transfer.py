"""Brings a certified snapshot from peers, part by part, and serves this replica's own.

Sans-IO. Every part is checked against the certified root before it is kept, and
parts that this replica already holds are not sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Codec, Record
from dwcp.consensus.ledger.checkpoint import SnapshotInvalid, list_parts, part_digest
from dwcp.consensus.ledger.ledger import Snapshot
from dwcp.consensus.ledger.outputs import Channel, ToPeers

REQUEST_PARTS_MAX = 256
ANSWER_BYTES_MAX = 4 * 1024 * 1024
RETRY_MS = 500


class PartsRequest(Record, frozen=True, tag=1):
    """Parts of the snapshot under `root`; number 0 is the list of the others."""

    root: bytes
    numbers: tuple[int, ...]


class Part(Record, frozen=True):
    number: int
    data: bytes


class PartsAnswer(Record, frozen=True, tag=2):
    root: bytes
    parts: tuple[Part, ...]


_CODEC: Codec[PartsRequest | PartsAnswer] = Codec(PartsRequest | PartsAnswer)
_PREFIX = bytes([Channel.SNAPSHOT])


@dataclass(slots=True)
class _Wanted:
    """One transfer. `parts[i]` is None until part i arrived; `digests` is empty until part 0 did."""

    index: int
    root: bytes
    sources: tuple[int, ...]
    digests: tuple[bytes, ...] = ()
    parts: list[bytes | None] = field(default_factory=lambda: [None])
    turn: int = 0

    def missing(self) -> tuple[int, ...]:
        return tuple(number for number, part in enumerate(self.parts) if part is None)


class SnapshotTransfer:
    """At most one transfer at a time: a newer certified snapshot replaces an unfinished one."""

    __slots__ = ("_held", "_me", "_peers", "_wanted")

    def __init__(self, *, me: int, n: int) -> None:
        self._me = me
        self._peers = tuple(peer for peer in range(n) if peer != me)
        self._wanted: _Wanted | None = None
        self._held: dict[bytes, bytes] = {}

    @property
    def active(self) -> bool:
        return self._wanted is not None

    def begin(
        self, index: int, root: bytes, *, sources: Sequence[int], held: Sequence[bytes] = ()
    ) -> list[ToPeers]:
        """Start bringing the state after `index`; `held` are parts that this replica has already.

        So are those of a transfer that this one replaces: a state too large to be brought between
        two checkpoints would begin anew for ever.
        """
        before = self._wanted
        if before is not None and before.index >= index:
            return []
        brought = [part for part in before.parts if part is not None] if before is not None else []
        first = tuple(source for source in sources if source != self._me)
        order = first + tuple(peer for peer in self._peers if peer not in first)
        self._wanted = _Wanted(index, root, order)
        self._held = {part_digest(part): part for part in (*held, *brought)}
        return self._ask()

    def cancel(self) -> None:
        self._wanted = None
        self._held = {}

    def retry(self) -> list[ToPeers]:
        """No part came in time: go on with the next source."""
        if self._wanted is None:
            return []
        self._wanted.turn += 1
        return self._ask()

    def _ask(self) -> list[ToPeers]:
        wanted = self._wanted
        if wanted is None:
            return []
        source = wanted.sources[wanted.turn % len(wanted.sources)]
        request = PartsRequest(wanted.root, wanted.missing()[:REQUEST_PARTS_MAX])
        return [ToPeers((source,), _PREFIX + codec.encode(request))]

    def receive(
        self, sender: int, body: bytes, offered: Callable[[bytes], Snapshot | None]
    ) -> tuple[list[ToPeers], Snapshot | None]:
        """A peer's frame: serve its request, or take parts; answers the snapshot once it is whole.

        Raises `MalformedFrame`.
        """
        message = _CODEC.decode(body)
        if isinstance(message, PartsRequest):
            return self._serve(sender, message, offered(message.root)), None
        return self._take(message)

    def _serve(self, sender: int, request: PartsRequest, snapshot: Snapshot | None) -> list[ToPeers]:
        if snapshot is None:
            return []
        parts: list[Part] = []
        size = 0
        for number in request.numbers[:REQUEST_PARTS_MAX]:
            if not 0 <= number < len(snapshot.parts):
                continue
            data = snapshot.parts[number]
            size += len(data)
            if parts and size > ANSWER_BYTES_MAX:
                break
            parts.append(Part(number, data))
        answer = PartsAnswer(request.root, tuple(parts))
        return [ToPeers((sender,), _PREFIX + codec.encode(answer))]

    def _take(self, answer: PartsAnswer) -> tuple[list[ToPeers], Snapshot | None]:
        wanted = self._wanted
        if wanted is None or answer.root != wanted.root:
            return [], None
        progress = False
        for part in answer.parts:
            progress |= self._keep(wanted, part)
        if not progress:
            return [], None
        if wanted.missing():
            return self._ask(), None
        snapshot = Snapshot(wanted.index, wanted.root, tuple(p for p in wanted.parts if p is not None))
        self.cancel()
        return [], snapshot

    def _keep(self, wanted: _Wanted, part: Part) -> bool:
        """Whether the part was wanted and is what the root commits to."""
        if part.number == 0 and not wanted.digests:
            try:
                wanted.digests = list_parts(part.data, wanted.root)
            except SnapshotInvalid:
                return False
            wanted.parts = [part.data, *(self._held.get(address) for address in wanted.digests)]
            return True
        if not 0 < part.number < len(wanted.parts) or wanted.parts[part.number] is not None:
            return False
        if part_digest(part.data) != wanted.digests[part.number - 1]:
            return False
        wanted.parts[part.number] = part.data
        return True
