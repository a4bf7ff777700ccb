"""The allocator's HTTP interface: shapes and request builders.

The state in a request is authoritative: the allocator keeps nothing that a
placement depends on, save short reservations that make conflicts rarer.
"""

from __future__ import annotations

from dwcp.api.requests import Request, request
from dwcp.api.workloads import Allocation, Capacity, NodeStatus, Shape

NODES_MAX = 4096


class NodeState(Shape, frozen=True):
    """A node as the asker knows it: what it has, what is placed there, whether it takes work."""

    name: str
    site: str
    capacity: Capacity
    allocation: Allocation = Allocation()
    status: NodeStatus = NodeStatus.READY


class PlaceRequest(Shape, frozen=True):
    """`POST /v1/place`. `site` pins; `data_site` and `data_bytes` say what would have to travel."""

    workload: str
    demand: Capacity
    nodes: tuple[NodeState, ...]
    site: str = ""
    data_site: str = ""
    data_bytes: int = 0
    priority: int = 2
    policy: str = ""  # empty: the allocator's own choice


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
    """`node` is empty where none fits now; then `reason` is a sentence."""

    workload: str
    node: str
    policy: str
    candidates: tuple[Candidate, ...]
    reason: str = ""
    model: str = "none"


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
    """`GET /v1/nodes`. `age_ms` is the time since the request that told them; -1: none yet."""

    nodes: tuple[SeenNode, ...]
    reservations: tuple[Reservation, ...]
    age_ms: int


class ModelInfo(Shape, frozen=True):
    """`GET /v1/model`: whether a learned policy serves, and which heuristic otherwise."""

    model: str
    detail: str
    policy: str
    policies: tuple[str, ...]


def place(wanted: PlaceRequest) -> Request:
    return request("POST", "v1", "place", body=wanted)


def release(workload: str) -> Request:
    return request("POST", "v1", "release", body=ReleaseRequest(workload=workload))


def nodes() -> Request:
    return request("GET", "v1", "nodes")


def model() -> Request:
    return request("GET", "v1", "model")
