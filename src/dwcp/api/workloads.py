"""Jobs, workloads and nodes as the control log and the HTTP API show them.

Values in the log are JSON of these structs (readable with `dwcp ledger get`);
keys are made by the functions below and nowhere else.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """Base of every JSON and YAML shape: unknown fields are refused."""


class Demand(Shape, frozen=True):
    """What a job needs on one node. `cpu` may be fractional (cores)."""

    cpu: float
    memory_mib: int
    storage_mib: int
    bandwidth_mbps: float = 0.0


class Data(Shape, frozen=True):
    """Where the payload is now: a path as seen by the submitter, and the site whose agent takes it."""

    path: str
    site: str


class Place(Shape, frozen=True):
    site: str = ""


class Limits(Shape, frozen=True):
    """`wall` is a duration such as 90s, 5m, 1h."""

    wall: str = "1h"
    files: int = 100_000


class Network(StrEnum):
    NONE = "none"
    EGRESS = "egress"


class Retry(StrEnum):
    SAFE = "safe"
    NEVER = "never"


class Job(Shape, frozen=True):
    """A job file, as INTERFACES of the protocol give it."""

    name: str
    demand: Demand
    run: tuple[str, ...]
    data: Data | None = None
    priority: int = 2
    deadline: str = ""
    place: Place = Place()
    output: str = "out/"
    network: Network = Network.NONE
    retry: Retry = Retry.NEVER
    verify: int = 1
    limits: Limits = Limits()


class PayloadRef(Shape, frozen=True):
    """What the manager sees of a payload: never its contents."""

    root: str  # hex BLAKE3 of the manifest
    bytes: int
    files: int
    site: str
    agent: str  # the agent that holds it


class Spec(Shape, frozen=True):
    """`/w/ID/spec`: immutable."""

    id: str
    job: Job
    payload: PayloadRef | None
    submitted_ms: int
    submitted_by: str


class State(StrEnum):
    PENDING = "pending"
    PLACED = "placed"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"
    CANCELLED = "cancelled"


FINAL_STATES = frozenset({State.DONE, State.FAILED, State.UNKNOWN, State.CANCELLED})


class WorkloadState(Shape, frozen=True):
    """`/w/ID/state`. `attempt` counts placements, from 1; 0 before the first.

    `lease_deadline_ms` is committed time: until it has passed nobody but the
    attempt's agent may change the state. `cancel` asks the agent to stop; `move`
    names the node whose place is kept for the next attempt and asks it to give this one up.
    """

    state: State
    attempt: int = 0
    node: str = ""
    lease_deadline_ms: int = 0
    started: bool = False  # whether any attempt ever reached `running`
    cancel: bool = False
    exit_status: int | None = None
    output_root: str = ""
    reason: str = ""
    policy: str = ""  # what placed it
    limits_enforced: str = ""  # "cgroup v2", "cgroup v1" or "rlimit"
    deadline_missed: bool = False
    move: str = ""
    moves: int = 0  # attempts given up for a move: nobody's fault


class Output(Shape, frozen=True):
    """`/w/ID/out/ATTEMPT`: written once."""

    root: str
    bytes: int
    files: int
    exit_status: int
    node: str
    agent: str


class Capacity(Shape, frozen=True):
    """Integers: thousandths of a core, MiB, MiB, Mbit/s."""

    cpu_milli: int
    memory_mib: int
    storage_mib: int
    bandwidth_mbps: int


class NodeStatus(StrEnum):
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"  # no new work, and nothing is moved away
    DOWN = "down"


class Node(Shape, frozen=True):
    """`/n/NODE/info`."""

    name: str
    site: str
    address: str  # host:port of its agent
    capacity: Capacity
    status: NodeStatus = NodeStatus.READY


class Placed(Shape, frozen=True):
    """One entry of an allocation."""

    workload: str
    attempt: int
    demand: Capacity


class Allocation(Shape, frozen=True):
    """`/n/NODE/alloc`: what is placed there now."""

    placed: tuple[Placed, ...] = ()


def spec_key(workload: str) -> bytes:
    return f"/w/{workload}/spec".encode()


def state_key(workload: str) -> bytes:
    return f"/w/{workload}/state".encode()


def output_key(workload: str, attempt: int) -> bytes:
    return f"/w/{workload}/out/{attempt}".encode()


def node_key(node: str) -> bytes:
    return f"/n/{node}/info".encode()


def allocation_key(node: str) -> bytes:
    return f"/n/{node}/alloc".encode()


WORKLOADS = b"/w/"
NODES = b"/n/"


def prefix_end(prefix: bytes) -> bytes:
    """The first key after every key that starts with `prefix`."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
