"""Which model decides, and which is tried: the registry's state file is the truth, and is followed.

    active ── decides at every site; none: the model of this release, else the rules
    canary ── decides at a share of the sites, by the hash of their names; elsewhere the model before it does

A change is seen within a second. A model is loaded, tested by its golden vectors and swapped in by one assignment
between two decisions; one that cannot be loaded, or fails its rehearsal, leaves what served before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from blake3 import blake3

from dwcp.allocation import shipped
from dwcp.allocation.policies import learned
from dwcp.allocation.serving.chain import Decision, Fallback, Served
from dwcp.allocation.serving.drifting import MOST, Drifting
from dwcp.allocation.serving.records import Shadow, Trial
from dwcp.allocation.serving.rehearsal import DECISIONS, Rehearsal, Rehearsed
from dwcp.control.breaker import Breaker, BreakerLimits
from dwcp.models.artefact import ModelRefused
from dwcp.models.lifecycle import Lifecycle, Word
from dwcp.models.shadow import Verdict
from dwcp.runtime.clock import Clock
from dwcp.runtime.registry import Kind, Registry, RegistryDamaged
from dwcp.runtime.telemetry import Telemetry

WATCH_S = 1.0
JUMP_MS = 2_000  # wall and monotonic time may part by so much between two decisions
DISTRUST_MS = 10_000  # after a jump ages mean nothing until nodes have been told anew
DRIFT_EVERY = 8  # decisions for one look at the features
KIND = Kind(learned.NAME, learned.SCHEMA, learned.forward)
PAUSE_S = 0.0005  # between two decisions of a rehearsal
_SHARES = 10_000


@dataclass(slots=True)
class Clocks:
    """Notices that wall time jumped. Durations here are monotonic anyway; ages of what was told are not."""

    clock: Clock
    _offset_ms: int | None = None
    _distrust_until_ms: int = 0

    def jumped(self) -> bool:
        """Whether wall time is not to be trusted now."""
        monotonic = self.clock.monotonic_ms()
        offset = self.clock.now_ms() - monotonic
        if self._offset_ms is not None and abs(offset - self._offset_ms) > JUMP_MS:
            self._distrust_until_ms = monotonic + DISTRUST_MS
        self._offset_ms = offset
        return monotonic < self._distrust_until_ms


class Stage:
    """The models at work. Without a registry there is the model of this release and nothing else."""

    def __init__(
        self,
        *,
        telemetry: Telemetry,
        clock: Clock,
        registry: Registry | None = None,
        use_shipped: bool = True,
        warm: Callable[[Served], None] | None = None,
        drift_max: float = MOST,
    ) -> None:
        """`warm` is done once with each model before it decides; `drift_max`: see `Drifting.most`."""
        self.registry = registry
        self.rehearsal: Callable[[], Rehearsal] | None = None  # what a model goes through before it decides
        self._rehearsing: tuple[str, int] | None = None  # digest, decisions done
        self._one = asyncio.Lock()  # a rehearsal at a time: it takes a core
        self._warm = warm
        self.state = Lifecycle()
        self.trouble = ""  # why a model that should serve does not
        self.breaker = Breaker("model", BreakerLimits())
        self.clocks = Clocks(clock)
        self.shadow = Shadow()
        self.trial = Trial()  # of the canary's model alone
        self._drift_max = drift_max
        self.drift = Drifting(drift_max)
        self.refused = Fallback.NO_MODEL  # why there is no model
        self._clock = clock
        self._telemetry = telemetry
        self._shipped = self._own() if use_shipped else None
        self._served: dict[str, Served] = {}
        self._stamp: tuple[int, int] | None = None
        self._asked = 0
        self.active: Served | None = self._shipped
        self.candidate: Served | None = None
        self._show()

    # decisions

    def model_for(self, site: str) -> tuple[Served | None, str]:
        """The model for a workload of that site, and why it may not decide, "" if it may."""
        candidate = self.candidate
        model = candidate if candidate is not None and in_canary(site, self.state.canary_pct) else self.active
        if model is None:
            if candidate is not None:
                return candidate, Fallback.CANARY  # tried in the shadow
            return None, self.refused
        if self.clocks.jumped():
            return model, Fallback.CLOCK
        if not self.breaker.allows(now_ms=self._clock.monotonic_ms()):
            return model, Fallback.BREAKER
        return model, Fallback.DRIFT if self.drift.far else ""

    def noted(self, decision: Decision, *, faulty: bool) -> None:
        """What a decision shows of the model."""
        if decision.model_column is not None:
            self.breaker.succeeded()
        elif faulty:
            self.breaker.failed(decision.fallback, now_ms=self._clock.monotonic_ms())
        self.shadow.add(decision)
        if decision.model is not None and decision.model is self.candidate:
            self.trial.add(decision)
        self._asked += 1
        if self._asked % DRIFT_EVERY == 0:
            self._look(decision)

    def judge(self) -> None:
        """Notes what the shadow says of a canary; one that is surely dearer stops deciding at once."""
        candidate, registry = self.candidate, self.registry
        verdict = self.trial.comparison.verdict()
        if candidate is None or registry is None or verdict is Verdict.INCONCLUSIVE:
            return
        known = self.state.words.get(candidate.digest)
        if known is not None and known.verdict is verdict:
            return
        word = Word(verdict, self._clock.now_ms(), self.trial.comparison.samples)
        self._swap(registry.change(lambda state: state.judged(candidate.digest, word)))
        self._stamp = registry.stamp()

    def _look(self, decision: Decision) -> None:
        """Whether the data moves away. Of the node that the model would take, whoever decides: another policy's
        nodes would be another distribution, and a model that was benched for it would never come back."""
        scored, column = decision.scored, decision.model_column
        row = decision.row if column is None else column
        if scored is None or row is None or row >= scored.nodes.shape[1]:
            return
        values = (*scored.nodes[:, row].tolist(), *scored.context.tolist())
        if self.drift.add(dict(zip((*learned.NODE, *learned.CONTEXT), values, strict=True))):
            for name, index in self.drift.indices.items():
                self._telemetry.gauge("dwcp_maddpg_feature_psi", index, feature=name)

    # changes

    async def prepare(self, served: Served) -> Rehearsed:
        """Warms and rehearses a model off the loop; after it, it may be swapped in. Raises `ModelRefused`."""
        async with self._one:
            rehearsal = None if self.rehearsal is None else self.rehearsal()
            try:
                return await asyncio.to_thread(self._ready, served, rehearsal)
            finally:
                self._rehearsing = None

    async def prepare_stored(self, digest: str) -> Rehearsed:
        """The same with a model of the registry, unless it serves already. Raises `ModelRefused`."""
        if digest in self._served or self.registry is None:
            return Rehearsed()
        served = Served(await asyncio.to_thread(self.registry.load, digest))
        found = await self.prepare(served)
        self._served = {**self._served, digest: served}
        return found

    async def refresh(self) -> None:
        """Loads what the state file says and swaps; what cannot be loaded is said, and what served goes on."""
        registry = self.registry
        if registry is None:
            return
        self._stamp = registry.stamp()
        try:
            state = await asyncio.to_thread(registry.state)
        except RegistryDamaged as exc:
            self._failed(str(exc))
            return
        trouble = await self._load({state.active, state.canary} - {""})
        kept = {state.active, state.canary, state.previous}  # the previous one: going back takes no time
        self._served = {digest: served for digest, served in self._served.items() if digest in kept}
        if trouble:
            self._failed(trouble)
        else:
            self.trouble = ""
            self._telemetry.count("dwcp_maddpg_model_reload_total", result="ok")
        self._swap(state)

    async def watch(self) -> None:
        """Follows the state file; until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self.registry is not None and self.registry.stamp() != self._stamp:
                await self.refresh()
            self.judge()

    def _swap(self, state: Lifecycle) -> None:
        before = self.active, self.candidate
        active = self._served.get(state.active) or (self.active if state.active else None) or self._shipped
        candidate = self._served.get(state.canary)
        self.state, self.active, self.candidate = state, active, candidate
        if (active, candidate) != before:
            self.shadow, self.trial, self.drift = Shadow(), Trial(), Drifting(self._drift_max)
            self.breaker.reset()
        for served in before:
            if served is not None and served not in (active, candidate):
                self._telemetry.gauge(
                    "dwcp_maddpg_model_info", 0, version=served.version, digest=served.digest[:12]
                )
        self._show()

    def _show(self) -> None:
        for served in (self.active, self.candidate):
            if served is not None:
                self._telemetry.gauge(
                    "dwcp_maddpg_model_info", 1, version=served.version, digest=served.digest[:12]
                )
        self._telemetry.gauge("dwcp_maddpg_canary_fraction", self.state.canary_pct / 100.0)

    def _failed(self, trouble: str) -> None:
        self.trouble = trouble
        self.refused = Fallback.SCHEMA if "other features" in trouble else Fallback.NO_MODEL
        self._telemetry.count("dwcp_maddpg_model_reload_total", result="failed")

    async def _load(self, digests: set[str]) -> str:
        """Why one of them does not serve, "" if all can."""
        trouble = ""
        for digest in sorted(digests):
            try:
                await self.prepare_stored(digest)
            except ModelRefused as exc:
                trouble = trouble or f"{digest[:12]}: {exc}"
        return trouble

    def _ready(self, served: Served, rehearsal: Rehearsal | None = None) -> Rehearsed:
        if self._warm is not None:
            self._warm(served)
        if rehearsal is None:
            return Rehearsed()

        def said(done: int) -> None:
            self._rehearsing = served.digest, done
            time.sleep(PAUSE_S)  # requests go first

        return rehearsal.of(served, said)

    @property
    def otherwise(self) -> str:
        """What answers where no model is active."""
        return "the model that shipped" if self._shipped is not None else "the rule"

    def _own(self) -> Served | None:
        try:
            own = Served(shipped.shipped())
            self._ready(own)
            return own
        except ModelRefused as exc:
            self._failed(str(exc))
            return None

    def detail(self) -> str:
        if self._rehearsing is None:
            return self._detail()
        digest, done = self._rehearsing
        return f"{self._detail()}; model {digest[:12]} rehearses: {done:,} of {DECISIONS:,} decisions"

    def _detail(self) -> str:
        if self.trouble:
            return f"a model does not serve: {self.trouble}"
        if self.active is None:
            return "no learned model is loaded; placements come from the rule named in `policy`"
        if self.drift.far:
            return self.drift.detail()
        low, high = self.active.nodes
        return (
            f"a learned model decides for {low} to {high} nodes; the rule named in `policy` where it may not"
        )


def in_canary(site: str, pct: int) -> bool:
    """Whether this site is the canary's: the hash of its name decides."""
    place = int.from_bytes(
        blake3(site.encode(), derive_key_context="dwcp allocator canary v1").digest(length=4), "big"
    )
    return place % _SHARES < pct * (_SHARES // 100)
