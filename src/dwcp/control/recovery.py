"""When to try again: 1 s, 2 s, 4 s, and then every 4 s, per subject."""

from __future__ import annotations

from dataclasses import dataclass, field

STEPS_MS = (1_000, 2_000, 4_000)


@dataclass(slots=True)
class Recovery:
    """Who failed how often, and until when they are left alone. Bounded by `forget` and `keep`."""

    steps_ms: tuple[int, ...] = STEPS_MS
    _failures: dict[str, tuple[int, int]] = field(default_factory=dict)  # count, due ms

    def failed(self, subject: str, *, now_ms: int) -> int:
        """Notes a failure; the wait in ms before the next try."""
        count = self._failures.get(subject, (0, 0))[0]
        wait = self.steps_ms[min(count, len(self.steps_ms) - 1)]
        self._failures[subject] = (count + 1, now_ms + wait)
        return wait

    def due(self, subject: str, *, now_ms: int) -> bool:
        """Whether it may be tried; a clock that jumped back does not keep it waiting."""
        count, due_ms = self._failures.get(subject, (0, 0))
        return count == 0 or now_ms >= due_ms or due_ms - now_ms > max(self.steps_ms)

    def hurry(self) -> None:
        """Something changed for the better: everybody may try now, counts stay."""
        self._failures = {subject: (count, 0) for subject, (count, _) in self._failures.items()}

    def forget(self, subject: str) -> None:
        self._failures.pop(subject, None)

    def keep(self, subjects: frozenset[str]) -> None:
        """Drops everybody who is not in `subjects`."""
        self._failures = {name: entry for name, entry in self._failures.items() if name in subjects}

    def next_due_ms(self, *, now_ms: int) -> int | None:
        """When the next waiting subject may be tried."""
        return min((due for _, due in self._failures.values() if due > now_ms), default=None)
