"""When to enter the next view: after Bravo, Chockler and Gotsman, "Making Byzantine Consensus Live".

Each replica keeps the highest view that every replica wished for: one number per
replica, whatever they send. Entering takes a strong quorum of wishes (2f+1), so f
liars alone move nobody; a weak quorum (f+1) makes a replica join the wish.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """What to do after a wish was counted: 0 where there is nothing to do."""

    wish: int  # sign and send WISH(view)
    enter: int  # enter this view


class Synchroniser:
    """Counts wishes. `wishes[j]` is the highest view that j wished for; it never falls."""

    __slots__ = ("_me", "_strong", "_weak", "wishes")

    def __init__(self, *, n: int, me: int, weak: int, strong: int) -> None:
        self._me = me
        self._weak = weak
        self._strong = strong
        self.wishes = [0] * n

    @property
    def own(self) -> int:
        return self.wishes[self._me]

    def reached(self, count: int) -> int:
        """The highest view that at least `count` replicas wished for."""
        return sorted(self.wishes, reverse=True)[count - 1]

    def note(self, replica: int, view: int) -> bool:
        """Remember a wish; False where it is not news."""
        if view <= self.wishes[replica]:
            return False
        self.wishes[replica] = view
        return True

    def expired(self, current: int) -> int:
        """The view to wish for when view `current` took too long."""
        return max(current + 1, self.reached(self._weak), self.own)

    def turn(self, current: int) -> Turn:
        """What the wishes known now ask of a replica in view `current`."""
        joined, agreed = self.reached(self._weak), self.reached(self._strong)
        wish = joined if joined > max(self.own, current) else 0
        enter = agreed if agreed > current and agreed == joined else 0
        return Turn(wish, enter)
