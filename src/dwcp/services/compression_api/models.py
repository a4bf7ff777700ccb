"""Deploying, trying and withdrawing models: gates first, then the registry, then the swap."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from dwcp.api import models as api
from dwcp.compression.calibration import Calibration, reference_blocks
from dwcp.consensus.core.machine import Signer
from dwcp.models import artefact
from dwcp.models.artefact import Artefact, Made, ModelRefused
from dwcp.models.lifecycle import GateClosed, Lifecycle
from dwcp.runtime.clock import Clock
from dwcp.runtime.registry import Registry
from dwcp.services.compression_api.deciding import Ask
from dwcp.services.compression_api.learned import NAME, Family
from dwcp.services.compression_api.stage import Stage
from dwcp.services.compression_api.staging import RATES_BPS, SELECTION_S_MAX, Staging

WORSE_MAX = 0.005  # half a point of regret: as near as a second measurement comes


@dataclass(frozen=True, slots=True)
class Models:
    """The models of a stage, changed by operators. `signer` vouches for what is admitted. `staging` None: the
    model is tried in this process."""

    stage: Stage
    signer: Signer
    clock: Clock
    staging: Staging | None = None

    def view(self) -> api.Models:
        """Blocking: reads manifests."""
        stage = self.stage
        state = stage.state
        found = [self._model(digest, state) for digest in stage.registry.digests()] if stage.registry else []
        told = stage.evaluation()
        return api.Models(
            name=NAME,
            roles=_roles(state),
            models=tuple(found),
            evaluation=msgspec.convert(told, api.Evaluation) if told else None,
            drifted=stage.drift.changed,
            trouble=stage.trouble,
            otherwise=stage.otherwise,
        )

    async def deploy(self, upload: api.Upload) -> api.Changed:
        """To staging. Raises `ModelRefused`, `GateClosed`, `StagingFailed`; nothing has changed then. A dry run
        starts no instance."""
        family, registry = self._plugged()
        made = family.package(upload.manifest, upload.weights)
        checked, checks = await asyncio.to_thread(self._gates, made, family)
        self.stage.change(lambda state: state.stage(checked.digest), dry_run=True)  # or it is refused now
        if self.staging is None:
            checks["selection_s_p50"] = tried(family, checked, self.stage.calibration)
        elif not upload.dry_run:
            checks |= await self.staging.check(made, checked.digest)
        if not upload.dry_run:
            await asyncio.to_thread(registry.admit, made, signer=self.signer)
        await self.stage.apply(lambda state: state.stage(checked.digest), dry_run=upload.dry_run)
        return await self._changed("staged", checked.digest, dry_run=upload.dry_run, checks=checks)

    async def canary(self, step: api.Step) -> api.Changed:
        """For a share of the streams, or for all. Raises `GateClosed`."""
        now_ms = self.clock.now_ms()

        def change(state: Lifecycle) -> Lifecycle:
            return state.promote(now_ms=now_ms) if step.pct == 100 else state.start_canary(step.pct)

        state = await self.stage.apply(change, dry_run=step.dry_run)
        digest = state.active if step.pct == 100 else state.canary
        did = "deployed to all streams" if step.pct == 100 else f"canary at {step.pct} %"
        return await self._changed(did, digest, dry_run=step.dry_run)

    async def roll_back(self, step: api.Step) -> api.Changed:
        """Raises `GateClosed` where there is nothing to undo."""
        state = await self.stage.apply(Lifecycle.roll_back, dry_run=step.dry_run)
        return await self._changed("rolled back", state.active, dry_run=step.dry_run)

    def show(self, prefix: str) -> api.Shown:
        """Raises `NoSuchModel`, `ModelRefused`. Blocking."""
        _, registry = self._plugged()
        found = registry.load(registry.resolve(prefix))
        return api.Shown(found.digest, msgspec.Raw(msgspec.json.encode(found.manifest)))

    async def _changed(
        self, did: str, digest: str, *, dry_run: bool, checks: Mapping[str, float] | None = None
    ) -> api.Changed:
        view = await asyncio.to_thread(self.view)
        return api.Changed(did, digest, dry_run, view, dict(checks or {}))

    def _plugged(self) -> tuple[Family, Registry]:
        if self.stage.family is None or self.stage.registry is None:
            raise GateClosed(
                "this release has no learned selector: there is nothing to deploy, the table answers"
            )
        return self.stage.family, self.stage.registry

    def _gates(self, made: Made, family: Family) -> tuple[Artefact, dict[str, float]]:
        """Integrity, features, golden vectors, figures no worse than the active model's. Blocking."""
        kind = family.kind
        checked = artefact.load(made, name=kind.name, schema=kind.schema, forward=kind.forward)
        active = self._active()
        checks = compared(checked.manifest.figures, active.manifest.figures if active else {})
        return checked, checks

    def _active(self) -> Artefact | None:
        digest = self.stage.state.active
        return self._plugged()[1].load(digest) if digest else None

    def _model(self, digest: str, state: Lifecycle) -> api.Model:
        _, registry = self._plugged()
        try:
            manifest = registry.load(digest).manifest
        except ModelRefused as exc:
            return api.Model(digest, f"unusable: {exc}", {})
        word = state.words.get(digest)
        roles = ("active", "previous", "staged", "canary")
        held = tuple(role for role in roles if getattr(state, role) == digest)
        if word is None:
            return api.Model(digest, manifest.version, manifest.figures, held)
        return api.Model(
            digest, manifest.version, manifest.figures, held, word.verdict.value, word.samples, word.at_ms
        )


def compared(new: Mapping[str, float], old: Mapping[str, float]) -> dict[str, float]:
    """The regrets that both were measured by; raises `GateClosed` where the new one is clearly worse."""
    shared = sorted(name for name in new if name.startswith("regret") and name in old)
    for name in shared:
        if new[name] > old[name] + WORSE_MAX:
            raise GateClosed(
                f"its {name} is {new[name]:.4f}, the active model's {old[name]:.4f}: it is worse"
            )
    found = {name: new[name] for name in sorted(new) if name.startswith("regret")}
    return {**found, **{f"active_{name}": old[name] for name in shared}}


def tried(family: Family, model: Artefact, calibration: Calibration) -> float:
    """Median seconds of a decision about reference data on five links. Raises `ModelRefused`, `GateClosed`."""
    taken = []
    try:
        decider = family.build(model, calibration)
        for raw in reference_blocks() * 3:
            for rate_bps in RATES_BPS:
                begun = time.thread_time()
                decider.decide(Ask(1 << 20, rate_bps, sample=raw))
                taken.append(time.thread_time() - begun)
    except Exception as exc:  # a model may fail in any way; all of them are its own
        raise ModelRefused(f"the model is refused: it fails on reference data: {exc}") from exc
    middle = statistics.median(taken)
    if middle > SELECTION_S_MAX:
        raise GateClosed(
            f"a decision takes it {middle * 1e3:.1f} ms, {SELECTION_S_MAX * 1e3:.0f} ms are allowed"
        )
    return middle


def _roles(state: Lifecycle) -> api.Roles:
    return api.Roles(state.active, state.previous, state.staged, state.canary, state.canary_pct)
