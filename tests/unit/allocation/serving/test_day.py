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


def test_a_restart_takes_the_day_up() -> None:
    """Goal: a restart loses no placement of the day. Method: tell, take up, compare; then go on as if nothing was."""
    before = Day(1000)
    for name, held in (("w", True), ("v", True), ("u", False)):
        before.placed(workload(name), "n", by="model", held=held, now_ms=2000)
    before.released("v", now_ms=3000)
    told = list(before.told(held={"w"}, now_ms=5000))

    after = Day(6000)
    after.take_up(before.since_ms, told, now_ms=6000)
    assert after.since_ms == 1000
    whole = before.dealt(held={"w"}, now_ms=5000)
    assert after.dealt(held=(), now_ms=6000) == whole
    assert [one.until_ms for one in whole] == [5000, 3000, 2000]
    after.listed([listing("w", "v")], now_ms=7000)
    found = {one.workload: one.until_ms for one in after.dealt(held=(), now_ms=7000)}
    assert found == {"w": 7000, "v": 3000, "u": 2000}


def test_what_is_old_or_of_the_future_is_not_taken_up() -> None:
    """Goal: the day is one day, whatever the clock did. Method: placements of yesterday and of tomorrow."""
    before = Day(0)
    before.placed(workload("old"), "n", by="rule", held=True, now_ms=10)
    before.placed(workload("new"), "n", by="rule", held=True, now_ms=DAY_MS)
    told = list(before.told(held=(), now_ms=DAY_MS))
    after = Day(DAY_MS + 20)
    after.take_up(0, told, now_ms=DAY_MS + 20)
    assert [one.workload for one in after.dealt(held=(), now_ms=DAY_MS + 20)] == ["new"]
    assert after.since_ms == 20
    back = Day(100)
    back.take_up(0, told, now_ms=100)
    assert [one.workload for one in back.dealt(held=(), now_ms=100)] == ["old"]
