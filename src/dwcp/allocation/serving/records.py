"""The last decisions, kept so that they can be explained; and what they show of model against rule."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from dwcp.allocation.serving.chain import Decision, Fallback
from dwcp.models.shadow import Comparison

RECORDS_MAX = 1_024
NODES_MAX = 131_072  # nodes in all records together: bounds memory where fleets are large
COST_FLOOR = 1e-4  # dollars added to both costs: a ratio of nearly nothing says nothing


class Record(NamedTuple):
    """A decision as it was made; `fleet` names the nodes' revision, "" where they came with the request."""

    decision: Decision
    fleet: str
    at_ms: int


@dataclass(slots=True)
class Records:
    """By identity, the oldest forgotten first."""

    prefix: str
    _kept: OrderedDict[str, Record] = field(default_factory=OrderedDict)
    _next: int = 0
    _nodes: int = 0

    def keep(self, decision: Decision, *, fleet: str, at_ms: int) -> str:
        """The identity under which it can be explained."""
        self._next += 1
        identity = f"{self.prefix}-{self._next}"
        self._kept[identity] = Record(decision, fleet, at_ms)
        self._nodes += len(decision.roster.names)
        while len(self._kept) > RECORDS_MAX or (self._nodes > NODES_MAX and len(self._kept) > 1):
            _, old = self._kept.popitem(last=False)
            self._nodes -= len(old.decision.roster.names)
        return identity

    def newest(self, most: int) -> tuple[Decision, ...]:
        """The oldest of them first."""
        return tuple(record.decision for record in self._kept.values())[-most:]

    def find(self, identity: str) -> Record | None:
        return self._kept.get(identity)


@dataclass(slots=True)
class Shadow:
    """What the permanent shadow has shown since the model in force began."""

    decisions: int = 0
    by_model: int = 0
    compared: int = 0
    agreed: int = 0
    far: int = 0  # out of the model's training range
    regret_usd: float = 0.0  # sum of model's cost less rule's
    cost_usd: float = 0.0  # sum of what was chosen

    def add(self, decision: Decision) -> None:
        self.decisions += 1
        self.by_model += decision.by_model
        self.far += decision.fallback == Fallback.OOD
        self.cost_usd += decision.model_cost if decision.by_model else decision.rule_cost
        if decision.agreed is None or decision.rule_column < 0:
            return
        self.compared += 1
        self.agreed += decision.agreed
        self.regret_usd += decision.model_cost - decision.rule_cost

    @property
    def model_share(self) -> float:
        return self.by_model / self.decisions if self.decisions else 0.0

    @property
    def agreement(self) -> float:
        return self.agreed / self.compared if self.compared else 0.0

    @property
    def mean_regret_usd(self) -> float:
        return self.regret_usd / self.compared if self.compared else 0.0

    @property
    def out_of_range(self) -> float:
        return self.far / self.decisions if self.decisions else 0.0


@dataclass(slots=True)
class Trial:
    """A canary's model against the rule, by paired costs of every decision that both made."""

    comparison: Comparison = field(default_factory=Comparison)

    def add(self, decision: Decision) -> None:
        if decision.agreed is None or decision.rule_column < 0:
            return
        model, rule = decision.model_cost + COST_FLOOR, decision.rule_cost + COST_FLOOR
        self.comparison = self.comparison.add(model, rule)
