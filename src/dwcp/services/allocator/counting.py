"""The desk's metrics, each there at 0 before its first event; a batch is counted in one go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dwcp.allocation.env.reference import stranded
from dwcp.allocation.fleet import RESOURCES
from dwcp.allocation.heuristics import HEURISTICS
from dwcp.allocation.policies import learned
from dwcp.allocation.serving.chain import Decision, Fallback
from dwcp.allocation.serving.explain import staleness
from dwcp.allocation.serving.scene import Scene
from dwcp.allocation.serving.waiting import CLASSES, Miss, Waiting
from dwcp.runtime.telemetry import Telemetry

NOWHERE = "none"  # the site label where there is no node
STAGES = ("features", "score", "commit")
SITES_MAX = 64  # sites that have series of their own
_SHAPE = np.array([[2000, 4096, 20480, 100]])  # a middling workload: what cannot take one is stranded


class Counting:
    """Labels are bounded: policies, reasons and resources are fixed, sites at most 64."""

    def __init__(self, telemetry: Telemetry, *, policy: str) -> None:
        self._telemetry = telemetry
        self._sites: set[str] = {NOWHERE}
        self.waiting = Waiting()
        self._queues: set[tuple[str, int]] = set()  # that have a gauge
        _show_all(telemetry, policy)
        _show_waiting(telemetry)

    def decided(self, decision: Decision, *, seconds: float, now_ms: int) -> None:
        self._telemetry.observe("dwcp_maddpg_decision_seconds", seconds, stage="single")
        self._all((decision,), seconds, now_ms)

    def batch(self, decisions: Sequence[Decision], *, seconds: float, now_ms: int) -> None:
        self._telemetry.observe("dwcp_maddpg_decision_seconds", seconds, stage="batch")
        self._all(decisions, seconds, now_ms)

    def stages(self, *, features_s: float, score_s: float, commit_s: float) -> None:
        """Where the time of one request went."""
        for stage, seconds in zip(STAGES, (features_s, score_s, commit_s), strict=True):
            self._telemetry.observe("dwcp_maddpg_decision_seconds", seconds, stage=stage)

    def conflict(self, site: str) -> None:
        self._telemetry.count("dwcp_maddpg_commit_conflicts_total", site=self._site(site))

    def shadow(
        self, *, regret_usd: float, agreement: float, ood: float, share: float, cost_usd: float
    ) -> None:
        """What the permanent shadow has shown so far."""
        gauge = self._telemetry.gauge
        gauge("dwcp_maddpg_shadow_regret_usd", regret_usd)
        gauge("dwcp_maddpg_shadow_agreement_ratio", agreement)
        gauge("dwcp_maddpg_ood_ratio", ood)
        gauge("dwcp_maddpg_model_share", share)
        gauge("dwcp_maddpg_optimization_reward", -cost_usd)

    def fleet(self, scene: Scene) -> None:
        """How the fleet is used, by site; and that nothing is overfull by decisions is counted here."""
        sites = np.array(scene.roster.sites)
        for site in sorted(set(scene.roster.sites))[:SITES_MAX]:
            own = sites == site
            capacity, used = scene.roster.capacity[own], scene.used[own]
            for column, name in enumerate(RESOURCES):
                whole = max(int(capacity[:, column].sum()), 1)
                ratio = float(used[:, column].sum()) / whole
                self._telemetry.gauge(
                    "dwcp_maddpg_node_utilization_ratio", ratio, site=self._site(site), resource=name
                )
            lost = float(stranded(capacity[None], _SHAPE, used[None], scene.open[own][None])[0])
            cores = max(float(capacity[:, 0].sum()) / 1000.0, 1e-9)
            self._telemetry.gauge("dwcp_maddpg_stranded_ratio", lost / cores, site=self._site(site))
        for site, age in staleness(scene).items():
            self._telemetry.gauge("dwcp_maddpg_state_staleness_seconds", age, site=self._site(site))

    def queues(self, *, now_ms: int) -> None:
        """How many wait now; a queue that was shown goes on being shown."""
        lengths = self.waiting.lengths(now_ms=now_ms)
        self._queues |= lengths.keys()
        for site, priority in self._queues:
            self._telemetry.gauge(
                "dwcp_maddpg_queue_length", lengths[site, priority], site=site, priority=CLASSES[priority]
            )

    def violated(self, nodes: int) -> None:
        self._telemetry.count("dwcp_maddpg_capacity_invariant_violations_total", nodes)

    def _waits(self, decision: Decision, late: float, now_ms: int, waits: Counter[tuple[str, float]]) -> None:
        """How long a placed workload has waited, who waits on, and whose waiting budget is over."""
        wanted, missed = decision.wanted, None
        kind = CLASSES[wanted.priority]
        if decision.row is None:
            near = wanted.site or wanted.data_site
            site = self._known(near, decision) if near else NOWHERE
            missed = self.waiting.refused(wanted, site=site, now_ms=now_ms)
        else:
            waited_s, missed = self.waiting.placed(wanted, late=late, now_ms=now_ms)
            waits[kind, waited_s] += 1
        if missed is not None:
            self._telemetry.count("dwcp_maddpg_sla_violations_total", priority=kind, cause=missed.value)

    def _all(self, decisions: Sequence[Decision], seconds: float, now_ms: int) -> None:
        telemetry = self._telemetry
        results: Counter[tuple[str, str, str]] = Counter()
        policies: Counter[str] = Counter()
        fallbacks: Counter[str] = Counter()
        costs = [0.0, 0.0, 0.0]
        travelled: Counter[tuple[str, str]] = Counter()
        waits: Counter[tuple[str, float]] = Counter()
        for decision in decisions:
            row, late = decision.row, 0.0
            site = NOWHERE if row is None else self._site(decision.roster.sites[row])
            result = "deferred" if decision.deferred else "none" if row is None else "placed"
            results[site, "model" if decision.by_model else "rule", result] += 1
            results[NOWHERE, "shadow", result] += decision.agreed is not None
            policies["maddpg-placer" if decision.by_model else decision.rule.name] += 1
            if decision.fallback in _REASONS:
                fallbacks[decision.fallback] += 1
            if row is None:
                self._masked(decision)
            else:
                wan, energy, late = decision.sheet.bill(decision.place, row)
                cost = decision.model_cost if decision.by_model else decision.rule_cost
                wanted = decision.wanted
                if wanted.data_bytes and wanted.data_site and wanted.data_site != decision.roster.sites[row]:
                    travelled[self._known(wanted.data_site, decision), site] += wanted.data_bytes
                costs[0] += wan
                costs[1] += energy
                costs[2] += max(0.0, cost - wan - energy)  # a late start is what is left
            self._waits(decision, late, now_ms, waits)
        for (priority, waited_s), count in waits.items():
            telemetry.observe_equal("dwcp_maddpg_wait_seconds", waited_s, count, priority=priority)
        for (site, kind, result), count in results.items():
            telemetry.count("dwcp_maddpg_decisions_total", count, site=site, policy=kind, result=result)
        for policy, count in policies.items():
            telemetry.count("dwcp_maddpg_optimization_total", count, policy=policy)
        for reason, count in fallbacks.items():
            telemetry.count("dwcp_maddpg_fallback_total", count, reason=reason)
        for (src, dst), amount in travelled.items():
            telemetry.count("dwcp_maddpg_wan_bytes_total", amount, src=src, dst=dst)
        for component, cost in zip(("wan", "energy", "wait"), costs, strict=True):
            telemetry.count("dwcp_maddpg_cost_usd_total", cost, component=component)
        if decisions:
            each = seconds / len(decisions)
            telemetry.observe_equal("dwcp_maddpg_optimization_seconds", each, len(decisions))

    def _masked(self, decision: Decision) -> None:
        """Why nothing was feasible: each reason once per decision, and by node."""
        scene, wanted = decision.scene, decision.wanted
        short = (scene.free < wanted.demand).sum(axis=0).tolist()
        found = dict(zip(RESOURCES, short, strict=True))
        found["status"] = int((~scene.open).sum())
        found["site"] = int((~scene.roster.pinned(wanted.site)).sum())
        for reason, nodes in found.items():
            if nodes:
                self._telemetry.count("dwcp_maddpg_optimization_infeasible_total", resource=reason)
                self._telemetry.count("dwcp_maddpg_infeasible_masked_total", nodes, resource=reason)

    def _known(self, site: str, decision: Decision) -> str:
        """Names of sites that no node has come from whoever asks: they get no series of their own."""
        return self._site(site) if site in decision.roster.sites else "other"

    def _site(self, site: str) -> str:
        if site not in self._sites and len(self._sites) >= SITES_MAX:
            return "other"
        self._sites.add(site)
        return site


_REASONS = frozenset(reason.value for reason in Fallback)


def _show_all(telemetry: Telemetry, policy: str) -> None:
    """Every series that can be named before its first event, at 0."""
    for name in {*HEURISTICS, policy, "maddpg-placer"}:
        telemetry.touch("dwcp_maddpg_optimization_total", policy=name)
    for reason in (*RESOURCES, "status", "site"):
        telemetry.touch("dwcp_maddpg_optimization_infeasible_total", resource=reason)
        telemetry.touch("dwcp_maddpg_infeasible_masked_total", resource=reason)
    for reason in Fallback:
        telemetry.touch("dwcp_maddpg_fallback_total", reason=reason.value)
    for kind in ("model", "rule", "shadow"):
        for result in ("placed", "deferred", "none"):
            telemetry.touch("dwcp_maddpg_decisions_total", site=NOWHERE, policy=kind, result=result)
    for result in ("ok", "failed"):
        telemetry.touch("dwcp_maddpg_model_reload_total", result=result)
    for component in ("wan", "energy", "wait"):
        telemetry.touch("dwcp_maddpg_cost_usd_total", component=component)
    for name in ("dwcp_maddpg_optimization_seconds", "dwcp_maddpg_capacity_invariant_violations_total"):
        telemetry.touch(name)
    for resource in RESOURCES:
        telemetry.touch("dwcp_maddpg_node_utilization_ratio", site=NOWHERE, resource=resource)
    for feature in (*learned.NODE, *learned.CONTEXT):
        telemetry.touch("dwcp_maddpg_feature_psi", feature=feature)
    telemetry.touch("dwcp_maddpg_stranded_ratio", site=NOWHERE)
    telemetry.touch("dwcp_maddpg_state_staleness_seconds", site=NOWHERE)
    telemetry.touch("dwcp_maddpg_commit_conflicts_total", site=NOWHERE)
    telemetry.touch("dwcp_maddpg_wan_bytes_total", src=NOWHERE, dst=NOWHERE)
    for stage in ("single", "batch", *STAGES):
        telemetry.touch("dwcp_maddpg_decision_seconds", stage=stage)
    for name in ("regret_usd", "agreement_ratio"):
        telemetry.gauge(f"dwcp_maddpg_shadow_{name}", 0)
    for name in ("dwcp_maddpg_ood_ratio", "dwcp_maddpg_model_share", "dwcp_maddpg_optimization_reward"):
        telemetry.gauge(name, 0)


def _show_waiting(telemetry: Telemetry) -> None:
    for kind in CLASSES:
        telemetry.touch("dwcp_maddpg_wait_seconds", priority=kind)
        telemetry.gauge("dwcp_maddpg_queue_length", 0, site=NOWHERE, priority=kind)
        for cause in Miss:
            telemetry.touch("dwcp_maddpg_sla_violations_total", priority=kind, cause=cause.value)
