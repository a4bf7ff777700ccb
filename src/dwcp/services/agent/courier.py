"""One attempt from its placement to its end: look, decide, do one thing, look again.

The courier is the only writer of its attempt's state. Everything it needs after a crash is on disk
or in the control log, so a new courier for an old attempt is simply an old one that looks again.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from dwcp.api.kv import Range, Txn
from dwcp.api.manager import EventKind, StoredReceipt
from dwcp.api.workloads import (
    FINAL_STATES,
    Output,
    Spec,
    State,
    WorkloadState,
    allocation_key,
    state_key,
)
from dwcp.control import attempt_log
from dwcp.control.attempt import (
    CLOCK_SKEW_MS_MAX,
    Action,
    Cause,
    Decision,
    Facts,
    LeaseView,
    decide,
    holds,
    renew_at_ns,
    stop_deadline_ns,
)
from dwcp.control.attempt_log import Seen
from dwcp.control.proof import OBSERVED
from dwcp.runtime import cgroups, sandbox
from dwcp.runtime.attempts import AttemptDamaged, AttemptDirectory, LaunchFailed, Prepared
from dwcp.runtime.clock import boottime_ns
from dwcp.runtime.failpoints import failpoint
from dwcp.services.agent.ports import (
    Committed,
    LogRefused,
    LogUnsure,
    OutputRefused,
    PayloadDelayed,
    PayloadLost,
)
from dwcp.services.agent.site import Site, demand_of

TICK_S = 0.25  # how often a running command is looked at
PATIENCE_S = 10.0  # for one answer of the log, when no lease is about to end
STOP_PATIENCE_S = 6.0  # after which a shim that ignores its stop file is killed
LEASE_PATIENCE_S = 0.5  # the same when the lease is over: the margin is short
TIDY_TRIES = 3
TELL_NS = 300_000_000  # between two events of shipping progress
LAUNCH_TRIES = 3


@dataclass(slots=True)
class Courier:
    """`seen` is the newest committed state that this courier knows from an ordered read or its own commit."""

    site: Site
    attempt: AttemptDirectory
    spec: Spec
    seen: Seen
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _hinted: int = 0  # revision of the newest hint; a newer one than `seen` asks for an ordered read
    _due_ns: int = 0
    _sent: dict[int, int] = field(default_factory=dict)  # lease deadline asked for → when, for late answers
    _background: asyncio.Task[None] | None = None
    _ship_failed: str = ""
    _start_failed: str = ""
    _publish_failed: str = ""
    _launches: int = 0
    _last_progress_ns: int = 0
    _last_told_ns: int = 0
    _last_told_bytes: int = -1

    # ------------------------------------------------------------------ the loop

    def __post_init__(self) -> None:
        state = self.seen.state
        if state is not None and not self.attempt.is_prepared:
            # A fresh placement: the manager set its lease moments ago. Anything older is renewed at once.
            left_ms = state.lease_deadline_ms - self.site.clock.now_ms()
            self._due_ns = boottime_ns() + (left_ms - self.site.lease_ms * 2 // 3) * 1_000_000
        if self.attempt.is_launched or (state is not None and state.state is State.RUNNING):
            self.site.room.admit(self.attempt.name, demand_of(self.spec), force=True)

    def hint(self, revision: int) -> None:
        """Somebody says that the state changed."""
        self._hinted = max(self._hinted, revision)
        self._wake.set()

    async def run(self) -> None:
        """Until nothing of the attempt is left to do. Cancelled, it leaves the command running."""
        try:
            while True:
                if self._hinted > self.seen.revision:
                    await self._look_again()
                facts = self._facts()
                decision = self._decide(facts)
                if decision.action is Action.CLOSE:
                    await self._close()
                    return
                await self._perform(decision)
        finally:
            if self._background is not None:
                self._background.cancel()

    def _facts(self) -> Facts:
        try:
            self.attempt.kill_orphans()
            return self.attempt.facts(
                ship_failed=self._ship_failed,
                start_failed=self._start_failed,
                publish_failed=self._publish_failed,
            )
        except AttemptDamaged as exc:
            self.site.logger.error("attempt.damaged", attempt=self.attempt.name, error=str(exc))
            self._kill()
            return Facts()

    def _decide(self, facts: Facts) -> Decision:
        now_ns = boottime_ns()
        lease = LeaseView(due=now_ns >= self._due_ns, lapsed=now_ns >= self.attempt.lease_deadline_ns())
        return decide(
            self.seen.state,
            facts,
            lease,
            node=self.site.node,
            attempt=self.attempt.number,
            retry=self.spec.job.retry,
        )

    async def _perform(self, decision: Decision) -> None:
        match decision.action:
            case Action.RECORD:
                await self._record()
            case Action.SHIP:
                await self._meanwhile(self._ship)
            case Action.COMMIT_RUNNING:
                await self._commit_running()
            case Action.START:
                await self._start()
            case Action.RENEW:
                await self._renew()
            case Action.WAIT:
                await self._pause(TICK_S)
            case Action.STOP:
                await self._stop(decision.cause or Cause.SUPERSEDED)
            case Action.ABANDON:
                await asyncio.to_thread(self.attempt.abandon)
            case Action.PUBLISH:
                await self._meanwhile(self._publish)
            case Action.COMMIT_END:
                await self._commit_end(decision)
            case Action.CLOSE:
                raise AssertionError("closing is the loop's own act")

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not through a hint nor past the next renewal."""
        until_due_s = (self._due_ns - boottime_ns()) / 1e9
        if until_due_s > 0:
            seconds = min(seconds, until_due_s)
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _meanwhile(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Let long work go on in the background, so that leases are renewed beside it."""
        if self._background is None:
            self._background = asyncio.create_task(work(), name=f"{self.attempt.name}.{work.__name__}")
            self._background.add_done_callback(lambda _: self._wake.set())
        if not self._background.done():
            await self._pause(1.0)
        if self._background.done():
            task, self._background = self._background, None
            task.result()

    # ------------------------------------------------------------------ the control log

    def _patience_s(self) -> float:
        """An answer that comes after the command must be dead is of no use to it."""
        left_s = (self.attempt.lease_deadline_ns() - boottime_ns()) / 1e9
        return max(0.3, min(PATIENCE_S, left_s)) if self.attempt.is_launched else PATIENCE_S

    async def _look_again(self) -> None:
        try:
            done = await self.site.log.read(
                state_key(self.spec.id), linearizable=True, timeout_s=self._patience_s()
            )
            self._adopt(attempt_log.read_state(done))
            self._hinted = 0
        except (LogUnsure, LogRefused, msgspec.MsgspecError) as exc:
            self.site.logger.warning("attempt.read_failed", attempt=self.attempt.name, error=str(exc))
            await asyncio.sleep(0.2)

    async def _send(self, txn: Txn, *, receipt: bool) -> Committed | None:
        """None: no answer, or refused; the same decision is taken again, guarded by the same revision."""
        try:
            committed = await self.site.log.txn(txn, receipt=receipt, timeout_s=self._patience_s())
        except (LogUnsure, LogRefused) as exc:
            self.site.logger.warning("attempt.commit_failed", attempt=self.attempt.name, error=str(exc))
            await asyncio.sleep(0.2)
            return None
        if not committed.done.succeeded:
            self._lost_race(committed)
            await asyncio.sleep(0.05)
            return None
        return committed

    def _lost_race(self, committed: Committed) -> None:
        found = attempt_log.seen_by_failure(committed.done)
        if found is None:
            return
        skew_ms = committed.done.time_ms - self.site.clock.now_ms()
        if found.revision == self.seen.revision and abs(skew_ms) > CLOCK_SKEW_MS_MAX:
            note = f"the clock of {self.site.node} is {skew_ms} ms behind committed time: set it by NTP"
            self.site.logger.error("clock.skewed", skew_ms=skew_ms)
            self._tell(EventKind.NOTE, detail=note)
        self._adopt(found)

    def _adopt(self, seen: Seen) -> None:
        """Take a newer state. One with a lease that we asked for confirms an answer that got lost."""
        if seen.revision < self.seen.revision and seen.state is not None:
            return
        self.seen = seen
        if seen.state is not None and holds(seen.state, node=self.site.node, attempt=self.attempt.number):
            sent_ns = self._sent.pop(seen.state.lease_deadline_ms, None)
            if sent_ns is not None:  # its committed time is unknown: assume the latest that was allowed
                latest_ms = seen.state.lease_deadline_ms - self.site.lease_ms + CLOCK_SKEW_MS_MAX
                self._confirm(seen.state, sent_ns=sent_ns, committed_ms=latest_ms)

    def _confirm(self, state: WorkloadState, *, sent_ns: int, committed_ms: int) -> None:
        deadline = stop_deadline_ns(
            sent_ns=sent_ns, committed_ms=committed_ms, lease_deadline_ms=state.lease_deadline_ms
        )
        if self.attempt.path.is_dir():
            self.attempt.set_lease(max(deadline, self.attempt.lease_deadline_ns()))
        self._due_ns = renew_at_ns(sent_ns=sent_ns, lease_ms=self.site.lease_ms)
        self._sent.clear()

    async def _hold(self, make: Callable[[int], WorkloadState], *, after: str, receipt: bool) -> bool:
        """Commit a state with a new lease, then tell the shim. Whether it is committed."""
        now_ms, sent_ns = self.site.clock.now_ms(), boottime_ns()
        state = make(now_ms)
        self._sent[state.lease_deadline_ms] = sent_ns
        self._due_ns = sent_ns + self.site.lease_ms * 1_000_000 // 12  # if this fails, not at once again
        committed = await self._send(
            attempt_log.hold(self.spec.id, self.seen, state, now_ms=now_ms), receipt=receipt
        )
        if committed is None:
            return False
        failpoint(after)
        self.seen = Seen(state, committed.done.revision)
        self._confirm(state, sent_ns=sent_ns, committed_ms=committed.done.time_ms)
        self._keep_receipt(committed, state)
        return True

    def _keep_receipt(self, committed: Committed, state: WorkloadState, *, kind: str = "") -> None:
        if committed.receipt is not None:
            kept = StoredReceipt(
                self.spec.id, self.attempt.number, kind or state.state.value, committed.receipt
            )
            self.site.teller.keep(kept)

    def _tell(self, kind: EventKind, **fields: int | float | str) -> None:
        self.site.teller.tell(self.spec.id, self.attempt.number, kind, **fields)

    @property
    def _state(self) -> WorkloadState:
        assert self.seen.state is not None  # every caller acts on an attempt that the log holds
        return self.seen.state

    # ------------------------------------------------------------------ before the start

    async def _record(self) -> None:
        prepared = Prepared(
            spec=self.spec,
            attempt=self.attempt.number,
            slot=self.site.store.free_slot(),
            limits_enforced=self.site.cgroups.version,
        )
        try:
            self.attempt.prepare(prepared)  # not in a thread: two couriers must not choose one slot
        except OSError as exc:
            self._ship_failed = f"{self.site.node} could not record the attempt: {exc.strerror}"
        await asyncio.sleep(0)

    def _uid(self) -> int | None:
        return sandbox.sandbox_uid(self.attempt.prepared().slot)

    async def _ship(self) -> None:
        """Fetch and materialise; try again while that makes progress."""
        self._last_progress_ns = boottime_ns()
        pause_s = 0.5
        while True:
            try:
                work = await asyncio.to_thread(self.attempt.fresh_work)
                if self.spec.payload is not None:
                    await self.site.goods.fetch(
                        self.spec.payload,
                        work,
                        owner=self.attempt.name,
                        progress=self._progress,
                        priority=self.spec.job.priority,
                    )
                break
            except PayloadDelayed as exc:
                stalled_ms = (boottime_ns() - self._last_progress_ns) // 1_000_000
                if stalled_ms > self.site.ship_stall_ms:
                    self._ship_failed = f"the payload could not be fetched: {exc}"
                    return
                self.site.logger.warning("ship.delayed", attempt=self.attempt.name, error=str(exc))
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 10)
            except (PayloadLost, OSError) as exc:
                self._ship_failed = f"the payload could not be fetched: {exc}"
                return
        failpoint("agent.shipped.before")
        try:
            await asyncio.to_thread(self.attempt.mark_shipped, self._uid(), self.spec.job.output)
        except OSError as exc:
            self._ship_failed = f"the payload could not be laid out on {self.site.node}: {exc}"
            return
        failpoint("agent.shipped.after")
        payload = self.spec.payload
        self._tell(
            EventKind.SHIPPED, bytes=payload.bytes if payload else 0, root=payload.root if payload else ""
        )

    def _progress(self, here: int, total: int) -> None:
        now_ns = self._last_progress_ns = boottime_ns()
        finished = here >= total and here != self._last_told_bytes
        if finished or now_ns - self._last_told_ns > TELL_NS:
            self._last_told_ns, self._last_told_bytes = now_ns, here
            self._tell(EventKind.SHIPPING, bytes=here, total=total)

    async def _commit_running(self) -> None:
        if not self.site.room.admit(self.attempt.name, demand_of(self.spec)):
            await self._pause(TICK_S)
            return
        failpoint("agent.running.before_commit")
        enforced = self.attempt.prepared().limits_enforced

        def running(now_ms: int) -> WorkloadState:
            return attempt_log.running(
                self._state, now_ms=now_ms, lease_ms=self.site.lease_ms, limits_enforced=enforced
            )

        if await self._hold(running, after="agent.running.after_commit", receipt=True):
            self._tell(EventKind.RUNNING, limits_enforced=enforced)

    async def _renew(self) -> None:
        failpoint("agent.lease.before_renew")

        def renewed(now_ms: int) -> WorkloadState:
            return attempt_log.renewed(self._state, now_ms=now_ms, lease_ms=self.site.lease_ms)

        held = await self._hold(renewed, after="agent.lease.after_renew", receipt=False)
        self.site.telemetry.count("dwcp_agent_lease_renewals_total", result="ok" if held else "failed")

    async def _start(self) -> None:
        failpoint("agent.start.before")
        try:
            await asyncio.to_thread(self._launch)
        except (LaunchFailed, OSError) as exc:
            self._launches += 1
            self.site.logger.error("attempt.launch_failed", attempt=self.attempt.name, error=str(exc))
            if self._launches >= LAUNCH_TRIES:
                self._start_failed = f"{self.site.node} could not start it: {exc}"
            await self._pause(0.5)
        failpoint("agent.start.after")

    def _launch(self) -> None:
        confinement = sandbox.confine(self.spec.job, uid=self._uid(), hidden=self.site.hidden)
        group = None
        if self.site.cgroups.version != cgroups.NONE:
            group = self.site.cgroups.create(self.attempt.name, confinement.group_limits)
        orders = sandbox.launch(confinement, directory=self.attempt.path, group=group)
        self.attempt.launch(orders, self.site.shim_arguments)

    # ------------------------------------------------------------------ the end

    async def _stop(self, cause: Cause) -> None:
        """Ask the shim; if it does not obey, kill it, and with it the command."""
        self.attempt.stop(cause)
        self.site.telemetry.count("dwcp_agent_work_stopped_total", reason=cause.value)
        patience_s = LEASE_PATIENCE_S if cause is Cause.LEASE else STOP_PATIENCE_S
        until_ns = boottime_ns() + int(patience_s * 1e9)
        while self.attempt.is_alive:
            if boottime_ns() > until_ns:
                self._kill()
            await asyncio.sleep(0.05)

    def _kill(self) -> None:
        self.attempt.kill()
        try:
            cgroups.kill(self.site.cgroups.find(self.attempt.name), timeout_s=1.0)
        except (TimeoutError, OSError) as exc:
            self.site.logger.error("attempt.kill_failed", attempt=self.attempt.name, error=str(exc))

    async def _publish(self) -> None:
        ended = self.attempt.exit()
        assert ended is not None  # `decide` publishes only what ended
        failpoint("agent.publish.before")
        try:
            folder = output_folder(self.attempt.work, self.spec.job.output)
            captured = await self.site.goods.capture(folder, owner=f"output-{self.attempt.name}")
        except (OutputRefused, OSError) as exc:
            if ended.status == 0:
                self._publish_failed = f"its output cannot be published: {exc}"
            else:
                self._publish_failed = f"its command ended with status {ended.status}; no output: {exc}"
            return
        output = Output(
            root=captured.root,
            bytes=captured.bytes,
            files=captured.files,
            exit_status=ended.status,
            node=self.site.node,
            agent=self.site.name,
        )
        await asyncio.to_thread(self.attempt.publish, output)
        failpoint("agent.publish.after")
        self._tell(EventKind.PUBLISHED, root=output.root, bytes=output.bytes, files=output.files)

    async def _commit_end(self, decision: Decision) -> None:
        assert decision.state is not None
        failpoint("agent.done.before_commit")
        try:
            read = await self.site.log.read(
                allocation_key(self.site.node), linearizable=True, timeout_s=PATIENCE_S
            )
            held = attempt_log.read_allocation(read)
        except (LogUnsure, LogRefused, msgspec.MsgspecError) as exc:
            self.site.logger.warning("attempt.read_failed", attempt=self.attempt.name, error=str(exc))
            await self._pause(0.5)
            return
        known = self.attempt.exit()
        published = decision.state in (State.DONE, State.FAILED) and not self._publish_failed
        output = self.attempt.output() if published else None
        state = attempt_log.ended(
            self._state,
            decision.state,
            reason=decision.reason,
            exit_status=known.status if known is not None and known.entered else None,
            output=output,
            late=self._is_late(),
        )
        txn = attempt_log.end(self.spec.id, self.seen, state, node=self.site.node, held=held, output=output)
        committed = await self._send(txn, receipt=True)
        if committed is None:
            return
        failpoint("agent.done.after_commit")
        self.seen = Seen(state, committed.done.revision)
        self._keep_receipt(committed, state)
        self._tell(EventKind(state.state.value), reason=state.reason, exit_status=state.exit_status or 0)
        self.site.telemetry.count("dwcp_agent_attempts_total", outcome=state.state.value)

    def _is_late(self) -> bool:
        text = self.spec.job.deadline
        if not text:
            return False
        return self.site.clock.now_ms() > self.spec.submitted_ms + int(sandbox.seconds(text) * 1000)

    async def _close(self) -> None:
        """Everything is committed: prove it if the answer got lost, then tidy up."""
        await self._prove_end()
        for _ in range(TIDY_TRIES):
            if await asyncio.to_thread(self._tidy):
                break
            await asyncio.sleep(0.5)  # a thread that lays out files cannot be cancelled, only waited for
        self.site.room.release(self.attempt.name)
        await self.site.goods.release(self.attempt.name)
        self.site.logger.info("attempt.closed", attempt=self.attempt.name)

    async def _prove_end(self) -> None:
        state = self.seen.state
        mine = state is not None and state.attempt == self.attempt.number and state.node == self.site.node
        if state is None or not mine or state.state not in FINAL_STATES:
            return
        teller, kind = self.site.teller, state.state.value
        if any(teller.has(self.spec.id, self.attempt.number, name) for name in (kind, OBSERVED + kind)):
            return
        committed = await self._send(Txn(success=(Range(state_key(self.spec.id)),)), receipt=True)
        if committed is not None:
            self._keep_receipt(committed, state, kind=OBSERVED + kind)

    def _tidy(self) -> bool:
        """False: tried again, if need be by the agent's next start."""
        try:
            cgroups.remove(self.site.cgroups.find(self.attempt.name))
            if self.attempt.path.is_dir():
                self.attempt.close()
        except (OSError, TimeoutError) as exc:
            self.site.logger.warning("attempt.tidy_failed", attempt=self.attempt.name, error=str(exc))
            return False
        return True


def output_folder(work: Path, output: str) -> Path:
    """The output folder as the command left it. Raises `OutputRefused`: a link could point anywhere."""
    here = work
    for part in Path(output).parts:
        here = here / part
        try:
            mode = here.lstat().st_mode
        except FileNotFoundError:
            raise OutputRefused(f"the output folder {output} does not exist any more") from None
        if part == ".." or not stat.S_ISDIR(mode):
            raise OutputRefused(f"{part} in the output path {output} is no folder")
    return here
