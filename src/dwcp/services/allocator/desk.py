"""Where workloads get their nodes: one desk, one decision after the other, each within its deadline.

It keeps the fleet that it was told, what it has placed or promised since, and the last decisions. Nodes that come with
a request count for that request alone; of them only promises are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from dwcp.allocation.decide import PolicyUnknown as PolicyUnknown
from dwcp.allocation.decide import by_name, rule_named
from dwcp.allocation.fleet import FleetMalformed, fleet_of, quantities
from dwcp.allocation.heuristics import DEFAULT, HEURISTICS, draws
from dwcp.allocation.reservations import Reservations
from dwcp.allocation.serving.ahead import Ahead
from dwcp.allocation.serving.chain import FAULTS, SHADOWED, Decision, Fallback, Rule, Served, decide
from dwcp.allocation.serving.day import Day, Told
from dwcp.allocation.serving.explain import candidates, explanation, why
from dwcp.allocation.serving.records import Records
from dwcp.allocation.serving.scene import Scene, Terrain, Wanted, capacity_of, scene_of, wanted_of
from dwcp.allocation.serving.sheet import Sheet
from dwcp.allocation.serving.state import FleetState
from dwcp.api import allocator as api
from dwcp.api.allocator import NodeState, PlaceAnswer, PlaceRequest
from dwcp.api.workloads import Allocation, Capacity, NodeStatus, Placed
from dwcp.runtime.clock import Clock, boottime_ns
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.allocator.counting import Counting
from dwcp.services.allocator.stage import Stage

DEADLINE_S, BATCH_DEADLINE_S = 0.010, 0.040
ASKED = "asked"  # a rule was asked for by name: no fallback
PLACER = "maddpg-placer"
CONFLICTS_MAX = 3  # choices made again after a node has changed; then the rule's
_NOTHING = Capacity(cpu_milli=0, memory_mib=0, storage_mib=0, bandwidth_mbps=0)


class FleetStale(ValueError):
    """The request names nodes that are not known here: tell them again with `POST /v1/nodes`."""


class DecisionUnknown(ValueError):
    """No such decision is kept: the last 1,024 are, until a restart."""


@dataclass(slots=True)
class Deadline:
    """When the answer is due, in nanoseconds since the machine started; a batch has one for all of it."""

    at_ns: int
    clock_ns: Callable[[], int] = boottime_ns
    missed: bool = False  # and counted as a fault

    def left_s(self) -> float:
        return (self.at_ns - self.clock_ns()) / 1e9


@dataclass(frozen=True, slots=True)
class Spent:
    """Where a request's time goes: when it came, when its decisions began, what all decisions had taken by then."""

    began_ns: int
    ready_ns: int
    scored_ns: int


class Desk:
    """Answers placement requests. Used by one event loop: a decision and its commit are not interrupted."""

    def __init__(
        self,
        *,
        clock: Clock,
        telemetry: Telemetry,
        stage: Stage,
        policy: str = DEFAULT,
        reservation_ms: int = 5_000,
        terrain: Terrain | None = None,
        clock_ns: Callable[[], int] = boottime_ns,
    ) -> None:
        self.policy = policy
        self.stage = stage
        self.terrain = terrain or Terrain()
        self.fleet = FleetState(self.terrain)
        self.epoch = f"{clock.now_ms() & 0xFFFFFFFFFF:x}"
        self.records = Records(self.epoch)
        self.day = Day(clock.now_ms())
        self._clock = clock
        self._clock_ns = clock_ns
        self._hold_ms = reservation_ms
        self._reservations = Reservations(ttl_ms=reservation_ms)
        self._seen: tuple[NodeState, ...] = ()
        self._seen_ms: int | None = None
        self._expect_s = 0.0  # of a decision with a model
        self._scored_ns = 0  # in all decisions so far
        self._rules = {name: Rule.named(name, score, draws=draws(name)) for name, score in HEURISTICS.items()}
        self.counting = Counting(telemetry, policy=policy)

    # placements

    def place(self, asked: PlaceRequest) -> PlaceAnswer:
        """Raises `FleetMalformed`, `FleetStale`, `PolicyUnknown`, `FleetFull`."""
        started_ns = self._clock_ns()
        deadline = Deadline(started_ns + int(DEADLINE_S * 1e9), self._clock_ns)
        now_ms = self._clock.monotonic_ms()
        if asked.fleet:
            self._require(asked.fleet)
            self.fleet.expire(now_ms)
            sheet = self._sheet(self.fleet, (self._checked(asked),), now_ms)
            spent = Spent(started_ns, self._clock_ns(), self._scored_ns)
            decision, answer = self._into(
                self.fleet, asked, (sheet, 0), deadline=deadline, now_ms=now_ms, name=asked.fleet
            )
        else:
            spent = Spent(started_ns, started_ns, self._scored_ns)
            decision, answer = self._carried(asked, deadline, now_ms)
        self._journal((decision,), (asked,))
        self.counting.decided(decision, seconds=self._told_apart(spent), now_ms=now_ms)
        return answer

    def batch(self, asked: api.BatchRequest) -> api.BatchAnswer:
        """By priority, the highest first, equals in their order; each sees those before. Raises as `place`."""
        if len(asked.items) > api.BATCH_MAX:
            raise FleetMalformed(f"items: {len(asked.items)}; at most {api.BATCH_MAX} in one batch")
        started_ns = self._clock_ns()
        deadline = Deadline(started_ns + int(BATCH_DEADLINE_S * 1e9), self._clock_ns)
        now_ms = self._clock.monotonic_ms()
        fleet = self._fleet_for(asked.fleet, asked.nodes, now_ms)
        wanted = [self._checked(item) for item in asked.items]
        order = sorted(range(len(wanted)), key=lambda place: -wanted[place].priority)
        answers: list[PlaceAnswer | None] = [None] * len(wanted)
        decisions: list[Decision] = []
        sheet = self._sheet(fleet, [wanted[place] for place in order], now_ms)
        spent = Spent(started_ns, self._clock_ns(), self._scored_ns)
        items = [asked.items[place] for place in order]
        for decision, answer in self._in_turn(
            fleet, items, sheet, deadline=deadline, now_ms=now_ms, name=asked.fleet
        ):
            place = order[len(decisions)]
            item = asked.items[place]
            if fleet is not self.fleet and answer.node:
                self._reservations.reserve(item.workload, answer.node, item.demand, now_ms=now_ms)
            answers[place] = answer
            decisions.append(decision)
        self._journal(decisions, items)
        self.counting.batch(decisions, seconds=self._told_apart(spent), now_ms=now_ms)
        return api.BatchAnswer(answers=tuple(one for one in answers if one is not None), fleet=self.revision)

    def release(self, workload: str) -> bool:
        self.counting.waiting.forget(workload)
        self.day.released(workload, now_ms=self._clock.now_ms())
        held = self.fleet.release(workload)
        return self._reservations.release(workload) or held

    def simulate(self, asked: PlaceRequest) -> PlaceAnswer:
        """The answer that `place` would give, with every candidate; nothing is reserved, counted or kept."""
        now_ms = self._clock.monotonic_ms()
        deadline = Deadline(self._clock_ns() + int(DEADLINE_S * 1e9), self._clock_ns)
        if asked.fleet:
            self._require(asked.fleet)
            self.fleet.expire(now_ms)
            scene = self._scene(self.fleet, asked.workload, now_ms)
        else:
            scene = self._carried_scene(asked, now_ms)
        decision = self._dry(scene, self._checked(asked), asked.policy, deadline)
        return self._answer(decision, identity="", candidates_=candidates(decision))

    def whatif(self, asked: api.WhatIf) -> api.WhatIfAnswer:
        """Where these workloads would go now, and after the change. Raises as `place`, and `NodeUnknown`."""
        now_ms = self._clock.monotonic_ms()
        if len(asked.items) > api.BATCH_MAX:
            raise FleetMalformed(f"items: {len(asked.items)}; at most {api.BATCH_MAX}")
        before = self._fleet_for(asked.fleet, asked.nodes, now_ms).fork()
        after = before.fork()
        after.upsert(asked.add)
        after.remove(asked.remove)
        after.set_status(asked.drain, NodeStatus.DRAINING)
        first, then = self._tried(before, asked.items, now_ms), self._tried(after, asked.items, now_ms)
        old, new = [answer for answer, _ in first], [answer for answer, _ in then]
        return api.WhatIfAnswer(
            before=tuple(old),
            after=tuple(new),
            moved=tuple(a.workload for a, b in zip(old, new, strict=True) if a.node != b.node),
            placed_before=sum(bool(answer.node) for answer in old),
            placed_after=sum(bool(answer.node) for answer in new),
            cost_usd_before=sum(cost for _, cost in first),
            cost_usd_after=sum(cost for _, cost in then),
        )

    # nodes

    @property
    def revision(self) -> str:
        return f"{self.epoch}.{self.fleet.revision}"

    def change(self, change: api.NodesChange) -> api.FleetRevision:
        """All of it or nothing. Raises `FleetMalformed`, `FleetStale`, `NodeUnknown`."""
        if change.fleet and change.fleet != self.revision:
            raise FleetStale(
                f"fleet: {change.fleet[:40]!r} is not in force, {self.revision} is; read it and try again"
            )
        self.day.listed(change.upsert, now_ms=self._clock.now_ms())
        trial = self.fleet.fork()
        if change.replace:
            trial.remove(set(trial.roster.names) - {node.name for node in change.upsert})
        if len({node.name for node in change.upsert}) != len(change.upsert):
            raise FleetMalformed("upsert: a name is given twice; name each node once")
        if change.upsert:
            trial.upsert(change.upsert)
        for names, status in (
            (change.drain, NodeStatus.DRAINING),
            (change.fail, NodeStatus.DOWN),
            (change.ready, NodeStatus.READY),
        ):
            if names:
                trial.set_status(names, status)
        if change.remove:
            trial.remove(change.remove)
        self.fleet = trial
        self.counting.fleet(self.scene())
        return api.FleetRevision(fleet=self.revision, nodes=len(trial))

    def nodes(self) -> api.SeenNodes:
        now_ms, wall_ms = self._clock.monotonic_ms(), self._clock.now_ms()
        if len(self.fleet):
            self.fleet.expire(now_ms)
            return self._told()
        current = self._reservations.current(now_ms=now_ms)
        reserved = self._reservations.by_node(self._seen, workload="", now_ms=now_ms)
        seen = tuple(
            api.SeenNode(node=node, reserved=reserved.get(node.name, _NOTHING)) for node in self._seen
        )
        age_ms = -1 if self._seen_ms is None else max(0, now_ms - self._seen_ms)
        shown = tuple(
            msgspec.structs.replace(one, expires_ms=one.expires_ms - now_ms + wall_ms) for one in current
        )
        return api.SeenNodes(nodes=seen, reservations=shown, age_ms=age_ms, fleet=self.revision)

    # what there is to know

    def explain(self, identity: str) -> api.Explanation:
        """Raises `DecisionUnknown`."""
        found = self.records.find(identity)
        if found is None:
            raise DecisionUnknown(
                f"decision {identity[:40]!r} is not kept: the last 1,024 are, until a restart"
            )
        return explanation(found.decision, identity=identity, fleet=found.fleet, at_ms=found.at_ms)

    def told_day(self) -> api.Day:
        """The last day's placements, and what places cost."""
        now_ms, terrain = self._clock.now_ms(), self.terrain
        prices = api.Prices(
            links={site: (up, down) for site, (up, down) in terrain.links.items()},
            usd_per_gb=terrain.usd_per_gb,
            energy_usd=terrain.energy_usd,
            site_usd_per_gb=dict(terrain.site_usd_per_gb),
            site_energy_usd=dict(terrain.site_energy_usd),
        )
        dealt = self.day.dealt(held=self.fleet.held(), now_ms=now_ms)
        return api.Day(since_ms=self.day.since_ms, now_ms=now_ms, prices=prices, dealt=dealt)

    def told(self) -> Iterator[Told]:
        """The day's placements, for keeping."""
        return self.day.told(held=self.fleet.held(), now_ms=self._clock.now_ms())

    def model(self) -> api.ModelInfo:
        stage, active = self.stage, self.stage.active
        return api.ModelInfo(
            model="none" if active is None else active.digest,
            detail=stage.detail(),
            policy=self.policy,
            policies=tuple(sorted(HEURISTICS)),
            version="" if active is None else active.version,
            nodes_validated=(0, 0) if active is None else active.nodes,
            decisions=stage.shadow.decisions,
            model_share=stage.shadow.model_share,
            agreement=stage.shadow.agreement,
            regret_usd=stage.shadow.mean_regret_usd,
            drifted=stage.drift.changed,
            canary_sites_pct=stage.state.canary_pct,
        )

    def queues(self) -> None:
        """Shows who waits."""
        self.counting.queues(now_ms=self._clock.monotonic_ms())

    def scene(self) -> Scene:
        """The fleet kept here as it is now."""
        now_ms = self._clock.monotonic_ms()
        self.fleet.expire(now_ms)
        return self._scene(self.fleet, "", now_ms)

    # parts

    def _carried(self, asked: PlaceRequest, deadline: Deadline, now_ms: int) -> tuple[Decision, PlaceAnswer]:
        """Nodes that came with the request; the answer names every candidate."""
        wanted = self._checked(asked)
        scene = self._carried_scene(asked, now_ms)
        self._seen, self._seen_ms = asked.nodes, now_ms
        self.day.listed(asked.nodes, now_ms=self._clock.now_ms())
        shared = Sheet(scene.roster, (wanted,), scene.age_s), 0
        decision = self._decide(scene, shared, asked.policy, deadline)
        identity = self.records.keep(decision, fleet="", at_ms=self._clock.now_ms())
        answer = self._answer(decision, identity=identity, candidates_=candidates(decision))
        if answer.node:
            self._reservations.reserve(asked.workload, answer.node, asked.demand, now_ms=now_ms)
        return decision, answer

    def _into(
        self,
        fleet: FleetState,
        asked: PlaceRequest,
        shared: tuple[Sheet, int],
        *,
        deadline: Deadline,
        now_ms: int,
        name: str,
    ) -> tuple[Decision, PlaceAnswer]:
        """Decides and takes the room, again where the node has changed meanwhile; `name` is the fleet's revision."""
        for attempt in range(CONFLICTS_MAX + 1):
            scene = self._scene(fleet, asked.workload, now_ms)
            refused = Fallback.CONFLICT if attempt == CONFLICTS_MAX else ""
            decision = self._decide(scene, shared, asked.policy, deadline, refused=refused)
            if decision.row is None or self._taken(fleet, asked, decision, now_ms):
                identity = self.records.keep(decision, fleet=name, at_ms=self._clock.now_ms())
                return decision, self._answer(decision, identity=identity)
            self.counting.conflict(scene.roster.sites[decision.row])
        identity = self.records.keep(decision, fleet=name, at_ms=self._clock.now_ms())
        reason = "the chosen nodes changed while they were being chosen; ask again"
        return decision, msgspec.structs.replace(
            self._answer(decision, identity=identity), node="", reason=reason
        )

    def _in_turn(
        self,
        fleet: FleetState,
        asked: Sequence[PlaceRequest],
        sheet: Sheet,
        *,
        deadline: Deadline,
        now_ms: int,
        name: str,
    ) -> Iterator[tuple[Decision, PlaceAnswer]]:
        """The sheet's workloads one after the other, several at a time where they are ordinary."""
        ahead = self._ahead(fleet, asked, sheet, now_ms)
        rank = 0
        while rank < len(asked):
            sure = [] if ahead is None else self._decide_ahead(ahead, rank, fleet, deadline, now_ms=now_ms)
            for decision in sure:
                if decision.row is not None and not self._taken(fleet, asked[rank], decision, now_ms):
                    self.counting.conflict(decision.roster.sites[decision.row])
                    break
                identity = self.records.keep(decision, fleet=name, at_ms=self._clock.now_ms())
                yield decision, self._answer(decision, identity=identity)
                rank += 1
            else:
                if sure:
                    continue
            yield self._into(fleet, asked[rank], (sheet, rank), deadline=deadline, now_ms=now_ms, name=name)
            rank += 1

    def _ahead(
        self, fleet: FleetState, asked: Sequence[PlaceRequest], sheet: Sheet, now_ms: int
    ) -> Ahead | None:
        """None where they are decided on one at a time: what each sees is not only what those before have taken."""
        rule, model = self._rules[self.policy], self.stage.active
        names = {one.workload for one in asked}
        ordinary = (
            1 < len(names) == len(asked)
            and len(fleet)
            and sheet.alike
            and rule.tuned is not None
            and model is not None
            and self.stage.candidate is None
            and not any(one.policy or fleet.knows(one.workload) for one in asked)
        )
        return Ahead(sheet, self._scene(fleet, "", now_ms), rule, model) if ordinary and model else None

    def _decide_ahead(
        self, ahead: Ahead, rank: int, fleet: FleetState, deadline: Deadline, *, now_ms: int
    ) -> list[Decision]:
        """Nothing where the model may not decide."""
        started_ns = self._clock_ns()
        model, why_not = self.stage.model_for("")
        if model is None or (why_not and why_not not in SHADOWED):
            return []
        found = ahead.decide(
            rank,
            self._scene(fleet, "", now_ms),
            model=model,
            left_s=deadline.left_s,
            expect_s=self._expect_s,
            refused=why_not,
        )
        took_ns = self._clock_ns() - started_ns
        self._scored_ns += took_ns
        for decision in found:
            self._noted(decision, took_ns / 1e9 / len(found), deadline)
        return found

    def _noted(self, decision: Decision, took_s: float, deadline: Deadline) -> None:
        """What a decision shows of the model, and of the time that the next will take."""
        self._expect(took_s, decision)
        late = decision.fallback == Fallback.TIMEOUT
        self.stage.noted(decision, faulty=decision.fallback in FAULTS and not (late and deadline.missed))
        deadline.missed = deadline.missed or late

    def _taken(self, fleet: FleetState, asked: PlaceRequest, decision: Decision, now_ms: int) -> bool:
        row = decision.row
        assert row is not None
        return fleet.hold(
            asked.workload,
            row,
            decision.wanted.demand,
            version=decision.version,
            now_ms=now_ms,
            until_ms=None if asked.commit else now_ms + self._hold_ms,
            run_ms=int(decision.wanted.predicted_s * 1000),
        )

    def _decide(
        self,
        scene: Scene,
        shared: tuple[Sheet, int],
        policy: str,
        deadline: Deadline,
        *,
        refused: str = "",
    ) -> Decision:
        wanted = shared[0].wanted[shared[1]]
        started_ns = self._clock_ns()
        if policy:  # a rule was asked for by name
            decision = decide(scene, wanted, self._rules[policy], model=None, refused=ASKED, shared=shared)
            self._scored_ns += self._clock_ns() - started_ns
            return decision
        model: Served | None
        model, why_not = self.stage.model_for(wanted.site or wanted.data_site)
        decision = decide(
            scene,
            wanted,
            self._rules[self.policy],
            model=model,
            refused=refused or why_not,
            left_s=deadline.left_s,
            expect_s=self._expect_s,
            shared=shared,
        )
        took_ns = self._clock_ns() - started_ns
        self._scored_ns += took_ns
        self._noted(decision, took_ns / 1e9, deadline)
        return decision

    def _dry(self, scene: Scene, wanted: Wanted, policy: str, deadline: Deadline) -> Decision:
        """As `_decide`, without a trace."""
        if policy:
            return decide(scene, wanted, self._rules[policy], model=None, refused=ASKED)
        model, why_not = self.stage.model_for(wanted.site or wanted.data_site)
        rule = self._rules[self.policy]
        return decide(scene, wanted, rule, model=model, refused=why_not, left_s=deadline.left_s)

    def _journal(self, decisions: Sequence[Decision], asked: Sequence[PlaceRequest]) -> None:
        now_ms = self._clock.now_ms()
        for decision, one in zip(decisions, asked, strict=True):
            row = decision.row
            if row is None:
                self.day.asked(one.workload, now_ms=now_ms)
            else:
                by = "model" if decision.by_model else "rule"
                name = decision.roster.names[row]
                self.day.placed(decision.wanted, name, by=by, held=one.commit, now_ms=now_ms)

    def _told_apart(self, spent: Spent) -> float:
        """Seconds since the request came; its parts are counted."""
        whole_ns = self._clock_ns() - spent.began_ns
        features_ns, score_ns = spent.ready_ns - spent.began_ns, self._scored_ns - spent.scored_ns
        self.counting.stages(
            features_s=features_ns / 1e9,
            score_s=score_ns / 1e9,
            commit_s=max(0, whole_ns - features_ns - score_ns) / 1e9,
        )
        return whole_ns / 1e9

    def _expect(self, took_s: float, decision: Decision) -> None:
        """How long a model's decision takes, by the last ones; shorter each time it was not asked for want of time."""
        if decision.scored is not None:
            self._expect_s += 0.1 * (took_s - self._expect_s)
        elif decision.fallback == Fallback.TIMEOUT:
            self._expect_s *= 0.9

    def _answer(
        self, decision: Decision, *, identity: str, candidates_: tuple[api.Candidate, ...] = ()
    ) -> PlaceAnswer:
        model, row = decision.model, decision.row
        by_model = decision.by_model and model is not None
        return PlaceAnswer(
            workload=decision.wanted.name,
            node="" if row is None else decision.roster.names[row],
            policy=PLACER if by_model else decision.rule.name,
            candidates=candidates_,
            reason=why(decision) if row is None else "",
            model=model.digest if by_model and model is not None else "none",
            by="model" if by_model else "rule",
            fallback="" if decision.fallback == ASKED else decision.fallback,
            decision=identity,
            deferred=decision.deferred,
        )

    def _tried(
        self, fleet: FleetState, items: Sequence[PlaceRequest], now_ms: int
    ) -> list[tuple[PlaceAnswer, float]]:
        """By the model and the rules as they are, into a fleet that nobody keeps."""
        found: dict[int, tuple[PlaceAnswer, float]] = {}
        deadline = Deadline(self._clock_ns() + int(BATCH_DEADLINE_S * 1e9), self._clock_ns)
        wanted = [self._checked(item) for item in items]
        for place in sorted(range(len(items)), key=lambda place: -wanted[place].priority):
            asked = items[place]
            scene = self._scene(fleet, asked.workload, now_ms)
            decision = self._dry(scene, wanted[place], asked.policy, deadline)
            if decision.row is not None:
                self._taken(fleet, asked, decision, now_ms)
            cost = decision.model_cost if decision.by_model else decision.rule_cost
            found[place] = self._answer(decision, identity=""), cost
        return [found[place] for place in range(len(items))]

    def _checked(self, asked: PlaceRequest) -> Wanted:
        """Raises `FleetMalformed`, `PolicyUnknown`."""
        if asked.policy:
            rule_named(asked.policy)
        return wanted_of(asked)

    def _require(self, name: str) -> None:
        """The revision that a request names is in force or older: the asker knows nothing newer than this desk."""
        epoch, _, number = name.partition(".")
        if epoch != self.epoch or not number.isdecimal() or int(number[:18]) > self.fleet.revision:
            raise FleetStale(
                f"fleet: {name[:40]!r} is not known here, {self.revision} is; tell the nodes again"
            )

    def _fleet_for(self, name: str, nodes: tuple[NodeState, ...], now_ms: int) -> FleetState:
        """The fleet kept here, or one of the nodes that came along with what is promised on them."""
        if name:
            self._require(name)
            self.fleet.expire(now_ms)
            return self.fleet
        self._bounded(nodes)
        fleet = FleetState(self.terrain)
        fleet.upsert(fleet_of(nodes).nodes)
        self._reservations.by_node(nodes, workload="", now_ms=now_ms)  # forgets what became a placement
        for kept in self._reservations.current(now_ms=now_ms):
            row = fleet.roster.rows.get(kept.node)
            if row is not None:
                fleet.count(kept.workload, row, quantities(kept.demand, where="reservations"), ends_ms=now_ms)
        return fleet

    def _carried_scene(self, asked: PlaceRequest, now_ms: int) -> Scene:
        self._bounded(asked.nodes)
        reserved = self._reservations.by_node(asked.nodes, workload=asked.workload, now_ms=now_ms)
        fleet = by_name(fleet_of(asked.nodes, workload=asked.workload, reserved=reserved))
        return scene_of(fleet, self.terrain, now_ms=self._clock.now_ms())

    def _sheet(self, fleet: FleetState, wanted: Sequence[Wanted], now_ms: int) -> Sheet:
        """What these workloads share, whatever is placed meanwhile."""
        scene = self._scene(fleet, "", now_ms)
        return Sheet(scene.roster, wanted, scene.age_s)

    def _scene(self, fleet: FleetState, workload: str, now_ms: int) -> Scene:
        return fleet.scene(workload=workload, wall_ms=self._clock.now_ms(), now_ms=now_ms)

    def _told(self) -> api.SeenNodes:
        """The fleet kept here with what is held on it beside what was described."""
        held: dict[str, list[Placed]] = {}
        sums: dict[str, Capacity] = {}
        for workload, one in self.fleet.held().items():
            held.setdefault(one.node, []).append(Placed(workload, 0, capacity_of(one.demand)))
        for node, entries in held.items():
            total = sum(
                (quantities(entry.demand, where=node) for entry in entries), np.zeros(4, dtype=np.int64)
            )
            sums[node] = capacity_of(total)
        nodes = tuple(
            api.SeenNode(
                node=msgspec.structs.replace(
                    node, allocation=Allocation((*node.allocation.placed, *held.get(node.name, ())))
                ),
                reserved=sums.get(node.name, _NOTHING),
            )
            for node in self.fleet.nodes()
        )
        return api.SeenNodes(nodes=nodes, reservations=(), age_ms=0, fleet=self.revision)

    @staticmethod
    def _bounded(nodes: Sequence[NodeState]) -> None:
        if len(nodes) > api.NODES_MAX:
            raise FleetMalformed(f"nodes: {len(nodes)}; at most {api.NODES_MAX} in one request")
