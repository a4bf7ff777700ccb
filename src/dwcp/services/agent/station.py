"""Which attempts this machine works on: found by watching the log, kept by one courier each.

Watches and stale reads are hints from one replica. A courier is started only from an ordered read.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

import msgspec

from dwcp.api.workloads import (
    WORKLOADS,
    Node,
    Spec,
    WorkloadState,
    allocation_key,
    node_key,
    spec_key,
    state_key,
)
from dwcp.control import attempt_log
from dwcp.control.attempt import holds
from dwcp.control.attempt_log import Seen
from dwcp.runtime import cgroups, shim, usage
from dwcp.runtime.attempts import AttemptDamaged, AttemptDirectory
from dwcp.runtime.clock import boottime_ns
from dwcp.runtime.usage import Meter, Taken
from dwcp.services.agent.claims import Claims
from dwcp.services.agent.courier import PATIENCE_S, Courier
from dwcp.services.agent.ports import Hint, LogRefused, LogUnsure
from dwcp.services.agent.site import Site

RECONCILE_S = 5.0
RETRY_S = 1.0
GIVE_BACK_S = 60.0
MEASURE_S = 5.0
_STATE = re.compile(rb"/w/([A-Za-z0-9][A-Za-z0-9-]{0,63})/state")


class SpecMissing(Exception):
    """The log places a workload here whose spec it does not hold."""


@dataclass(slots=True)
class Station:
    """One task per attempt in `_couriers`, by workload: two attempts of one workload never overlap here."""

    site: Site
    offer: Node
    attempts_kept: int
    heard_ns: int = 0  # when the control log last answered, on the boot clock
    announced: bool = False  # until the log knows this node it gets no work
    meter: Meter = field(default_factory=Meter)
    _couriers: dict[str, Courier] = field(default_factory=dict)
    _looking: set[str] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def busy(self) -> list[str]:
        """The attempts that are worked on."""
        return sorted(courier.attempt.name for courier in self._couriers.values())

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; commands then go on under their shims, and the next start adopts them."""
        await asyncio.to_thread(self._remove_orphans)
        async with asyncio.TaskGroup() as group:
            works = (
                self._announce,
                self._watch,
                self._reconcile,
                self._resume,
                self._give_back,
                self._measure,
            )
            forever = [group.create_task(work(), name=work.__name__) for work in works]
            fatal = group.create_task(self._fatal())
            await stop.wait()
            for task in (*forever, fatal, *self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self.site.cgroups.close()

    async def _fatal(self) -> None:
        """Our own mistakes stop the process, wherever they happen; what runs goes on under its shim."""
        while True:
            for task in [task for task in self._tasks if task.done()]:
                self._tasks.discard(task)
                if not task.cancelled():
                    task.result()
            await asyncio.sleep(RETRY_S)

    def _spawn(self, courier: Courier) -> None:
        self._couriers[courier.attempt.workload] = courier
        self._tasks.add(asyncio.create_task(self._attend(courier), name=courier.attempt.name))
        self._count()

    async def _attend(self, courier: Courier) -> None:
        workload = courier.attempt.workload
        while True:
            try:
                await courier.run()
                break
            except (OSError, AttemptDamaged, msgspec.MsgspecError) as exc:
                self.site.logger.error("attempt.failed", attempt=courier.attempt.name, error=str(exc))
                await asyncio.sleep(RETRY_S)
        del self._couriers[workload]
        self._count()
        self._look(workload)  # it may have been placed here again meanwhile

    def _count(self) -> None:
        self.site.telemetry.gauge("dwcp_agent_attempts_open", len(self._couriers))

    # ------------------------------------------------------------------ hints

    async def _watch(self) -> None:
        while True:
            try:
                async for hint in self.site.log.watch(WORKLOADS):
                    self._hear(hint)
            except (LogUnsure, LogRefused) as exc:
                self.site.logger.warning("watch.failed", error=str(exc))
            await asyncio.sleep(RETRY_S)

    def _hear(self, hint: Hint) -> None:
        self.heard_ns = boottime_ns()
        match = _STATE.fullmatch(hint.key)
        if match is None:
            return
        workload = match[1].decode()
        if workload in self._couriers:
            self._couriers[workload].hint(hint.revision)
        elif hint.value is not None and self._concerns_us(hint.value):
            self._look(workload)

    def _concerns_us(self, value: bytes) -> bool:
        try:
            state = msgspec.json.decode(value, type=WorkloadState)
        except msgspec.MsgspecError:
            return False
        return holds(state, node=self.site.node, attempt=state.attempt)

    async def _reconcile(self) -> None:
        """A watch may lose a placement; this node's allocation lists them all."""
        while True:
            try:
                read = await self.site.log.read(
                    allocation_key(self.site.node), linearizable=False, timeout_s=PATIENCE_S
                )
                self.heard_ns = boottime_ns()
                for placed in attempt_log.read_allocation(read).allocation.placed:
                    if placed.workload not in self._couriers:
                        self._look(placed.workload)
                await asyncio.to_thread(self.site.store.clean, keep=self.attempts_kept)
            except (LogUnsure, LogRefused, msgspec.MsgspecError, OSError) as exc:
                self.site.logger.warning("reconcile.failed", error=str(exc))
            await asyncio.sleep(RECONCILE_S)

    async def _give_back(self) -> None:
        claims = Claims(self.site.log, self.site.goods)
        while True:
            await asyncio.sleep(GIVE_BACK_S)
            try:
                await claims.sweep(now_ns=boottime_ns())
            except (LogUnsure, LogRefused, OSError) as exc:
                self.site.logger.warning("claims.not_swept", error=str(exc))

    async def _measure(self) -> None:
        """What the commands here really use; the next health answer says it."""
        while True:
            names = {courier.attempt.name: courier.attempt for courier in self._couriers.values()}
            taken = await asyncio.to_thread(self._taken, names)
            self.meter.look(taken, at_s=boottime_ns() / 1e9)
            await asyncio.sleep(MEASURE_S)

    def _taken(self, attempts: dict[str, AttemptDirectory]) -> dict[str, Taken]:
        found = {}
        for name, attempt in attempts.items():
            own = usage.of_group(self.site.cgroups.find(name))
            process = attempt.shim() if own is None else None
            if process is not None:
                own = usage.of_processes(shim.session_members(process.pid))
            if own is not None:
                found[name] = own
        return found

    # ------------------------------------------------------------------ attempts

    def _look(self, workload: str) -> None:
        """Find out by an ordered read whether there is work; once at a time for one workload."""
        if workload not in self._looking and _STATE.fullmatch(state_key(workload)):
            self._looking.add(workload)
            self._tasks.add(asyncio.create_task(self._consider(workload), name=f"look {workload}"))

    async def _consider(self, workload: str) -> None:
        try:
            seen = await self._seen(workload)
            state = seen.state
            if state is None or not holds(state, node=self.site.node, attempt=state.attempt):
                return
            attempt = self.site.store.attempt(workload, state.attempt)
            spec = await self._spec(workload)
            if workload not in self._couriers and not attempt.is_closed:
                self._spawn(Courier(self.site, attempt, spec, seen))
        except (LogUnsure, LogRefused, SpecMissing, msgspec.MsgspecError) as exc:
            self.site.logger.warning("placement.unread", workload=workload, error=str(exc))
        finally:
            self._looking.discard(workload)

    async def _resume(self) -> None:
        """What an earlier life of this agent left open, whether the log still wants it or not."""
        left = [attempt for attempt in self.site.store.all() if not attempt.is_closed]
        while left:
            for attempt in list(left):
                taken = attempt.workload in self._couriers or await self._take_over(attempt)
                if taken and self._is_mine(attempt):
                    left.remove(attempt)
            await asyncio.sleep(RETRY_S if left else 0)

    def _is_mine(self, attempt: AttemptDirectory) -> bool:
        courier = self._couriers.get(attempt.workload)
        return attempt.is_closed or (courier is not None and courier.attempt.name == attempt.name)

    async def _take_over(self, attempt: AttemptDirectory) -> bool:
        """Whether its courier runs now; without the log it waits, and the shim minds the lease."""
        try:
            seen = await self._seen(attempt.workload)
            try:
                spec = attempt.prepared().spec
            except AttemptDamaged:
                spec = await self._spec(attempt.workload)
        except SpecMissing:
            attempt.close()
            return True
        except (LogUnsure, LogRefused, msgspec.MsgspecError) as exc:
            self.site.logger.warning("attempt.not_resumed", attempt=attempt.name, error=str(exc))
            return False
        if attempt.workload not in self._couriers:
            self.site.logger.info("attempt.resumed", attempt=attempt.name)
            self._spawn(Courier(self.site, attempt, spec, seen))
        return True

    async def _seen(self, workload: str) -> Seen:
        read = await self.site.log.read(state_key(workload), linearizable=True, timeout_s=PATIENCE_S)
        self.heard_ns = boottime_ns()
        return attempt_log.read_state(read)

    async def _spec(self, workload: str) -> Spec:
        """From an ordered read too: one replica alone must not choose what runs here."""
        read = await self.site.log.read(spec_key(workload), linearizable=True, timeout_s=PATIENCE_S)
        if not read.kvs:
            raise SpecMissing(workload)
        return msgspec.json.decode(read.kvs[0].value, type=Spec)

    # ------------------------------------------------------------------ this node

    async def _announce(self) -> None:
        """Put what this machine offers into the log, keeping an operator's drain."""
        while not self.announced:
            try:
                read = await self.site.log.read(
                    node_key(self.site.node), linearizable=True, timeout_s=PATIENCE_S
                )
                known = msgspec.json.decode(read.kvs[0].value, type=Node) if read.kvs else None
                revision = read.kvs[0].mod_revision if read.kvs else 0
                txn = attempt_log.announce(self.offer, known, revision)
                if txn is None:
                    self.announced = True
                else:
                    committed = await self.site.log.txn(txn, receipt=False, timeout_s=PATIENCE_S)
                    self.announced = committed.done.succeeded
                self.heard_ns = boottime_ns()
            except (LogUnsure, LogRefused, msgspec.MsgspecError) as exc:
                self.site.logger.warning("announce.failed", error=str(exc))
                await asyncio.sleep(RETRY_S)

    def _remove_orphans(self) -> None:
        """Groups of commands that no open attempt accounts for: a crash or a lost disk left them."""
        known = {attempt.name for attempt in self.site.store.all() if not attempt.is_closed}
        for name in self.site.cgroups.names() - known:
            try:
                cgroups.remove(self.site.cgroups.find(name))
            except (OSError, TimeoutError) as exc:
                self.site.logger.error("cgroup.orphaned", group=name, error=str(exc))
