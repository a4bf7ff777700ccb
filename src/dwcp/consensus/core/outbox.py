"""The Persist barrier: holds effects back until the records they lean on are durable.

Pure bookkeeping. It knows the contract at the top of `core.machine` and nothing
of disks: its owner writes the groups it hands out, one at a time, and says when
one is durable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from dwcp.consensus.core.errors import invariant
from dwcp.consensus.core.machine import Commit, Effect, InstallSnapshot, Persist, Send, Truncate

_HELD = (Send, Commit, Truncate, InstallSnapshot)


@dataclass(frozen=True, slots=True)
class Group:
    """Records that become durable together: one atomic record of the log.

    `sequence` counts the groups of this outbox from 1; the log numbers its own.
    """

    sequence: int
    records: tuple[bytes, ...]


class Outbox:
    """Releases effects in the order in which they were emitted, each after its barrier.

    Invariant: `_queue` is empty or starts with a `Persist` that is not durable.
    The first `_in_flight` barriers of the queue belong to the group being written,
    the others are `_waiting` for the next one.
    """

    __slots__ = ("_in_flight", "_queue", "_sequence", "_waiting")

    def __init__(self) -> None:
        self._queue: deque[Effect] = deque()
        self._waiting: list[bytes] = []
        self._in_flight = 0
        self._sequence = 0

    def push(self, effects: Iterable[Effect]) -> list[Effect]:
        """Take the effects of one step; answer those that nothing holds back, in order."""
        released: list[Effect] = []
        queue = self._queue
        for effect in effects:
            if isinstance(effect, Persist):
                queue.append(effect)
                self._waiting.append(effect.record)
            elif queue and isinstance(effect, _HELD):
                queue.append(effect)
            else:
                released.append(effect)
        return released

    def take_group(self) -> Group | None:
        """Everything that waits, as the next group to write; None while one is in flight."""
        if self._in_flight or not self._waiting:
            return None
        self._sequence += 1
        self._in_flight = len(self._waiting)
        group = Group(self._sequence, tuple(self._waiting))
        self._waiting.clear()
        return group

    def durable(self, sequence: int) -> list[Effect]:
        """Group `sequence` is on disk: answer what it held back, up to the next barrier."""
        invariant(self._in_flight > 0 and sequence == self._sequence, "durable: not the group in flight")
        barriers, self._in_flight = self._in_flight, 0
        released: list[Effect] = []
        queue = self._queue
        while queue:
            if isinstance(queue[0], Persist):
                if barriers == 0:
                    break
                barriers -= 1
                queue.popleft()
            else:
                released.append(queue.popleft())
        invariant(barriers == 0, "durable: the group has more records than the queue has barriers")
        return released

    @property
    def writing(self) -> bool:
        """Whether a group is in flight."""
        return self._in_flight > 0

    @property
    def waiting(self) -> int:
        """Records that no group has taken yet."""
        return len(self._waiting)

    def __len__(self) -> int:
        """Effects held back, barriers included; what a host bounds."""
        return len(self._queue)
