"""Before a model decides it has decided a thousand times: on what was asked here last, and where that is too little on
made fleets, each fuller or emptier than the last. A model that is wrong, or late, is refused while the old one serves.
Spec §4, hot reload. Pure: time is asked of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np

from dwcp.allocation.heuristics import HEURISTICS, draws
from dwcp.allocation.serving.chain import Decision, Fallback, Rule, Served, decide
from dwcp.allocation.serving.scene import Scene, Terrain, Wanted
from dwcp.allocation.serving.state import FleetState
from dwcp.api.allocator import NodeState
from dwcp.api.workloads import Allocation, Capacity, NodeStatus, Placed
from dwcp.models.artefact import ModelRefused

DECISIONS = 1_000
LATE_MAX = 0.01  # of them may take longer than the deadline: the 99th percentile keeps it
FLEET = 100  # nodes of the largest made fleet
EACH = 25  # decisions on one made fleet
_SITES = 4
_BROKEN = (Fallback.NAN, Fallback.ERROR)

Question = tuple[Scene, Wanted]


@dataclass(slots=True)
class Rehearsed:
    """What came of it. Shares are of `decisions`; `recorded` of these were asked here, the others were made."""

    decisions: int = 0
    recorded: int = 0
    by_model: int = 0  # no fallback
    agreed: int = 0  # with the rule, of those
    late: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def checks(self) -> dict[str, float]:
        """As an answer shows it; empty where nothing was rehearsed."""
        if not self.decisions:
            return {}
        return {
            "rehearsed": float(self.decisions),
            "recorded": float(self.recorded),
            "model_share": self.by_model / self.decisions,
            "agreement": self.agreed / max(self.by_model, 1),
            "p99_ms": float(np.quantile(self.seconds, 0.99)) * 1000.0,
        }


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """`recorded`: the newest decisions; `cpu_s`: the thread's CPU time, which nobody else's work makes longer."""

    recorded: Sequence[Decision]
    policy: str
    terrain: Terrain
    deadline_s: float
    cpu_s: Callable[[], float]
    decisions: int = DECISIONS

    def of(self, model: Served, said: Callable[[int], None] = lambda _done: None) -> Rehearsed:
        """`said` is told how many are done, after each. Raises `ModelRefused`. The model is used by nobody else."""
        rule = Rule.named(self.policy, HEURISTICS[self.policy], draws=draws(self.policy))
        known = [one for one in self.recorded if model.validated(len(one.roster.names))][-self.decisions :]
        found = Rehearsed(recorded=len(known))
        asked = ((one.scene, one.wanted) for one in known)
        more = islice(made(model.nodes, self.terrain), self.decisions - len(known))
        for scene, wanted in chain(asked, more):
            began = self.cpu_s()
            decision = decide(scene, wanted, rule, model=model)
            took_s = self.cpu_s() - began
            self._judge(decision, scene, took_s, found)
            said(found.decisions)
        return found

    def _judge(self, decision: Decision, scene: Scene, took_s: float, found: Rehearsed) -> None:
        """Counts it. Raises `ModelRefused`."""
        found.decisions += 1
        found.seconds.append(took_s)
        found.late += took_s > self.deadline_s
        at = f"at decision {found.decisions} of {self.decisions} before it would serve"
        if decision.fallback in _BROKEN:
            wrong = (
                "bids are no finite numbers" if decision.fallback == Fallback.NAN else "it raises an error"
            )
            raise ModelRefused(f"the model is refused: {wrong}, {at}")
        if decision.by_model:
            found.by_model += 1
            found.agreed += bool(decision.agreed)
            if decision.row is not None and not _fits(scene, decision.wanted, decision.row):
                raise ModelRefused(f"the model is refused: it takes a node without room, {at}")
        if found.late > LATE_MAX * self.decisions:
            limit = f"{self.deadline_s * 1000:g} ms of CPU time"
            raise ModelRefused(f"the model is refused: {found.late} decisions took longer than {limit}, {at}")


def _fits(scene: Scene, wanted: Wanted, row: int) -> bool:
    """By its own arithmetic, not by the mask that the decision used."""
    room = scene.roster.capacity[row].tolist()
    used, demand = scene.used[row].tolist(), wanted.demand.tolist()
    enough = all(u + d <= c for u, d, c in zip(used, demand, room, strict=True))
    at_home = not wanted.site or scene.roster.sites[row] == wanted.site
    return enough and at_home and scene.status[row] is NodeStatus.READY


def made(nodes: tuple[int, int], terrain: Terrain) -> Iterator[Question]:
    """Endless: fleets of numbers of `nodes` that were validated, the same at every call."""
    rng = np.random.default_rng(0)
    low, high = max(nodes[0], 1), max(min(nodes[1], FLEET), nodes[0], 1)
    while True:
        scene = _fleet(rng, int(rng.integers(low, high + 1)), terrain)
        for number in range(EACH):
            yield scene, _workload(rng, f"rehearsed-{number}")


def _fleet(rng: np.random.Generator, count: int, terrain: Terrain) -> Scene:
    """Full to a share of its own; a node in twenty takes no work."""
    cores = rng.choice([8, 16, 32, 64, 96], count)
    full = rng.uniform(0.0, 0.95)
    nodes = []
    for row, core in enumerate(cores.tolist()):
        used = np.minimum(rng.uniform(0.0, 2.0 * full, 4), 1.0)
        room = np.array([core * 1000, core * 4096, core * 61_440, core * 120])
        placed = Placed("there", 0, Capacity(*(int(amount) for amount in room * used)))
        status = NodeStatus.DRAINING if rng.random() < 0.05 else NodeStatus.READY
        name, site = f"n{row:04}", f"s{row % _SITES}"
        nodes.append(
            NodeState(name, site, Capacity(*(int(one) for one in room)), Allocation((placed,)), status)
        )
    fleet = FleetState(terrain)
    fleet.upsert(nodes)
    return fleet.scene()


def _workload(rng: np.random.Generator, name: str) -> Wanted:
    cores = int(rng.choice([1, 2, 4, 8], p=[0.45, 0.3, 0.15, 0.1]))
    return Wanted(
        name,
        np.array([cores * 1000, cores * 2048, cores * 10_240, cores * 10]),
        site=f"s{int(rng.integers(_SITES))}" if rng.random() < 0.1 else "",
        data_site=f"s{int(rng.integers(_SITES))}",
        data_bytes=int(rng.lognormal(19.0, 1.5)),
        priority=int(rng.integers(3)),
        predicted_s=float(rng.lognormal(7.5, 1.5)),
        may_defer=bool(rng.random() < 0.3),
    )
