"""The fleet that the allocator keeps, changed one placement at a time: arrays, versions, promises with an end.

Whoever knows the nodes describes them; the allocator adds what it has placed since. A placement compares the
node's version with the one that the decision saw. Times are the caller's monotonic milliseconds.

Invariant: `used` of a node = Σ of what its description lists + Σ of what is held there, each workload counted once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from dwcp.allocation.fleet import RESOURCES, Bools, FleetMalformed, Floats, Ints, quantities
from dwcp.allocation.serving.scene import Roster, Scene, Terrain
from dwcp.api.allocator import NODES_MAX, NodeState
from dwcp.api.workloads import NodeStatus

HELD_MAX = 200_000


class NodeUnknown(ValueError):
    """The fleet has no such node: describe it first."""


class FleetFull(ValueError):
    """More is held than the allocator keeps: release what has ended."""


@dataclass(frozen=True, slots=True)
class Held:
    """A workload that this fleet counts on a node. `until_ms` None: until it is released."""

    node: str
    demand: Ints
    until_ms: int | None
    ends_ms: int  # when it is predicted to have ended


@dataclass(slots=True)
class FleetState:
    """Nodes in the order of their names. Methods raise `FleetMalformed`, `NodeUnknown` and change nothing then."""

    terrain: Terrain = field(default_factory=Terrain)
    revision: int = 0  # of the descriptions; placements do not count
    _nodes: dict[str, NodeState] = field(default_factory=dict)
    _held: dict[str, Held] = field(default_factory=dict)
    _ends: list[tuple[int, str]] = field(default_factory=list)  # heap of (until_ms, workload)
    _own: dict[str, list[tuple[str, Ints]]] = field(
        default_factory=dict
    )  # workload -> where descriptions list it
    roster: Roster = field(init=False)
    used: Ints = field(init=False)
    version: Ints = field(init=False)
    _open: Bools = field(init=False)
    _status: tuple[NodeStatus, ...] = ()
    _exit_ms: Floats = field(init=False)
    _seen_ms: Floats = field(init=False)
    _dated: bool = field(init=False)  # whether any description says when it was so
    _zeros: Floats = field(init=False)
    _over: Bools = field(init=False)  # by its description
    _last: int = -1

    def __post_init__(self) -> None:
        self._rebuild({})

    def __len__(self) -> int:
        return len(self._nodes)

    # descriptions

    def upsert(self, nodes: Iterable[NodeState]) -> int:
        """Describes nodes, new or known; what they list as placed is no longer held here. The new revision."""
        wanted = {**self._nodes, **{node.name: node for node in nodes}}
        self._change(wanted)
        return self.revision

    def remove(self, names: Iterable[str]) -> int:
        gone = set(names)
        self._require(gone)
        self._change({name: node for name, node in self._nodes.items() if name not in gone})
        return self.revision

    def set_status(self, names: Iterable[str], status: NodeStatus) -> int:
        """Drains, fails or opens nodes; what is placed there goes on counting."""
        changed = set(names)
        self._require(changed)
        for name in changed:
            old = self._nodes[name]
            self._nodes[name] = NodeState(
                old.name, old.site, old.capacity, old.allocation, status, old.seen_ms
            )
        self._status = tuple(node.status for node in self._sorted(self._nodes))
        self._open = np.array([one is NodeStatus.READY for one in self._status], dtype=np.bool_)
        self.version[[self.roster.rows[name] for name in changed]] += 1
        self.revision += 1
        return self.revision

    def nodes(self) -> tuple[NodeState, ...]:
        return tuple(self._sorted(self._nodes))

    # placements

    def scene(self, *, workload: str = "", wall_ms: int = 0, now_ms: int = 0) -> Scene:
        """What a decision on `workload` sees; its own older entries do not count against it."""
        used = self.used.copy()
        for row, demand in self._entries(workload):
            used[row] -= demand
        seen = self._seen_ms
        age = (
            np.where(seen > 0, np.maximum(wall_ms - seen, 0.0), 0.0) / 1000.0 if self._dated else self._zeros
        )
        exit_in = self._exit_ms - now_ms
        np.maximum(exit_in, 0.0, out=exit_in)
        exit_in /= 1000.0
        return Scene(
            self.roster, used, self._status, self._open, age, exit_in, self._last, self.version.copy()
        )

    def hold(
        self,
        workload: str,
        row: int,
        demand: Ints,
        *,
        version: int,
        now_ms: int,
        until_ms: int | None,
        run_ms: int,
    ) -> bool:
        """Takes the room, if the node is as it was when the decision saw it (`version`) and has it.

        The newest placement of a workload replaces its older one. Raises `FleetFull`.
        """
        if int(self.version[row]) != version or not self._open[row]:
            return False
        known = workload in self._held
        if not known and len(self._held) >= HELD_MAX:
            raise FleetFull(f"{HELD_MAX} workloads are held: release what has ended")
        free = self.roster.capacity[row] - self.used[row]
        for at, part in self._entries(workload):
            if at == row:
                free += part
        if not np.logical_and.reduce(free >= demand):
            return False
        if known:
            self.release(workload)
        self._disown(workload, row)
        self.used[row] += demand
        self.version[row] += 1
        self._exit_ms[row] = max(float(self._exit_ms[row]), float(now_ms + run_ms))
        self._held[workload] = Held(self.roster.names[row], demand, until_ms, now_ms + run_ms)
        if until_ms is not None:
            heappush(self._ends, (until_ms, workload))
        self._last = row
        return True

    def knows(self, workload: str) -> bool:
        """Whether it is held here or listed by a description."""
        return workload in self._held or workload in self._own

    def count(self, workload: str, row: int, demand: Ints, *, ends_ms: int) -> None:
        """Counts what is promised elsewhere already, whether it fits or not."""
        self.release(workload)
        self.used[row] += demand
        self.version[row] += 1
        self._held[workload] = Held(self.roster.names[row], demand, None, ends_ms)

    def release(self, workload: str) -> bool:
        """Whether it was held."""
        held = self._held.pop(workload, None)
        if held is None:
            return False
        row = self.roster.rows.get(held.node)
        if row is not None:
            self.used[row] -= held.demand
            self.version[row] += 1
        return True

    def expire(self, now_ms: int) -> None:
        """Ends what was promised until now."""
        while self._ends and self._ends[0][0] <= now_ms:
            until_ms, workload = heappop(self._ends)
            held = self._held.get(workload)
            if held is not None and held.until_ms == until_ms:
                self.release(workload)

    def held(self) -> dict[str, Held]:
        """What is held, by workload; not to be changed."""
        return self._held

    def fork(self) -> FleetState:
        """The same fleet for trying things: nothing that happens to it shows here."""
        other = FleetState(self.terrain, self.revision)
        other._held = dict(self._held)
        other._rebuild(dict(self._nodes))
        other._last = self._last
        return other

    def overfull(self) -> int:
        """Nodes that were not overfull when they were described and are now: only a wrong decision does that."""
        return int(((self.used > self.roster.capacity).any(axis=1) & ~self._over).sum())

    # parts

    def _entries(self, workload: str) -> list[tuple[int, Ints]]:
        found = []
        held = self._held.get(workload)
        if held is not None and held.node in self.roster.rows:
            found.append((self.roster.rows[held.node], held.demand))
        for node, demand in self._own.get(workload, ()):
            found.append((self.roster.rows[node], demand))
        return found

    def _disown(self, workload: str, node: int) -> None:
        """What a description lists of this workload on this node no longer counts: the new placement stands for it.

        On other nodes it goes on counting: whoever describes them says when it is gone.
        """
        entries = self._own.get(workload)
        if not entries:
            return
        name = self.roster.names[node]
        for at, demand in entries:
            if at == name:
                self.used[node] -= demand
        self._own[workload] = [entry for entry in entries if entry[0] != name]

    def _require(self, names: set[str]) -> None:
        unknown = sorted(names - self._nodes.keys())
        if unknown:
            raise NodeUnknown(f"nodes: {', '.join(unknown[:8])}: not in this fleet; describe them first")

    def _change(self, nodes: dict[str, NodeState]) -> None:
        if len(nodes) > NODES_MAX:
            raise FleetMalformed(f"nodes: {len(nodes)}; a fleet has at most {NODES_MAX}")
        self._rebuild(nodes)
        self.revision += 1

    def _rebuild(self, nodes: dict[str, NodeState]) -> None:
        """Everything from the descriptions and what is held beside them; raises before anything is changed."""
        ordered = self._sorted(nodes)
        roster = Roster.of(ordered, self.terrain)
        used = np.zeros((len(ordered), len(RESOURCES)), dtype=np.int64)
        own: dict[str, list[tuple[str, Ints]]] = {}
        for row, node in enumerate(ordered):
            for placed in node.allocation.placed:
                demand = quantities(placed.demand, where=f"nodes.{node.name}.allocation")
                used[row] += demand
                own.setdefault(placed.workload, []).append((node.name, demand))
        self._held = {
            name: held for name, held in self._held.items() if name not in own and held.node in nodes
        }
        exit_ms = np.zeros(len(ordered))
        for held in self._held.values():
            row = roster.rows[held.node]
            used[row] += held.demand
            exit_ms[row] = max(exit_ms[row], float(held.ends_ms))
        self._nodes, self._own, self.roster, self.used = nodes, own, roster, used
        self._exit_ms = exit_ms
        self._over = np.asarray((used > roster.capacity).any(axis=1), dtype=np.bool_)
        self._seen_ms = np.array([float(node.seen_ms) for node in ordered])
        self._dated = bool(self._seen_ms.any())
        self._status = tuple(node.status for node in ordered)
        self._open = np.array([one is NodeStatus.READY for one in self._status], dtype=np.bool_)
        self._zeros = np.zeros(len(ordered))
        self.version = np.full(len(ordered), self.revision + 1, dtype=np.int64) * 2**32
        self._last = -1

    @staticmethod
    def _sorted(nodes: dict[str, NodeState]) -> tuple[NodeState, ...]:
        return tuple(nodes[name] for name in sorted(nodes))
