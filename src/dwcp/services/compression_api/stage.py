"""The models of this service: who decides, who is tried beside it, and what the registry says of them.

    active ── decides; none: the model that shipped, else the table
    canary ── decides for a share of the streams, by the hash of their ids; tried against active
    after a promotion the new model is tried against the one before it, and undone by itself if it is worse

The registry's state file is the truth: every change goes through it, and a change that another process
makes is seen within a second. A swap is one assignment between two questions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from blake3 import blake3

from dwcp.compression.calibration import Calibration
from dwcp.compression.table import Table
from dwcp.models.artefact import Artefact, ModelRefused
from dwcp.models.drift import Drift
from dwcp.models.lifecycle import GateClosed, Lifecycle, Word
from dwcp.models.shadow import SAMPLES_MIN, Verdict
from dwcp.runtime.clock import Clock
from dwcp.runtime.registry import Registry, RegistryDamaged
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.compression_api.deciding import Ask, Decided, Decider, TableDecider
from dwcp.services.compression_api.learned import NAME, Family
from dwcp.services.compression_api.trial import Sampled, Trial

WATCH_S = 1.0
BAKE_MS = 3_600_000  # how long a promoted model is tried against the one before
_SHARES = 10_000

Step = Callable[[Lifecycle], Lifecycle]


class Stage:
    """Decides by the models of a registry. Without a family there is the table and nothing else."""

    def __init__(
        self,
        calibration: Calibration,
        *,
        telemetry: Telemetry,
        clock: Clock,
        family: Family | None = None,
        registry: Registry | None = None,
    ) -> None:
        self.calibration = calibration
        self.family = family
        self.registry = registry
        self.state = Lifecycle()
        self.trial: Trial | None = None
        self.drift = Drift()
        self.trouble = ""  # why the active model does not serve
        self.damaged = ""  # why the model that shipped does not
        self._clock = clock
        self._telemetry = telemetry
        self._table = TableDecider(Table(calibration))
        self._shipped = self._own()
        self._artefacts: dict[str, Artefact] = {}
        self._baking_until_ms = 0
        self._stamp: tuple[int, int] | None = None
        self._judging: asyncio.Task[None] | None = None
        self.incumbent: Decider = self._shipped or self._table
        self.candidate: Decider | None = None

    @property
    def otherwise(self) -> str:
        """What answers where no model is active."""
        return "the model that shipped" if self._shipped is not None else "the table"

    # questions

    def decide(self, ask: Ask) -> Decided:
        """Never fails because of a model: the table answers then."""
        if ask.reason:
            return self._table.decide(ask)
        trial, candidate = self.trial, self.candidate
        if trial is None or not ask.sample:
            return self._watched(self._safely(self.incumbent, ask)[0])
        tried = candidate is not None and in_canary(ask, self.state.canary_pct)
        decider = candidate if tried and candidate is not None else self.incumbent
        decided, sound = self._safely(decider, ask)
        if sound:
            trial.offer(Sampled(ask, decided, by_subject=decider is trial.subject))
        return self._watched(decided)

    def _safely(self, decider: Decider, ask: Ask) -> tuple[Decided, bool]:
        """The decision, and whether it is the decider's own."""
        tried = self.trial if self.trial is not None and decider is self.trial.subject else None
        started = time.thread_time() if tried else 0.0  # CPU: a busy host makes no model slow
        try:
            decided = decider.decide(ask)
        except Exception:  # noqa: BLE001  # whatever a model does, questions are answered
            self._telemetry.count("dwcp_compression_model_errors_total")
            if tried:
                tried.fault()
                self._judge(tried)
            return self._table.decide(ask), False
        if tried:
            tried.timed(time.thread_time() - started)
        return decided, True

    def _watched(self, decided: Decided) -> Decided:
        if decided.features and self.drift.add(decided.features):
            for name, index in self.drift.indices.items():
                self._telemetry.gauge("dwcp_compression_drift_psi", index, feature=name)
        return decided

    # changes

    def change(self, step: Step, *, dry_run: bool = False) -> Lifecycle:
        """One step of the lifecycle, made durable, then in force. Raises `GateClosed`. Blocking (fsync)."""
        registry = self._require_registry()
        return step(registry.state()) if dry_run else registry.change(step)

    @property
    def tier(self) -> str:
        """Who answers where a look pays off."""
        return "model" if self.incumbent.digest else "table"

    async def apply(self, step: Step, *, dry_run: bool = False) -> Lifecycle:
        """`change` off the loop, then the models of the new state in place."""
        state = await asyncio.to_thread(self.change, step, dry_run=dry_run)
        if not dry_run:
            await self.refresh()
        return state

    async def refresh(self) -> None:
        """Loads what the state file says and swaps. What cannot be loaded is said and leaves the rest."""
        if self.registry is None or self.family is None:
            return
        self._stamp = self.registry.stamp()
        try:
            state = await asyncio.to_thread(self.registry.state)
        except RegistryDamaged as exc:
            self.trouble = str(exc)
            return
        wanted = {digest for digest in (state.active, state.canary, state.previous) if digest}
        loaded, trouble = await asyncio.to_thread(self._load, wanted)
        self._artefacts = loaded
        self.trouble = trouble
        self._swap(state)

    async def watch(self) -> None:
        """Follows the state file; until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self.registry is not None and self.registry.stamp() != self._stamp:
                await self.refresh()

    def recalibrate(self, calibration: Calibration) -> None:
        """Other speeds of this host: the table and every model are made anew from them."""
        self.calibration = calibration
        self._table = TableDecider(Table(calibration))
        self._shipped = self._own()
        self._swap(self.state)

    def _swap(self, state: Lifecycle) -> None:
        before = self.state
        self.incumbent = self._decider(state.active)
        self.candidate = self._decider(state.canary) if state.canary in self._artefacts else None
        if state.active != before.active and before.canary == state.active and state.active:
            self._baking_until_ms = self._clock.monotonic_ms() + BAKE_MS
        self.state = state
        self._pair()
        for role in ("active", "previous", "staged", "canary"):
            digest = getattr(state, role)
            if getattr(before, role) != digest and getattr(before, role):
                self._telemetry.gauge(
                    "dwcp_compression_model_info", 0, role=role, digest=getattr(before, role)
                )
            if digest:
                self._telemetry.gauge("dwcp_compression_model_info", 1, role=role, digest=digest)

    def _pair(self) -> None:
        """The two that are compared now; the same two go on with what they have shown so far."""
        subject, reference = self.candidate, self.incumbent
        if subject is None and self._baking_until_ms > self._clock.monotonic_ms() and self.state.active:
            subject, reference = self.incumbent, self._decider(self.state.previous)
        if subject is None:
            self._end_trial()
            return
        old = self.trial
        if old and (old.subject.digest, old.reference.digest) == (subject.digest, reference.digest):
            old.subject, old.reference = subject, reference
            return
        self._end_trial()
        self.trial = Trial(subject, reference, telemetry=self._telemetry)
        self._judging = asyncio.get_running_loop().create_task(self.trial.run(self._judge))

    def _end_trial(self) -> None:
        if self._judging is not None:
            self._judging.cancel()
        self.trial = self._judging = None

    def _judge(self, trial: Trial) -> None:
        """Notes a verdict once; a failing model stops deciding at once, before the file says so."""
        verdict, digest = trial.verdict, trial.subject.digest
        known = self.state.words.get(digest)
        baking = digest == self.state.active
        if trial is not self.trial or verdict is Verdict.INCONCLUSIVE:
            return
        if known is not None and known.verdict is verdict and not (baking and verdict is Verdict.FAIL):
            return
        word = Word(verdict, self._clock.now_ms(), trial.comparison.samples)

        def step(state: Lifecycle) -> Lifecycle:
            judged = state.judged(digest, word)
            undo = verdict is Verdict.FAIL and judged.active == digest and not judged.canary
            return judged.roll_back() if undo else judged

        decided = step(self.state)
        self._swap(decided)
        self._keep(step)

    def _keep(self, step: Step) -> None:
        if self.registry is not None:
            self.registry.change(step)
            self._stamp = self.registry.stamp()

    # what there is

    def _own(self) -> Decider | None:
        """The model that shipped; where its files are damaged, that is said and the table stands in."""
        try:
            return self.family.shipped(self.calibration) if self.family else None
        except ModelRefused as exc:
            self.damaged = str(exc)
            return None

    def _decider(self, digest: str) -> Decider:
        artefact = self._artefacts.get(digest)
        if artefact is None or self.family is None:
            return self._shipped or self._table
        return self.family.build(artefact, self.calibration)

    def _load(self, digests: set[str]) -> tuple[dict[str, Artefact], str]:
        """The artefacts, each checked again with its golden vectors, and the first trouble."""
        registry = self._require_registry()
        found, trouble = {}, ""
        for digest in sorted(digests):
            try:
                found[digest] = self._artefacts.get(digest) or registry.load(digest)
            except ModelRefused as exc:
                trouble = trouble or f"{digest[:12]}: {exc}"
        return found, trouble

    def _require_registry(self) -> Registry:
        if self.registry is None:
            raise GateClosed(
                "this release has no learned selector: the table answers, nothing can be deployed"
            )
        return self.registry

    def describe(self) -> dict[str, Any]:
        """The model that decides and the roles of the others, as JSON values."""
        state = self.state
        return {
            "name": NAME,
            **self.incumbent.describe(),
            "digest": self.incumbent.digest,
            "detail": self.detail(),
            "roles": {
                "active": state.active,
                "previous": state.previous,
                "staged": state.staged,
                "canary": state.canary,
                "canary_pct": state.canary_pct,
            },
            "evaluation": self.evaluation(),
            "drift": {"psi": self.drift.indices, "changed": self.drift.changed},
        }

    def evaluation(self) -> dict[str, Any] | None:
        """How the trial stands; None while nothing is tried."""
        trial = self.trial
        if trial is None:
            return None
        comparison = trial.comparison
        known = comparison.samples >= 2
        return {
            "subject": trial.subject.digest,
            "reference": trial.reference.digest or "table",
            "verdict": trial.verdict,
            "samples": comparison.samples,
            "samples_needed": SAMPLES_MIN,
            "log_cost_mean": comparison.mean,
            "log_cost_low": comparison.low if known else None,
            "log_cost_high": comparison.high if known else None,
            "faults": trial.faults,
            "selection_p99_us": round(trial.slow_p99_s * 1e6, 1),
            "share_seen": round(trial.share_seen, 4),
        }

    def detail(self) -> str:
        if self.damaged:
            return f"the model of this release does not serve: {self.damaged}"
        if self.trouble:
            return f"the active model does not serve: {self.trouble}"
        if self.incumbent is self._table:
            return "no learned model is loaded; a table of this host's codec speeds answers by link rate and size"
        return "a learned model answers; the table where it may not"

    def close(self) -> None:
        self._end_trial()


def in_canary(ask: Ask, pct: int) -> bool:
    """Whether this stream is the canary's: the hash of its id decides, the sample's where it has none."""
    key = ask.stream_id.encode() if ask.stream_id else ask.sample
    place = int.from_bytes(blake3(key, derive_key_context="dwcp canary v1").digest(length=4), "big")
    return place % _SHARES < pct * (_SHARES // 100)
