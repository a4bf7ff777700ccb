"""Messages for views that this replica has not installed yet, bounded per sender."""

from __future__ import annotations

from dwcp.consensus.engines.probft.messages import Kind, Message
from dwcp.consensus.engines.probft.params import AHEAD_MESSAGES_MAX, AHEAD_PROPOSALS_MAX

Key = tuple[int, int, int]  # kind, slot, view


class Ahead:
    """One message per (sender, kind, slot, view); a sender who fills its share only loses its own."""

    __slots__ = ("_kept", "_proposals")

    def __init__(self) -> None:
        self._kept: dict[int, dict[Key, Message]] = {}
        self._proposals: dict[int, int] = {}

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())

    def keep(self, sender: int, message: Message, *, slot: int, view: int) -> bool:
        """False where the message is known or the sender's share is used up."""
        kept = self._kept.setdefault(sender, {})
        key = (message.kind, slot, view)
        if key in kept or len(kept) >= AHEAD_MESSAGES_MAX:
            return False
        if message.kind in (Kind.PROPOSE, Kind.NEWLEADER):
            large = self._proposals.get(sender, 0)
            if large >= AHEAD_PROPOSALS_MAX:
                return False
            self._proposals[sender] = large + 1
        kept[key] = message
        return True

    def take(self, view: int, *, kinds: tuple[Kind, ...]) -> list[tuple[int, Message]]:
        """Messages of these kinds for `view`, by sender; what is older than `view` is dropped."""
        taken: list[tuple[int, Message]] = []
        for sender in sorted(self._kept):
            stay: dict[Key, Message] = {}
            for key, message in self._kept[sender].items():
                if key[2] == view and message.kind in kinds:
                    taken.append((sender, message))
                elif key[2] >= view:
                    stay[key] = message
            self._kept[sender] = stay
            large = sum(1 for key in stay if key[0] in (Kind.PROPOSE, Kind.NEWLEADER))
            self._proposals[sender] = large
        return taken
