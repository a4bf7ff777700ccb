"""The day's placements beside first-fit and DRF: what each would have cost, by hand and paired."""

from __future__ import annotations

import msgspec
import pytest

from dwcp.allocation.replay import DRF, FIRST_FIT, replay
from dwcp.api.allocator import Dealt, NodeState, Prices
from dwcp.api.workloads import Allocation, Capacity, Placed

PRICES = Prices({"oslo": (100.0, 100.0), "rome": (100.0, 100.0)}, 0.02, 0.0, {}, {})
GB = 10**9


def node(name: str, site: str, *, cpu: int = 4000, other: int = 0) -> NodeState:
    amount = Capacity(other, 0, 0, 0)
    placed = (Placed(workload="elsewhere", attempt=1, demand=amount),) if other else ()
    return NodeState(name, site, Capacity(cpu, 4096, 1000, 100), Allocation(placed=placed))


NODES = (node("a", "oslo"), node("b", "rome"))


def dealt(
    name: str, where: str, *, cpu: int = 1000, at_ms: int = 0, ran_ms: int = 1000, **more: object
) -> Dealt:
    made = Dealt(
        workload=name, node=where, by="model", asked_ms=at_ms, placed_ms=at_ms, until_ms=at_ms + ran_ms,
        demand=Capacity(cpu, 64, 1, 0), site="", data_site="rome", data_bytes=GB, priority=1, predicted_s=3600.0,
        budget_s=600.0,
    )  # fmt: skip
    return msgspec.structs.replace(made, **more)


def test_staying_with_the_data_is_what_first_fit_does_not() -> None:
    """Goal: the saving is the shipping. Method: 40 workloads with a GB each in rome, placed there; first-fit begins at
    the first name, which is in oslo."""
    day = [dealt(f"w{number}", "b", at_ms=number * 2000) for number in range(40)]
    found = replay(day, NODES, PRICES, tenants={}, since_ms=0)

    against = found.rivals[FIRST_FIT]
    assert against.ours_usd == 0.0
    assert against.theirs_usd > 40 * 0.02
    assert (against.saved, against.saved_low, against.saved_high) == (1.0, 1.0, 1.0)
    assert (found.workloads, found.by_model) == (40, 40)


def test_the_same_choices_save_nothing() -> None:
    """Goal: no advantage from how it is computed. Method: what first-fit would do, as our own placements."""
    day = [dealt(f"w{number}", "a", at_ms=number * 2000) for number in range(40)]
    against = replay(day, NODES, PRICES, tenants={}, since_ms=0).rivals[FIRST_FIT]

    assert (against.saved, against.saved_low, against.theirs_waited) == (0.0, 0.0, 0)


def test_too_few_have_no_interval_and_nobody_no_saving() -> None:
    """Goal: nothing is claimed from nothing. Method: two workloads; none."""
    few = replay([dealt("v", "b"), dealt("w", "b")], NODES, PRICES, tenants={}, since_ms=0).rivals[DRF]
    assert few.saved == 1.0
    assert (few.saved_low, few.saved_high) == (None, None)
    assert replay([], NODES, PRICES, tenants={}, since_ms=0).rivals[DRF].saved is None


def test_rivals_wait_where_there_is_no_room_and_drf_is_fair() -> None:
    """Goal: queues are real. Method: one node of 4 cores, 1 taken by others; ann asks for three times 3 cores at
    once and then bob: first-fit keeps the order, DRF lets bob go second, and somebody's late start costs."""
    one = (node("a", "oslo", other=1000),)
    day = [dealt(f"ann{k}", "a", cpu=3000, at_ms=k, ran_ms=60_000, data_bytes=0) for k in range(3)]
    day.append(dealt("bob", "a", cpu=3000, at_ms=10, ran_ms=60_000, data_bytes=0))
    who = {"ann0": "ann", "ann1": "ann", "ann2": "ann", "bob": "bob"}
    found = replay(day, one, PRICES, tenants=who, since_ms=0)

    assert found.rivals[FIRST_FIT].theirs_waited == 3
    assert found.rivals[DRF].theirs_waited == 3
    assert found.rivals[FIRST_FIT].theirs_never == found.rivals[DRF].theirs_never == 0


def test_what_is_too_big_never_starts_and_costs_its_value() -> None:
    """Goal: a rival gains nothing by not placing. Method: a node whose room is taken by others."""
    against = replay(
        [dealt("w", "a", cpu=4000)], (node("a", "oslo", other=500),), PRICES, tenants={}, since_ms=0
    ).rivals[FIRST_FIT]

    assert against.theirs_never == 1
    assert against.theirs_usd == pytest.approx(1.25 * 4 * 0.04)
