"""Several at a time is one after the other, only sooner."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.allocation.serving import placers

from dwcp.allocation import shipped
from dwcp.allocation.heuristics import DEFAULT, HEURISTICS
from dwcp.allocation.serving import ahead
from dwcp.allocation.serving.ahead import Ahead
from dwcp.allocation.serving.chain import Decision, Rule, Served, decide
from dwcp.allocation.serving.scene import Terrain, Wanted
from dwcp.allocation.serving.sheet import Sheet
from dwcp.allocation.serving.state import FleetState
from dwcp.api.allocator import NodeState
from dwcp.api.workloads import Capacity, NodeStatus

RULE = Rule.named(DEFAULT, HEURISTICS[DEFAULT])
NOW_MS = 7_000_000


def fleet(rng: np.random.Generator, count: int) -> FleetState:
    """Few nodes that fill up, one closed, at up to three sites."""
    state = FleetState(Terrain(links={"s0": (100.0, 50.0), "s1": (20.0, 20.0)}))
    state.upsert(
        NodeState(
            f"n{row:03}",
            f"s{rng.integers(3)}",
            Capacity(*(int(one) for one in rng.integers(8_000, 40_000, 4))),
            status=NodeStatus.DRAINING if row == 4 else NodeStatus.READY,
        )
        for row in range(count)
    )
    return state


def workloads(rng: np.random.Generator, count: int) -> list[Wanted]:
    return [
        Wanted(
            name=f"w{number}",
            demand=rng.integers(100, 9_000, 4),
            site="s1" if rng.random() < 0.1 else "",
            data_site=f"s{rng.integers(3)}",
            data_bytes=int(rng.integers(0, 10**10)),
            priority=int(rng.integers(3)),
            predicted_s=float(rng.integers(30, 10**5)),
            may_defer=bool(rng.random() < 0.2),
        )
        for number in range(count)
    ]


def taken(state: FleetState, decision: Decision) -> None:
    if decision.row is not None:
        wanted = decision.wanted
        assert state.hold(
            wanted.name,
            decision.row,
            wanted.demand,
            version=int(decision.scene.version[decision.row]),
            now_ms=NOW_MS,
            until_ms=None,
            run_ms=int(wanted.predicted_s * 1000),
        ), "room was found that is not there"


def in_turn(state: FleetState, wanted: list[Wanted], model: Served) -> list[Decision]:
    found = []
    for one in wanted:
        found.append(decide(state.scene(now_ms=NOW_MS), one, RULE, model=model))
        taken(state, found[-1])
    return found


def together(state: FleetState, wanted: list[Wanted], model: Served) -> list[Decision]:
    scene = state.scene(now_ms=NOW_MS)
    sheet = Sheet(scene.roster, wanted, scene.age_s)
    looking = Ahead(sheet, scene, RULE, model)
    found: list[Decision] = []
    while len(found) < len(wanted):
        sure = looking.decide(
            len(found), state.scene(now_ms=NOW_MS), model=model, left_s=lambda: 1.0, expect_s=0.0
        )
        assert sure
        for decision in sure:
            taken(state, decision)
        found += sure
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 12, 60]), st.sampled_from([2, 7, 32]))
def test_nothing_comes_out_differently(seed: int, nodes: int, count: int) -> None:
    """Goal: a batch answers what its workloads one after the other would get, to the last bit. Method: random fleets
    that fill up and random models, both ways: choices, scores, costs, and the scenes that are kept to explain them."""
    rng = np.random.default_rng(seed)
    model = Served(shipped.load(placers.made(seed % 5, tuned=bool(seed % 2))))
    wanted, layout = workloads(rng, count), rng.integers(2**31)
    one, other = (fleet(np.random.default_rng(layout), nodes) for _ in range(2))

    for mine, theirs in zip(together(one, wanted, model), in_turn(other, wanted, model), strict=True):
        assert (mine.row, mine.fallback, mine.rule_column) == (
            theirs.row,
            theirs.fallback,
            theirs.rule_column,
        )
        assert (mine.rule_cost, mine.model_cost) == (theirs.rule_cost, theirs.model_cost)
        assert mine.scored is not None
        assert theirs.scored is not None
        np.testing.assert_array_equal(mine.rule_scores, theirs.rule_scores)
        np.testing.assert_array_equal(mine.scored.bids, theirs.scored.bids)
        np.testing.assert_array_equal(mine.scored.nodes, theirs.scored.nodes)
        np.testing.assert_array_equal(mine.scene.used, theirs.scene.used)
        np.testing.assert_array_equal(mine.scene.exit_in_s, theirs.scene.exit_in_s)
        assert mine.scene.last == theirs.scene.last
    np.testing.assert_array_equal(one.used, other.used)


def test_wrong_guesses_cost_time_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the guess never shows. Method: guess the worst: everything to a node that takes nothing."""
    wanted = workloads(np.random.default_rng(1), 20)
    model = Served(shipped.load(placers.made(tuned=True)))
    expected = [one.row for one in together(fleet(np.random.default_rng(2), 12), wanted, model)]
    monkeypatch.setattr(ahead, "_favourites", lambda *_: [4] * len(wanted))

    assert [one.row for one in together(fleet(np.random.default_rng(2), 12), wanted, model)] == expected


def test_a_late_model_leaves_the_rest_to_the_rule() -> None:
    """Goal: no round begins that would end too late. Method: no time left; the rule's choices, and why."""
    state = fleet(np.random.default_rng(3), 12)
    scene, wanted = state.scene(), workloads(np.random.default_rng(4), 6)
    model = Served(shipped.load(placers.made(tuned=True)))
    looking = Ahead(Sheet(scene.roster, wanted, scene.age_s), scene, RULE, model)
    sure = looking.decide(0, scene, model=model, left_s=lambda: 0.001, expect_s=0.001)

    assert {one.fallback for one in sure} == {"timeout"}
    assert not any(one.by_model for one in sure)
