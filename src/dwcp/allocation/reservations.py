"""Short promises between an answer and its commit, so that two askers rarely pick one gap.

Only a courtesy: the control log compares revisions, and an expired or
forgotten reservation costs at most a conflict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dwcp.api.allocator import NodeState, Reservation
from dwcp.api.workloads import Capacity

TTL_MS = 5_000
RESERVATIONS_MAX = 10_000


@dataclass(slots=True)
class Reservations:
    """One per workload; the newest replaces the older. The oldest go first at the limit."""

    ttl_ms: int = TTL_MS
    _kept: dict[str, Reservation] = field(default_factory=dict)

    def reserve(self, workload: str, node: str, demand: Capacity, *, now_ms: int) -> None:
        self._kept.pop(workload, None)
        while len(self._kept) >= RESERVATIONS_MAX:
            del self._kept[next(iter(self._kept))]
        self._kept[workload] = Reservation(
            workload=workload, node=node, demand=demand, expires_ms=now_ms + self.ttl_ms
        )

    def release(self, workload: str) -> bool:
        """Whether there was one."""
        return self._kept.pop(workload, None) is not None

    def by_node(self, nodes: Iterable[NodeState], *, workload: str, now_ms: int) -> dict[str, Capacity]:
        """What is promised to others than `workload`; a promise that became a placement no longer counts."""
        self._expire(now_ms)
        placed = {entry.workload for node in nodes for entry in node.allocation.placed}
        for name in placed & self._kept.keys():
            del self._kept[name]
        sums: dict[str, Capacity] = {}
        for kept in self._kept.values():
            if kept.workload != workload:
                sums[kept.node] = _plus(sums.get(kept.node), kept.demand)
        return sums

    def current(self, *, now_ms: int) -> tuple[Reservation, ...]:
        self._expire(now_ms)
        return tuple(self._kept.values())

    def _expire(self, now_ms: int) -> None:
        """Drops what is over, and what a clock that jumped back would keep for long."""
        self._kept = {
            name: kept
            for name, kept in self._kept.items()
            if now_ms < kept.expires_ms <= now_ms + self.ttl_ms
        }


def _plus(sum_: Capacity | None, more: Capacity) -> Capacity:
    if sum_ is None:
        return more
    return Capacity(
        cpu_milli=sum_.cpu_milli + more.cpu_milli,
        memory_mib=sum_.memory_mib + more.memory_mib,
        storage_mib=sum_.storage_mib + more.storage_mib,
        bandwidth_mbps=sum_.bandwidth_mbps + more.bandwidth_mbps,
    )
