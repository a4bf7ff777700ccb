"""What one decision computes from, in two parts: what a batch shares, once; what placements change, each time.

A `Sheet` has what W workloads are to N nodes whatever is placed: prices, lateness, distances, the parts of the rules
that follow from them, and the network's input rows. A `Standing` adds the room of one scene. A single placement is a
batch of one, so both give the same numbers to the last bit.

Shapes: [W, N], [W, K] by offer, [R, N] resources first, so that every operation runs over contiguous memory. float64;
the network's rows are float32 [F + 1, N], the last all ones: it carries the biases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dwcp.allocation.env.view import View
from dwcp.allocation.env.weights import PRIORITY_FACTOR, WEIGHTS
from dwcp.allocation.fleet import Bools, Floats
from dwcp.allocation.policies import learned
from dwcp.allocation.policies.rules import NEVER_DEFER, WORTH_FLOOR, Knobs
from dwcp.allocation.serving.offers import Offers, Singles, offers_of
from dwcp.allocation.serving.scene import Roster, Scene, Wanted, view_of

LOCAL_BONUS = 10.0  # of the rules that go by the data's site first
RATIO_MAX = 100.0  # of price to value, as in `rules`
_ROW = {name: row for row, name in enumerate(learned.NODE)}
_OFFER = [_ROW["local"], _ROW["wan"], _ROW["late"]]


@dataclass(frozen=True, slots=True)
class Tuned:
    """A rule that looks at each node by itself, under its knobs: the room left counts as `room` says."""

    room: str  # a key of `_ROOMS`
    local: bool
    knobs: Knobs


def tuned_of(rule: str, knobs: Knobs) -> Tuned | None:
    """The rule in these parts; None where it is made of others and is asked as a whole."""
    known = {"local-best-fit": ("best-fit-l2", True)} | {name: (name, False) for name in _ROOMS}
    return Tuned(*known[rule], knobs) if rule in known else None


class Sheet:
    """W workloads on the nodes of a roster; `age_s` [N] of what is known. Parts are worked out when asked for."""

    def __init__(self, roster: Roster, wanted: Sequence[Wanted], age_s: Floats) -> None:
        self.roster = roster
        self.wanted = tuple(wanted)
        self._age_s = age_s
        self._prices: dict[float, Floats] = {}
        self.demand = np.array([one.demand for one in self.wanted], dtype=np.float64)[:, :, None]  # [W, R, 1]
        near = [roster.from_site(one.data_site) for one in self.wanted]
        shipped = self._column([one.data_bytes for one in self.wanted])
        self.home = np.array([home for home, _rate, _usd in near])  # [W, K]
        self.wan = shipped / 1e9 * np.array([usd for _home, _rate, usd in near])  # [W, K] dollars
        slow = shipped * 8e-6 / np.array([rate for _home, rate, _usd in near])
        waited = self._column([one.waited_s for one in self.wanted])
        budget = self._column([max(one.budget_s, 1.0) for one in self.wanted])
        self.late = np.minimum((waited + slow) / budget, 1.0)  # [W, K] share of the waiting budget
        self._worth = self._column([max(one.worth, WORTH_FLOOR) for one in self.wanted])
        self._core_hours = self._column(
            [float(one.demand[0]) / 1000.0 * one.predicted_s / 3600.0 for one in self.wanted]
        )

    @staticmethod
    def _column(values: Sequence[float]) -> Floats:
        return np.array(values, dtype=np.float64)[:, None]

    def bill(self, place: int, row: int) -> tuple[float, float, float]:
        """Dollars for shipping and energy, and the share of the waiting budget, of workload `place` on node `row`."""
        offer = self.roster.offers[2][row]
        energy = float(self._core_hours[place, 0]) * float(self.roster.energy[row])
        return float(self.wan[place, offer]), energy, float(self.late[place, offer])

    @cached_property
    def energy(self) -> Floats:
        """[W, N] dollars."""
        return self._core_hours * self.roster.energy

    @cached_property
    def ratio(self) -> Floats:
        """[W, N] price to value, as `rules.price` says."""
        stake = self._column([one.worth * PRIORITY_FACTOR[one.priority] for one in self.wanted])
        offer = self.roster.offers[2]
        found = (WEIGHTS.wan * self.wan)[:, offer]
        found += WEIGHTS.energy * self.energy
        found += (WEIGHTS.wait * self.late * stake)[:, offer]
        found /= self._worth
        return np.asarray(np.minimum(found, RATIO_MAX, out=found))

    @cached_property
    def nearness(self) -> Floats:
        """[W, N] what rules that go by the data's site add there."""
        return LOCAL_BONUS * self.home[:, self.roster.offers[2]]

    def priced(self, money: float) -> Floats:
        """[W, N] what a rule of that knob takes off for the price."""
        found = self._prices.get(money)
        if found is None:
            found = self._prices[money] = money * self.ratio
        return found

    def aged(self, tuned: Tuned) -> Floats | float:
        """[N] thousandths of a core that the rule keeps free for the age of what is known."""
        if not tuned.knobs.headroom:
            return 0.0
        return np.asarray(tuned.knobs.headroom * self._age_s / 3600.0 * self.roster.across[0])

    @cached_property
    def inputs(self) -> Singles:
        """[W, F + 1, N] the network's rows; those that placements change are written by `Standing.fill`."""
        roster = self.roster
        count = len(roster.names)
        cpu = np.maximum(roster.across[0], 1.0)
        offer = roster.offers[2]
        urgency = self._column([(one.priority + 1.0) / 3.0 for one in self.wanted])
        found = np.empty((len(self.wanted), len(learned.NODE) + 1, count), dtype=np.float32)
        found[:, _ROW["demand-cpu"]] = self.demand[:, 0] / cpu
        found[:, _ROW["size"]] = cpu / max(float(cpu.max()), 1.0)
        found[:, _ROW["local"]] = self.home[:, offer]
        found[:, _ROW["wan"]] = np.log1p(self.wan / self._worth)[:, offer]
        found[:, _ROW["energy"]] = np.log1p(self.energy / self._worth * 10.0)
        found[:, _ROW["late"]] = (self.late * urgency)[:, offer]
        found[:, _ROW["age"]] = self._age_s / 600.0
        found[:, _STATIC] = np.clip(found[:, _STATIC], -learned.FEATURE_MAX, learned.FEATURE_MAX)
        if not roster.whole:
            found[:, _STATIC] *= roster.present
        found[:, _ROW["present"]] = roster.present
        found[:, -1] = 1.0
        return found

    @cached_property
    def offers(self) -> list[Offers]:
        """[W] who makes which offer to each workload."""
        kinds = self.roster.kinds
        if kinds is None or not self.roster.whole:
            return [offers_of(rows[_OFFER]) for rows in self.inputs]
        urgency = self._column([(one.priority + 1.0) / 3.0 for one in self.wanted])
        wan = np.minimum(np.log1p(self.wan / self._worth), learned.FEATURE_MAX)
        return kinds.told_apart(self.home, wan, self.late * urgency)

    @cached_property
    def facts(self) -> list[tuple[float, ...]]:
        """[W] of the context, what no placement changes: slack, queue, who it is, how long, what it is worth."""
        return [_facts(one) for one in self.wanted]

    def standing(self, place: int, scene: Scene) -> Standing:
        """Workload `place` in that scene, whose roster is this sheet's."""
        return Standing(self, place, scene)


class Standing:
    """One workload in one scene: what is free, what would be in use, what is feasible."""

    __slots__ = ("_left", "_loose", "_shared", "after", "cpu_free", "free", "mask", "place", "scene", "sheet")

    def __init__(self, sheet: Sheet, place: int, scene: Scene) -> None:
        roster, wanted = sheet.roster, sheet.wanted[place]
        self.sheet, self.place, self.scene = sheet, place, scene
        room = np.empty((4, len(scene.open)), dtype=np.int64)
        np.subtract(roster.lines, scene.used.T, out=room)
        self.mask: Bools = np.empty(len(scene.open) + 1, dtype=np.bool_)
        nodes = self.mask[:-1]
        np.logical_and.reduce(room >= wanted.demand[:, None], axis=0, out=nodes)
        nodes &= scene.open
        if wanted.site:
            nodes &= roster.pinned(wanted.site)
        if scene.reach is not None:
            nodes &= scene.reach
        self.mask[-1] = wanted.may_defer and wanted.slack_s > 0
        self.free: Floats = np.maximum(room, 0).astype(np.float64)  # [R, N]
        if not np.logical_and.reduce(scene.open):
            self.free *= scene.open
        self.after: Floats = roster.across - self.free  # [R, N] fractions in use after the placement
        self.after += sheet.demand[place]
        self.after /= roster.divisor
        if not roster.full:
            self.after *= roster.across > 0
        self._loose: Floats | None = None
        self._left: Floats | None = None  # [N] of the cores, after the placement
        self._shared: tuple[tuple[str, bool], Floats] | None = None
        self.cpu_free = float(np.add.reduce(self.free[0]))  # of all nodes, thousandths of a core

    @property
    def wanted(self) -> Wanted:
        return self.sheet.wanted[self.place]

    @property
    def view(self) -> View:
        """The same as rules and the reference take it."""
        return view_of(self.scene, self.wanted)

    def mean(self) -> Floats:
        """[N] of the fractions in use."""
        found: Floats = np.add.reduce(self.after)
        found *= 0.25
        return found

    def loose(self) -> Floats:
        """[N] mean square of the fractions left."""
        if self._loose is None:
            left = 1.0 - self.after
            left *= left
            self._loose = np.add.reduce(left)
            self._loose *= 0.25
        return self._loose

    def by_rule(self, tuned: Tuned) -> Floats:
        """[N + 1] the rule's scores, as `rules.policy` has them."""
        sheet, wanted = self.sheet, self.wanted
        found = np.empty(len(self.mask))
        nodes = found[:-1]
        np.subtract(self._blind(tuned), sheet.priced(tuned.knobs.money)[self.place], out=nodes)
        found[-1] = NEVER_DEFER
        demand = float(sheet.demand[self.place, 0, 0])
        spare = (self.cpu_free - demand) / max(sheet.roster.cpu, 1.0)
        if spare < tuned.knobs.reserve * (2 - wanted.priority) / 2.0:
            nodes += 2 * NEVER_DEFER
        else:
            kept = sheet.aged(tuned)
            if self._left is None:
                self._left = self.free[0] - demand
            if np.minimum.reduce(self._left) < (kept if isinstance(kept, float) else kept.max()):
                nodes += np.where(self._left < kept, 2 * NEVER_DEFER, 0.0)
        return found

    def _blind(self, tuned: Tuned) -> Floats:
        """[N] the rule's scores without knobs: rules that differ by these alone share them."""
        kind = tuned.room, tuned.local
        if self._shared is None or self._shared[0] != kind:
            found = _ROOMS[tuned.room](self)
            if tuned.local:
                found += self.sheet.nearness[self.place]
            self._shared = kind, found
        return self._shared[1]

    def fill(self) -> Singles:
        """[F + 1, N] the network's rows of this decision, but for the gap. They are the sheet's: for one use."""
        sheet, roster = self.sheet, self.sheet.roster
        rows: Singles = sheet.inputs[self.place]
        room = np.empty((7, len(self.mask) - 1))
        room[:4] = self.after
        np.maximum.reduce(self.after, axis=0, out=room[4])
        room[5] = self.loose()
        apart = room[6]  # σ² of the fractions left, which is that of those in use
        np.subtract(1.0, self.mean(), out=apart)
        apart *= apart
        np.subtract(room[5], apart, out=apart)
        np.maximum(apart, 0.0, out=apart)
        np.sqrt(apart, out=apart)
        np.minimum(room, learned.FEATURE_MAX, out=rows[:7], casting="same_kind")
        extends = self.wanted.predicted_s - self.scene.exit_in_s
        np.maximum(extends, 0.0, out=extends)
        extends /= 600.0
        np.log1p(extends, out=extends)
        np.multiply(extends, 0.25, out=rows[_EXTENDS], casting="same_kind")
        rows[_EMPTY] = self.free[0] >= roster.divisor[0]
        rows[_FEASIBLE] = self.mask[:-1]
        if not roster.whole:
            rows[_DYNAMIC] *= roster.present
        return rows

    def context(self, defer_gap: float) -> Singles:
        """[C + 1] in the order of `learned.CONTEXT`, and a one for the biases."""
        slack, queue, priority, low, best_effort, batch, sensitive, long, worth = self.sheet.facts[self.place]
        full = 1.0 - self.cpu_free / max(self.sheet.roster.cpu, 1.0)
        free = max(float(self.free[0] @ self.mask[:-1]), 1.0)
        share = min(float(self.sheet.demand[self.place, 0, 0]) / free, 1.0)
        return np.array(
            [
                1.0, slack, queue, priority, full, full * low, defer_gap, float(self.mask[-1]),
                best_effort, batch, sensitive, long, worth, share, 1.0,
            ],
            dtype=np.float32,
        )  # fmt: skip


def _facts(one: Wanted) -> tuple[float, ...]:
    most = learned.FEATURE_MAX
    return (
        min(math.log1p(max(one.slack_s, 0.0) / 60.0) / 5.0, most),
        min(math.log1p(one.queued) / 5.0, most),
        one.priority / 2.0,
        (2 - one.priority) / 2.0,
        *(float(one.priority == priority) for priority in range(3)),
        min(math.log1p(one.predicted_s / 60.0) / 8.0, most),
        min(math.log1p(max(one.worth, 0.0) * 10.0) / 3.0, most),
    )


def _emptiest(standing: Standing) -> Floats:
    return -standing.mean()


def _tightest(standing: Standing) -> Floats:
    found = np.sqrt(standing.loose())
    return np.negative(found, out=found)


_ROOMS = {"best-fit-l1": Standing.mean, "best-fit-l2": _tightest, "worst-fit": _emptiest}
_EXTENDS, _EMPTY, _FEASIBLE = _ROW["extends"], _ROW["empty"], _ROW["feasible"]
_STATIC = [_ROW[name] for name in ("demand-cpu", "size", "local", "wan", "energy", "late", "age")]
_DYNAMIC = [*range(7), _EXTENDS, _EMPTY, _FEASIBLE]
assert [learned.NODE.index(name) for name in ("filled-max", "filled-l2", "unbalanced")] == [4, 5, 6]
