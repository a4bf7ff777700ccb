"""The day's placements: what became one, how long it ran, and how much is kept."""

from __future__ import annotations

import numpy as np

from dwcp.allocation.serving import day
from dwcp.allocation.serving.day import DAY_MS, UNSEEN_MS, Day
from dwcp.allocation.serving.scene import Wanted
from dwcp.api.allocator import NodeState
from dwcp.api.workloads import Allocation, Capacity, Placed


def workload(name: str = "w") -> Wanted:
    return Wanted(name, np.array([1000, 64, 1, 0]), data_site="oslo", data_bytes=5)


def listing(*names: str) -> NodeState:
    one = Capacity(1000, 64, 1, 0)
    placed = tuple(Placed(workload=name, attempt=1, demand=one) for name in names)
    return NodeState("n", "oslo", Capacity(9000, 9000, 9000, 9), Allocation(placed=placed))


def test_a_proposal_counts_once_a_node_lists_it() -> None:
    """Goal: advice that nobody took is no placement. Method: two proposals, one is listed twice."""
    today = Day(0)
    today.asked("w", now_ms=500)
    for name in ("w", "v"):
        today.placed(workload(name), "n", by="rule", held=False, now_ms=1000)
    for now_ms in (2000, 9000):
        today.listed([listing("w", "stranger")], now_ms=now_ms)

    (found,) = today.dealt(held=(), now_ms=1000 + UNSEEN_MS)
    assert (found.workload, found.asked_ms, found.placed_ms, found.until_ms) == ("w", 500, 1000, 9000)
    assert (found.demand, found.data_site, found.data_bytes) == (Capacity(1000, 64, 1, 0), "oslo", 5)


def test_what_is_held_runs_until_it_is_released() -> None:
    """Goal: run times of placements that stand. Method: hold two, release one."""
    today = Day(0)
    for name in ("w", "v"):
        today.placed(workload(name), "n", by="model", held=True, now_ms=0)
    today.released("w", now_ms=7000)

    assert [one.until_ms for one in today.dealt(held=("v",), now_ms=10**6)] == [7000, 10**6]


def test_a_day_ends() -> None:
    """Goal: memory is bounded by time and by number. Method: a placement after a day; one more than are kept."""
    today = Day(0)
    today.placed(workload("old"), "n", by="rule", held=True, now_ms=0)
    today.placed(workload("new"), "n", by="rule", held=True, now_ms=DAY_MS + 1)
    assert [one.workload for one in today.dealt(held=(), now_ms=DAY_MS + 2)] == ["new"]

    for number in range(day.DEALT_MAX):
        today.placed(workload(f"w{number}"), "n", by="rule", held=True, now_ms=DAY_MS + 2)
    assert len(today.dealt(held=(), now_ms=DAY_MS + 3)) == day.DEALT_MAX
