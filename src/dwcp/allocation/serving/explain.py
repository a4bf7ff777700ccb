"""Why this node: the record of a decision, taken apart on demand.

Contributions are leave-one-group-out: how much less the chosen node would stand above the mean of the feasible ones if
a group of facts told nodes apart no longer. They need not add up; they are measured on the deciding policy itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dwcp.allocation.decide import verdicts
from dwcp.allocation.env.view import View
from dwcp.allocation.feasibility import choose_rows
from dwcp.allocation.fleet import RESOURCES, Floats, Ints
from dwcp.allocation.serving.chain import Decision
from dwcp.allocation.serving.scene import Scene, mask_of
from dwcp.api.allocator import Candidate, Explanation

Score = Callable[[View], Floats]

UNITS = {
    "cpu_milli": "thousandths of a core",
    "memory_mib": "MiB",
    "storage_mib": "MiB",
    "bandwidth_mbps": "Mbit/s",
}
NODES_TRIED = 3  # nodes that a counterfactual is sought for
_STEPS = 14  # halvings of a search


def explanation(found: Decision, *, identity: str, fleet: str, at_ms: int) -> Explanation:
    """Everything that is known of the decision."""
    score = scorer_of(found)
    rows = found.roster.names
    return Explanation(
        decision=identity,
        workload=found.wanted.name,
        node="" if found.row is None else rows[found.row],
        by="model" if found.by_model else "rule",
        policy=found.model.digest if found.by_model and found.model else found.rule.name,
        fallback=found.fallback,
        model=found.model.digest if found.model else "none",
        candidates=candidates(found),
        contributions=contributions(found, score),
        rule=found.rule.name,
        rule_node=_named(found, found.rule_column),
        model_node=_named(found, found.model_column),
        rule_cost_usd=found.rule_cost,
        model_cost_usd=found.model_cost,
        counterfactual=counterfactual(found, score),
        staleness_s=staleness(found.scene),
        fleet=fleet,
        at_ms=at_ms,
        outside=found.model.outside(found.scored) if found.model and found.scored else (),
        reason=why(found),
    )


def scorer_of(found: Decision) -> Score:
    """The deciding policy, asked again."""
    model = found.model
    if found.by_model and model is not None:
        reference = model.reference
        return lambda view: np.asarray(reference(view, np), dtype=np.float64)
    return lambda view: np.asarray(found.rule.score(view, np), dtype=np.float64)


def candidates(found: Decision) -> tuple[Candidate, ...]:
    """Each node with its masks and the deciding policy's score."""
    scored = found.scored.bids if found.by_model and found.scored else found.rule_scores
    return verdicts(found.scene.fleet(), found.wanted.demand, scored[:-1], site=found.wanted.site)


def why(found: Decision) -> str:
    """A sentence where nothing was placed, "" where it was."""
    if found.deferred:
        return "waiting is better than any node that fits now; ask again in a minute"
    if found.row is not None:
        return ""
    names = found.roster.names
    if not names:
        return "no node is known"
    scene, demand = found.scene, found.wanted.demand
    free = scene.free
    parts = []
    for row, name in enumerate(names[:8]):
        short = np.nonzero(free[row] < demand)[0]
        if not scene.open[row]:
            parts.append(f"{name}: {_status(scene, row)}")
        elif found.wanted.site and found.roster.sites[row] != found.wanted.site:
            parts.append(f"{name}: pinned to {found.wanted.site}, this is {found.roster.sites[row]}")
        elif len(short):
            column = int(short[0])
            has, needs = max(0, int(free[row, column])), int(demand[column])
            parts.append(f"{name}: {RESOURCES[column]} {has} free of {needs} needed")
    more = f"; and {len(names) - 8} more" if len(names) > 8 else ""
    return f"no node fits now: {'; '.join(parts)}{more}"


def contributions(found: Decision, score: Score) -> dict[str, float]:
    """By group of facts; empty where nothing was placed."""
    if found.row is None:
        return {}
    whole = _advantage(score(found.view), found)
    return {name: round(whole - _advantage(score(view), found), 6) for name, view in _without(found).items()}


def counterfactual(found: Decision, score: Score) -> tuple[str, ...]:
    """What else would have to be so for another node to win."""
    sentences = []
    for row in _others(found):
        for resource in (1, 0):
            amount = _needed(found, score, row, resource)
            if amount is not None:
                unit = UNITS[RESOURCES[resource]]
                name = found.roster.names[row]
                sentences.append(f"{name} would win with {amount} {unit} more free {RESOURCES[resource]}")
                break
    return tuple(sentences)


def staleness(scene: Scene) -> dict[str, float]:
    """The age of what is known, oldest node by site."""
    found: dict[str, float] = {}
    for site, age in zip(scene.roster.sites, scene.age_s.tolist(), strict=True):
        found[site] = max(found.get(site, 0.0), age)
    return found


def _named(found: Decision, column: int | None) -> str:
    names = found.roster.names
    if column is None or column < 0:
        return ""
    return "(defer)" if column == len(names) else names[column]


def _status(scene: Scene, row: int) -> str:
    status = scene.status[row].value
    return "does not answer" if status == "down" else status


def _advantage(scores: Floats, found: Decision) -> float:
    assert found.row is not None
    return float(scores[found.row] - scores[:-1][found.view.mask[:-1]].mean())


def _without(found: Decision) -> dict[str, View]:
    """The view with one group of facts made equal for all nodes."""
    view, feasible = found.view, found.view.mask[:-1]

    def level(values: Floats) -> Floats:
        return np.full(len(values), float(values[feasible].mean()))

    share = (view.free / np.maximum(view.capacity, 1.0))[feasible].mean(axis=0)
    return {
        "room": view._replace(free=view.capacity * share),
        "shipping": view._replace(
            wan=level(view.wan), late=level(view.late), local=np.zeros(len(feasible), dtype=np.bool_)
        ),
        "energy": view._replace(energy=level(view.energy)),
        "lifetime": view._replace(exit_in_s=level(view.exit_in_s)),
        "staleness": view._replace(age_s=level(view.age_s)),
    }


def _others(found: Decision) -> list[int]:
    """The best nodes that were not chosen, feasible or short of room, by the rule's score."""
    scene, wanted = found.scene, found.wanted
    open_to = scene.open & scene.roster.pinned(wanted.site)
    order = np.argsort(-np.where(open_to, found.rule_scores[:-1], -np.inf), kind="stable")
    return [int(row) for row in order if open_to[row] and row != found.row][:NODES_TRIED]


def _needed(found: Decision, score: Score, row: int, resource: int) -> int | None:
    """The least more free of one resource with which the node would be chosen; None: not with twice its capacity."""
    most = int(found.roster.capacity[row, resource]) * 2
    if most <= 0 or not _wins(found, score, row, resource, most):
        return None
    low, high = 0, most
    for _step in range(_STEPS):
        middle = (low + high) // 2
        if _wins(found, score, row, resource, middle):
            high = middle
        else:
            low = middle
    return high


def _wins(found: Decision, score: Score, row: int, resource: int, more: int) -> bool:
    view, scene = found.view, found.scene
    used: Ints = scene.used.copy()
    used[row, resource] -= more
    mask = mask_of(replace(scene, used=used), found.wanted)
    free, capacity = view.free.copy(), view.capacity.copy()
    free[row, resource] += more
    capacity[row, resource] = max(capacity[row, resource], free[row, resource])
    bids = score(view._replace(free=free, capacity=capacity, mask=mask))
    return int(choose_rows(bids, mask)) == row
