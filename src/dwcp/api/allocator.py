"""The allocator's HTTP interface: shapes and request builders.

Nodes come with a request, or are told once and named by their revision. Either way they are what counts: what the
allocator adds of its own is what it has placed or promised since.
"""

from __future__ import annotations

import msgspec

from dwcp.api.requests import Request, request
from dwcp.api.workloads import Allocation, Capacity, NodeStatus, Shape

NODES_MAX = 4096
BATCH_MAX = 32


class NodeState(Shape, frozen=True):
    """A node as the asker knows it: what it has, what is placed there, whether it takes work."""

    name: str
    site: str
    capacity: Capacity
    allocation: Allocation = Allocation()
    status: NodeStatus = NodeStatus.READY
    seen_ms: int = 0  # when this was so, Unix ms; 0: now


class PlaceRequest(Shape, frozen=True):
    """`POST /v1/place`. `site` pins; `data_site` and `data_bytes` say what would have to travel.

    `nodes` are all there are; or none, and `fleet` names a revision of the nodes that `POST /v1/nodes` told.
    `may_defer`: "not now" is an answer. `commit`: the placement stands in the fleet until it is released;
    without it, it is a promise that ends by itself.
    """

    workload: str
    demand: Capacity
    nodes: tuple[NodeState, ...] = ()
    site: str = ""
    data_site: str = ""
    data_bytes: int = 0
    priority: int = 2
    policy: str = ""  # empty: the allocator's own choice
    fleet: str = ""
    predicted_s: float = 0.0  # how long it will run; 0: not known
    slack_s: float = -1.0  # until the last start; negative: the usual for its priority
    queued: int = 0  # workloads that wait beside it
    may_defer: bool = False
    commit: bool = False


class Mask(Shape, frozen=True):
    """Why a node cannot take the workload: one resource, or `status`, or `site`."""

    reason: str
    needed: int = 0
    free: int = 0
    detail: str = ""


class Candidate(Shape, frozen=True):
    """One node's verdict: no masks means feasible. `score` is meaningful among feasible ones only."""

    node: str
    masks: tuple[Mask, ...] = ()
    score: float = 0.0


class PlaceAnswer(Shape, frozen=True):
    """`node` is empty where none fits now, or where waiting is better (`deferred`); then `reason` is a sentence.

    `by` is "model" or "rule". `fallback` says why a rule answered though a model was wanted: `no_model`, `breaker`,
    `clock`, `timeout`, `ood`, `nan`, `error`, `conflict`. `decision` names the record that explains it.
    """

    workload: str
    node: str
    policy: str
    candidates: tuple[Candidate, ...] = ()
    reason: str = ""
    model: str = "none"
    by: str = "rule"
    fallback: str = ""
    decision: str = ""
    deferred: bool = False


class BatchRequest(Shape, frozen=True):
    """`POST /v1/place:batch`: up to 32, placed by priority, each seeing the ones before. `nodes` or `fleet` for all."""

    items: tuple[PlaceRequest, ...]
    nodes: tuple[NodeState, ...] = ()
    fleet: str = ""


class BatchAnswer(Shape, frozen=True):
    """One answer per item, in the order of the request, without candidates."""

    answers: tuple[PlaceAnswer, ...]
    fleet: str


class NodesChange(Shape, frozen=True):
    """`POST /v1/nodes`, applied in this order. A node that is told again is as it is told now.

    `fleet`, where given, must be the revision in force: else nothing changes. `replace`: others are forgotten.
    """

    upsert: tuple[NodeState, ...] = ()
    remove: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    fail: tuple[str, ...] = ()
    ready: tuple[str, ...] = ()
    fleet: str = ""
    replace: bool = False


class FleetRevision(Shape, frozen=True):
    """What a place request may name instead of carrying nodes. A restart begins another series."""

    fleet: str
    nodes: int


class Explanation(Shape, frozen=True):
    """`GET /v1/decisions/ID`. Scores are the deciding policy's; `contributions` are of the chosen node's advantage over
    the mean of all feasible ones, by what was known; `counterfactual` are sentences; times in seconds."""

    decision: str
    workload: str
    node: str
    by: str
    policy: str
    fallback: str
    model: str
    candidates: tuple[Candidate, ...]
    contributions: dict[str, float]
    rule: str
    rule_node: str
    model_node: str
    rule_cost_usd: float
    model_cost_usd: float
    counterfactual: tuple[str, ...]
    staleness_s: dict[str, float]  # by site
    fleet: str
    at_ms: int
    outside: tuple[str, ...] = ()  # features outside of the model's training range
    reason: str = ""


class WhatIf(Shape, frozen=True):
    """`POST /v1/whatif`: where `items` would go now, and with these changes of the nodes. Nothing is changed."""

    items: tuple[PlaceRequest, ...]
    nodes: tuple[NodeState, ...] = ()
    fleet: str = ""
    add: tuple[NodeState, ...] = ()
    remove: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()


class WhatIfAnswer(Shape, frozen=True):
    """Placements before and after; `cost_usd` is what the placed ones would be charged at once."""

    before: tuple[PlaceAnswer, ...]
    after: tuple[PlaceAnswer, ...]
    moved: tuple[str, ...]
    placed_before: int
    placed_after: int
    cost_usd_before: float
    cost_usd_after: float


class Dealt(Shape, frozen=True):
    """One placement of the last day, in Unix ms. `until_ms` is when it was last known to run; `priority` is 0 … 2 as
    the allocator counts; `by` is "model" or "rule"."""

    workload: str
    node: str
    by: str
    asked_ms: int  # when it was first asked for
    placed_ms: int
    until_ms: int
    demand: Capacity
    site: str
    data_site: str
    data_bytes: int
    priority: int
    predicted_s: float
    budget_s: float


class Prices(Shape, frozen=True):
    """What places cost: links in Mbit/s up and down, dollars per GB and per core-hour of energy, by site."""

    links: dict[str, tuple[float, float]]
    usd_per_gb: float
    energy_usd: float
    site_usd_per_gb: dict[str, float]
    site_energy_usd: dict[str, float]


class Day(Shape, frozen=True):
    """`GET /v1/day`: the last day's placements in their order, since the start of this process at the earliest."""

    since_ms: int
    now_ms: int
    prices: Prices
    dealt: tuple[Dealt, ...]


class ReleaseRequest(Shape, frozen=True):
    """`POST /v1/release`: forget the reservation made for this workload."""

    workload: str


class Released(Shape, frozen=True):
    released: bool


class Reservation(Shape, frozen=True):
    workload: str
    node: str
    demand: Capacity
    expires_ms: int


class SeenNode(Shape, frozen=True):
    """A node as the last request described it, with what is reserved there now."""

    node: NodeState
    reserved: Capacity


class SeenNodes(Shape, frozen=True):
    """`GET /v1/nodes`. `age_ms` is the time since the request that told them; -1: none yet.

    `fleet` is the revision of the nodes that `POST /v1/nodes` told; they are shown where there are any.
    """

    nodes: tuple[SeenNode, ...]
    reservations: tuple[Reservation, ...]
    age_ms: int
    fleet: str = ""


class ModelInfo(Shape, frozen=True):
    """`GET /v1/model`: whether a learned policy serves, and which heuristic otherwise."""

    model: str
    detail: str
    policy: str
    policies: tuple[str, ...]
    version: str = ""
    nodes_validated: tuple[int, int] = (0, 0)
    decisions: int = 0
    model_share: float = 0.0
    agreement: float = 0.0  # share of decisions where rule and model chose alike
    regret_usd: float = 0.0  # mean immediate cost of the model's choice less the rule's
    drifted: tuple[str, ...] = ()
    canary_sites_pct: int = 0


def place(wanted: PlaceRequest) -> Request:
    return request("POST", "v1", "place", body=wanted)


def place_batch(wanted: BatchRequest) -> Request:
    return Request(
        "POST", "/v1/place:batch", msgspec.json.encode(wanted), {"Content-Type": "application/json"}
    )


def change_nodes(change: NodesChange) -> Request:
    return request("POST", "v1", "nodes", body=change)


def decision(identity: str) -> Request:
    return request("GET", "v1", "decisions", identity)


def simulate(wanted: PlaceRequest) -> Request:
    return request("POST", "v1", "simulate", body=wanted)


def whatif(wanted: WhatIf) -> Request:
    return request("POST", "v1", "whatif", body=wanted)


def release(workload: str) -> Request:
    return request("POST", "v1", "release", body=ReleaseRequest(workload=workload))


def nodes() -> Request:
    return request("GET", "v1", "nodes")


def day() -> Request:
    return request("GET", "v1", "day")


def model() -> Request:
    return request("GET", "v1", "model")
