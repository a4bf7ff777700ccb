"""Nodes as arrays: the one representation that masks and scores are computed on.

Shapes: N nodes in the order of the request, R = 4 resources in the order of
`RESOURCES`. All quantities are int64 in the units of `api.workloads.Capacity`,
so that feasibility is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dwcp.allocation.errors import FleetMalformed as FleetMalformed
from dwcp.api.allocator import NodeState
from dwcp.api.workloads import Capacity

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

RESOURCES = ("cpu_milli", "memory_mib", "storage_mib", "bandwidth_mbps")
QUANTITY_MAX = 2**40  # keeps every sum below far away from the end of int64


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the asker says there is; `free` may be negative where a node is overfull already."""

    nodes: tuple[NodeState, ...]
    capacity: Ints  # [N, R]
    used: Ints  # [N, R], placements and reservations

    @property
    def free(self) -> Ints:
        """[N, R]"""
        return self.capacity - self.used


def fleet_of(
    nodes: Iterable[NodeState], *, workload: str = "", reserved: Mapping[str, Capacity] | None = None
) -> Fleet:
    """Arrays of the nodes; `workload`'s own older entries do not count against it.

    `reserved` is what else is promised, by node. Raises `FleetMalformed`.
    """
    kept = tuple(nodes)
    if len({node.name for node in kept}) != len(kept):
        raise FleetMalformed("nodes: a name is given twice; name each node once")
    capacity = np.zeros((len(kept), len(RESOURCES)), dtype=np.int64)
    used = np.zeros_like(capacity)
    for row, node in enumerate(kept):
        capacity[row] = quantities(node.capacity, where=f"nodes.{node.name}.capacity")
        for placed in node.allocation.placed:
            if placed.workload != workload:
                used[row] += quantities(placed.demand, where=f"nodes.{node.name}.allocation")
        if reserved and node.name in reserved:
            used[row] += quantities(reserved[node.name], where="reservations")
    return Fleet(kept, capacity, used)


def quantities(amount: Capacity, *, where: str) -> Ints:
    """[R]; raises `FleetMalformed` for negative or absurd numbers."""
    values = [getattr(amount, name) for name in RESOURCES]
    for name, value in zip(RESOURCES, values, strict=True):
        if not 0 <= value <= QUANTITY_MAX:
            raise FleetMalformed(f"{where}.{name}: {value}; it is between 0 and {QUANTITY_MAX}")
    return np.array(values, dtype=np.int64)
