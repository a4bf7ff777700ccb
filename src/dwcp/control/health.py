"""What is known about the health of others: only what a recent probe said; the rest is unknown."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

PROBE_INTERVAL_MS = 10_000
STALE_AFTER = 3  # intervals without an answer to a probe of ours make old news worthless


class Condition(StrEnum):
    OK = "ok"
    FAILING = "failing"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Observation:
    """One probe's outcome; `detail` is the sentence for people."""

    ok: bool
    at_ms: int
    detail: str
    took_ms: int = 0


@dataclass(slots=True)
class Watchlist:
    """The last observation of each subject. A subject never probed, or not lately, is unknown, never ok."""

    interval_ms: int = PROBE_INTERVAL_MS
    _seen: dict[str, Observation] = field(default_factory=dict)

    def observed(self, subject: str, observation: Observation) -> bool:
        """Whether this changes the subject's condition."""
        before = self._seen.get(subject)
        self._seen[subject] = observation
        return before is None or before.ok != observation.ok

    def condition(self, subject: str, *, now_ms: int) -> Condition:
        seen = self._seen.get(subject)
        if seen is None or abs(now_ms - seen.at_ms) > STALE_AFTER * self.interval_ms:
            return Condition.UNKNOWN
        return Condition.OK if seen.ok else Condition.FAILING

    def detail(self, subject: str) -> str:
        seen = self._seen.get(subject)
        return seen.detail if seen is not None else "not probed yet"

    def keep(self, subjects: frozenset[str]) -> None:
        """Forgets everybody who is not in `subjects`."""
        self._seen = {name: seen for name, seen in self._seen.items() if name in subjects}

    def subjects(self) -> list[str]:
        return sorted(self._seen)
