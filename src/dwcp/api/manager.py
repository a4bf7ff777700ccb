"""The manager's HTTP interface: shapes and request builders, for the CLI, agents and the console."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from dwcp.api.agent import RealUse
from dwcp.api.requests import Request, request
from dwcp.api.workloads import Allocation, Job, Node, Output, PayloadRef, Shape, WorkloadState

EVENT_WAIT_S_MAX = 30
EVENTS_PER_POST_MAX = 256
WORKLOADS_PER_PAGE_MAX = 1_000


class Submission(Shape, frozen=True):
    """`POST /api/v1/workloads`. The submitter chooses the id, so that a retry cannot make two workloads."""

    id: str
    job: Job
    payload: PayloadRef | None = None


class WorkloadView(Shape, frozen=True):
    """One workload as the control log has it; `revision` is that of its state."""

    id: str
    job: Job
    payload: PayloadRef | None
    submitted_ms: int
    submitted_by: str
    state: WorkloadState
    revision: int
    outputs: dict[str, Output] = msgspec.field(default_factory=dict)  # by attempt number


class WorkloadList(Shape, frozen=True):
    """The newest in order of submission; `total` counts those that were left out too."""

    workloads: tuple[WorkloadView, ...]
    revision: int
    total: int = 0


class Reach(StrEnum):
    """What the last probes of an agent said; `unknown` until the first one."""

    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"


class NodeView(Shape, frozen=True):
    node: Node
    allocation: Allocation
    reach: Reach
    reach_detail: str = ""
    used: RealUse | None = None  # as the agent's last health answer said; null: it did not


class NodeList(Shape, frozen=True):
    nodes: tuple[NodeView, ...]
    revision: int


class Drain(Shape, frozen=True):
    """`POST /api/v1/nodes/NODE/drain`. `keep`: no new work, and what is there stays to its end."""

    undo: bool = False
    keep: bool = False


class EventKind(StrEnum):
    """What can be told about a workload. States are events too, named as in the log."""

    SUBMITTED = "submitted"
    PROPOSED = "proposed"  # node, policy
    WAITING = "waiting"  # why no node fits now
    PENDING = "pending"
    PLACED = "placed"
    SHIPPING = "shipping"  # bytes, total, eta_s, codec
    SHIPPED = "shipped"  # bytes, root
    RUNNING = "running"
    PUBLISHED = "published"  # output root
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"
    CANCELLED = "cancelled"
    NOTE = "note"


class Report(Shape, frozen=True):
    """One event as its author sends it; `fields` are plain values."""

    workload: str
    kind: EventKind
    node: str = ""
    attempt: int = 0
    time_ms: int = 0
    fields: dict[str, int | float | str] = msgspec.field(default_factory=dict)


class Reports(Shape, frozen=True):
    """`POST /api/v1/events`, by agents."""

    reports: tuple[Report, ...]


class Event(Shape, frozen=True):
    """A report with its place in the manager's memory. `sequence` grows over restarts, with gaps."""

    sequence: int
    source: str
    report: Report


class EventList(Shape, frozen=True):
    """`lost` says that events after the asked one are already forgotten; states are in the log anyway."""

    events: tuple[Event, ...]
    next_after: int
    lost: bool = False


class StoredReceipt(Shape, frozen=True):
    """A receipt file with what it is about. `receipt` is the file's JSON: whoever reads it verifies it."""

    workload: str
    attempt: int
    kind: str  # placed | running | done | failed | unknown | pending | cancelled, or observed-done and so on
    receipt: dict[str, Any]  # Any: the ledger's own format, opaque here


class ReceiptList(Shape, frozen=True):
    receipts: tuple[StoredReceipt, ...]


class Transfer(Shape, frozen=True):
    """The last shipping progress of a workload."""

    workload: str
    attempt: int
    node: str
    bytes: int
    total: int
    finished: bool
    time_ms: int


class TransferList(Shape, frozen=True):
    transfers: tuple[Transfer, ...]


class BreakerView(Shape, frozen=True):
    name: str
    state: str  # closed | open | half_open
    failures: int
    successes: int
    retry_after_ms: int
    last_error: str = ""


class BreakerList(Shape, frozen=True):
    breakers: tuple[BreakerView, ...]


class BreakerReset(Shape, frozen=True):
    """`POST /circuit-breaker/reset`; an empty name resets all."""

    name: str = ""


def submit(submission: Submission) -> Request:
    return request("POST", "api", "v1", "workloads", body=submission)


def workloads(*, active: bool = False, limit: int = WORKLOADS_PER_PAGE_MAX) -> Request:
    query = {"active": 1 if active else 0, "limit": limit}
    return request("GET", "api", "v1", "workloads", query=query)


def workload(identity: str) -> Request:
    return request("GET", "api", "v1", "workloads", identity)


def cancel(identity: str) -> Request:
    return request("POST", "api", "v1", "workloads", identity, "cancel")


def receipts(identity: str) -> Request:
    return request("GET", "api", "v1", "workloads", identity, "receipts")


def keep_receipt(receipt: StoredReceipt) -> Request:
    return request("POST", "api", "v1", "receipts", body=receipt)


def nodes() -> Request:
    return request("GET", "api", "v1", "nodes")


def drain(node: str, *, undo: bool = False, keep: bool = False) -> Request:
    return request("POST", "api", "v1", "nodes", node, "drain", body=Drain(undo=undo, keep=keep))


def events(*, after: int = 0, workload: str = "", wait_s: float = 0) -> Request:
    query = {"after": after, "workload": workload, "wait_s": wait_s}
    return request("GET", "api", "v1", "events", query=query)


def report(reports: tuple[Report, ...]) -> Request:
    return request("POST", "api", "v1", "events", body=Reports(reports=reports))


def transfers() -> Request:
    return request("GET", "api", "v1", "transfers")


def breakers() -> Request:
    return request("GET", "circuit-breaker", "state")


def reset_breaker(name: str = "") -> Request:
    return request("POST", "circuit-breaker", "reset", body=BreakerReset(name=name))
