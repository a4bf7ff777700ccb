"""The slots between the last truncated position and the end of the window, and how far they are decided.

It records; it does not judge. Who may vote for what is the engine's rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dwcp.consensus.core.machine import Payload
from dwcp.consensus.core.views.votes import Signed, VoteBox

CONTENTS_MAX = 8  # batches kept for one undecided slot


@dataclass(frozen=True, slots=True)
class Content:
    """What a digest stands for: the payloads in order and the time their leader proposed, ms."""

    time_ms: int
    payloads: tuple[Payload, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A quorum's promise: the leader's header and the PREPAREs of the others, for one digest."""

    view: int
    digest: bytes
    leader_signature: bytes
    votes: tuple[Signed, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """A quorum of COMMITs for `digest` in `view`: proof of the decision for anyone."""

    view: int
    digest: bytes
    votes: tuple[Signed, ...]


class Slot:
    """One position. The first group of fields belongs to the current view and is reset with it."""

    __slots__ = (
        "accepted_ms",
        "certified",
        "commits",
        "committed_ms",
        "contents",
        "decision",
        "digest",
        "index",
        "leader_signature",
        "my_commit",
        "my_prepare",
        "prepared",
        "prepared_here",
        "prepares",
        "rumours",
        "voted_digest",
        "voted_view",
        "written",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.digest: bytes | None = None  # accepted in the current view
        self.leader_signature = b""
        self.certified = False  # accepted from a NEWVIEW, not as a fresh proposal
        self.accepted_ms = 0
        self.prepared_here = False  # a quorum prepared `digest` in the current view
        self.my_prepare = b""
        self.my_commit = b""
        self.prepares = VoteBox()
        self.commits = VoteBox()
        self.rumours: dict[bytes, bytes] = {}  # digest: header's signature, known from votes only

        self.voted_view = 0  # the promise that survives restarts: one digest per (slot, view)
        self.voted_digest = b""
        self.prepared: Prepared | None = None  # of the highest view
        self.decision: Decision | None = None
        self.contents: dict[bytes, Content] = {}
        self.written: set[bytes] = set()  # digests whose content is in the journal
        self.committed_ms = 0

    def leave_view(self) -> None:
        """Forget what belonged to the view just left; keep promises and contents."""
        self.digest = None
        self.leader_signature = b""
        self.certified = False
        self.prepared_here = False
        self.my_prepare = b""
        self.my_commit = b""
        self.prepares = VoteBox()
        self.commits = VoteBox()
        self.rumours = {}

    def accept(self, digest: bytes, leader_signature: bytes, *, certified: bool, now_ms: int) -> None:
        self.digest = digest
        self.leader_signature = leader_signature
        self.certified = certified
        self.accepted_ms = now_ms

    def keep(self, digest: bytes, content: Content) -> None:
        """Remember what was voted for until the slot is decided: a later view may need it again.

        Bounded: after `CONTENTS_MAX` views without a decision the oldest that nothing refers to goes.
        """
        self.contents[digest] = content
        prepared = self.prepared.digest if self.prepared is not None else None
        if len(self.contents) > CONTENTS_MAX:
            spare = [d for d in self.contents if d not in (digest, self.digest, prepared)]
            del self.contents[spare[0]]

    def content(self) -> Content | None:
        """What this slot holds as far as known: the decided batch, else the accepted one."""
        if self.decision is not None:
            return self.contents.get(self.decision.digest)
        return self.contents.get(self.digest) if self.digest is not None else None

    def prune_contents(self) -> list[Content]:
        """Drop contents that nothing refers to any more, and return them."""
        wanted = {self.digest}
        if self.decision is not None:
            wanted = {self.decision.digest}
        elif self.prepared is not None:
            wanted.add(self.prepared.digest)
        dropped = [content for digest, content in self.contents.items() if digest not in wanted]
        if dropped:
            self.contents = {d: c for d, c in self.contents.items() if d in wanted}
        return dropped


class SlotLog:
    """Slots by index.

    Invariant: `base ≤ decided`, every slot in (base, decided] has a decision with its
    content or lies at or below a stable checkpoint; `decided_ms` is the committed time at `decided`.
    """

    __slots__ = ("_slots", "base", "decided", "decided_ms", "top")

    def __init__(self) -> None:
        self._slots: dict[int, Slot] = {}
        self.base = 0
        self.decided = 0
        self.decided_ms = 0
        self.top = 0  # the highest slot accepted in the current view

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, index: int) -> Slot | None:
        return self._slots.get(index)

    def at(self, index: int) -> Slot:
        """The slot at `index`, made if it is not there yet."""
        slot = self._slots.get(index)
        if slot is None:
            slot = self._slots[index] = Slot(index)
        return slot

    def ordered(self) -> Iterator[Slot]:
        """Every slot, by index."""
        return (self._slots[index] for index in sorted(self._slots))

    def undecided(self) -> list[Slot]:
        """Slots that were accepted in the current view and lack a decision, by index."""
        return [s for s in self.ordered() if s.digest is not None and s.decision is None]

    def jump(self, index: int, time_ms: int) -> None:
        """A certified state at `index` replaces whatever was missing up to it."""
        if index > self.decided:
            self.decided, self.decided_ms = index, time_ms

    def drop_up_to(self, index: int) -> list[Slot]:
        """Forget slots up to `index` and return them; nothing about them is accepted again."""
        gone = [self._slots.pop(i) for i in sorted(self._slots) if i <= index]
        self.base = max(self.base, index)
        return gone
