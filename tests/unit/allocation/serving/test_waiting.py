"""Who waits for a place, for how long, and when that is too long."""

from __future__ import annotations

import dataclasses

import numpy as np

from dwcp.allocation.serving.scene import Wanted
from dwcp.allocation.serving.waiting import FORGET_MS, WAITING_MAX, Miss, Waiting


def workload(name: str = "w", *, budget_s: float = 60.0, slack_s: float = 60.0) -> Wanted:
    return Wanted(name, np.zeros(4, dtype=np.int64), priority=1, budget_s=budget_s, slack_s=slack_s)


def test_a_wait_is_counted_from_the_first_refusal() -> None:
    """Goal: an asker that says nothing of its wait is not taken for new. Method: refuse, refuse, place."""
    waiting = Waiting()
    assert waiting.refused(workload(), site="oslo", now_ms=0) is None
    assert waiting.refused(workload(), site="oslo", now_ms=30_000) is None
    assert waiting.lengths(now_ms=30_000) == {("oslo", 1): 1}

    assert waiting.placed(workload(), late=0.2, now_ms=45_000) == (45.0, None)
    assert not waiting.lengths(now_ms=45_000)


def test_each_workload_misses_its_budget_once() -> None:
    """Goal: a violation is a workload, not a question. Method: refuse past the budget, again, then place."""
    waiting = Waiting()
    found = [waiting.refused(workload(), site="", now_ms=now_ms) for now_ms in (0, 60_001, 90_000)]

    assert found == [None, Miss.CAPACITY, None]
    assert waiting.placed(workload(), late=1.0, now_ms=100_000) == (100.0, None)


def test_what_the_asker_says_counts() -> None:
    """Goal: causes are told apart. Method: 70 of 60 s waited; data that arrives after the budget; neither."""
    late = dataclasses.replace(workload(), slack_s=-10.0)

    assert Waiting().placed(late, late=1.0, now_ms=0) == (70.0, Miss.WAIT)
    assert Waiting().placed(workload(), late=1.0, now_ms=0) == (0.0, Miss.SHIPPING)
    assert Waiting().placed(workload(), late=0.99, now_ms=0) == (0.0, None)
    assert Waiting().refused(late, site="", now_ms=0) is Miss.CAPACITY


def test_memory_is_bounded_and_the_silent_are_forgotten() -> None:
    """Goal: names that never come back cost nothing for long. Method: too many; then time passes."""
    waiting = Waiting()
    for number in range(WAITING_MAX + 5):
        waiting.refused(workload(f"w{number}"), site="", now_ms=number)

    assert waiting.lengths(now_ms=WAITING_MAX)["", 1] == WAITING_MAX
    waiting.forget(f"w{WAITING_MAX}")
    assert waiting.lengths(now_ms=WAITING_MAX)["", 1] == WAITING_MAX - 1
    assert not waiting.lengths(now_ms=WAITING_MAX + 6 + FORGET_MS)
