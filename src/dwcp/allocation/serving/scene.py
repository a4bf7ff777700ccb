"""From what askers and nodes say to the `View` that rules and models score: the one way, wherever it is served.

Shapes: N nodes in the order of their names, R resources as in `fleet.RESOURCES`, K offers. An offer is what a
node's site and link make of a workload's data; nodes share offers, so prices are computed per offer. Quantities
stay int64 until they are ratios. Pure; time comes in as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from zlib import crc32

import numpy as np

from dwcp.allocation.env.view import View, coins
from dwcp.allocation.env.weights import BUDGET_S, CORE_HOUR_USD, VALUE_HOURS_MAX
from dwcp.allocation.feasibility import enough
from dwcp.allocation.fleet import Bools, Fleet, FleetMalformed, Floats, Ints, quantities
from dwcp.allocation.serving.offers import OFFERS_MAX, Offers
from dwcp.api.allocator import NodeState, PlaceRequest
from dwcp.api.workloads import Capacity, NodeStatus

Links = Mapping[str, tuple[float, float]]  # site -> (uplink, downlink), Mbit/s

BANDWIDTH = 3  # column of the node's link to the others, Mbit/s
PREDICTED_S = 3600.0  # of a run that nobody predicted
PRIORITIES = (0, 0, 1, 1, 2, 2)  # a job's 0 … 5 -> best effort, batch, latency-sensitive
_RATE_MIN = 1e-9  # Mbit/s: a link of 0 never delivers, and divides nothing by 0


@dataclass(frozen=True, slots=True)
class Terrain:
    """What places cost where nobody says: dollars per GB shipped from a site, per core-hour of energy at one."""

    links: Links = field(default_factory=dict)
    usd_per_gb: float = 0.02
    energy_usd: float = 0.002
    site_usd_per_gb: Mapping[str, float] = field(default_factory=dict)
    site_energy_usd: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One workload to place. `demand` [R]; `priority` 0 … 2; seconds; `waited_s` of `budget_s` is over."""

    name: str
    demand: Ints
    site: str = ""
    data_site: str = ""
    data_bytes: int = 0
    priority: int = 1
    predicted_s: float = PREDICTED_S
    budget_s: float = BUDGET_S[1]
    slack_s: float = BUDGET_S[1]
    may_defer: bool = False
    queued: int = 0
    worth: float = field(init=False)  # the contract's value at priority 1, dollars

    def __post_init__(self) -> None:
        hours = min(self.predicted_s / 3600.0, VALUE_HOURS_MAX)
        object.__setattr__(self, "worth", float(self.demand[0]) / 1000.0 * hours * CORE_HOUR_USD)

    @property
    def waited_s(self) -> float:
        return self.budget_s - self.slack_s


def wanted_of(asked: PlaceRequest) -> Wanted:
    """The request's workload. Raises `FleetMalformed`."""
    if asked.data_bytes < 0:
        raise FleetMalformed(f"data_bytes: {asked.data_bytes}; it cannot be negative")
    if not 0 <= asked.predicted_s <= 1e9 or not asked.slack_s <= 1e9:
        raise FleetMalformed("predicted_s and slack_s: seconds, at most 1e9")
    if asked.queued < 0:
        raise FleetMalformed(f"queued: {asked.queued}; it cannot be negative")
    priority = PRIORITIES[min(max(asked.priority, 0), len(PRIORITIES) - 1)]
    budget = float(BUDGET_S[priority])
    slack = budget if asked.slack_s < 0 else asked.slack_s
    return Wanted(
        name=asked.workload,
        demand=quantities(asked.demand, where="demand"),
        site=asked.site,
        data_site=asked.data_site,
        data_bytes=asked.data_bytes,
        priority=priority,
        predicted_s=max(asked.predicted_s, 30.0) if asked.predicted_s else PREDICTED_S,
        budget_s=max(budget, slack),
        slack_s=slack,
        may_defer=asked.may_defer,
        queued=asked.queued,
    )


@dataclass(frozen=True, eq=False)
class Roster:
    """Which nodes there are: everything that placements do not change. A change of nodes makes another one."""

    names: tuple[str, ...]  # ascending
    sites: tuple[str, ...]  # of each node
    capacity: Ints  # [N, R]
    terrain: Terrain
    _near: dict[str, tuple[Bools, Floats, Floats]] = field(default_factory=dict)
    _pins: dict[str, Bools] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: tuple[NodeState, ...], terrain: Terrain) -> Roster:
        """`nodes` ascending by name. Raises `FleetMalformed`."""
        capacity = np.zeros((len(nodes), 4), dtype=np.int64)
        for row, node in enumerate(nodes):
            capacity[row] = quantities(node.capacity, where=f"nodes.{node.name}.capacity")
        return cls(tuple(node.name for node in nodes), tuple(node.site for node in nodes), capacity, terrain)

    @cached_property
    def rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    @cached_property
    def amount(self) -> Floats:
        """[N, R] capacity as floating point."""
        return self.capacity.astype(np.float64)

    @cached_property
    def lines(self) -> Ints:
        """[R, N] capacity."""
        return np.ascontiguousarray(self.capacity.T)

    @cached_property
    def across(self) -> Floats:
        """[R, N] capacity as floating point."""
        return self.lines.astype(np.float64)

    @cached_property
    def divisor(self) -> Floats:
        """[R, N] capacity, 1 where there is none."""
        return np.maximum(self.across, 1.0)

    @cached_property
    def full(self) -> bool:
        """Whether every node has something of every resource."""
        return bool((self.lines > 0).all())

    @cached_property
    def present(self) -> Bools:
        """[N]: has a core; what has none counts as no node."""
        return np.asarray(self.lines[0] > 0, dtype=np.bool_)

    @cached_property
    def whole(self) -> bool:
        """Whether every node is present."""
        return bool(self.present.all())

    @cached_property
    def cpu(self) -> float:
        """Of all nodes, thousandths of a core."""
        return float(self.across[0].sum())

    @cached_property
    def offers(self) -> tuple[list[str], Floats, Ints]:
        """Sites [K], downlinks [K] Mbit/s, and the offer of each node [N]."""
        links, own = self.terrain.links, self.amount[:, BANDWIDTH]
        kinds: dict[tuple[str, float], int] = {}
        offer = np.empty(len(self.names), dtype=np.intp)
        for row, site in enumerate(self.sites):
            down = links[site][1] if site in links else float(own[row])
            offer[row] = kinds.setdefault((site, down), len(kinds))
        return [site for site, _ in kinds], np.array([down for _, down in kinds]), offer

    @cached_property
    def kinds(self) -> Offers | None:
        """The offers with their nodes; None where there are too many for that to be quick."""
        sites, _down, offer = self.offers
        return Offers.of(offer, len(sites)) if len(sites) <= OFFERS_MAX else None

    @cached_property
    def energy(self) -> Floats:
        """[N] dollars per core-hour."""
        known = self.terrain.site_energy_usd
        return np.array([known.get(site, self.terrain.energy_usd) for site in self.sites])

    def pinned(self, site: str) -> Bools:
        """[N]: at this site; everywhere for an empty name."""
        found = self._pins.get(site)
        if found is None:
            found = np.array([not site or own == site for own in self.sites], dtype=np.bool_)
            if site in self.sites or not site:
                self._pins[site] = found
        return found

    def from_site(self, site: str) -> tuple[Bools, Floats, Floats]:
        """For data at `site`, by offer [K]: at home, Mbit/s (endless at home), dollars per GB."""
        found = self._near.get(site)
        if found is None:
            found = self._priced(site)
            if site in self.sites or not site:  # a stranger's names must not fill the memory
                self._near[site] = found
        return found

    def _priced(self, site: str) -> tuple[Bools, Floats, Floats]:
        sites, down, _offer = self.offers
        home = np.array([not site or own == site for own in sites], dtype=np.bool_)
        own = [float(self.amount[row, BANDWIDTH]) for row, name in enumerate(self.sites) if name == site]
        terrain = self.terrain
        uplink = terrain.links[site][0] if site in terrain.links else max(own, default=0.0)
        rate = np.where(home, np.inf, np.maximum(np.minimum(down, uplink), _RATE_MIN))
        usd = terrain.site_usd_per_gb.get(site, terrain.usd_per_gb)
        return home, rate, np.where(home, 0.0, usd)


@dataclass(slots=True)
class Scene:
    """What a decision sees of the nodes, for good: nothing that happens later shows in it."""

    roster: Roster
    used: Ints  # [N, R], placements and promises
    status: tuple[NodeStatus, ...]
    open: Bools  # [N] ready
    age_s: Floats  # [N] of what is known
    exit_in_s: Floats  # [N] until predicted to be empty
    last: int = -1  # row of the last placement
    version: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # [N] of a fleet that is kept
    reach: Bools | None = None  # [N] the asker's own selection; None: every node

    @property
    def free(self) -> Ints:
        """[N, R]; may be negative where a node is overfull already."""
        return self.roster.capacity - self.used

    def fleet(self) -> Fleet:
        """As nodes, for explanations."""
        roster = self.roster
        nodes = tuple(
            NodeState(
                name=name, site=roster.sites[row], capacity=capacity_of(roster.capacity[row]), status=status
            )
            for row, (name, status) in enumerate(zip(roster.names, self.status, strict=True))
        )
        return Fleet(nodes, roster.capacity, self.used)


def scene_of(fleet: Fleet, terrain: Terrain, *, now_ms: int = 0) -> Scene:
    """The scene of nodes that came with a request, `fleet` ascending by name."""
    roster = Roster.of(fleet.nodes, terrain)
    ages = [max(0, now_ms - node.seen_ms) / 1000.0 if node.seen_ms else 0.0 for node in fleet.nodes]
    status = tuple(node.status for node in fleet.nodes)
    return Scene(
        roster,
        fleet.used,
        status,
        np.array([one is NodeStatus.READY for one in status], dtype=np.bool_),
        np.array(ages),
        np.zeros(len(status)),
    )


def mask_of(scene: Scene, wanted: Wanted) -> Bools:
    """[N + 1]: room for every resource, open, at the pinned site; the last: deferring is allowed."""
    found = np.empty(len(scene.open) + 1, dtype=np.bool_)
    np.logical_and(enough(scene.free, wanted.demand), scene.open, out=found[:-1])
    if wanted.site:
        found[:-1] &= scene.roster.pinned(wanted.site)
    if scene.reach is not None:
        found[:-1] &= scene.reach
    found[-1] = wanted.may_defer and wanted.slack_s > 0
    return found


def view_of(scene: Scene, wanted: Wanted, *, dice: bool = False) -> View:
    """What policies may see, without leading dimensions. `dice`: with noise for rules that draw."""
    roster = scene.roster
    home, rate, usd = roster.from_site(wanted.data_site if wanted.data_bytes else "")
    offer = roster.offers[2]
    if wanted.data_bytes and wanted.data_site:
        shipped = wanted.data_bytes * 8e-6 / rate
    else:
        shipped = np.zeros(len(rate))
        home = roster.from_site(wanted.data_site)[0]
    late = np.minimum((wanted.waited_s + shipped) / max(wanted.budget_s, 1.0), 1.0)
    wan = wanted.data_bytes / 1e9 * usd
    free = np.maximum(scene.free, 0) * scene.open[:, None]
    core_hours = float(wanted.demand[0]) / 1000.0 * wanted.predicted_s / 3600.0
    count = len(scene.open)
    coin = coins(np.int64(crc32(wanted.name.encode())), np.int64(0), np.arange(count), np) if dice else None
    return View(
        free=free.astype(np.float64),
        capacity=roster.amount,
        demand=wanted.demand.astype(np.float64),
        mask=mask_of(scene, wanted),
        local=home[offer],
        wan=wan[offer],
        energy=core_hours * roster.energy,
        late=late[offer],
        worth=np.float64(wanted.worth),
        priority=np.int64(wanted.priority),
        predicted_s=np.float64(wanted.predicted_s),
        slack_s=np.float64(wanted.slack_s),
        exit_in_s=scene.exit_in_s,
        age_s=scene.age_s,
        queued=np.int64(wanted.queued),
        last=np.int64(scene.last),
        coin=np.zeros(count) if coin is None else coin,
        row=np.int64(0),
    )


def capacity_of(amounts: Ints) -> Capacity:
    """The reverse of `fleet.quantities`."""
    return Capacity(*(int(amount) for amount in amounts))
