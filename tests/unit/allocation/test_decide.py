"""Placement decisions: never infeasible whatever the scores, deterministic, and explained."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.allocation.decide import PolicyUnknown, decide
from dwcp.allocation.feasibility import choose, choose_column, feasible, reasons
from dwcp.allocation.fleet import RESOURCES, FleetMalformed, fleet_of, quantities
from dwcp.allocation.heuristics import DEFAULT, HEURISTICS, TABLE, best_rule
from dwcp.allocation.policies import tuned
from dwcp.allocation.reservations import Reservations
from dwcp.allocation.serving.scene import Terrain, scene_of, view_of, wanted_of
from dwcp.api.allocator import NodeState, PlaceRequest
from dwcp.api.workloads import Allocation, Capacity, NodeStatus, Placed

amounts = st.integers(0, 8)
capacities = st.builds(
    Capacity, cpu_milli=amounts, memory_mib=amounts, storage_mib=amounts, bandwidth_mbps=amounts
)
allocations = st.lists(
    st.builds(Placed, workload=st.sampled_from("abcde"), attempt=st.just(1), demand=capacities), max_size=2
).map(lambda entries: Allocation(placed=tuple(entries)))
nodes = st.lists(
    st.builds(
        NodeState,
        name=st.sampled_from([f"n{number}" for number in range(8)]),
        site=st.sampled_from(["oslo", "rome", "lima"]),
        capacity=capacities,
        allocation=allocations,
        status=st.sampled_from(NodeStatus),
    ),
    max_size=6,
    unique_by=lambda node: node.name,
).map(tuple)
requests = st.builds(
    PlaceRequest,
    workload=st.sampled_from("abx"),
    demand=capacities,
    nodes=nodes,
    site=st.sampled_from(["", "", "oslo", "nowhere"]),
    data_site=st.sampled_from(["", "oslo", "nowhere"]),
    data_bytes=st.integers(0, 10**15),
    policy=st.sampled_from(["", *HEURISTICS]),
)


def node(name: str, *, cpu: int = 4000, memory: int = 4096, link: int = 100, **more: object) -> NodeState:
    capacity = Capacity(cpu_milli=cpu, memory_mib=memory, storage_mib=10_000, bandwidth_mbps=link)
    base = NodeState(name=name, site=name, capacity=capacity)
    return msgspec.structs.replace(base, **more)


def request(*nodes: NodeState, cpu: int = 1000, memory: int = 64, **more: object) -> PlaceRequest:
    demand = Capacity(cpu_milli=cpu, memory_mib=memory, storage_mib=1, bandwidth_mbps=0)
    return msgspec.structs.replace(PlaceRequest(workload="w", demand=demand, nodes=nodes), **more)


def room(wanted: PlaceRequest, chosen: NodeState, resource: str) -> int:
    """Free amount, computed the slow and obvious way."""
    used = sum(getattr(p.demand, resource) for p in chosen.allocation.placed if p.workload != wanted.workload)
    return int(getattr(chosen.capacity, resource)) - used


@settings(max_examples=200, deadline=None)
@given(requests)
def test_a_chosen_node_is_always_feasible(wanted: PlaceRequest) -> None:
    """Goal: the mask is always enforced. Method: random fleets and policies against an obvious check."""
    answer = decide(wanted)

    if answer.node:
        chosen = next(node for node in wanted.nodes if node.name == answer.node)
        assert chosen.status is NodeStatus.READY
        assert wanted.site in ("", chosen.site)
        assert all(room(wanted, chosen, name) >= getattr(wanted.demand, name) for name in RESOURCES)
    else:
        assert all(candidate.masks for candidate in answer.candidates), "some node would have fitted"
        assert answer.reason


@settings(max_examples=200, deadline=None)
@given(requests)
def test_reasons_are_empty_exactly_where_feasible(wanted: PlaceRequest) -> None:
    """Goal: mask and explanation never disagree. Method: compare them on every node."""
    fleet = fleet_of(wanted.nodes, workload=wanted.workload)
    demand = quantities(wanted.demand, where="demand")
    mask = feasible(fleet, demand, site=wanted.site)

    for row in range(len(wanted.nodes)):
        assert bool(mask[row]) == (reasons(fleet, demand, row, site=wanted.site) == ())


hostile = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(hostile, st.booleans()), min_size=1, max_size=8))
def test_hostile_scores_never_win(bids: list[tuple[float, bool]]) -> None:
    """Goal: NaN and infinite bids pick no masked node. Method: any floats with any mask."""
    scores, mask = np.array([bid for bid, _ in bids]), np.array([allowed for _, allowed in bids])

    row = choose(scores, mask)

    assert choose_column(scores, mask) == (-1 if row is None else row), "the quick way is the same way"
    assert (row is None) == (not mask.any())
    if row is not None:
        assert mask[row]
        finite = mask & np.isfinite(scores)
        if (finite & (scores > -1e8)).any():
            assert scores[row] == scores[finite].max()


@settings(max_examples=200, deadline=None)
@given(st.lists(requests, max_size=12), st.integers(1, 4))
def test_placing_one_after_the_other_never_overfills(wanted: list[PlaceRequest], count: int) -> None:
    """Goal: 0 ≤ used ≤ capacity after any sequence. Method: apply each answer to the fleet."""
    fleet = {f"n{number}": node(f"n{number}", cpu=8, memory=8, link=8) for number in range(count)}
    for number, one in enumerate(wanted):
        asked = msgspec.structs.replace(one, workload=f"w{number}", nodes=tuple(fleet.values()), site="")
        answer = decide(asked)
        if answer.node:
            old = fleet[answer.node]
            entry = Placed(workload=asked.workload, attempt=1, demand=asked.demand)
            placed = Allocation(placed=(*old.allocation.placed, entry))
            fleet[answer.node] = msgspec.structs.replace(old, allocation=placed)
    for state in fleet.values():
        for name in RESOURCES:
            used = sum(getattr(entry.demand, name) for entry in state.allocation.placed)
            assert used <= getattr(state.capacity, name)


@given(requests)
def test_decisions_are_deterministic_and_do_not_depend_on_order_of_equals(wanted: PlaceRequest) -> None:
    """Goal: the same question has the same answer. Method: ask twice."""
    assert decide(wanted) == decide(wanted)


def test_first_fit_goes_by_name() -> None:
    """Goal: predictable. Method: nodes given out of order."""
    assert decide(request(node("b"), node("a"), node("c"), policy="first-fit")).node == "a"


def test_best_fit_keeps_the_large_gap() -> None:
    """Goal: the node left with least. Method: a small and a large one."""
    assert decide(request(node("large", cpu=64_000), node("small"), policy="best-fit")).node == "small"


def test_local_site_first_stays_with_the_data_until_it_is_full() -> None:
    """Goal: local if possible, else best fit. Method: the data's site with and without room."""
    full = Allocation(placed=(Placed(workload="o", attempt=1, demand=node("oslo").capacity),))
    small, large = node("rome", cpu=1000), node("oslo", cpu=64_000)
    wanted = request(small, large, policy="local-site-first", data_site="oslo", data_bytes=1)

    assert decide(wanted).node == "oslo"
    blocked = msgspec.structs.replace(node("oslo"), allocation=full)
    assert decide(msgspec.structs.replace(wanted, nodes=(small, blocked))).node == "rome"


def test_balance_wan_weighs_the_link() -> None:
    """Goal: the slow link loses when data must travel, and is irrelevant when none does. Method: both."""
    slow, fast = node("lima", link=5), node("rome", link=20, memory=1500)
    oslo = node("oslo", status=NodeStatus.DOWN)
    wanted = request(
        slow, fast, oslo, memory=375, data_site="oslo", data_bytes=50 * 2**20, policy="balance-wan"
    )

    assert decide(wanted).node == "rome"
    links = {"lima": (5.0, 1000.0), "oslo": (1000.0, 1000.0), "rome": (20.0, 1.0)}
    assert decide(wanted, links=links).node == "lima", "configured links count more than the nodes' own"


def test_shipping_costs_nothing_at_home_and_is_bounded_elsewhere() -> None:
    """Goal: lateness in 0 … 1 for any size and any link, even none; dollars by size. Method: extremes."""
    fleet = fleet_of((node("lima"), node("oslo"), node("rome", link=0)))
    wanted = wanted_of(request(data_site="oslo", data_bytes=2**60, priority=5))

    view = view_of(scene_of(fleet, Terrain()), wanted)

    assert view.late.tolist() == [1.0, 0.0, 1.0]
    assert view.wan[1] == 0
    assert view.wan[0] == pytest.approx(2**60 / 1e9 * Terrain().usd_per_gb)


def test_the_default_is_the_cheapest_tuned_rule() -> None:
    """Goal: the fallback is what tuning found best, and a rule. Method: compare with the table; an empty table."""
    costs = {name: entry.cost for name, entry in TABLE.entries(0.95, stale=False).items()}

    assert DEFAULT.removesuffix("+") in costs
    assert DEFAULT not in ("cem-linear", "random+")
    assert costs[DEFAULT.removesuffix("+")] <= costs["best-fit-l2"]
    assert best_rule(tuned.Table(sets={})) == "balance-wan"


def test_masks_name_what_is_missing() -> None:
    """Goal: "why not this node" has numbers. Method: a demand over memory, on a draining, foreign node."""
    answer = decide(request(node("oslo", status=NodeStatus.DRAINING), memory=9000, site="rome"))

    masks = {mask.reason: mask for mask in answer.candidates[0].masks}
    assert set(masks) == {"status", "site", "memory_mib"}
    assert (masks["memory_mib"].needed, masks["memory_mib"].free) == (9000, 4096)
    assert "draining" in answer.reason


def test_the_workloads_own_old_entry_does_not_count() -> None:
    """Goal: a retry sees its own place as free. Method: the node is full of itself."""
    own = Allocation(placed=(Placed(workload="w", attempt=1, demand=node("oslo").capacity),))

    assert decide(request(node("oslo", allocation=own))).node == "oslo"


@pytest.mark.parametrize(
    "wanted",
    [
        request(node("a"), node("a")),
        request(node("a", cpu=-1)),
        request(node("a", cpu=2**60)),
        request(node("a"), cpu=-5),
        request(node("a"), data_bytes=-1),
    ],
)
def test_malformed_requests_are_refused(wanted: PlaceRequest) -> None:
    """Goal: numbers that cannot be never reach the arithmetic. Method: doubled, negative and absurd."""
    with pytest.raises(FleetMalformed):
        decide(wanted)


def test_an_unknown_policy_is_named() -> None:
    """Goal: the refusal lists what there is. Method: a mistyped policy."""
    with pytest.raises(PolicyUnknown, match="balance-wan"):
        decide(request(node("a"), policy="maddpg"))


def test_the_fallback_says_so() -> None:
    """Goal: who placed it is visible. Method: the mark in `policy`."""
    assert "fallback" in decide(request(node("a")), fallback=True).policy


def test_reservations_count_until_placed_released_or_over() -> None:
    """Goal: a promise is kept from others, once. Method: each of its ends."""
    kept = Reservations(ttl_ms=100)
    demand = node("a").capacity
    kept.reserve("w", "a", demand, now_ms=0)

    assert kept.by_node((), workload="other", now_ms=99) == {"a": demand}
    assert kept.by_node((), workload="w", now_ms=99) == {}, "its own promise does not bind it"
    assert kept.by_node((), workload="other", now_ms=100) == {}

    kept.reserve("w", "a", demand, now_ms=0)
    placed = node("a", allocation=Allocation(placed=(Placed(workload="w", attempt=1, demand=demand),)))
    assert kept.by_node((placed,), workload="other", now_ms=1) == {}, "now the allocation counts it"

    kept.reserve("w", "a", demand, now_ms=0)
    assert kept.release("w")
    assert not kept.release("w")


def test_reservations_survive_a_clock_that_jumps_back() -> None:
    """Goal: no promise outlives its length by a clock. Method: reserve late, look early."""
    kept = Reservations(ttl_ms=100)
    kept.reserve("w", "a", node("a").capacity, now_ms=1_000_000)

    assert kept.by_node((), workload="other", now_ms=0) == {}


def test_reserved_room_is_not_given_twice() -> None:
    """Goal: the mask includes reservations. Method: a node whose last core is promised."""
    wanted = request(node("a", cpu=1000))
    promised = {"a": Capacity(cpu_milli=1, memory_mib=0, storage_mib=0, bandwidth_mbps=0)}

    assert decide(wanted, reserved=promised).node == ""
