"""A placer's first decisions, made before anybody asks: code, caches and pages are there when the deadline counts.

A first decision costs up to twice what the next ones do, and the deadline does not wait. So every number of workloads
that is decided on together, on a small fleet and on the largest of an ordinary size, is gone through once. Nothing of
it is kept or counted. Pure.
"""

from __future__ import annotations

import numpy as np

from dwcp.allocation.heuristics import HEURISTICS, draws
from dwcp.allocation.serving.ahead import TOGETHER_MAX, Ahead
from dwcp.allocation.serving.chain import Rule, Served, decide
from dwcp.allocation.serving.explain import candidates
from dwcp.allocation.serving.scene import Terrain, Wanted
from dwcp.allocation.serving.sheet import Sheet
from dwcp.allocation.serving.state import FleetState
from dwcp.api.allocator import NodeState
from dwcp.api.workloads import Capacity

FLEET = 100  # nodes of the larger fleet, where the model was validated on as many
_SITES = 4


def warm(model: Served, *, policy: str, terrain: Terrain) -> None:
    """Decides with `model` above the rule `policy`. The model is used by nobody else meanwhile."""
    rule = Rule.named(policy, HEURISTICS[policy], draws=draws(policy))
    low, high = model.nodes
    for count in sorted({max(low, 1), min(max(high, 1), FLEET)}):
        _decisions(model, rule, count, terrain)


def _decisions(model: Served, rule: Rule, count: int, terrain: Terrain) -> None:
    fleet = FleetState(terrain)
    room = Capacity(64_000, 262_144, 4_000_000, 10_000)
    fleet.upsert(NodeState(f"n{row:03}", f"s{row % _SITES}", room) for row in range(count))
    scene = fleet.scene()
    wanted = [
        Wanted(
            f"w{place}", np.array([1000, 2048, 10_240, 10]), data_site=f"s{place % _SITES}", data_bytes=10**8
        )
        for place in range(TOGETHER_MAX)
    ]
    candidates(decide(scene, wanted[0], rule, model=model))
    sheet = Sheet(scene.roster, wanted, scene.age_s)
    if rule.tuned is None or not sheet.alike:
        return  # such workloads are decided on one at a time
    ahead = Ahead(sheet, scene, rule, model)
    for place in range(TOGETHER_MAX):
        ahead.decide(place, scene, model=model, left_s=lambda: 1.0, expect_s=0.0)
