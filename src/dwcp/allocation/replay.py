"""The day's real placements beside first-fit and DRF on the same demand, paired by workload. Pure.

Both rivals get the same arrivals and run times and a queue of their own: first-fit serves it in the order of
arrival, DRF the tenant with the smallest dominant share first (Ghodsi et al. 2011, §4.1); both take the first node that
fits. A placement costs what the environment charges at once: shipping, energy, a late start; one that never starts
costs its contract's value. What stranded room costs later shows in the rivals' waits, as it does in ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from dwcp.allocation.env.weights import PRIORITY_FACTOR, WEIGHTS
from dwcp.allocation.fleet import Floats, Ints, quantities
from dwcp.allocation.policies.evidence import circular
from dwcp.allocation.serving.scene import Roster, Terrain, Wanted
from dwcp.allocation.serving.sheet import Sheet
from dwcp.api.allocator import Dealt, NodeState, Prices
from dwcp.api.workloads import Shape

REPLAYED_MAX = 5_000  # the newest ones
PAIRS_MIN = 30  # below, an interval would say nothing
RESAMPLES = 2_000
_FOREVER_MS = 2**62
FIRST_FIT, DRF = "first-fit", "drf"


class Against(Shape, frozen=True):
    """Dollars of all placements, ours and the rival's. `saved` is the share of its cost that ours is lower by, with
    its 95 % interval; None where there is nothing to compare, or too little for an interval."""

    ours_usd: float
    theirs_usd: float
    saved: float | None
    saved_low: float | None
    saved_high: float | None
    theirs_waited: int  # workloads that the rival placed after they had been asked for
    theirs_never: int


class Replay(Shape, frozen=True):
    """What was replayed, and each rival's result; `by_model` are placements that a model chose."""

    workloads: int
    by_model: int
    since_ms: int
    rivals: dict[str, Against]


@dataclass(slots=True)
class Rival:
    """One rival's fleet and queue while time passes."""

    roster: Roster
    costs: Sequence[Callable[[int, float], float]]  # by workload: node's row, seconds waited -> dollars
    dealt: Sequence[Dealt]
    demand: Ints  # [W, R]
    tenants: Sequence[str]
    fair: bool
    free: Ints = field(init=False)
    waiting: list[int] = field(default_factory=list)
    held: dict[str, Ints] = field(default_factory=dict)  # by tenant
    ends: list[tuple[int, int, int]] = field(default_factory=list)  # (ms, workload, row)
    found: dict[int, float] = field(default_factory=dict)
    waited: int = 0

    def __post_init__(self) -> None:
        self.free = self.roster.capacity.copy()

    def run(self) -> Floats:
        """[W] dollars; NaN where the workload never started."""
        for one in sorted(range(len(self.dealt)), key=lambda one: self.dealt[one].asked_ms):
            self._pass(self.dealt[one].asked_ms)
            self.waiting.append(one)
            self._serve(self.dealt[one].asked_ms)
        self._pass(_FOREVER_MS)  # the day's end cuts no queue off: what can start at all does
        return np.array([self.found.get(one, np.nan) for one in range(len(self.dealt))])

    def _pass(self, now_ms: int) -> None:
        while self.ends and self.ends[0][0] <= now_ms:
            at_ms, one, row = heappop(self.ends)
            self.free[row] += self.demand[one]
            self.held[self.tenants[one]] -= self.demand[one]
            self._serve(at_ms)

    def _serve(self, now_ms: int) -> None:
        """Whoever is next and fits, until nobody does."""
        while (taken := self._next()) is not None:
            one, row = taken
            self.waiting.remove(one)
            own = self.dealt[one]
            self.free[row] -= self.demand[one]
            tenant = self.tenants[one]
            self.held[tenant] = self.held.get(tenant, 0) + self.demand[one]
            heappush(self.ends, (now_ms + max(own.until_ms - own.placed_ms, 1), one, row))
            waited_s = (now_ms - own.asked_ms) / 1000.0
            self.waited += waited_s > 0
            self.found[one] = self.costs[one](row, waited_s)

    def _next(self) -> tuple[int, int] | None:
        order = sorted(self.waiting, key=self._share) if self.fair else self.waiting
        for one in order:
            fits = (self.free >= self.demand[one]).all(axis=1) & self.roster.pinned(self.dealt[one].site)
            if fits.any():
                return one, int(fits.argmax())
        return None

    def _share(self, one: int) -> float:
        """Its tenant's dominant share: the largest of its shares of all that there is."""
        held = self.held.get(self.tenants[one])
        whole = np.maximum(self.roster.capacity.sum(axis=0), 1)
        return 0.0 if held is None else float((held / whole).max())


def replay(
    dealt: Sequence[Dealt],
    nodes: Sequence[NodeState],
    prices: Prices,
    *,
    tenants: Mapping[str, str],
    since_ms: int,
    seed: int = 0,
) -> Replay:
    """`nodes` as they are now; what they hold beside these workloads is taken all the time. `tenants` by workload.

    Placements on nodes that are gone are left out. Raises `FleetMalformed`.
    """
    roster = _roster(nodes, {one.workload for one in dealt}, prices)
    kept = [one for one in dealt if one.node in roster.rows][-REPLAYED_MAX:]
    demand = np.array([quantities(one.demand, where=one.workload) for one in kept], dtype=np.int64).reshape(
        -1, 4
    )
    costs = [_price(roster, one, own) for one, own in zip(kept, demand, strict=True)]
    ours = np.array(
        [
            cost(roster.rows[one.node], (one.placed_ms - one.asked_ms) / 1000.0)
            for one, cost in zip(kept, costs, strict=True)
        ]
    )
    never = np.array([_value(one, own) for one, own in zip(kept, demand, strict=True)])
    whose = [tenants.get(one.workload, "") for one in kept]
    rivals = {}
    for name in (FIRST_FIT, DRF):
        rival = Rival(roster, costs, kept, demand, whose, name == DRF)
        theirs = rival.run()
        lost = np.isnan(theirs)
        theirs = np.where(lost, never, theirs)
        rivals[name] = _against(ours, theirs, waited=rival.waited, never=int(lost.sum()), seed=seed)
    return Replay(len(kept), sum(one.by == "model" for one in kept), since_ms, rivals)


def _roster(nodes: Sequence[NodeState], known: set[str], prices: Prices) -> Roster:
    """With the room that these workloads share."""
    terrain = Terrain(
        links=prices.links,
        usd_per_gb=prices.usd_per_gb,
        energy_usd=prices.energy_usd,
        site_usd_per_gb=prices.site_usd_per_gb,
        site_energy_usd=prices.site_energy_usd,
    )
    whole = Roster.of(tuple(sorted(nodes, key=lambda node: node.name)), terrain)
    room = whole.capacity.copy()
    for node in nodes:
        for placed in node.allocation.placed:
            if placed.workload not in known:
                room[whole.rows[node.name]] -= quantities(placed.demand, where=f"nodes.{node.name}")
    return Roster(whole.names, whole.sites, np.maximum(room, 0), terrain)


def _price(roster: Roster, one: Dealt, demand: Ints) -> Callable[[int, float], float]:
    wanted = Wanted(
        name=one.workload,
        demand=demand,
        data_site=one.data_site,
        data_bytes=one.data_bytes,
        priority=one.priority,
        predicted_s=one.predicted_s,
        budget_s=one.budget_s,
        slack_s=one.budget_s,
    )
    sheet = Sheet(roster, (wanted,), np.zeros(len(roster.names)))
    stake = WEIGHTS.wait * wanted.worth * PRIORITY_FACTOR[wanted.priority]

    def cost(row: int, waited_s: float) -> float:
        wan, energy, late = sheet.bill(0, row)
        share = min(late + max(waited_s, 0.0) / max(one.budget_s, 1.0), 1.0)
        return WEIGHTS.wan * wan + WEIGHTS.energy * energy + stake * share

    return cost


def _value(one: Dealt, demand: Ints) -> float:
    """Dollars for a workload that never starts."""
    worth = Wanted(one.workload, demand, predicted_s=one.predicted_s).worth
    return (WEIGHTS.sla + WEIGHTS.wait) * worth * PRIORITY_FACTOR[one.priority]


def _against(ours: Floats, theirs: Floats, *, waited: int, never: int, seed: int) -> Against:
    total = float(theirs.sum())
    saved = 1.0 - float(ours.sum()) / total if total > 0 else None
    low, high = (
        _interval(ours, theirs, seed) if saved is not None and len(ours) >= PAIRS_MIN else (None, None)
    )
    return Against(float(ours.sum()), total, saved, low, high, waited, never)


def _interval(ours: Floats, theirs: Floats, seed: int) -> tuple[float | None, float | None]:
    """95 % of the saving by a circular block bootstrap over the order of arrival: neighbours are not independent."""
    count = len(ours)
    size = round(count**0.5)
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, count, (RESAMPLES, -(-count // size)))
    rows = circular(starts, size=size, count=count)
    base = theirs[rows].sum(axis=1)
    if not (base > 0).all():
        return None, None
    low, high = np.quantile(1.0 - ours[rows].sum(axis=1) / base, (0.025, 0.975))
    return float(low), float(high)
