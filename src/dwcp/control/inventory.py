"""What the control log says, as far as this process has heard: workloads, nodes, allocations.

A view is only a hint: every transaction made from it compares the revisions
that the view was made from, so an old view costs a retry and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from dwcp.api.kv import KeyValue, Put, Range, RangeDone, Txn, TxnDone
from dwcp.api.rebalance import REBALANCE, Rebalance
from dwcp.api.workloads import FINAL_STATES, Allocation, Capacity, Node, Output, Spec, State, WorkloadState
from dwcp.control.errors import JobRefused
from dwcp.control.jobs import RESOURCES, check_job

QUANTITY_MAX = 2**40
LEASED = frozenset({State.PLACED, State.RUNNING})

_KEY = re.compile(rb"/(w)/([^/]+)/(spec|state|out)(?:/([0-9]{1,9}))?|/(n)/([^/]+)/(info|alloc)")
_ABSENT = WorkloadState(state=State.UNKNOWN, reason="the control log holds no state for it")
T = TypeVar("T")
T2 = TypeVar("T2")


@dataclass(frozen=True, slots=True)
class WorkloadEntry:
    """One workload; `revision` is that of its state."""

    spec: Spec
    state: WorkloadState
    revision: int
    outputs: dict[int, Output] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def leased(self) -> bool:
        return self.state.state in LEASED


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """One node; an allocation never written has revision 0."""

    node: Node
    revision: int
    allocation: Allocation
    allocation_revision: int

    @property
    def name(self) -> str:
        return self.node.name

    def fits(self, demand: Capacity, *, workload: str = "") -> bool:
        """Whether `demand` goes in beside what is placed there; what is kept for `workload` is its own."""
        return all(
            used + getattr(demand, name) <= getattr(self.node.capacity, name)
            for name, used in zip(RESOURCES, self.used(workload), strict=True)
        )

    def used(self, but: str = "") -> tuple[int, ...]:
        """What is placed, in the order of `RESOURCES`, `but` for one workload."""
        placed = [entry for entry in self.allocation.placed if entry.workload != but]
        return tuple(sum(getattr(entry.demand, name) for entry in placed) for name in RESOURCES)


@dataclass(frozen=True, slots=True)
class Transition:
    """A workload's state as it became known, and what was known before (None: nothing)."""

    workload: str
    before: WorkloadState | None
    after: WorkloadState


@dataclass(slots=True)
class Inventory:
    """Fed by reads, by watches and by this process's own commits, in any order.

    Per key the highest revision wins. A value that is not of its shape is
    listed in `damaged` and otherwise as good as absent: nobody acts on it.
    """

    revision: int = 0
    damaged: dict[bytes, str] = field(default_factory=dict)
    _revisions: dict[bytes, int] = field(default_factory=dict)
    _specs: dict[str, Spec] = field(default_factory=dict)
    _states: dict[str, WorkloadState] = field(default_factory=dict)
    _outputs: dict[str, dict[int, Output]] = field(default_factory=dict)
    _nodes: dict[str, Node] = field(default_factory=dict)
    _allocations: dict[str, Allocation] = field(default_factory=dict)
    _active: set[str] = field(default_factory=set)
    rebalance: Rebalance | None = None  # the newest that was ordered

    # ------------------------------------------------------------------ reading

    def workload(self, identity: str) -> WorkloadEntry | None:
        spec = self._specs.get(identity)
        if spec is None:
            return None
        state = self._states.get(identity, _ABSENT)
        revision = self._known(b"/w/%s/state" % identity.encode())
        return WorkloadEntry(spec, state, revision, self._outputs.get(identity, {}))

    def workloads(self) -> list[WorkloadEntry]:
        """In order of submission."""
        return self._sorted(self._specs)

    def active(self) -> list[WorkloadEntry]:
        """Those that have not ended, in order of submission; its cost does not grow with history."""
        return self._sorted(self._active)

    def _sorted(self, names: Iterable[str]) -> list[WorkloadEntry]:
        entries = [entry for name in names if (entry := self.workload(name)) is not None]
        return sorted(entries, key=lambda entry: (entry.spec.submitted_ms, entry.id))

    def node(self, name: str) -> NodeEntry | None:
        node = self._nodes.get(name)
        if node is None:
            return None
        info = self._known(b"/n/%s/info" % name.encode())
        alloc_key = b"/n/%s/alloc" % name.encode()
        if alloc_key in self.damaged:
            return None  # its load is unknown, so nothing may be placed there
        allocation = self._allocations.get(name, Allocation())
        return NodeEntry(node, info, allocation, self._known(alloc_key))

    def nodes(self) -> list[NodeEntry]:
        """By name."""
        return [entry for name in sorted(self._nodes) if (entry := self.node(name)) is not None]

    @property
    def rebalance_revision(self) -> int:
        return self._known(REBALANCE)

    def _known(self, key: bytes) -> int:
        """The revision of a key that exists; a deleted one compares as 0."""
        return max(self._revisions.get(key, 0), 0)

    # ------------------------------------------------------------------ feeding

    def put(self, key: bytes, value: bytes | None, revision: int) -> Transition | None:
        """One write (value None: a deletion) at `revision`; older news than known is ignored."""
        if revision <= abs(self._revisions.get(key, 0)):
            return None
        self.revision = max(self.revision, revision)
        self._revisions[key] = revision if value is not None else -revision
        return self._take(key, value)

    def load(self, kvs: Iterable[KeyValue], *, prefix: bytes, revision: int) -> list[Transition]:
        """A whole read of `prefix` at `revision`: keys not in it are gone by then."""
        listed = {kv.key: kv for kv in kvs}
        found = [self.put(kv.key, kv.value, kv.mod_revision) for kv in listed.values()]
        for key in [key for key in self._revisions if key.startswith(prefix) and key not in listed]:
            if 0 < self._revisions[key] <= revision:
                self._revisions[key] = -revision
                self._take(key, None)
        self.revision = max(self.revision, revision)
        return [transition for transition in found if transition is not None]

    def committed(self, txn: Txn, done: TxnDone) -> list[Transition]:
        """This process's own transaction: its writes, or what its failure branch read."""
        found: list[Transition | None] = []
        if done.succeeded:
            puts = [part for part in txn.success if isinstance(part, Put)]
            found = [self.put(part.key, part.value, done.revision) for part in puts]
        else:
            reads = [part for part in txn.failure if isinstance(part, Range)]
            for read, result in zip(reads, done.results, strict=False):
                if isinstance(result, RangeDone):
                    found += [self.put(kv.key, kv.value, kv.mod_revision) for kv in result.kvs]
                    if not result.kvs:
                        found.append(self.put(read.key, None, result.revision))
        return [transition for transition in found if transition is not None]

    def _take(self, key: bytes, value: bytes | None) -> Transition | None:
        match = _KEY.fullmatch(key)
        self.damaged.pop(key, None)
        if match is None and key != REBALANCE:
            return None
        try:
            if match is None:
                self.rebalance = None
                self.rebalance = msgspec.json.decode(value, type=Rebalance) if value is not None else None
                return None
            name = (match[2] or match[6]).decode()
            return self._sort(match, name, value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, JobRefused) as exc:
            self.damaged[key] = str(exc)
            for kept in (self._specs, self._nodes) if value is not None else ():
                kept.pop(key.split(b"/")[2].decode("utf-8", "replace"), None)
            return None

    def _sort(self, match: re.Match[bytes], name: str, value: bytes | None) -> Transition | None:
        match match[3] or match[7]:
            case b"spec":
                kept = _keep(self._specs, name, value, Spec)
                if kept is not None:
                    check_job(kept.job)
            case b"state":
                before = self._states.get(name)
                self._active.discard(name)
                after = _keep(self._states, name, value, WorkloadState)
                if after is not None and after.state not in FINAL_STATES:
                    self._active.add(name)
                return Transition(name, before, after) if after is not None else None
            case b"out":
                _keep(self._outputs.setdefault(name, {}), int(match[4] or 0), value, Output)
            case b"info":
                node = _keep(self._nodes, name, value, Node)
                if node is not None:
                    _check_amount(node.capacity)
            case b"alloc":
                allocation = _keep(self._allocations, name, value, Allocation)
                for placed in allocation.placed if allocation is not None else ():
                    _check_amount(placed.demand)
        return None


def _check_amount(amount: Capacity) -> None:
    """Refuses what no machine has, before anybody computes with it."""
    for name in RESOURCES:
        if not 0 <= getattr(amount, name) <= QUANTITY_MAX:
            raise msgspec.ValidationError(f"{name}: {getattr(amount, name)} is out of range")


def _keep(kept: dict[T, T2], name: T, value: bytes | None, shape: type[T2]) -> T2 | None:
    kept.pop(name, None)
    if value is None:
        return None
    kept[name] = decoded = msgspec.json.decode(value, type=shape)
    return decoded
