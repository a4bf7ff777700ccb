"""One placement decision by a rule: mask, score, choose, explain; what the manager does without the allocator."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dwcp.allocation.env.view import View
from dwcp.allocation.feasibility import choose, reasons
from dwcp.allocation.fleet import Fleet, Floats, Ints, fleet_of
from dwcp.allocation.heuristics import DEFAULT, HEURISTICS, draws
from dwcp.allocation.serving.scene import Links, Terrain, scene_of, view_of, wanted_of
from dwcp.api.allocator import Candidate, PlaceAnswer, PlaceRequest
from dwcp.api.workloads import Capacity


class PolicyUnknown(ValueError):
    """There is no such placement policy; `/v1/model` lists them."""


def decide(
    asked: PlaceRequest,
    *,
    reserved: Mapping[str, Capacity] | None = None,
    links: Links | None = None,
    fallback: bool = False,
) -> PlaceAnswer:
    """The node for a workload, with a verdict on every node. Raises `PolicyUnknown`, `FleetMalformed`.

    `reserved` is what is promised to others, by node; `links` the sites' links. `fallback` only marks the
    answer: the rules are the same wherever they are computed. Never defers: that is for who keeps a queue.
    """
    policy = rule_named(asked.policy or DEFAULT)
    wanted = wanted_of(asked)
    fleet = by_name(fleet_of(asked.nodes, workload=asked.workload, reserved=reserved))
    view = view_of(scene_of(fleet, Terrain(links=links or {})), wanted, dice=draws(policy))
    scores = scored(policy, view)[:-1]
    row = choose(scores, view.mask[:-1])
    candidates = verdicts(fleet, wanted.demand, scores, site=wanted.site)
    return PlaceAnswer(
        workload=asked.workload,
        node="" if row is None else fleet.nodes[row].name,
        policy=f"{policy} (manager's fallback: the allocator did not answer)" if fallback else policy,
        candidates=candidates,
        reason=why_none(candidates) if row is None else "",
    )


def rule_named(name: str) -> str:
    """`name`, if there is such a rule. Raises `PolicyUnknown`."""
    if name not in HEURISTICS:
        raise PolicyUnknown(f"policy: {name[:40]!r}; policies: {', '.join(sorted(HEURISTICS))}")
    return name


def scored(policy: str, view: View) -> Floats:
    """[N + 1] by that rule; it is never asked about no nodes at all."""
    if not len(view.local):
        return np.zeros(1)
    return np.asarray(HEURISTICS[policy](view, np), dtype=np.float64)


def by_name(fleet: Fleet) -> Fleet:
    """The nodes in the order of their names, so that equals are resolved alike whoever asks."""
    order = sorted(range(len(fleet.nodes)), key=lambda row: fleet.nodes[row].name)
    return Fleet(tuple(fleet.nodes[row] for row in order), fleet.capacity[order], fleet.used[order])


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


def verdicts(fleet: Fleet, demand: Ints, scores: Floats, *, site: str) -> tuple[Candidate, ...]:
    """Each node with everything that keeps the workload from it, and its score."""
    return tuple(
        Candidate(
            node=node.name,
            masks=reasons(fleet, demand, row, site=site),
            score=round(float(scores[row]), 6),
        )
        for row, node in enumerate(fleet.nodes)
    )
