"""Votes of one phase of one slot in one view, counted once per sender and checked as few as needed.

Signatures are checked only when enough unchecked votes are there to finish: a
replica checks as many as make a quorum and never one more.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from enum import Enum

Signed = tuple[int, bytes]  # sender, signature
Unchecked = tuple[int, bytes, int]  # sender, signature, the view that it signed


class Arrival(Enum):
    """What became of a vote that arrived."""

    KEPT = 0
    KNOWN = 1  # this sender's vote is already here
    CONFLICT = 2  # this sender voted for another digest: see `VoteBox.first_of`


class VoteBox:
    """One vote per sender, plus what is needed to accuse a sender who signed two.

    Invariant: a sender is waiting, being checked, valid for one digest, or refused.
    """

    __slots__ = ("_accused", "_checking", "_valid", "_votes", "waiting")

    def __init__(self) -> None:
        self._votes: dict[int, tuple[bytes, bytes]] = {}
        self._accused: set[int] = set()
        self._checking = 0
        self.waiting: list[tuple[int, bytes, bytes, int]] = []
        self._valid: dict[bytes, list[Signed]] = {}

    def valid(self, digest: bytes) -> list[Signed]:
        """The checked votes for `digest`, in the order in which they were counted."""
        return self._valid.get(digest, [])

    def add(
        self,
        sender: int,
        digest: bytes,
        signature: bytes,
        *,
        view: int,
        fresh: Callable[[Container[int], int], bool],
    ) -> Arrival:
        """Keep the first vote of a sender; `fresh(known, sender)` says whether it is the first."""
        if fresh(self._votes, sender):
            self._votes[sender] = (digest, signature)
            self.waiting.append((sender, digest, signature, view))
            return Arrival.KEPT
        if self._votes[sender][0] != digest and sender not in self._accused:
            self._accused.add(sender)
            return Arrival.CONFLICT
        return Arrival.KNOWN

    def add_own(self, sender: int, digest: bytes, signature: bytes) -> None:
        """This replica's own vote needs no check."""
        if sender not in self._votes:
            self._votes[sender] = (digest, signature)
            self._valid.setdefault(digest, []).append((sender, signature))

    def first_of(self, sender: int) -> tuple[bytes, bytes]:
        """(digest, signature) of the vote kept for `sender`."""
        return self._votes[sender]

    def take(self, digest: bytes, need: int) -> tuple[Unchecked, ...]:
        """Votes to check now: exactly as many as are missing, or none while that is out of reach."""
        missing = need - len(self.valid(digest))
        if self._checking or missing <= 0:
            return ()
        match = [vote for vote in self.waiting if vote[1] == digest]
        if len(match) < missing:
            return ()
        taken = match[:missing]
        self.waiting = [vote for vote in self.waiting if vote not in taken]
        self._checking = 1
        return tuple((sender, signature, view) for sender, _, signature, view in taken)

    def split(self, votes: tuple[Unchecked, ...]) -> None:
        """A check of several votes failed: each is checked alone from here."""
        self._checking += len(votes) - 1

    def settle(self, digest: bytes, votes: tuple[Unchecked, ...], *, valid: bool) -> None:
        """A check came back; a sender whose signature failed is not counted in this box again."""
        self._checking -= 1
        if valid:
            counted = self._valid.setdefault(digest, [])
            counted.extend((sender, signature) for sender, signature, _ in votes)

    def leading(self) -> tuple[bytes, list[int]] | None:
        """The digest with most votes not yet counted, and its senders; ties by digest."""
        camps: dict[bytes, list[int]] = {}
        for sender, digest, _, _ in self.waiting:
            camps.setdefault(digest, []).append(sender)
        if not camps:
            return None
        digest = max(sorted(camps), key=lambda key: len(camps[key]))
        return digest, sorted(camps[digest])
