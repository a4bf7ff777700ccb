"""Who waits for a place: workloads that were asked for and got none, until they get one or nobody asks any more.

Pure; times are the caller's monotonic milliseconds. Invariant: at most `WAITING_MAX` are kept, the oldest go first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from dwcp.allocation.serving.scene import Wanted

WAITING_MAX = 4_096
FORGET_MS = 600_000  # who is not asked for again for so long waits no more
CLASSES = ("best-effort", "batch", "sensitive")  # by `Wanted.priority`


class Miss(StrEnum):
    """Why a workload starts later than its waiting budget allows."""

    CAPACITY = "capacity"  # its budget ended while no node could take it, or deferring was preferred
    WAIT = "wait"  # it was placed when its budget was over
    SHIPPING = "shipping"  # it was placed in time, and its data arrives after it


@dataclass(slots=True)
class Waiter:
    since_ms: int
    seen_ms: int
    site: str
    priority: int
    missed: bool = False  # and counted


@dataclass(slots=True)
class Waiting:
    """By workload, in the order in which they came."""

    _kept: dict[str, Waiter] = field(default_factory=dict)

    def placed(self, wanted: Wanted, *, late: float, now_ms: int) -> tuple[float, Miss | None]:
        """Seconds that it had waited, and the miss if there is a new one. `late` is the share of the waiting budget
        that is over when its data has arrived."""
        waited_s = max(wanted.waited_s, 0.0)
        known = self._kept.pop(wanted.name, None)
        if known is not None:
            waited_s = max(waited_s, (now_ms - known.since_ms) / 1000.0)
            if known.missed:
                return waited_s, None
        if waited_s > wanted.budget_s:
            return waited_s, Miss.WAIT
        return waited_s, Miss.SHIPPING if late >= 1.0 else None

    def refused(self, wanted: Wanted, *, site: str, now_ms: int) -> Miss | None:
        """It got no place now; `site` is where it is counted."""
        known = self._kept.get(wanted.name)
        if known is None:
            if len(self._kept) >= WAITING_MAX:
                del self._kept[next(iter(self._kept))]
            since_ms = now_ms - int(max(wanted.waited_s, 0.0) * 1000)
            known = self._kept[wanted.name] = Waiter(since_ms, now_ms, site, wanted.priority)
        known.seen_ms = now_ms
        if known.missed or now_ms - known.since_ms <= wanted.budget_s * 1000:
            return None
        known.missed = True
        return Miss.CAPACITY

    def forget(self, workload: str) -> None:
        self._kept.pop(workload, None)

    def lengths(self, *, now_ms: int) -> Counter[tuple[str, int]]:
        """How many wait, by site and priority; forgets who is not asked for any more."""
        self._kept = {
            name: waiter for name, waiter in self._kept.items() if now_ms - waiter.seen_ms <= FORGET_MS
        }
        return Counter((waiter.site, waiter.priority) for waiter in self._kept.values())
