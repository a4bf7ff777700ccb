"""The last day's placements as they came, so that other rules can be tried on the same demand afterwards.

A restart takes up what was `told` before it. Times are Unix milliseconds of one clock. A
workload's end is when it was last listed on a node or released; a proposal that nobody ever listed was no placement.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

from dwcp.allocation.fleet import quantities
from dwcp.allocation.serving.scene import Wanted, capacity_of
from dwcp.api.allocator import Dealt, NodeState
from dwcp.api.workloads import Shape

DAY_MS = 86_400_000
DEALT_MAX = 20_000
UNSEEN_MS = 60_000  # a proposal that is not listed by then has come to nothing


@dataclass(slots=True)
class Entry:
    """One workload's newest placement."""

    wanted: Wanted
    node: str
    by: str
    asked_ms: int
    placed_ms: int
    seen_ms: int  # last listed or held
    listed: bool
    ended: bool = False


class Told(Shape, frozen=True):
    """A placement for keeping; `dealt.until_ms` is when it was last seen."""

    dealt: Dealt
    listed: bool
    ended: bool


@dataclass(slots=True)
class Day:
    """By workload, the oldest placement first."""

    since_ms: int
    _kept: OrderedDict[str, Entry] = field(default_factory=OrderedDict)
    _asked: dict[str, int] = field(default_factory=dict)  # of those without a place, bounded as `_kept` is

    def asked(self, workload: str, *, now_ms: int) -> None:
        """It got no place now."""
        if len(self._asked) < DEALT_MAX:
            self._asked.setdefault(workload, now_ms)

    def placed(self, wanted: Wanted, node: str, *, by: str, held: bool, now_ms: int) -> None:
        """`held`: it stands until it is released; else it counts once a node lists it."""
        asked_ms = self._asked.pop(wanted.name, now_ms)
        self._kept.pop(wanted.name, None)
        self._kept[wanted.name] = Entry(wanted, node, by, asked_ms, now_ms, now_ms, held)
        while len(self._kept) > DEALT_MAX or next(iter(self._kept.values())).placed_ms < now_ms - DAY_MS:
            self._kept.popitem(last=False)

    def listed(self, nodes: Iterable[NodeState], *, now_ms: int) -> None:
        """What somebody's nodes hold now."""
        for node in nodes:
            for placed in node.allocation.placed:
                entry = self._kept.get(placed.workload)
                if entry is not None and entry.node == node.name and not entry.ended:
                    entry.listed, entry.seen_ms = True, now_ms

    def released(self, workload: str, *, now_ms: int) -> None:
        entry = self._kept.get(workload)
        if entry is not None and entry.listed and not entry.ended:
            entry.ended, entry.seen_ms = True, now_ms

    def told(self, *, held: Container[str], now_ms: int) -> Iterator[Told]:
        """The day as it stands now, for keeping; may be read while it goes on."""
        for name, entry in list(self._kept.items()):
            until_ms = now_ms if name in held and not entry.ended else entry.seen_ms
            yield Told(_dealt(entry, until_ms), entry.listed, entry.ended)

    def take_up(self, since_ms: int, told: Iterable[Told], *, now_ms: int) -> None:
        """What was told before a restart, as far as it is of the last day; nothing of the future is believed."""
        for one in told:
            dealt = one.dealt
            if now_ms - DAY_MS <= dealt.placed_ms <= now_ms and dealt.until_ms <= now_ms:
                self._kept[dealt.workload] = _entry(one)
        while len(self._kept) > DEALT_MAX:
            self._kept.popitem(last=False)
        self.since_ms = min(self.since_ms, max(since_ms, now_ms - DAY_MS))

    def dealt(self, *, held: Iterable[str], now_ms: int) -> tuple[Dealt, ...]:
        """The day in the order of placements; what is `held` here still runs."""
        running = set(held)
        return tuple(
            _dealt(entry, now_ms if name in running and not entry.ended else entry.seen_ms)
            for name, entry in self._kept.items()
            if entry.listed or now_ms - entry.placed_ms < UNSEEN_MS
        )


def _entry(told: Told) -> Entry:
    dealt = told.dealt
    wanted = Wanted(
        name=dealt.workload,
        demand=quantities(dealt.demand, where="demand"),
        site=dealt.site,
        data_site=dealt.data_site,
        data_bytes=dealt.data_bytes,
        priority=dealt.priority,
        predicted_s=dealt.predicted_s,
        budget_s=dealt.budget_s,
        slack_s=dealt.budget_s,
    )
    return Entry(
        wanted, dealt.node, dealt.by, dealt.asked_ms, dealt.placed_ms, dealt.until_ms, told.listed, told.ended
    )


def _dealt(entry: Entry, until_ms: int) -> Dealt:
    wanted = entry.wanted
    return Dealt(
        workload=wanted.name,
        node=entry.node,
        by=entry.by,
        asked_ms=entry.asked_ms,
        placed_ms=entry.placed_ms,
        until_ms=until_ms,
        demand=capacity_of(wanted.demand),
        site=wanted.site,
        data_site=wanted.data_site,
        data_bytes=wanted.data_bytes,
        priority=wanted.priority,
        predicted_s=wanted.predicted_s,
        budget_s=wanted.budget_s,
    )
