"""Who takes part: replica ids 0..n-1 in genesis order, and whose turn it is to lead."""

from __future__ import annotations

from dataclasses import dataclass, field

from dwcp.consensus.core.quorum import faults


def leader_of(view: int, n: int) -> int:
    """Views start at 1 and go round in genesis order."""
    return (view - 1) % n


@dataclass(frozen=True, slots=True)
class Committee:
    """The `n` voting replicas of one epoch, seen by replica `me`; at most `f` are Byzantine."""

    n: int
    me: int
    f: int = field(init=False)
    others: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.me < self.n:
            raise ValueError(f"replica {self.me} is no member of a committee of {self.n}")
        object.__setattr__(self, "f", faults(self.n))
        object.__setattr__(self, "others", tuple(i for i in range(self.n) if i != self.me))

    def has(self, replica: int) -> bool:
        return 0 <= replica < self.n
