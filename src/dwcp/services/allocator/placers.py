"""Deploying, trying and withdrawing placers: the registry's checks first, then its state, then the swap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from dwcp.allocation.serving.chain import Served
from dwcp.api import models as api
from dwcp.consensus.core.machine import Signer
from dwcp.models import artefact
from dwcp.models.artefact import Made, ModelRefused
from dwcp.models.lifecycle import GateClosed, Lifecycle
from dwcp.runtime.clock import Clock
from dwcp.runtime.registry import Registry
from dwcp.services.allocator.stage import KIND, Stage


@dataclass(frozen=True, slots=True)
class Placers:
    """The models of a stage, changed by operators. `signer` vouches for what is admitted."""

    stage: Stage
    signer: Signer
    clock: Clock

    @property
    def registry(self) -> Registry:
        if self.stage.registry is None:
            raise GateClosed("this allocator keeps no models")
        return self.stage.registry

    def view(self) -> api.Models:
        """Blocking: reads manifests."""
        state = self.stage.state
        roles = api.Roles(state.active, state.previous, state.staged, state.canary, state.canary_pct)
        return api.Models(
            name=KIND.name,
            roles=roles,
            models=tuple(self._model(digest, state) for digest in self.registry.digests()),
            evaluation=self._evaluation(),
            drifted=self.stage.drift.changed,
            trouble=self.stage.trouble,
            otherwise=self.stage.otherwise,
        )

    def show(self, prefix: str) -> api.Shown:
        """Raises `NoSuchModel`, `ModelRefused`. Blocking."""
        found = self.registry.load(self.registry.resolve(prefix))
        return api.Shown(found.digest, msgspec.Raw(msgspec.json.encode(found.manifest)))

    async def deploy(self, upload: api.Upload) -> api.Changed:
        """To staging, after a rehearsal. Raises `ModelRefused`, `GateClosed`; nothing has changed then."""
        made = Made(upload.manifest, upload.weights)
        checked = await asyncio.to_thread(
            artefact.load, made, name=KIND.name, schema=KIND.schema, forward=KIND.forward
        )
        rehearsed = await self.stage.prepare(Served(checked))
        if not upload.dry_run:
            await asyncio.to_thread(self.registry.admit, made, signer=self.signer)
        return await self._step(
            "staged",
            lambda state: state.stage(checked.digest),
            checked.digest,
            dry_run=upload.dry_run,
            checks=rehearsed.checks,
        )

    async def canary(self, step: api.Step) -> api.Changed:
        """At a share of the sites, or at all; one that does not decide yet rehearses first, on what has been asked
        since it was staged too. Raises `GateClosed`, `ModelRefused`; nothing has changed then."""
        now_ms = self.clock.now_ms()
        state = self.registry.state()
        digest = state.canary or state.staged
        did = "deployed to all sites" if step.pct == 100 else f"canary at {step.pct} % of the sites"

        def change(one: Lifecycle) -> Lifecycle:
            return one.promote(now_ms=now_ms) if step.pct == 100 else one.start_canary(step.pct)

        change(state)  # a closed gate is said at once
        rehearsed = await self.stage.prepare_stored(digest)
        return await self._step(did, change, digest, dry_run=step.dry_run, checks=rehearsed.checks)

    async def roll_back(self, step: api.Step) -> api.Changed:
        """Raises `GateClosed` where there is nothing to undo."""
        return await self._step("rolled back", Lifecycle.roll_back, "", dry_run=step.dry_run, checks={})

    async def _step(
        self,
        did: str,
        change: Callable[[Lifecycle], Lifecycle],
        digest: str,
        *,
        dry_run: bool,
        checks: dict[str, float],
    ) -> api.Changed:
        if dry_run:
            change(self.registry.state())
        else:
            await asyncio.to_thread(self.registry.change, change)
            await self.stage.refresh()
        return api.Changed(did, digest, dry_run, await asyncio.to_thread(self.view), checks)

    def _evaluation(self) -> api.Evaluation | None:
        candidate, trial = self.stage.candidate, self.stage.trial
        if candidate is None:
            return None
        comparison, known = trial.comparison, trial.comparison.samples >= 2
        return api.Evaluation(
            subject=candidate.digest,
            reference="rule",
            verdict=comparison.verdict().value,
            samples=comparison.samples,
            samples_needed=200,
            log_cost_mean=comparison.mean,
            log_cost_low=comparison.low if known else None,
            log_cost_high=comparison.high if known else None,
            faults=self.stage.breaker.failures,
            selection_p99_us=0.0,
        )

    def _model(self, digest: str, state: Lifecycle) -> api.Model:
        try:
            manifest = self.registry.load(digest).manifest
        except ModelRefused as exc:
            return api.Model(digest, f"unusable: {exc}", {})
        roles = ("active", "previous", "staged", "canary")
        held = tuple(role for role in roles if getattr(state, role) == digest)
        word = state.words.get(digest)
        if word is None:
            return api.Model(digest, manifest.version, manifest.figures, held)
        verdict, samples, at_ms = word.verdict.value, word.samples, word.at_ms
        return api.Model(digest, manifest.version, manifest.figures, held, verdict, samples, at_ms)
