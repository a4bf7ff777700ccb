"""Plans of moves: they fit at every step, stay in their budget, gain what they say, and lies are found."""

from __future__ import annotations

import asyncio

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.allocation.fleet import RESOURCES, FleetMalformed
from dwcp.allocation.rebalance import PlanRefused, board_of, judge, plan, standing
from dwcp.api import rebalance as api
from dwcp.api.allocator import NodeState
from dwcp.api.rebalance import Budget, Move, Plan, PlanRequest, Waiting, Work
from dwcp.api.requests import answer, refusal
from dwcp.api.workloads import Allocation, Capacity, NodeStatus, Placed
from dwcp.runtime.http import Health, application
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.allocator.rebalance_routes import add_rebalance_routes

SITES = ("oslo", "rome", "lima")


def amount(cpu: int, memory: int | None = None) -> Capacity:
    return Capacity(
        cpu_milli=cpu, memory_mib=cpu if memory is None else memory, storage_mib=1, bandwidth_mbps=0
    )


def node(name: str, cpu: int, *placed: tuple[str, int], **more: object) -> NodeState:
    capacity = Capacity(cpu_milli=cpu, memory_mib=cpu, storage_mib=100, bandwidth_mbps=10)
    entries = tuple(Placed(workload=name, attempt=1, demand=amount(cpu)) for name, cpu in placed)
    base = NodeState(name=name, site=name, capacity=capacity, allocation=Allocation(placed=entries))
    return msgspec.structs.replace(base, **more)


def work(nodes: tuple[NodeState, ...], **more: object) -> tuple[Work, ...]:
    found = [(entry, node) for node in nodes for entry in node.allocation.placed]
    base = [Work(workload=entry.workload, node=node.name, attempt=entry.attempt) for entry, node in found]
    return tuple(msgspec.structs.replace(entry, **more) for entry in base)


@st.composite
def requests(draw: st.DrawFn) -> PlanRequest:
    """Fleets whose nodes are not overfull, with some of the work pinned, fixed or far from its data."""
    nodes, listed, number = [], [], 0
    for row in range(draw(st.integers(1, 6))):
        capacity = Capacity(*(draw(st.integers(0, 8)) * 1000 for _ in RESOURCES))
        left, placed = list(msgspec.structs.astuple(capacity)), []
        for _ in range(draw(st.integers(0, 4))):
            demand = Capacity(*(draw(st.integers(0, 3)) * 1000 for _ in RESOURCES))
            if any(want > have for want, have in zip(msgspec.structs.astuple(demand), left, strict=True)):
                continue
            left = [have - want for want, have in zip(msgspec.structs.astuple(demand), left, strict=True)]
            number += 1
            placed.append(Placed(workload=f"w{number}", attempt=draw(st.integers(1, 2)), demand=demand))
            if draw(st.booleans()):
                listed.append(
                    Work(
                        workload=f"w{number}",
                        node=f"n{row}",
                        attempt=draw(st.sampled_from([placed[-1].attempt, 3])),
                        restart=draw(st.booleans()),
                        priority=draw(st.integers(1, 5)),
                        site=draw(st.sampled_from(["", "", *SITES])),
                        data_site=draw(st.sampled_from(["", *SITES])),
                        data_bytes=draw(st.sampled_from([0, 10**6, 10**11])),
                    )
                )
        nodes.append(
            NodeState(
                name=f"n{row}",
                site=draw(st.sampled_from(SITES)),
                capacity=capacity,
                allocation=Allocation(placed=tuple(placed)),
                status=draw(st.sampled_from([NodeStatus.READY, NodeStatus.READY, *NodeStatus])),
            )
        )
    waiting = [
        Waiting(workload=f"q{position}", demand=amount(draw(st.integers(0, 8)) * 1000))
        for position in range(draw(st.integers(0, 2)))
    ]
    names = [entry.name for entry in nodes]
    return PlanRequest(
        nodes=tuple(nodes),
        work=tuple(listed),
        waiting=tuple(waiting),
        leave=tuple(draw(st.lists(st.sampled_from(names), max_size=2, unique=True))),
        budget=Budget(moves_max=draw(st.integers(0, 5)), bytes_max=draw(st.sampled_from([0, 10**7, 10**12]))),
        gain_min_usd=draw(st.sampled_from([0.0, 0.001, 0.05])),
        usd_per_core_hour={site: draw(st.sampled_from([0.0, 0.1, 1.0])) for site in SITES},
    )


@settings(max_examples=60, deadline=None)
@given(requests())
def test_a_plan_fits_at_every_step_and_stays_in_its_budget(wanted: PlanRequest) -> None:
    """Goal: a plan can be carried out as it stands. Method: random fleets; each move takes its target before
    it leaves its source, in integers of this test's own."""
    made = plan(wanted)
    nodes = {entry.name: entry for entry in wanted.nodes}
    listed = {(entry.workload, entry.node): entry for entry in wanted.work}
    held = {name: list(entry.allocation.placed) for name, entry in nodes.items()}

    assert len(made.moves) <= wanted.budget.moves_max
    assert sum(move.bytes for move in made.moves) <= wanted.budget.bytes_max
    assert len({move.workload for move in made.moves}) == len(made.moves)
    assert bool(made.moves) != bool(made.reason)
    for move in made.moves:
        entry = listed[move.workload, move.source]
        assert entry.attempt == move.attempt
        assert entry.site in ("", nodes[move.target].site)
        assert nodes[move.target].status is NodeStatus.READY
        assert move.target not in (move.source, *wanted.leave)
        placed = next(placed for placed in held[move.source] if placed.workload == move.workload)
        held[move.target].append(placed)
        for name in RESOURCES:
            used = sum(getattr(placed.demand, name) for placed in held[move.target])
            assert used <= getattr(nodes[move.target].capacity, name)
        held[move.source].remove(placed)


@settings(max_examples=40, deadline=None)
@given(requests())
def test_a_plan_gains_what_it_says(wanted: PlanRequest) -> None:
    """Goal: figures that a second computation confirms. Method: judge the plan; price the fleet after it."""
    made = plan(wanted)

    if made.moves:
        again = judge(wanted, made.moves)
        assert again.gain_usd == pytest.approx(made.gain_usd)
        assert again.after == made.after
    assert made.before == standing(board_of(wanted))
    assert made.gain_usd == pytest.approx(made.before.total - made.after.total)
    if not wanted.leave:
        assert made.gain_usd >= wanted.gain_min_usd * len(made.moves) - 1e-6
        assert made.after.total <= made.before.total + 1e-6


def test_room_is_made_for_what_waits() -> None:
    """Goal: fragmentation is mended. Method: two nodes half full each, a waiting job that needs a whole one."""
    nodes = (node("a", 4000, ("w1", 2000)), node("b", 4000, ("w2", 2000)))
    waiting = (Waiting(workload="q", demand=amount(4000), priority=3),)
    wanted = PlanRequest(nodes=nodes, work=work(nodes), waiting=waiting)

    made = plan(wanted)

    assert len(made.moves) == 1
    assert (made.before.wait, made.after.wait) == (pytest.approx(0.16), 0.0)
    assert made.after.mig == pytest.approx(0.08)
    assert plan(msgspec.structs.replace(wanted, waiting=())).moves == (), "nobody waits: nothing to gain"


def test_room_may_need_several_moves_at_once() -> None:
    """Goal: moves that gain only together are found. Method: two small jobs in the way on the only large node."""
    nodes = (node("a", 4000, ("w1", 500), ("w2", 500)), node("b", 1000))
    waiting = (Waiting(workload="q", demand=amount(4000), priority=5),)

    made = plan(PlanRequest(nodes=nodes, work=work(nodes, restart=False), waiting=waiting))

    assert {(move.workload, move.target) for move in made.moves} == {("w1", "b"), ("w2", "b")}
    assert made.after.wait == 0.0


def test_cheap_energy_is_worth_a_move_and_a_far_payload_is_not() -> None:
    """Goal: WAN and energy are weighed. Method: a cheaper site; the same with a terabyte to fetch."""
    nodes = (node("a", 4000, ("w1", 2000)), node("b", 4000))
    wanted = PlanRequest(nodes=nodes, work=work(nodes), usd_per_core_hour={"a": 0.30, "b": 0.10})

    made = plan(wanted)
    heavy = work(nodes, data_site="a", data_bytes=10**10)

    assert [(move.source, move.target) for move in made.moves] == [("a", "b")]
    assert made.gain_usd == pytest.approx(2 * 0.2 - 2 * 0.04)
    assert plan(msgspec.structs.replace(wanted, work=heavy)).moves == ()


def test_headroom_for_the_fullest_node_counts() -> None:
    """Goal: what a failure would leave without a place has a price. Method: one full node, one that is too small."""
    nodes = (node("a", 4000, ("w1", 3000)), node("b", 2000))

    assert plan(PlanRequest(nodes=nodes)).before.headroom == pytest.approx(3 * 0.04)
    assert plan(PlanRequest(nodes=(*nodes, node("c", 4000)))).before.headroom == 0.0


def test_an_empty_plan_says_why() -> None:
    """Goal: nothing is moved for nothing, with a reason. Method: threshold, budget, nothing movable, no room."""
    nodes = (node("a", 4000, ("w1", 2000)), node("b", 4000))
    wanted = PlanRequest(nodes=nodes, work=work(nodes), usd_per_core_hour={"a": 0.30, "b": 0.10})
    dear = msgspec.structs.replace(wanted, gain_min_usd=1.0)
    none = msgspec.structs.replace(wanted, budget=Budget(moves_max=0))

    assert "gains $1" in plan(dear).reason
    assert "0 moves" in plan(none).reason
    assert "can be moved" in plan(PlanRequest(nodes=nodes, leave=("a",))).reason
    full = (nodes[0], node("b", 1000))
    assert "has room for w1" in plan(PlanRequest(nodes=full, work=work(full), leave=("a",))).reason


def test_a_node_is_emptied_urgent_work_first() -> None:
    """Goal: what a drain moves within a small budget. Method: two jobs, one move allowed."""
    nodes = (node("a", 4000, ("low", 2000), ("high", 1000)), node("b", 4000))
    listed = tuple(
        msgspec.structs.replace(entry, priority=5 if entry.workload == "high" else 1) for entry in work(nodes)
    )

    made = plan(PlanRequest(nodes=nodes, work=listed, leave=("a",), budget=Budget(moves_max=1)))

    assert [move.workload for move in made.moves] == ["high"]


@pytest.mark.parametrize(
    ("move", "said"),
    [
        (Move("w1", 2, "a", "b"), "attempt is not there"),
        (Move("w9", 1, "a", "b"), "attempt is not there"),
        (Move("fixed", 1, "a", "b"), "attempt is not there"),
        (Move("w1", 1, "a", "nowhere"), "does not take it"),
        (Move("w1", 1, "a", "a"), "does not take it"),
        (Move("w1", 1, "a", "down"), "does not take it"),
        (Move("w1", 1, "a", "small"), "does not take it"),
        (Move("w1", 1, "a", "b"), "gain"),
    ],
)
def test_a_lie_is_refused(move: Move, said: str) -> None:
    """Goal: whoever carries out a plan is not harmed by it. Method: moves that cannot be, or gain nothing."""
    nodes = (
        node("a", 4000, ("w1", 2000), ("fixed", 1000)),
        node("b", 4000),
        node("small", 1000),
        node("down", 4000, status=NodeStatus.DOWN),
    )
    wanted = PlanRequest(nodes=nodes, work=work(nodes)[:1])

    with pytest.raises(PlanRefused, match=said):
        judge(wanted, (move,))


def test_a_plan_over_its_budget_is_refused() -> None:
    """Goal: the budget is the judge's own. Method: data of a terabyte; the same move twice."""
    nodes = (node("a", 4000, ("w1", 2000)), node("b", 4000))
    wanted = PlanRequest(nodes=nodes, work=work(nodes, data_bytes=10**12), leave=("a",))

    with pytest.raises(PlanRefused, match="budget"):
        judge(wanted, (Move("w1", 1, "a", "b"),))
    with pytest.raises(PlanRefused, match="not there"):
        judge(
            msgspec.structs.replace(wanted, work=work(nodes)),
            (Move("w1", 1, "a", "b"), Move("w1", 1, "a", "b")),
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"gain_min_usd": float("nan")},
        {"usd_per_gb": -1.0},
        {"usd_per_core_hour": {"a": float("inf")}},
        {"budget": Budget(moves_max=-1)},
        {"leave": ("nowhere",)},
        {"nodes": (node("a", 1), node("a", 1))},
        {"nodes": (node("a", -1),)},
        {"waiting": (Waiting(workload="q", demand=amount(-1)),)},
        {"work": (Work(workload="w", node="a", attempt=1, data_bytes=-1),)},
    ],
)
def test_a_request_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    """Goal: a sentence for any numbers. Method: not-a-numbers, negatives, unknown names."""
    with pytest.raises(FleetMalformed):
        plan(msgspec.structs.replace(PlanRequest(nodes=(node("a", 1),)), **changes))


def test_the_route_plans_and_refuses() -> None:
    """Goal: the service's own answer. Method: one good request and one that cannot be, over HTTP in process."""
    app = application(Health("maddpg-allocator", version="0"), Telemetry("maddpg-allocator", version="0"))
    add_rebalance_routes(app)
    nodes = (node("a", 4000, ("w1", 2000)), node("b", 4000))
    good = PlanRequest(nodes=nodes, work=work(nodes), leave=("a",))

    async def send(wanted: PlanRequest) -> httpx.Response:
        built = api.plan(wanted)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://allocator") as client:
            return await client.post(built.path, content=built.body, headers=built.headers)

    assert len(answer(Plan, asyncio.run(send(good)).content).moves) == 1
    bad = asyncio.run(send(msgspec.structs.replace(good, leave=("nowhere",))))
    assert bad.status_code == 422
    assert "nowhere" in refusal(bad.content, status=422).detail
