"""What a history really went through: a checker that never met a fault shows nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Coverage:
    """`crashes` counts by point, `liars` by kind, `notes` by the event that replicas reported."""

    crashes: Counter[str] = field(default_factory=Counter)
    liars: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    torn_writes: int = 0
    torn_tails: int = 0
    partitions: int = 0
    pauses: int = 0
    blackouts: int = 0
    clock_jumps: int = 0
    reroutes: int = 0
    rollbacks: int = 0
    rotations: int = 0
    snapshots: int = 0
    disk_failures: int = 0
    equivocations: int = 0
    accusations: int = 0
    view_changes: int = 0
    state_transfers: int = 0

    def add(self, other: Coverage) -> None:
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, name, mine + theirs)

    def summary(self) -> dict[str, int]:
        """Flat counts; crashes are their sum, and by point under `crash.POINT`."""
        flat = {"crashes": sum(self.crashes.values())}
        flat |= {name: v for name in self.__slots__ if isinstance(v := getattr(self, name), int)}
        flat |= {f"crash.{point}": count for point, count in sorted(self.crashes.items())}
        flat |= {f"liar.{lie}": count for lie, count in sorted(self.liars.items())}
        return flat
