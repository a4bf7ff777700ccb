"""Payloads that wait to be ordered, oldest first, and where those already placed went.

Everything in it was authenticated when it was submitted. Bounded in bytes and count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dwcp.consensus.core.machine import Payload

BLAMES_MAX = 1024  # payloads over which views failed, remembered


def size_of(payload: Payload) -> int:
    """Bytes that count against limits: body and tags."""
    return (len(payload.body) if payload.body is not None else 0) + len(payload.tags)


class Pool:
    """Invariant: no digest is both pending and placed; `pending_bytes` is the sum over pending."""

    __slots__ = ("_blames", "_bytes_max", "_count_max", "_patience", "_pending", "_placed", "pending_bytes")

    def __init__(self, *, bytes_max: int, count_max: int, patience: int) -> None:
        self._blames: dict[bytes, int] = {}
        self._patience = patience
        self._bytes_max = bytes_max
        self._count_max = count_max
        self._pending: dict[bytes, Payload] = {}
        self._placed: dict[bytes, int] = {}
        self.pending_bytes = 0

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def placed_count(self) -> int:
        return len(self._placed)

    def pending(self) -> tuple[Payload, ...]:
        """What waits, oldest first."""
        return tuple(self._pending.values())

    def oldest(self) -> bytes | None:
        """The digest that waits longest; it never changes while it is censored."""
        return next(iter(self._pending), None)

    def known(self, payload: Payload) -> Payload | None:
        """This replica's own authenticated copy, if it waits here."""
        return self._pending.get(payload.digest)

    def find(self, digest: bytes) -> tuple[Payload | None, int]:
        """The payload if it waits here, else the slot where it was placed (0: unknown)."""
        return self._pending.get(digest), self._placed.get(digest, 0)

    def submit(self, payloads: Iterable[Payload]) -> int:
        """Keep what is new; returns how many were dropped because the pool is full."""
        dropped = 0
        for payload in payloads:
            key = payload.digest
            if payload.body is None or key in self._pending or key in self._placed:
                continue
            size = len(payload.body) + len(payload.tags)
            if len(self._pending) >= self._count_max or self.pending_bytes + size > self._bytes_max:
                dropped += 1
                continue
            self._pending[key] = payload
            self.pending_bytes += size
        return dropped

    def blame_oldest(self) -> bool:
        """A view failed over the oldest payload; True where it is abandoned now.

        After `patience` failed views (every leader had its turn) it is not the leaders
        that are to blame: a client may have vouched for it to some replicas only. An
        honest client submits again.
        """
        key = self.oldest()
        if key is None:
            return False
        count = self._blames.pop(key, 0) + 1
        if count < self._patience:
            self._blames[key] = count
            if len(self._blames) > BLAMES_MAX:
                del self._blames[next(iter(self._blames))]
            return False
        self.pending_bytes -= size_of(self._pending.pop(key))
        return True

    def fills(self, count: int, size: int) -> bool:
        """Whether a batch now would hold `count` payloads, or `size` bytes."""
        return len(self._pending) >= count or self.pending_bytes >= size

    def batch(self, *, count_max: int, bytes_max: int) -> tuple[Payload, ...]:
        """The oldest payloads that fit one slot; always at least one if any waits."""
        chosen: list[Payload] = []
        room = bytes_max
        for payload in self._pending.values():
            room -= size_of(payload)
            if chosen and (room < 0 or len(chosen) >= count_max):
                break
            chosen.append(payload)
        return tuple(chosen)

    def place(self, slot: int, payloads: Sequence[Payload]) -> None:
        """These are in `slot` now."""
        digests = [payload.digest for payload in payloads]
        self._placed.update(dict.fromkeys(digests, slot))
        pending = self._pending
        if not pending:
            return
        for digest in digests:
            mine = pending.pop(digest, None)
            if mine is not None:
                self.pending_bytes -= size_of(mine)

    def restore(self, slot: int, payloads: Sequence[Payload]) -> None:
        """`slot` will not hold these after all: they wait again, before everything younger."""
        back = {p.digest: p for p in payloads if p.body is not None and self._placed.get(p.digest) == slot}
        for key, payload in back.items():
            del self._placed[key]
            self.pending_bytes += size_of(payload)
        if back:
            self._pending = {**back, **self._pending}

    def forget(self, slot: int, payloads: Sequence[Payload]) -> None:
        """`slot` was truncated: the ledger's sessions recognise repetitions from here on."""
        placed = self._placed
        for digest in [payload.digest for payload in payloads]:
            if placed.get(digest) == slot:
                del placed[digest]
