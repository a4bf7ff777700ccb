"""The allocation report's figures: exact where a source told, a gap where it did not."""

from __future__ import annotations

import msgspec
import pytest

from dwcp.allocation.report import commits, decisions, fleet, jain, wan_bytes
from dwcp.api.agent import RealUse
from dwcp.api.manager import NodeView, Reach, WorkloadView
from dwcp.api.workloads import (
    Allocation,
    Capacity,
    Demand,
    Job,
    Node,
    NodeStatus,
    Placed,
    State,
    WorkloadState,
)


def node(name: str, *, cpu: int = 4000, placed: int = 0, **more: object) -> NodeView:
    capacity = Capacity(cpu_milli=cpu, memory_mib=1000, storage_mib=1000, bandwidth_mbps=10)
    demand = Capacity(cpu_milli=placed, memory_mib=1, storage_mib=1, bandwidth_mbps=0)
    entries = (Placed(workload=f"w-{name}", attempt=1, demand=demand),) if placed else ()
    status = NodeStatus(more.get("status", "ready"))
    reach = Reach(more.get("reach", "reachable"))
    return NodeView(
        node=Node(name=name, site=name, address="a:1", capacity=capacity, status=status),
        allocation=Allocation(placed=entries),
        reach=reach,
    )


def workload(by: str, cpu: float, state: State, **more: object) -> WorkloadView:
    job = Job(
        name="j",
        demand=Demand(cpu=cpu, memory_mib=1, storage_mib=1),
        run=("true",),
        deadline=str(more.get("deadline", "")),
    )
    return WorkloadView(
        id="w",
        job=job,
        payload=None,
        submitted_ms=0,
        submitted_by=by,
        state=WorkloadState(
            state=state, policy=str(more.get("policy", "")), deadline_missed=bool(more.get("missed"))
        ),
        revision=1,
    )


def test_what_is_really_used_is_a_sites_sum_or_a_gap() -> None:
    """Goal: a node that did not say is never a zero. Method: two nodes of a site that say it; one of them silent."""
    both = [
        msgspec.structs.replace(node("oslo", placed=3000), used=RealUse(cpu_milli=cpu, memory_mib=10))
        for cpu in (700, 50)
    ]
    told = {use.resource: use.used for use in fleet(both, ()).uses}
    assert told == {"cpu_milli": 750, "memory_mib": 20, "storage_mib": None, "bandwidth_mbps": None}
    assert {use.used for use in fleet([both[0], node("oslo")], ()).uses} == {None}


def test_every_node_is_told_with_what_holds_it() -> None:
    """Goal: a full node does not hide behind its site's mean. Method: a full and an empty node of one site."""
    full = msgspec.structs.replace(node("b", placed=4000), used=RealUse(cpu_milli=10, memory_mib=20))
    found = fleet((full, node("a", status="draining")), ()).nodes

    assert [(each.name, each.status, each.placed) for each in found] == [
        ("a", "draining", {}),
        ("b", "ready", {"w-b": 4000}),
    ]
    assert (found[1].capacity["cpu_milli"], found[1].allocated["cpu_milli"]) == (4000, 4000)
    assert found[1].used == {"cpu_milli": 10, "memory_mib": 20, "storage_mib": None, "bandwidth_mbps": None}
    assert set(found[0].used.values()) == {None}


def test_use_stranding_tenants_and_deadlines() -> None:
    """Goal: the figures of the fleet. Method: two nodes and four workloads, by hand."""
    nodes = (node("oslo", placed=3000), node("rome", cpu=5000, status="draining", reach="unknown"))
    work = (
        workload("ann", 3, State.RUNNING, policy="balance-wan", deadline="1h"),
        workload("bob", 1, State.PENDING, deadline="1h", missed=True),
        workload("bob", 1, State.RUNNING, policy="planned move"),
        workload("eve", 9, State.DONE, policy="balance-wan"),
    )

    found = fleet(nodes, work)

    cores = {
        use.site: (use.capacity, use.allocated, use.used) for use in found.uses if use.resource == "cpu_milli"
    }
    assert cores == {"oslo": (4000, 3000, None), "rome": (5000, 0, None)}
    assert {each.site: (each.free_cores, each.stranded_cores) for each in found.stranding} == {
        "oslo": (1.0, 1.0),
        "rome": (0.0, 0.0),
    }, "the 75th percentile asks for 3 cores; a drained node has none to strand"
    assert [(each.name, each.requested_cores, each.allocated_cores) for each in found.tenants] == [
        ("ann", 3.0, 3.0),
        ("bob", 2.0, 1.0),
    ]
    assert found.fairness == pytest.approx(1.5**2 / (2 * 1.25))
    assert (found.waiting, found.late, found.with_deadline) == (1, 1, 2)
    assert found.placed_by == {"balance-wan": 2, "planned move": 1}
    assert (found.overfull, found.silent, found.draining) == ((), ("rome",), ("rome",))


def test_an_empty_fleet_has_gaps_and_no_zeros() -> None:
    """Goal: nothing is claimed of nothing. Method: no work at all; an overfull node beside it."""
    found = fleet((node("oslo"),), ())

    assert (found.fairness, found.stranding[0].stranded_cores) == (None, None)
    assert fleet((node("oslo", cpu=1000, placed=2000),), ()).overfull == ("oslo",)
    assert (jain([]), jain([0.0]), jain([1.0, 1.0])) == (None, None, 1.0)


def test_counters_become_tables_and_gaps() -> None:
    """Goal: what a service does not show is None. Method: samples with and without the metric."""
    samples = {
        "dwcp_maddpg_optimization_total": [({"policy": "maddpg-placer"}, 3.0), ({"policy": "best-fit"}, 1.0)],
        "dwcp_maddpg_shadow_regret_usd": [({}, -0.5)],
        "dwcp_maddpg_optimization_infeasible_total": [({"resource": "cpu_milli"}, 2.0)],
    }

    found, nothing = decisions(samples), decisions({})

    assert (found.model_share, found.regret_usd, found.agreement, found.fallbacks) == (0.75, -0.5, None, None)
    assert found.infeasible == {"cpu_milli": 2}
    assert (nothing.model_share, nothing.regret_usd, nothing.by_policy) == (None, None, {})
    rules = {**samples, "dwcp_maddpg_optimization_total": [({"policy": "best-fit"}, 4.0)]}
    assert decisions(rules).regret_usd is None, "no model decided: its gauge at 0 says nothing"
    assert commits({"dwcp_manager_conflicts_total": [({"step": "place"}, 1.0)]}).conflicts == {"place": 1}
    assert wan_bytes({}, direction="out") is None
    assert wan_bytes({"dwcp_ship_wire_bytes_total": [({"direction": "out"}, 7.0)]}, direction="out") == 7
