"""Who decides: the model, unless anything at all speaks against it; then the rule, which has decided already.

The rule chooses first and always, so its answer is there when the model's is late, odd or missing; it is also the
permanent shadow. Order of the checks: model there and allowed, clock, time left, node count and feature range,
finite bids, mask. What a decision costs the moment it is made is stated for both choices, by the environment's price.
Pure: time is asked of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dwcp.allocation.env.reference import RETRY_AFTER_S
from dwcp.allocation.env.view import Scores, View
from dwcp.allocation.env.weights import PRIORITY_FACTOR, WEIGHTS
from dwcp.allocation.feasibility import choose_column
from dwcp.allocation.fleet import Floats
from dwcp.allocation.heuristics import LOAD, TABLE
from dwcp.allocation.policies import learned
from dwcp.allocation.policies.rules import price
from dwcp.allocation.serving.scene import Scene, Wanted, view_of
from dwcp.allocation.serving.scoring import Offers, Scored, Scorer
from dwcp.models.artefact import Artefact, ModelRefused

NODES = "nodes"  # the manifest's bound on the number of nodes
MARGIN = 0.25  # of a feature's range in training: what lies further outside was never tried
RANGE_MIN = 0.05  # ranges narrower than this count as this wide


class Fallback(StrEnum):
    """Why a rule answered where a model was wanted."""

    NO_MODEL = "no_model"
    SCHEMA = "schema"
    BREAKER = "breaker"
    CLOCK = "clock"
    TIMEOUT = "timeout"
    OOD = "ood"
    NAN = "nan"
    ERROR = "error"
    CONFLICT = "conflict"
    CANARY = "canary"


FAULTS = frozenset({Fallback.TIMEOUT, Fallback.NAN, Fallback.ERROR})  # what a breaker counts


class Served:
    """A model at work. `nodes` are the fleets it was validated on. Raises `ModelRefused`."""

    def __init__(self, artefact: Artefact) -> None:
        try:
            self.scorer = Scorer(artefact.weights)
        except (ValueError, KeyError, IndexError) as exc:
            raise ModelRefused(f"the model is refused: its arrays do not fit this program: {exc}") from exc
        bounds = artefact.manifest.bounds
        self.digest = artefact.digest
        self.version = artefact.manifest.version
        low, high = bounds.get(NODES, (0.0, 0.0))
        self.nodes = int(low), int(high)
        self.base_rule = _base_rule(artefact.weights)  # whose scores need no second computation
        self._node_low, self._node_high = _limits(learned.NODE, bounds)
        self._context_low, self._context_high = _limits(learned.CONTEXT, bounds)

    def validated(self, nodes: int) -> bool:
        return self.nodes[0] <= nodes <= self.nodes[1]

    def inside(self, scored: Scored) -> bool:
        """Whether every feature is near what the model saw in training."""
        nodes, context = scored.nodes, scored.context
        if not (nodes[_PRESENT] > 0).all():
            nodes = nodes[:, nodes[_PRESENT] > 0]
        return bool(
            (nodes.min(axis=1, initial=np.inf) >= self._node_low).all()
            and (nodes.max(axis=1, initial=-np.inf) <= self._node_high).all()
            and (context >= self._context_low).all()
            and (context <= self._context_high).all()
        )

    def outside(self, scored: Scored) -> tuple[str, ...]:
        """The features that are not."""
        nodes = scored.nodes[:, scored.nodes[_PRESENT] > 0]
        below = nodes.min(axis=1, initial=np.inf) < self._node_low
        above = nodes.max(axis=1, initial=-np.inf) > self._node_high
        far = (scored.context < self._context_low) | (scored.context > self._context_high)
        return tuple(
            name
            for names, odd in ((learned.NODE, below | above), (learned.CONTEXT, far))
            for name, is_odd in zip(names, odd.tolist(), strict=True)
            if is_odd
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy without learning, and the name that answers show."""

    name: str
    score: Scores
    draws: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision with both choices. Columns: a node's row, N to defer, -1 where nothing is feasible.

    `model_column` is None where the model did not choose. Costs are dollars at once, 0 where there is no choice.
    """

    wanted: Wanted
    scene: Scene
    view: View
    rule: Rule
    rule_scores: Floats
    rule_column: int
    model: Served | None
    scored: Scored | None
    model_column: int | None
    fallback: str
    rule_cost: float
    model_cost: float

    @property
    def by_model(self) -> bool:
        return self.model_column is not None and not self.fallback

    @property
    def column(self) -> int:
        return self.model_column if self.by_model and self.model_column is not None else self.rule_column

    @property
    def deferred(self) -> bool:
        return self.column == len(self.scene.open)

    @property
    def row(self) -> int | None:
        """The node to place on."""
        return None if self.column < 0 or self.deferred else self.column

    @property
    def agreed(self) -> bool | None:
        return None if self.model_column is None else self.model_column == self.rule_column


def decide(
    scene: Scene,
    wanted: Wanted,
    rule: Rule,
    *,
    model: Served | None,
    refused: str = "",
    left_s: Callable[[], float] = lambda: 1.0,
    expect_s: float = 0.0,
) -> Decision:
    """`refused`: why the model may not decide this one, "" if it may; `left_s` of the deadline,
    `expect_s` is what a decision with the model takes.

    The model is asked although it is refused where that costs little to know (`CANARY`): its choice is the shadow.
    """
    view = view_of(scene, wanted, dice=rule.draws)
    count = len(scene.open)
    if count == 0:
        return Decision(wanted, scene, view, rule, np.zeros(1), -1, None, None, None, refused, 0.0, 0.0)
    scores = np.asarray(rule.score(view, np), dtype=np.float64)
    rule_column = choose_column(scores, view.mask)
    scored, column, fallback = _asked(
        view, scores, rule, scene.roster.kinds, model=model, refused=refused, left_s=left_s, expect_s=expect_s
    )
    rule_cost = cost_of(view, wanted, rule_column)
    model_cost = 0.0 if column is None else cost_of(view, wanted, column)
    return Decision(
        wanted, scene, view, rule, scores, rule_column, model, scored, column, fallback, rule_cost, model_cost
    )


def _asked(
    view: View,
    rule_scores: Floats,
    rule: Rule,
    offers: Offers | None,
    *,
    model: Served | None,
    refused: str,
    left_s: Callable[[], float],
    expect_s: float,
) -> tuple[Scored | None, int | None, str]:
    """The model's bids and choice, and why they do not count."""
    if model is None or refused not in ("", Fallback.CANARY):
        return None, None, refused or Fallback.NO_MODEL
    if not model.validated(len(view.local)):
        return None, None, Fallback.OOD
    if left_s() <= expect_s:
        return None, None, Fallback.TIMEOUT
    try:
        shared = model.base_rule == rule.name
        scored = model.scorer.score(view, rule_scores if shared else None, offers)
    except Exception:  # noqa: BLE001  # whatever a model does, a workload is placed
        return None, None, Fallback.ERROR
    if not model.inside(scored):
        finite = bool(np.isfinite(scored.nodes).all() and np.isfinite(scored.context).all())
        return scored, None, Fallback.OOD if finite else Fallback.NAN
    if not np.isfinite(scored.bids[view.mask]).all():
        return scored, None, Fallback.NAN
    if left_s() <= 0:
        return scored, None, Fallback.TIMEOUT
    return scored, choose_column(scored.bids, view.mask), refused


def cost_of(view: View, wanted: Wanted, column: int) -> float:
    """Dollars that the environment would charge at once for that choice; deferring pauses for a minute.

    What a choice does to later placements (stranded room) is not in it: this is a lower bound of what it costs.
    """
    if column < 0:
        return 0.0
    factor = PRIORITY_FACTOR[wanted.priority]
    if column < len(view.local):
        late = WEIGHTS.wait * float(view.late[column]) * wanted.worth * factor
        return WEIGHTS.wan * float(view.wan[column]) + WEIGHTS.energy * float(view.energy[column]) + late
    share = min(RETRY_AFTER_S / max(wanted.slack_s, 1.0), 1.0)
    feasible = view.mask[:-1]
    cheapest = float(np.asarray(price(view, np))[feasible].min()) if feasible.any() else 0.0
    return cheapest + (WEIGHTS.sla + WEIGHTS.wait) * wanted.worth * factor * share


_PRESENT = learned.NODE.index("present")


def _base_rule(weights: learned.Weights) -> str:
    """The name of the tuned rule below the model, "" if it is none of those that are served."""
    if "base.rule" not in weights or "base.knobs" not in weights:
        return ""
    name = learned.RULE_NAMES[int(np.asarray(weights["base.rule"]).argmax())]
    entry = TABLE.entries(LOAD, stale=False).get(name)
    own = np.asarray(weights["base.knobs"], dtype=np.float64)
    known = [] if entry is None else [entry.knobs.get(key, 0.0) for key in ("money", "reserve", "headroom")]
    return f"{name}+" if known and np.allclose(own, known, rtol=1e-5) else ""


def _limits(names: tuple[str, ...], bounds: Mapping[str, tuple[float, float]]) -> tuple[Floats, Floats]:
    """Lowest and highest of each feature that is still near training; without a bound nothing is."""
    low, high = [], []
    for name in names:
        least, most = bounds.get(name, (np.inf, -np.inf))
        margin = MARGIN * max(most - least, RANGE_MIN) if most >= least else 0.0
        low.append(least - margin)
        high.append(most + margin)
    return np.array(low), np.array(high)
