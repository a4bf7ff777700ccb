"""The machine as all its attempts share it: what it offers, and the parts that they act through."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from dwcp.api.workloads import Capacity, Spec
from dwcp.runtime.attempts import AttemptStore
from dwcp.runtime.cgroups import Cgroups
from dwcp.runtime.clock import Clock
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.agent.ports import ControlLog, Goods, Teller


class Room:
    """What this machine still has. The log decides placements; this holds a start back while an older
    attempt, already replaced in the log, is still being stopped here."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._taken: dict[str, Capacity] = {}

    def admit(self, attempt: str, demand: Capacity, *, force: bool = False) -> bool:
        """`force`: it runs already, so it takes its share whatever is left."""
        if attempt in self._taken:
            return True
        fits = all(
            sum(getattr(taken, name) for taken in self._taken.values()) + getattr(demand, name)
            <= getattr(self._capacity, name)
            for name in Capacity.__struct_fields__
        )
        if fits or force:
            self._taken[attempt] = demand
        return fits or force

    def release(self, attempt: str) -> None:
        self._taken.pop(attempt, None)


@dataclass(frozen=True, slots=True)
class Site:
    """The machine as every courier on it sees it."""

    node: str
    name: str  # of the agent process
    log: ControlLog
    goods: Goods
    teller: Teller
    store: AttemptStore
    cgroups: Cgroups
    room: Room
    clock: Clock
    telemetry: Telemetry
    logger: structlog.stdlib.BoundLogger
    lease_ms: int
    ship_stall_ms: int
    hidden: tuple[str, ...] = ()
    shim_arguments: tuple[str, ...] = ()


def demand_of(spec: Spec) -> Capacity:
    """As the placement counted it: fractions rounded up."""
    demand = spec.job.demand
    return Capacity(
        cpu_milli=round(demand.cpu * 1000),
        memory_mib=demand.memory_mib,
        storage_mib=demand.storage_mib,
        bandwidth_mbps=-int(-demand.bandwidth_mbps // 1),
    )
