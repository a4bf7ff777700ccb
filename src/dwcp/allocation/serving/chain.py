"""Who decides: the model, unless anything at all speaks against it; then the rule, which has decided already.

The rule chooses first and always, so its answer is there when the model's is late, odd or missing; it is also the
permanent shadow. Order of the checks: model there and allowed, clock, time left, node count and feature range,
finite bids, mask. What a decision costs the moment it is made is stated for both choices, by the environment's price.
Pure: time is asked of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite

import numpy as np

from dwcp.allocation.env.reference import RETRY_AFTER_S
from dwcp.allocation.env.view import Scores, View
from dwcp.allocation.env.weights import PRIORITY_FACTOR, WEIGHTS
from dwcp.allocation.feasibility import INFEASIBLE, choose_column, choose_rows
from dwcp.allocation.fleet import Bools, Floats
from dwcp.allocation.heuristics import ALIASES, LOAD, TABLE
from dwcp.allocation.policies import learned
from dwcp.allocation.policies.rules import Knobs, price
from dwcp.allocation.serving.offers import Singles
from dwcp.allocation.serving.scene import Roster, Scene, Wanted, view_of
from dwcp.allocation.serving.scoring import Scored, Scorer
from dwcp.allocation.serving.sheet import Sheet, Standing, Supposed, Tuned, tuned_of
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
    DRIFT = "drift"


FAULTS = frozenset({Fallback.TIMEOUT, Fallback.NAN, Fallback.ERROR})  # what a breaker counts
SHADOWED = frozenset({Fallback.CANARY, Fallback.DRIFT})  # the model is asked although it may not decide


class Served:
    """A model at work. `nodes` are the fleets it was validated on. Raises `ModelRefused`."""

    def __init__(self, artefact: Artefact) -> None:
        try:
            self.scorer = Scorer(artefact.weights)
            self.reference = learned.scorer(artefact.weights)  # for explanations: slower, of any view
        except (ValueError, KeyError, IndexError) as exc:
            raise ModelRefused(f"the model is refused: its arrays do not fit this program: {exc}") from exc
        bounds = artefact.manifest.bounds
        self.digest = artefact.digest
        self.version = artefact.manifest.version
        low, high = bounds.get(NODES, (0.0, 0.0))
        self.nodes = int(low), int(high)
        self._node_low, self._node_high = _limits(learned.NODE, bounds)
        self._edges: tuple[Singles, ...] = (self._node_low[:, None], self._node_high[:, None])
        self._context_low, self._context_high = _limits(learned.CONTEXT, bounds)

    def validated(self, nodes: int) -> bool:
        return self.nodes[0] <= nodes <= self.nodes[1]

    def inside(self, scored: Scored) -> Bools:
        """[B] whether every feature is near what the model saw in training."""
        nodes = scored.nodes
        if self._edges[0].shape[1] != nodes.shape[2]:  # spread over the nodes: comparing equals is quicker
            self._edges = tuple(
                np.repeat(edge[:, None], nodes.shape[2], axis=1) for edge in (self._node_low, self._node_high)
            )
        near = nodes >= self._edges[0]
        near &= nodes <= self._edges[1]
        if not scored.whole:
            near |= nodes[:, None, _PRESENT] <= 0
        known = (scored.context >= self._context_low) & (scored.context <= self._context_high)
        return np.asarray(np.logical_and.reduce(near, axis=(1, 2)) & np.logical_and.reduce(known, axis=1))

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
    tuned: Tuned | None = None  # the same in a sheet's parts, where it has them

    @classmethod
    def named(cls, name: str, score: Scores, *, draws: bool = False) -> Rule:
        """The policy of that name in `heuristics`, taken apart where that makes it quick."""
        blind = ALIASES.get(name, name.removesuffix("+"))
        entry = TABLE.entries(LOAD, stale=False).get(blind) if name.endswith("+") else None
        knobs = Knobs() if entry is None else Knobs(**entry.knobs)
        apart = None if name.endswith("+") and entry is None else tuned_of(blind, knobs)
        return cls(name, score, draws, apart)


@dataclass(slots=True, eq=False)
class Decision:
    """One decision with both choices, not to be changed. Columns:
    a node's row, N to defer, -1 where nothing is feasible.

    `model_column` is None where the model did not choose. Costs are dollars at once, 0 where there is no choice.
    """

    sheet: Sheet
    place: int  # of the workload in its sheet
    supposed: Supposed
    rank: int  # of the workload in what is supposed
    rule: Rule
    rule_scores: Floats
    rule_column: int
    model: Served | None
    scored: Scored | None
    model_column: int | None
    fallback: str
    rule_cost: float
    model_cost: float

    by_model: bool = field(init=False)
    deferred: bool = field(init=False)
    row: int | None = field(init=False)  # the node to place on

    def __post_init__(self) -> None:
        column = None if self.fallback else self.model_column
        self.by_model = column is not None
        if column is None:
            column = self.rule_column
        nodes = len(self.sheet.roster.names)
        self.deferred = column == nodes
        self.row = _row(column, nodes)

    @property
    def wanted(self) -> Wanted:
        return self.sheet.wanted[self.place]

    @property
    def roster(self) -> Roster:
        return self.sheet.roster

    @property
    def scene(self) -> Scene:
        """What it saw of the nodes, made anew."""
        return self.supposed.seen(self.rank)

    @property
    def version(self) -> int:
        """Of the node to place on, as the decision saw it."""
        assert self.row is not None
        return self.supposed.version(self.rank, self.row)

    @property
    def view(self) -> View:
        """What the policies saw, made anew."""
        return view_of(self.scene, self.wanted, dice=self.rule.draws)

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
    shared: tuple[Sheet, int] | None = None,
) -> Decision:
    """`refused`: why the model may not decide this one, "" if it may; `left_s` of the deadline,
    `expect_s` is what a decision with the model takes; `shared`: the batch's sheet and the workload's place in it.

    The model is asked although it is refused where that costs little to know (`SHADOWED`): its choice is the shadow.
    """
    sheet, place = (Sheet(scene.roster, (wanted,), scene.age_s), 0) if shared is None else shared
    if not len(scene.open):
        nothing = Supposed(scene, (), np.zeros((1, 4, 0), dtype=np.int64), np.zeros((1, 0)))
        return Decision(sheet, place, nothing, 0, rule, np.zeros(1), -1, None, None, None, refused, 0.0, 0.0)
    standing = sheet.standing(place, scene)
    return judged(standing, rule, model=model, refused=refused, left_s=left_s, expect_s=expect_s).decision(0)


def judged(
    standing: Standing,
    rule: Rule,
    *,
    model: Served | None,
    refused: str = "",
    left_s: Callable[[], float],
    expect_s: float,
) -> Judged:
    """`decide` for each of the standing's B workloads on at least one node."""
    scores = _ruled(standing, rule)
    columns = _choices(scores, standing.mask)
    asked = _asked(standing, scores, rule, model=model, refused=refused, left_s=left_s, expect_s=expect_s)
    return Judged(standing, rule, model, scores, columns, asked, standing.supposed())


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model said on B decisions: its bids, its choices, and why they do not count, "" where they do."""

    scored: Scored | None
    columns: list[int | None]
    fallbacks: list[str]

    @classmethod
    def nothing(cls, standing: Standing, why: str) -> Asked:
        count = len(standing.mask)
        return cls(None, [None] * count, [why] * count)


def _choices(scores: Floats, mask: Bools) -> list[int]:
    """[B] of scores [B, N + 1]."""
    if len(scores) == 1:
        return [choose_column(scores[0], mask[0])]
    masked = np.where(mask, scores, -np.inf)
    columns = masked.argmax(axis=1)
    best = masked[np.arange(len(columns)), columns]
    if np.logical_and.reduce((best > INFEASIBLE / 2) & (best < np.inf)):  # as `choose_column`
        return [int(column) for column in columns.tolist()]
    return [int(column) for column in choose_rows(scores, mask).tolist()]


@dataclass(frozen=True, slots=True)
class Judged:
    """The rule's scores [B, N + 1] and choices, and what the model said, on the standing's workloads."""

    standing: Standing
    rule: Rule
    model: Served | None
    scores: Floats
    rule_columns: list[int]
    asked: Asked
    supposed: Supposed

    def row(self, rank: int) -> int | None:
        """Where workload `rank` goes."""
        column = None if self.asked.fallbacks[rank] else self.asked.columns[rank]
        return _row(self.rule_columns[rank] if column is None else column, len(self.standing.scene.open))

    def decision(self, rank: int) -> Decision:
        """All of it, for keeping."""
        standing, asked = self.standing, self.asked
        rule_column, column = self.rule_columns[rank], asked.columns[rank]
        rule_cost = cost_of(standing, rank, rule_column)
        model_cost = rule_cost if column == rule_column else 0.0
        if column is not None and column != rule_column:
            model_cost = cost_of(standing, rank, column)
        return Decision(
            standing.sheet,
            standing.place + rank,
            self.supposed,
            rank,
            self.rule,
            self.scores[rank].copy(),
            rule_column,
            self.model,
            None if asked.scored is None else asked.scored.one(rank),
            column,
            asked.fallbacks[rank],
            rule_cost,
            model_cost,
        )


def _row(column: int, nodes: int) -> int | None:
    """The node that a choice names; None to defer, and where nothing is feasible."""
    return column if 0 <= column < nodes else None


def _ruled(standing: Standing, rule: Rule) -> Floats:
    """[B, N + 1] the rule's scores."""
    if rule.tuned is not None:
        return standing.by_rule(rule.tuned)
    sheet, place = standing.sheet, standing.place
    views = [
        view_of(standing.seen(rank), sheet.wanted[place + rank], dice=rule.draws)
        for rank in range(len(standing.mask))
    ]
    return np.array([rule.score(view, np) for view in views], dtype=np.float64)


def _asked(
    standing: Standing,
    rule_scores: Floats,
    rule: Rule,
    *,
    model: Served | None,
    refused: str,
    left_s: Callable[[], float],
    expect_s: float,
) -> Asked:
    """The model's bids and choices, and why they do not count. `expect_s`: of one decision."""
    if model is None or (refused and refused not in SHADOWED):
        return Asked.nothing(standing, refused or Fallback.NO_MODEL)
    if not model.validated(len(standing.scene.open)):
        return Asked.nothing(standing, Fallback.OOD)
    if left_s() <= expect_s * len(standing.mask):
        return Asked.nothing(standing, Fallback.TIMEOUT)
    try:
        shared = rule.tuned is not None and model.scorer.tuned == rule.tuned
        scored = model.scorer.score(standing, rule_scores if shared else None)
    except Exception:  # noqa: BLE001  # whatever a model does, a workload is placed
        return Asked.nothing(standing, Fallback.ERROR)
    odd = _odd(model, scored, standing.mask)
    late = left_s() <= 0
    fallbacks = [own or (Fallback.TIMEOUT if late else refused) for own in odd]
    columns = [
        None if own or late else column
        for own, column in zip(odd, _choices(scored.bids, standing.mask), strict=True)
    ]
    return Asked(scored, columns, fallbacks)


def _odd(model: Served, scored: Scored, mask: Bools) -> list[str]:
    """[B] what is wrong with the model's numbers, "" if nothing is."""
    near = model.inside(scored)
    if np.logical_and.reduce(near) and isfinite(np.add.reduce(scored.bids, axis=None)):
        return [""] * len(near)
    found: list[str] = []
    for rank, inside in enumerate(near.tolist()):
        nodes, context, bids = scored.nodes[rank], scored.context[rank], scored.bids[rank]
        if not inside:
            finite = bool(np.isfinite(nodes).all() and np.isfinite(context).all())
            found.append(Fallback.OOD if finite else Fallback.NAN)
        else:
            found.append("" if np.isfinite(bids[mask[rank]]).all() else Fallback.NAN)
    return found


def cost_of(standing: Standing, rank: int, column: int) -> float:
    """Dollars that the environment would charge at once for that choice; deferring pauses for a minute.

    What a choice does to later placements (stranded room) is not in it: this is a lower bound of what it costs.
    """
    if column < 0:
        return 0.0
    sheet, place = standing.sheet, standing.place + rank
    wanted = sheet.wanted[place]
    factor = PRIORITY_FACTOR[wanted.priority]
    if column < len(standing.scene.open):
        wan, energy, late = sheet.bill(place, column)
        return WEIGHTS.wan * wan + WEIGHTS.energy * energy + WEIGHTS.wait * late * wanted.worth * factor
    share = min(RETRY_AFTER_S / max(wanted.slack_s, 1.0), 1.0)
    feasible = standing.mask[rank, :-1]
    cheapest = float(np.asarray(price(standing.view(rank), np))[feasible].min()) if feasible.any() else 0.0
    return cheapest + (WEIGHTS.sla + WEIGHTS.wait) * wanted.worth * factor * share


_PRESENT = learned.NODE.index("present")


def _limits(names: tuple[str, ...], bounds: Mapping[str, tuple[float, float]]) -> tuple[Singles, Singles]:
    """Lowest and highest of each feature that is still near training; without a bound nothing is."""
    low, high = [], []
    for name in names:
        least, most = bounds.get(name, (np.inf, -np.inf))
        margin = MARGIN * max(most - least, RANGE_MIN) if most >= least else 0.0
        low.append(least - margin)
        high.append(most + margin)
    return np.array(low, dtype=np.float32), np.array(high, dtype=np.float32)
