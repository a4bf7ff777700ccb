"""The rules of placement as the manager follows them by itself; the allocator follows the same.

Their arithmetic (numpy, 13 MB) is loaded when it is first needed: while the allocator answers and nothing is
moved, a manager does without.
"""

from __future__ import annotations

from collections.abc import Sequence

from dwcp.api.allocator import PlaceAnswer, PlaceRequest
from dwcp.api.rebalance import Move, Plan, PlanRequest


def propose(wanted: PlaceRequest) -> PlaceAnswer:
    """A place, said to be the manager's own. Raises `FleetMalformed`, `PolicyUnknown`."""
    from dwcp.allocation.decide import decide

    return decide(wanted, fallback=True)


def plan(wanted: PlanRequest) -> Plan:
    """The moves to make. Raises `FleetMalformed`."""
    from dwcp.allocation import rebalance

    return rebalance.plan(wanted)


def judge(wanted: PlanRequest, moves: Sequence[Move], *, at_a_loss: bool = False) -> Plan:
    """The plan that these moves are. Raises `PlanRefused`, `FleetMalformed`."""
    from dwcp.allocation import rebalance

    return rebalance.judge(wanted, moves, at_a_loss=at_a_loss)
