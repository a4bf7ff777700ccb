"""One placement decision: mask, score, choose, explain; used by the allocator and as the fallback for it."""

from __future__ import annotations

from collections.abc import Mapping

from dwcp.allocation.feasibility import choose, feasible, reasons
from dwcp.allocation.fleet import Fleet, FleetMalformed, Floats, Ints, fleet_of, quantities
from dwcp.allocation.heuristics import DEFAULT, HEURISTICS, Links, Wanted
from dwcp.api.allocator import Candidate, PlaceAnswer, PlaceRequest
from dwcp.api.workloads import Capacity


class PolicyUnknown(ValueError):
    """There is no such placement policy; `/v1/model` lists them."""


def decide(
    wanted: PlaceRequest,
    *,
    reserved: Mapping[str, Capacity] | None = None,
    links: Links | None = None,
    fallback: bool = False,
) -> PlaceAnswer:
    """The node for a workload, with a verdict on every node. Raises `PolicyUnknown`, `FleetMalformed`.

    `reserved` is what is promised to others, by node; `links` the sites' links. `fallback` only marks the
    answer: the rules are the same wherever they are computed.
    """
    policy = wanted.policy or DEFAULT
    if policy not in HEURISTICS:
        raise PolicyUnknown(f"policy: {policy[:40]!r}; policies: {', '.join(sorted(HEURISTICS))}")
    if wanted.data_bytes < 0:
        raise FleetMalformed(f"data_bytes: {wanted.data_bytes}; it cannot be negative")
    fleet = fleet_of(wanted.nodes, workload=wanted.workload, reserved=reserved)
    demand = quantities(wanted.demand, where="demand")
    mask = feasible(fleet, demand, site=wanted.site)
    scores = HEURISTICS[policy](fleet, Wanted(demand, wanted.data_site, wanted.data_bytes, links or {}))
    row = choose(scores, mask)
    candidates = _candidates(fleet, demand, scores, site=wanted.site)
    return PlaceAnswer(
        workload=wanted.workload,
        node="" if row is None else fleet.nodes[row].name,
        policy=f"{policy} (manager's fallback: the allocator did not answer)" if fallback else policy,
        candidates=candidates,
        reason=why_none(candidates) if row is None else "",
    )


def why_none(candidates: tuple[Candidate, ...]) -> str:
    """A sentence on why no node takes the workload now."""
    if not candidates:
        return "no node is known"
    parts = []
    for candidate in candidates:
        for mask in candidate.masks[:1]:
            said = mask.detail or f"{mask.reason} {mask.free} free of {mask.needed} needed"
            parts.append(f"{candidate.node}: {said}")
    shown = "; ".join(parts[:8])
    return f"no node fits now: {shown}" + (f"; and {len(parts) - 8} more" if len(parts) > 8 else "")


def _candidates(fleet: Fleet, demand: Ints, scores: Floats, *, site: str) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(
            node=node.name,
            masks=reasons(fleet, demand, row, site=site),
            score=round(float(scores[row]), 6),
        )
        for row, node in enumerate(fleet.nodes)
    )
