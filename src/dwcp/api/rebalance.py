"""Plans of moves: what the allocator proposes, what the manager carries out, what operators see.

A plan is advice, as a placement is: whoever carries it out judges it by its own view first.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from dwcp.api.allocator import NodeState
from dwcp.api.requests import Request, request
from dwcp.api.workloads import Capacity, Shape

MOVES_MAX = 256  # in one plan
WORK_MAX = 20_000
WAITING_MAX = 256  # a plan looks at the most urgent ones
BYTES_MAX = 2**60
GIB = 2**30
REBALANCE = b"/n/:rebalance/plan"  # ":" is in no node's name, and only the manager may write there


class Work(Shape, frozen=True):
    """What a plan may move: an entry of `node`'s allocation. Entries that are not listed stay.

    `restart`: it runs, so that a move repeats what it has done.
    """

    workload: str
    node: str
    attempt: int
    restart: bool = True
    priority: int = 2
    site: str = ""  # pinned to
    data_site: str = ""
    data_bytes: int = 0


class Waiting(Shape, frozen=True):
    """A workload that fits nowhere now."""

    workload: str
    demand: Capacity
    priority: int = 2
    site: str = ""


class Budget(Shape, frozen=True):
    """What a plan may cost: moves, and bytes of data that have to be fetched again."""

    moves_max: int = 16
    bytes_max: int = 10 * GIB


class PlanRequest(Shape, frozen=True):
    """`POST /v1/rebalance:plan`. With `leave` the work of those nodes goes elsewhere, whether it gains or not.

    Prices: of a GB between sites, and of the energy of a core-hour by site; a site without one is
    taken as free, so that nothing is gained by what is not known.
    """

    nodes: tuple[NodeState, ...]
    work: tuple[Work, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    leave: tuple[str, ...] = ()
    budget: Budget = Budget()
    gain_min_usd: float = 0.01  # per move
    horizon_h: float = 1.0  # how long what is gained is counted
    usd_per_gb: float = 0.05
    usd_per_core_hour: dict[str, float] = msgspec.field(default_factory=dict)


class Move(Shape, frozen=True):
    """One workload from one node to another, in the order of the plan."""

    workload: str
    attempt: int
    source: str
    target: str
    bytes: int = 0


class Cost(Shape, frozen=True):
    """Dollars, by component: of the fleet as it stands, and of the moves themselves (`wan`, `mig`)."""

    strand: float = 0.0
    energy: float = 0.0
    headroom: float = 0.0
    wait: float = 0.0
    wan: float = 0.0
    mig: float = 0.0

    @property
    def total(self) -> float:
        return self.strand + self.energy + self.headroom + self.wait + self.wan + self.mig


class Plan(Shape, frozen=True):
    """`gain_usd` is what `after` is below `before`. Without moves `reason` is a sentence."""

    moves: tuple[Move, ...]
    before: Cost
    after: Cost
    gain_usd: float
    reason: str = ""
    policy: str = "greedy"


class Standing(StrEnum):
    """How far one move of a plan is."""

    WAITING = "waiting"
    UNDER_WAY = "under way"  # its target is reserved, its agent asked to give it up
    MOVED = "moved"
    STAYED = "stayed"  # it ended, was cancelled, or may not be moved any more


class Rebalance(Shape, frozen=True):
    """`/n/:rebalance/plan`: the newest plan that an operator ordered. Only one is under way at a time."""

    id: str
    moves: tuple[Move, ...]
    by: str = ""
    asked_ms: int = 0
    ended: bool = False


class Order(Shape, frozen=True):
    """`POST /api/v1/rebalance`: carry out these moves; the same id again changes nothing."""

    id: str
    moves: tuple[Move, ...]


class Wish(Shape, frozen=True):
    """`POST /api/v1/rebalance:plan`: what would you move? Nothing is changed."""

    budget: Budget = Budget()
    gain_min_usd: float = 0.01


class RebalanceView(Shape, frozen=True):
    """`GET /api/v1/rebalance`. `standings` has the order of the moves; no plan yet: an empty id."""

    rebalance: Rebalance
    standings: tuple[Standing, ...]


def plan(wanted: PlanRequest) -> Request:
    """To the allocator."""
    return request("POST", "v1", "rebalance:plan", body=wanted)


def wish(wanted: Wish) -> Request:
    return request("POST", "api", "v1", "rebalance:plan", body=wanted)


def order(wanted: Order) -> Request:
    return request("POST", "api", "v1", "rebalance", body=wanted)


def view() -> Request:
    return request("GET", "api", "v1", "rebalance")
