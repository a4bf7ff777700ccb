"""The manager's work: read the control log, decide, commit. Safe when killed anywhere or run twice.

Every change is one transaction that compares what it was decided from; this
process's memory is a hint. It awaits only its ports, never a clock or a lock,
so that a test can interleave two of it step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from dwcp.api.allocator import PlaceAnswer, PlaceRequest
from dwcp.api.kv import Compare, Range, Relation, Target, Txn
from dwcp.api.manager import EventKind, Report, StoredReceipt, Submission
from dwcp.api.rebalance import Order, Plan, RebalanceView, Wish
from dwcp.api.workloads import (
    FINAL_STATES,
    NODES,
    WORKLOADS,
    NodeStatus,
    Spec,
    State,
    WorkloadState,
    state_key,
)
from dwcp.control import moving, placement
from dwcp.control.errors import ClockSkewed, Contended, NodeUnknown, NotReady, WorkloadExists, WorkloadUnknown
from dwcp.control.inventory import Inventory, NodeEntry, Transition, WorkloadEntry
from dwcp.control.jobs import check_identity, check_job, check_payload, check_possible, demand_of
from dwcp.control.proof import OBSERVED, proven_state
from dwcp.control.reconcile import (
    Cancel,
    Decision,
    EndRebalance,
    Evacuate,
    Expire,
    MissDeadline,
    Place,
    Relocate,
    Sweep,
    busy,
    decide,
    subject,
)
from dwcp.control.recovery import Recovery
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.telemetry import Telemetry
from dwcp.services.manager import rules
from dwcp.services.manager.events import Events
from dwcp.services.manager.moves import MoveLimits, Moves, OwnRules, Planner
from dwcp.services.manager.ports import Committed, ControlLog, Placer, ReceiptStore, ReceiptUnwanted

TRIES = 3  # at a transaction that others keep overtaking, before the caller or the next round tries
SWEEP_AFTER_MS = 5_000
WITNESSED_PER_ROUND = 8
WITNESS_AFTER_MS = 10_000  # how long the one who committed may take to hand in the receipt


class Coordinator:
    """One manager's view and hands. `unreachable` names nodes that should get no new work now."""

    def __init__(  # noqa: PLR0913  # its ports, by name
        self,
        *,
        log: ControlLog,
        placer: Placer,
        receipts: ReceiptStore,
        events: Events,
        telemetry: Telemetry,
        logger: structlog.stdlib.BoundLogger,
        now_ms: Callable[[], int],
        lease_ms: int,
        unreachable: Callable[[], frozenset[str]] = frozenset,
        lease_missed: Callable[[str], None] = lambda _node: None,
        planner: Planner | None = None,
        limits: MoveLimits | None = None,
    ) -> None:
        self._log = log
        self._placer = placer
        self._receipts = receipts
        self._events = events
        self._telemetry = telemetry
        self._logger = logger
        self._now_ms = now_ms
        self._lease_ms = lease_ms
        self._unreachable = unreachable
        self._lease_missed = lease_missed
        self._recovery = Recovery()
        self._unwitnessed: dict[str, int] = {}  # workload -> when its state became known
        self._told: dict[str, str] = {}  # workload -> why it waits, as last told
        self._suspects: dict[tuple[str, str, int, int], int] = {}  # a possible orphan -> since when
        self.inventory = Inventory()
        self.loaded = False
        self.read_revision = 0  # everything up to it has been read
        self._limits = limits or MoveLimits()
        self.moves = Moves(
            inventory=self.inventory,
            planner=planner or OwnRules(),
            commit=lambda step, txn: self._commit(step, txn, ""),
            note=self._note_move,
            warn=lambda problem: logger.warning("moves.refused", error=problem),
            unreachable=unreachable,
            telemetry=telemetry,
            limits=self._limits,
        )

    # ------------------------------------------------------------------ reading

    async def refresh(self, *, linearizable: bool) -> None:
        """Reads everything; raises the port's errors, and then nothing has changed."""
        revisions = []
        for prefix in (NODES, WORKLOADS):
            kvs, revision = await self._log.read(prefix, linearizable=linearizable)
            self._noticed(self.inventory.load(kvs, prefix=prefix, revision=revision))
            revisions.append(revision)
        if linearizable:
            self.loaded, self.read_revision = True, min(revisions)

    async def confirm(self) -> None:
        """A short ordered read: whether the log still decides, where there is nothing else to ask it."""
        kvs, revision = await self._log.read(NODES, linearizable=True)
        self._noticed(self.inventory.load(kvs, prefix=NODES, revision=revision))

    def heard(self, key: bytes, value: bytes | None, revision: int) -> None:
        """One event of a watch."""
        transition = self.inventory.put(key, value, revision)
        self._noticed([] if transition is None else [transition])

    @property
    def busy(self) -> bool:
        """Whether anything is under way, so that reads should be fresh."""
        return busy(self.inventory)

    def next_retry_ms(self) -> int | None:
        return self._recovery.next_due_ms(now_ms=self._now_ms())

    # ------------------------------------------------------------------ deciding

    async def step(self) -> None:
        """Carries out everything that is due, one transaction after the other."""
        decisions = decide(
            self.inventory,
            now_ms=self._now_ms(),
            moves_at_once=self._limits.at_once,
            unreachable=self._unreachable(),
        )
        self._recovery.keep(frozenset(subject(decision) for decision in decisions))
        if not any(isinstance(decision, Sweep) for decision in decisions):
            self._suspects.clear()
        for decision in decisions:
            if self._recovery.due(subject(decision), now_ms=self._now_ms()):
                await self._carry_out(decision)
        await self._witness()

    async def _carry_out(self, decision: Decision) -> None:
        match decision:
            case Place(workload):
                await self._place(workload.id)
                return
            case Evacuate(node):
                done = await self.moves.evacuate(node.name)
            case EndRebalance(rebalance):
                done = await self.moves.end(rebalance)
            case Relocate(_, move):
                done = await self.moves.ask(move, reason="rebalance")
            case _ if self._outdated(decision):
                return
            case Expire(workload):
                done = await self._expire(workload)
            case Cancel(workload):
                done = await self._try("cancel", placement.cancel(workload), workload.id, receipt=True)
            case MissDeadline(workload, deadline_ms):
                txn = placement.miss_deadline(workload, deadline_ms=deadline_ms)
                done = await self._try("deadline", txn, workload.id)
            case Sweep(workload, node):
                done = await self._try("sweep", placement.sweep(workload, node), "")
        if not done:  # overtaken, or committed time has not come that far yet
            self._recovery.failed(subject(decision), now_ms=self._now_ms())

    async def _expire(self, workload: WorkloadEntry) -> bool:
        node = self.inventory.node(workload.state.node)
        txn = placement.expire(workload, node)
        failpoint("manager.expire.before_commit")
        done = await self._try("expire", txn, workload.id, receipt=True)
        if done:
            failpoint("manager.expire.after_commit")
            self._lease_missed(workload.state.node)
        return done

    def _outdated(self, decision: Expire | Cancel | MissDeadline | Sweep) -> bool:
        """Whether the view has moved on since the decision, or is too fresh to act on.

        The two halves of one transaction may be heard apart, so an orphan
        must stay one for a while before it is swept.
        """
        now_ms = self._now_ms()
        current = self.inventory.workload(decision.workload.id)
        if current is None or current.revision != decision.workload.revision:
            return True
        if not isinstance(decision, Sweep):
            return False
        suspect = (decision.node.name, current.id, decision.node.allocation_revision, current.revision)
        since = self._suspects.setdefault(suspect, now_ms)
        return now_ms - since < SWEEP_AFTER_MS

    async def _place(self, identity: str) -> None:
        """Asks for a node and commits; a lost race is retried with what the loss told."""
        for tried in range(TRIES):
            entry = self.inventory.workload(identity)
            if entry is None or entry.state.state is not State.PENDING or entry.state.cancel:
                return
            answer = self._kept(entry) if tried == 0 else None
            answer = answer or await self._propose(entry, alone=tried == TRIES - 1)
            if not answer.node:
                self._wait(entry, answer)
                return
            chosen = self._accept(identity, answer)
            if chosen is None:
                continue
            workload, node = chosen
            self._tell(
                workload.id,
                EventKind.PROPOSED,
                node=node.name,
                attempt=workload.state.attempt + 1,
                policy=answer.policy,
            )
            sent_ms = self._now_ms()
            txn = placement.place(
                workload, node, now_ms=sent_ms, lease_ms=self._lease_ms, policy=answer.policy
            )
            failpoint("manager.place.before_commit")
            committed = await self._commit("place", txn, identity, receipt=True)
            if committed.done.succeeded:
                waited_s = (self._now_ms() - workload.spec.submitted_ms) / 1000
                self._telemetry.observe("dwcp_manager_placement_seconds", max(0.0, waited_s))
                return
            self._check_clock(committed, sent_ms=sent_ms)
        self._recovery.failed(identity, now_ms=self._now_ms())

    def _kept(self, workload: WorkloadEntry) -> PlaceAnswer | None:
        """The place that a move kept for it, if that still takes work."""
        target = self.inventory.node(workload.state.move) if workload.state.move else None
        if target is None or not moving.takes(target, workload, unreachable=self._unreachable()):
            return None
        return PlaceAnswer(workload=workload.id, node=target.name, policy="planned move", candidates=())

    async def _propose(self, workload: WorkloadEntry, *, alone: bool) -> PlaceAnswer:
        """`alone`: by this manager's own rules, where the allocator's proposals kept failing."""
        failpoint("manager.propose.before")
        wanted = self._request(workload)
        answer = rules.propose(wanted) if alone else await self._placer.place(wanted)
        failpoint("manager.propose.after")
        return answer

    def _request(self, workload: WorkloadEntry) -> PlaceRequest:
        job, payload = workload.spec.job, workload.spec.payload
        unreachable = self._unreachable()
        nodes = moving.node_states(self.inventory.nodes(), unreachable)
        return PlaceRequest(
            workload=workload.id,
            demand=demand_of(job),
            nodes=nodes,
            site=job.place.site,
            data_site=payload.site if payload else "",
            data_bytes=payload.bytes if payload else 0,
            priority=job.priority,
        )

    def _accept(self, identity: str, answer: PlaceAnswer) -> tuple[WorkloadEntry, NodeEntry] | None:
        """The proposal, if it still holds by this manager's own view: the allocator is not trusted."""
        workload, node = self.inventory.workload(identity), self.inventory.node(answer.node)
        if (
            workload is None
            or node is None
            or workload.state.state is not State.PENDING
            or workload.state.cancel
        ):
            return None
        job = workload.spec.job
        right_site = job.place.site in ("", node.node.site)
        fits = node.fits(demand_of(job), workload=identity)
        if node.node.status is not NodeStatus.READY or not right_site or not fits:
            return None
        return workload, node

    def _wait(self, workload: WorkloadEntry, answer: PlaceAnswer) -> None:
        self._recovery.failed(workload.id, now_ms=self._now_ms())
        if self._told.get(workload.id) != answer.reason:
            self._told[workload.id] = answer.reason
            self._tell(workload.id, EventKind.WAITING, attempt=workload.state.attempt, reason=answer.reason)

    def _check_clock(self, committed: Committed, *, sent_ms: int) -> None:
        """A transaction is committed between its sending and its answer, or some clock is wrong."""
        early_ms = sent_ms - committed.done.time_ms
        late_ms = committed.done.time_ms - self._now_ms()
        off_ms = max(early_ms, late_ms)
        if off_ms > placement.SKEW_MS:
            raise ClockSkewed(
                f"this machine's clock is {off_ms} ms away from committed time; for a lease at most"
                f" {placement.SKEW_MS} ms are allowed: synchronise it (chrony, ntp)"
            )

    # ------------------------------------------------------------------ what users ask

    async def submit(self, submission: Submission, *, by: str) -> tuple[WorkloadEntry, bool]:
        """The workload and whether this call made it; the same submission again makes nothing.

        Raises `JobRefused`, `DemandImpossible`, `WorkloadExists`, `NotReady`.
        """
        self._need_loaded()
        job = check_job(submission.job)
        check_payload(job, submission.payload)
        known = self.inventory.workload(check_identity(submission.id))
        if known is not None:
            return self._same(known, submission), False
        nodes = [entry.node for entry in self.inventory.nodes()]
        if not nodes:
            raise NotReady("no node has joined yet, so nothing can be placed; try again in a moment")
        check_possible(job, nodes)
        spec = Spec(
            id=submission.id,
            job=job,
            payload=submission.payload,
            submitted_ms=self._now_ms(),
            submitted_by=by,
        )
        failpoint("manager.submit.before_commit")
        committed = await self._commit("submit", placement.create(spec), spec.id)
        failpoint("manager.submit.after_commit")
        entry = self.inventory.workload(spec.id)
        if entry is None:
            raise Contended(f"{spec.id}: the log's entry cannot be read; submit under a new id")
        return self._same(entry, submission), committed.done.succeeded

    def _same(self, entry: WorkloadEntry, submission: Submission) -> WorkloadEntry:
        if (entry.spec.job, entry.spec.payload) != (submission.job, submission.payload):
            raise WorkloadExists(f"{entry.id} belongs to another job already; submit under a new id")
        return entry

    async def cancel(self, identity: str) -> WorkloadEntry:
        """Ends it, or asks its agent to. Raises `WorkloadUnknown`, `WorkloadEnded`, `Contended`."""
        self._need_loaded()
        for _ in range(TRIES):
            entry = self._known(identity)
            if entry.state.cancel and entry.leased:
                return entry
            txn = placement.cancel(entry)
            failpoint("manager.cancel.before_commit")
            committed = await self._commit(
                "cancel", txn, identity, receipt=entry.state.state is State.PENDING
            )
            if committed.done.succeeded:
                failpoint("manager.cancel.after_commit")
                return self._known(identity)
        raise Contended(f"{identity}: its state kept changing, the cancellation was not recorded; try again")

    async def drain(self, name: str, *, undo: bool, keep: bool = False) -> NodeEntry:
        """Raises `NodeUnknown`, `Contended`."""
        self._need_loaded()
        wanted = NodeStatus.CLOSED if keep else NodeStatus.DRAINING
        wanted = NodeStatus.READY if undo else wanted
        for _ in range(TRIES):
            entry = self.inventory.node(name)
            if entry is None:
                raise NodeUnknown(f"there is no node {name[:60]!r}; `dwcp nodes` lists them")
            if entry.node.status is wanted:
                return entry
            await self._commit("drain", placement.drain(entry, status=wanted), "")
        raise Contended(f"{name}: its entry kept changing, nothing was recorded; try again")

    async def order(self, wanted: Order, *, by: str) -> RebalanceView:
        """Raises `RebalanceRefused`, `RebalanceUnderWay`, `Contended`."""
        self._need_loaded()
        return await self.moves.order(wanted, by=by, now_ms=self._now_ms())

    async def wish(self, wanted: Wish) -> Plan:
        """Raises `RebalanceRefused`."""
        self._need_loaded()
        return await self.moves.wish(wanted)

    def _known(self, identity: str) -> WorkloadEntry:
        entry = self.inventory.workload(identity)
        if entry is None:
            raise WorkloadUnknown(f"there is no workload {identity[:40]!r}; `dwcp workloads` lists them")
        return entry

    def _need_loaded(self) -> None:
        if not self.loaded:
            raise NotReady("the manager has not read the control log yet; try again in a moment")

    # ------------------------------------------------------------------ committing

    async def _try(self, step: str, txn: Txn, workload: str, *, receipt: bool = False) -> bool:
        committed = await self._commit(step, txn, workload, receipt=receipt)
        return committed.done.succeeded

    async def _commit(self, step: str, txn: Txn, workload: str, *, receipt: bool = False) -> Committed:
        committed = await self._log.txn(txn, receipt=receipt)
        if committed.done.succeeded and step == "place":
            failpoint("manager.place.after_commit")
        transitions = self.inventory.committed(txn, committed.done)
        if not committed.done.succeeded:
            self._telemetry.count("dwcp_manager_conflicts_total", step=step)
        elif workload:
            self._recovery.forget(workload)
            await self._keep(workload, txn, committed)
        self._noticed(transitions)
        if committed.done.succeeded:
            for change in transitions:
                self._telemetry.count("dwcp_manager_transitions_total", state=change.after.state.value)
        if committed.done.succeeded and step == "place":
            await self._placer.release(workload)
        return committed

    async def _keep(self, workload: str, txn: Txn, committed: Committed) -> None:
        """Filed by what the transaction wrote: the view may have moved on since."""
        proven = proven_state(txn, committed.done, workload=workload)
        if committed.receipt is not None and proven is not None:
            await self._store(workload, proven.state, proven.state.state.value, committed.receipt)

    async def _store(self, workload: str, state: WorkloadState, kind: str, receipt: dict[str, Any]) -> None:
        """A copy that cannot be stored stops nothing: the fact is in the log."""
        attempt = state.attempt
        kept = StoredReceipt(workload=workload, attempt=attempt, kind=kind, receipt=receipt)
        try:
            await self._receipts.keep(kept)
        except (OSError, ReceiptUnwanted) as exc:
            self._logger.warning(
                "receipt.failed", workload=workload, attempt=attempt, kind=kind, error=str(exc)
            )

    async def _witness(self) -> None:
        """Fetches receipts that never came: a committed read of the state proves it as well."""
        now_ms = self._now_ms()
        due = [name for name, since in self._unwitnessed.items() if now_ms - since >= WITNESS_AFTER_MS]
        for name in due[:WITNESSED_PER_ROUND]:
            del self._unwitnessed[name]
            entry = self.inventory.workload(name)
            if entry is not None and not self._witnessed(entry):
                await self._observe(entry)

    def _witnessed(self, entry: WorkloadEntry) -> bool:
        """Whether nothing is missing; `running` shows what `placed` would have shown."""
        attempt, state = entry.state.attempt, entry.state.state
        if state is State.PENDING:
            return True
        kinds = ["placed", OBSERVED + "placed", OBSERVED + "running"] if entry.leased else []
        kinds += [state.value, OBSERVED + state.value]
        return any(self._receipts.has(entry.id, attempt, kind) for kind in kinds)

    async def _observe(self, entry: WorkloadEntry) -> None:
        key = state_key(entry.id)
        unchanged = Compare(key, Target.MOD, Relation.EQUAL, entry.revision)
        txn = Txn(compare=(unchanged,), success=(Range(key),), failure=(Range(key),))
        committed = await self._log.txn(txn, receipt=True)
        self._noticed(self.inventory.committed(txn, committed.done))
        if committed.done.succeeded and committed.receipt is not None:
            await self._store(entry.id, entry.state, OBSERVED + entry.state.state.value, committed.receipt)

    # ------------------------------------------------------------------ telling

    def _noticed(self, transitions: list[Transition]) -> None:
        """New states become events; freed capacity lets waiting workloads try at once."""
        now_ms = self._now_ms()
        for change in transitions:
            before, after = change.before, change.after
            if before is not None and (before.state, before.attempt) == (after.state, after.attempt):
                continue
            if after.state is not State.PENDING:  # at the start nobody else will hand anything in
                self._unwitnessed[change.workload] = now_ms if self.loaded else 0
            if after.state in FINAL_STATES or after.state is State.PENDING:
                self._recovery.hurry()
            if before is None and not self.loaded and after.state in FINAL_STATES:
                continue  # history, not news
            self._logger.info(
                f"workload.{after.state.value}",
                workload=change.workload,
                attempt=after.attempt,
                node=after.node,
                reason=after.reason,
            )
            fields: dict[str, int | str] = {"reason": after.reason}
            if after.state is State.PLACED:
                fields["policy"] = after.policy
            self._told.pop(change.workload, None)
            if after.exit_status is not None:
                fields["exit_status"] = after.exit_status
            self._report(change.workload, EventKind(after.state.value), after.node, after.attempt, fields)

    def _tell(
        self, workload: str, kind: EventKind, *, attempt: int, node: str = "", **fields: int | str
    ) -> None:
        self._logger.info(f"workload.{kind.value}", workload=workload, attempt=attempt, node=node, **fields)
        self._report(workload, kind, node, attempt, fields)

    def _note_move(self, entry: WorkloadEntry, detail: str) -> None:
        node, attempt = entry.state.node, entry.state.attempt
        self._tell(entry.id, EventKind.NOTE, attempt=attempt, node=node, detail=detail)

    def _report(
        self, workload: str, kind: EventKind, node: str, attempt: int, fields: dict[str, int | str]
    ) -> None:
        kept: dict[str, int | float | str] = {key: value for key, value in fields.items() if value != ""}
        report = Report(
            workload=workload, kind=kind, node=node, attempt=attempt, time_ms=self._now_ms(), fields=kept
        )
        self._events.append("manager", report)
