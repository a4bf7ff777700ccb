"""What decisions compute from, in two parts: what a batch shares, once; what placements change, each time.

A `Sheet` has what W workloads are to N nodes whatever is placed: prices, lateness, distances, the parts of the rules
that follow from them, and the network's input rows. A `Standing` adds the room that B of them find. Nothing that is
computed for one mixes with another, so any B give the same numbers to the last bit.

Shapes: [W, N], [W, K] by offer, [B, R, N] resources before nodes, so that every operation runs over contiguous memory.
float64; the network's rows are float32 [B, F + 1, N], the last all ones: it carries the biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dwcp.allocation.env.view import View
from dwcp.allocation.env.weights import PRIORITY_FACTOR, WEIGHTS
from dwcp.allocation.fleet import Bools, Floats, Ints
from dwcp.allocation.policies import learned
from dwcp.allocation.policies.linear import FEATURE_MAX
from dwcp.allocation.policies.rules import NEVER_DEFER, WORTH_FLOOR, Knobs
from dwcp.allocation.serving.offers import Offers, Rows, Singles, offers_of
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
    known = {name: (name, False) for name in _ROOMS}
    known |= {"local-best-fit": ("best-fit-l2", True), "local-kube": ("kube-default", True)}
    return Tuned(*known[rule], knobs) if rule in known else None


class Sheet:
    """W workloads on the nodes of a roster; `age_s` [N] of what is known. Parts are worked out when asked for."""

    def __init__(self, roster: Roster, wanted: Sequence[Wanted], age_s: Floats) -> None:
        self.roster = roster
        self.wanted = tuple(wanted)
        self._age_s = age_s
        self._prices: dict[float, Floats] = {}
        self.amount = np.array([one.demand for one in self.wanted])[:, :, None]  # [W, R, 1]
        self.demand = self.amount.astype(np.float64)
        self.predicted = self._column([one.predicted_s for one in self.wanted])
        self.ends = np.array(
            [int(one.predicted_s * 1000) / 1000.0 for one in self.wanted]
        )  # whole milliseconds
        self.low = self._column([2 - one.priority for one in self.wanted])[:, 0]  # [W] how unimportant
        self.defers = np.array([one.may_defer and one.slack_s > 0 for one in self.wanted])
        self.pins = [(place, one.site) for place, one in enumerate(self.wanted) if one.site]
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
        found[:, _STATIC] = np.clip(found[:, _STATIC], -FEATURE_MAX, FEATURE_MAX)
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
        wan = np.minimum(np.log1p(self.wan / self._worth), FEATURE_MAX)
        return kinds.told_apart(self.home, wan, self.late * urgency)

    @cached_property
    def offered(self) -> tuple[Singles, Rows]:
        """[W, 2 + K, N] and [W, N] of all offers together. Only where the roster's kinds are known: K is theirs."""
        offers = self.offers
        if len(offers) == 1:
            return offers[0].member[None], offers[0].group[None]
        return np.stack([one.member for one in offers]), np.stack([one.group for one in offers])

    @cached_property
    def facts(self) -> Singles:
        """[W, C + 1] the context; 0 where placements change it, and a one for the biases."""
        most = FEATURE_MAX
        said = np.array(
            [
                (max(one.slack_s, 0.0), one.queued, one.priority, one.predicted_s, max(one.worth, 0.0))
                for one in self.wanted
            ],
            dtype=np.float64,
        )
        found = np.zeros((len(said), len(learned.CONTEXT) + 1), dtype=np.float32)
        found[:, 0] = found[:, -1] = 1.0
        logs = np.log1p(said * _INTO) * _OUT_OF
        np.minimum(logs, most, out=logs)
        found[:, 1:3], found[:, _LONG : _LONG + 2] = logs[:, :2], logs[:, 3:]
        priority = said[:, 2]
        found[:, 3] = priority / 2.0
        found[:, _KIND : _KIND + 3] = priority[:, None] == _PRIORITIES
        return found

    @property
    def alike(self) -> bool:
        """Whether its workloads can be looked at together."""
        return self.roster.whole and self.roster.kinds is not None

    def standing(self, place: int, scene: Scene) -> Standing:
        """Workload `place` in that scene, whose roster is this sheet's."""
        return Standing(self, place, scene)


@dataclass(frozen=True, slots=True)
class Supposed:
    """The scenes of a standing's workloads, made when somebody looks: most decisions are never explained."""

    scene: Scene  # that of the first
    guesses: Sequence[int | None]
    room: Ints  # [B, R, N], or [1, R, N] for all
    exit_in_s: Floats  # [B, N] or [1, N]

    def seen(self, rank: int) -> Scene:
        """What workload `rank` finds."""
        if not rank:
            return self.scene
        old, last, version = self.scene, self.scene.last, self.scene.version.copy()
        for row in self.guesses[:rank]:
            if row is not None:
                last = row
                version[row] += 1
        own = min(rank, len(self.room) - 1)
        used = old.roster.capacity - self.room[own].T
        exit_in_s = self.exit_in_s[own].copy()
        return Scene(old.roster, used, old.status, old.open, old.age_s, exit_in_s, last, version, old.reach)

    def version(self, rank: int, row: int) -> int:
        """Of that node, as workload `rank` finds it."""
        return int(self.scene.version[row]) + self.guesses[:rank].count(row)


class Standing:
    """B workloads of a sheet from `place` on: what each finds free, what would be in use, what is feasible.

    The first finds the scene; each of the others finds it as if the ones before had gone to the rows in `guesses`
    (None: nowhere). B = 1 + len(guesses).
    """

    __slots__ = (
        "_left", "_loose", "_shared", "after", "cpu_free", "exit_in_s", "free", "guesses", "mask", "part", "place",
        "room", "scene", "sheet",
    )  # fmt: skip

    def __init__(self, sheet: Sheet, place: int, scene: Scene, guesses: Sequence[int | None] = ()) -> None:
        roster = sheet.roster
        self.sheet, self.place, self.scene, self.guesses = sheet, place, scene, guesses
        self.part = slice(place, place + 1 + len(guesses))
        self.exit_in_s: Floats = scene.exit_in_s[None]  # [B, N]
        self.room: Ints = (roster.lines - scene.used.T)[None]  # [B, R, N]; below 0 where a node is overfull
        if any(row is not None for row in guesses):
            self._suppose()  # else all find the same: one stands for B
        self.mask: Bools = self._feasible()  # [B, N + 1]
        self.free: Floats = np.maximum(self.room, 0).astype(np.float64)  # [B, R, N]
        if not np.logical_and.reduce(scene.open):
            self.free *= scene.open
        self.after: Floats = (roster.across - self.free) + sheet.demand[
            self.part
        ]  # [B, R, N] in use after it
        self.after /= roster.divisor
        if not roster.full:
            self.after *= roster.across > 0
        self._loose: Floats | None = None
        self._left: Floats | None = None  # [B, N] of the cores, after the placement
        self._shared: tuple[tuple[str, bool], Floats] | None = None
        self.cpu_free: Floats = np.add.reduce(
            self.free[:, 0], axis=1
        )  # [B] of all nodes, thousandths of a core

    def _suppose(self) -> None:
        sheet, count = self.sheet, len(self.guesses) + 1
        self.room = np.repeat(self.room, count, axis=0)
        self.exit_in_s = np.repeat(self.exit_in_s, count, axis=0)
        for rank, row in enumerate(self.guesses):
            if row is not None:
                one = sheet.wanted[self.place + rank]
                self.room[rank + 1 :, :, row] -= one.demand
                ends = self.exit_in_s[rank + 1 :, row]
                np.maximum(ends, int(one.predicted_s * 1000) / 1000.0, out=ends)

    def _feasible(self) -> Bools:
        sheet, scene, part, room = self.sheet, self.scene, self.part, self.room
        found = np.empty((len(self.guesses) + 1, room.shape[2] + 1), dtype=np.bool_)
        nodes = found[:, :-1]
        np.logical_and.reduce(room >= sheet.amount[part], axis=1, out=nodes)
        nodes &= scene.open
        for place, site in sheet.pins:
            if part.start <= place < part.stop:
                nodes[place - part.start] &= sheet.roster.pinned(site)
        if scene.reach is not None:
            nodes &= scene.reach
        found[:, -1] = sheet.defers[part]
        return found

    def view(self, rank: int) -> View:
        """The same as rules and the reference take it."""
        return view_of(self.seen(rank), self.sheet.wanted[self.place + rank])

    def seen(self, rank: int) -> Scene:
        """The scene that workload `place + rank` finds."""
        return self.supposed().seen(rank)

    def supposed(self) -> Supposed:
        """What all of them find, for keeping."""
        return Supposed(self.scene, self.guesses, self.room, self.exit_in_s)

    def mean(self) -> Floats:
        """[B, N] of the fractions in use."""
        found: Floats = np.add.reduce(self.after, axis=1)
        found *= 0.25
        return found

    def loose(self) -> Floats:
        """[B, N] mean square of the fractions left."""
        if self._loose is None:
            left = 1.0 - self.after
            left *= left
            self._loose = np.add.reduce(left, axis=1)
            self._loose *= 0.25
        return self._loose

    def by_rule(self, tuned: Tuned) -> Floats:
        """[B, N + 1] the rule's scores, as `rules.policy` has them."""
        sheet, part = self.sheet, self.part
        found = np.empty(self.mask.shape)
        nodes = found[:, :-1]
        np.subtract(self._blind(tuned), sheet.priced(tuned.knobs.money)[part], out=nodes)
        found[:, -1] = NEVER_DEFER
        demand = sheet.demand[part, 0]  # [B, 1]
        spare = (self.cpu_free - demand[:, 0]) / max(sheet.roster.cpu, 1.0)
        short = spare < tuned.knobs.reserve * sheet.low[part] / 2.0
        kept = sheet.aged(tuned)
        if self._left is None:
            self._left = self.free[:, 0] - demand
        if np.logical_or.reduce(short):
            nodes[short] += 2 * NEVER_DEFER
        if np.minimum.reduce(self._left, axis=None) < (kept if isinstance(kept, float) else kept.max()):
            aged = self._left < kept
            aged[short] = False
            nodes += np.where(aged, 2 * NEVER_DEFER, 0.0)
        return found

    def _blind(self, tuned: Tuned) -> Floats:
        """[B, N] the rule's scores without knobs: rules that differ by these alone share them."""
        kind = tuned.room, tuned.local
        if self._shared is None or self._shared[0] != kind:
            found = _ROOMS[tuned.room](self)
            if tuned.local:
                found += self.sheet.nearness[self.part]
            self._shared = kind, found
        return self._shared[1]

    def fill(self) -> Singles:
        """[B, F + 1, N] the network's rows, but for the gap. They are the sheet's, and hold until a workload is
        looked at again."""
        sheet, roster = self.sheet, self.sheet.roster
        rows: Singles = sheet.inputs[self.part]
        room = np.empty((len(rows), 7, len(roster.names)))
        room[:, :4] = self.after
        np.maximum.reduce(self.after, axis=1, out=room[:, 4])
        room[:, 5] = self.loose()
        apart = room[:, 6]  # σ² of the fractions left, which is that of those in use
        np.subtract(1.0, self.mean(), out=apart)
        apart *= apart
        np.subtract(room[:, 5], apart, out=apart)
        np.maximum(apart, 0.0, out=apart)
        np.sqrt(apart, out=apart)
        np.minimum(room, FEATURE_MAX, out=rows[:, :7], casting="same_kind")
        extends = sheet.predicted[self.part] - self.exit_in_s
        np.maximum(extends, 0.0, out=extends)
        extends /= 600.0
        np.log1p(extends, out=extends)
        np.multiply(extends, 0.25, out=rows[:, _EXTENDS], casting="same_kind")
        rows[:, _EMPTY] = self.free[:, 0] >= roster.divisor[0]
        rows[:, _FEASIBLE] = self.mask[:, :-1]
        if not roster.whole:
            rows[:, _DYNAMIC] *= roster.present
        return rows

    def context(self) -> Singles:
        """[B, C + 1] in the order of `learned.CONTEXT`, but for the gap, and a one for the biases."""
        sheet = self.sheet
        found = sheet.facts[self.part].copy()
        full = 1.0 - self.cpu_free / max(sheet.roster.cpu, 1.0)
        free = np.add.reduce(self.free[:, 0] * self.mask[:, :-1], axis=1)
        found[:, _FULL] = full
        found[:, _FULL + 1] = full * (sheet.low[self.part] / 2.0)
        found[:, _FULL + 3] = self.mask[:, -1]
        found[:, -2] = np.minimum(sheet.demand[self.part, 0, 0] / np.maximum(free, 1.0), 1.0)
        return found


def _emptiest(standing: Standing) -> Floats:
    return -standing.mean()


def _tightest(standing: Standing) -> Floats:
    found = np.sqrt(standing.loose())
    return np.negative(found, out=found)


def _balanced(standing: Standing) -> Floats:
    return _level(standing.after)


def _level(fractions: Floats) -> Floats:
    """[B, N] one less the deviation of the fractions [B, R, N]."""
    return np.asarray(1.0 - fractions.std(axis=1))


def _kube_least(standing: Standing) -> Floats:
    two = standing.after[:, :2]
    return np.asarray((1.0 - two.mean(axis=1)) + _level(two))


def _kube_most(standing: Standing) -> Floats:
    two = standing.after[:, :2]
    return np.asarray(two.mean(axis=1) + _level(two))


def _matching(standing: Standing) -> Floats:
    divisor = standing.sheet.roster.divisor
    part = standing.sheet.demand[standing.part] / divisor
    return np.asarray(np.add.reduce(part * (standing.free / divisor), axis=1))


def _packed(standing: Standing) -> Floats:
    left = 1.0 - standing.after[:, :2]
    return np.asarray((20.0 - np.add.reduce(10.0**left, axis=1)) / 18.0)


def _busy_anyway(standing: Standing) -> Floats:
    extends = np.maximum(standing.sheet.predicted[standing.part] - standing.exit_in_s, 0.0)
    found = np.negative(np.log1p(extends / 600.0))
    found += _tightest(standing)
    return found


# every rule whose score of a node needs that node alone, so that whichever tuning finds cheapest is served quickly
_ROOMS = {
    "best-fit-l1": Standing.mean,
    "best-fit-l2": _tightest,
    "worst-fit": _emptiest,
    "balance": _balanced,
    "kube-default": _kube_least,
    "kube-most": _kube_most,
    "tetris": _matching,
    "nomad": _packed,
    "lifetime": _busy_anyway,
}
_EXTENDS, _EMPTY, _FEASIBLE = _ROW["extends"], _ROW["empty"], _ROW["feasible"]
_STATIC = [_ROW[name] for name in ("demand-cpu", "size", "local", "wan", "energy", "late", "age")]
_DYNAMIC = [*range(7), _EXTENDS, _EMPTY, _FEASIBLE]
_FULL = learned.CONTEXT.index("defer-full")
_KIND, _LONG = learned.CONTEXT.index("best-effort"), learned.CONTEXT.index("log-predicted")
_PRIORITIES = np.arange(3.0)
_INTO = np.array(
    [1 / 60.0, 1.0, 1.0, 1 / 60.0, 10.0]
)  # of slack, queue, priority, run and worth before log1p
_OUT_OF = np.array([1 / 5.0, 1 / 5.0, 1.0, 1 / 8.0, 1 / 3.0])  # and after
assert learned.CONTEXT[1:4] == ("defer-slack", "defer-queue", "defer-priority")
assert learned.CONTEXT[_FULL:][1:4] == ("defer-reserve", "defer-gap", "defer-allowed")
assert learned.CONTEXT[-1] == "share"
assert [learned.NODE.index(name) for name in ("filled-max", "filled-l2", "unbalanced")] == [4, 5, 6]
