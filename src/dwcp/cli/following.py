"""Following a workload to its end: events for people, the state in the log for the verdict.

Events may be lost, for example when the manager restarts; what counts is the
state, which is read again whenever something happened or a wait is over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dwcp.api import manager as api
from dwcp.api.manager import EventKind, EventList, Report, StoredReceipt, WorkloadView
from dwcp.api.workloads import FINAL_STATES, State
from dwcp.runtime.errors import Exit, NotRunning

if TYPE_CHECKING:
    from rich.progress import Progress

    from dwcp.cli.calls import ControlPlane
    from dwcp.consensus.ledger.genesis import Genesis
    from dwcp.consensus.ledger.receipts import Verified
    from dwcp.runtime.clock import Clock

WAIT_S = 10
PATIENCE_MS = 120_000  # how long an absent manager is waited for
RECEIPT_PATIENCE_MS = 40_000  # an end's receipt may have to be fetched again by the manager
PAUSE_S = 0.5
STATES = frozenset(state.value for state in State)
EXIT = {
    State.DONE: Exit.OK,
    State.FAILED: Exit.FAILED,
    State.CANCELLED: Exit.FAILED,
    State.UNKNOWN: Exit.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class Proof:
    """A receipt that was verified here, and what it proves."""

    stored: StoredReceipt
    facts: Verified


class Screen:
    """What is shown while a workload is followed: a line per event, a bar for bytes under way."""

    def __init__(self, bars: Progress, say: Callable[[str], None]) -> None:
        self._bars = bars
        self._say = say
        self._task = bars.add_task("waiting", total=None, state="")
        self._why = ""
        self._states: set[tuple[str, int]] = set()  # told by the log and by the agent: shown once

    def event(self, report: Report) -> None:
        if report.kind is EventKind.SHIPPING:
            moved, total = int(report.fields.get("bytes", 0)), int(report.fields.get("total", 0))
            shown = f"{mib(moved)} of {mib(total)} to {report.node}"
            self._bars.update(self._task, description="shipping", completed=moved, total=total, state=shown)
            return
        told = (report.kind.value, report.attempt)
        if report.kind.value in STATES and told in self._states:
            return
        self._states.add(told)
        self._bars.update(
            self._task, description=report.kind.value, completed=0, total=None, state=report.node
        )
        self._say(line(report))

    def waiting(self, why: str) -> None:
        """Why nothing is known now; said once for each reason."""
        if why != self._why:
            self._why = why
            self._say(why)


def follow(
    manager: ControlPlane, identity: str, *, clock: Clock, screen: Screen, sleep: Callable[[float], None]
) -> WorkloadView:
    """The workload when it has ended. Raises what the manager's refusals raise."""
    after, absent_since = 0, None
    while True:
        try:
            view = manager.ask(WorkloadView, api.workload(identity))
            page = manager.ask(
                EventList, api.events(after=after, workload=identity, wait_s=0 if _ended(view) else WAIT_S)
            )
        except (NotRunning, _unavailable()) as exc:
            absent_since = absent_since if absent_since is not None else clock.monotonic_ms()
            if clock.monotonic_ms() - absent_since > PATIENCE_MS:
                raise
            screen.waiting(f"{exc}; waiting")
            sleep(PAUSE_S)
            continue
        after, absent_since = page.next_after, None
        for event in page.events:
            screen.event(event.report)
        if _ended(view):
            return view


def proof_of(
    manager: ControlPlane,
    view: WorkloadView,
    genesis: Genesis,
    *,
    clock: Clock,
    sleep: Callable[[float], None],
) -> Proof | None:
    """A verified receipt of the workload's present state, waited for a while; None if none comes.

    Raises `ReceiptInvalid` where one is shown that does not prove it.
    """
    until = clock.monotonic_ms() + RECEIPT_PATIENCE_MS
    while True:
        for stored in _stored(manager, view.id):
            proof = check(stored, genesis)
            if _shows(proof, view):
                return proof
        if clock.monotonic_ms() > until:
            return None
        sleep(PAUSE_S)


def _stored(manager: ControlPlane, identity: str) -> tuple[StoredReceipt, ...]:
    """What the manager has; nothing while it is away, which the caller waits out."""
    try:
        return manager.ask(api.ReceiptList, api.receipts(identity)).receipts
    except (NotRunning, _unavailable()):
        return ()


def check(stored: StoredReceipt, genesis: Genesis) -> Proof:
    """Verified against genesis alone, and its label against what it proves. Raises `ReceiptInvalid`."""
    import msgspec

    from dwcp.consensus.ledger import receipts
    from dwcp.control.proof import proven_state

    receipt = receipts.decode(msgspec.json.encode(stored.receipt))
    facts = receipts.verify(receipt, genesis)
    proven = proven_state(facts.operation, facts.result, workload=stored.workload)
    if proven is None or not proven.is_filed_as(stored.kind, stored.attempt):
        raise receipts.ReceiptInvalid(
            f"the receipt at position {facts.index} is genuine, but does not prove that {stored.workload[:40]!r}"
            f" is {stored.kind[:40]!r} in attempt {stored.attempt}: who filed it so is wrong or lies"
        )
    return Proof(stored, facts)


def describe(proof: Proof) -> str:
    """A verified receipt in a sentence."""
    facts = proof.facts
    return (
        f"receipt verified: {proof.stored.kind}, attempt {proof.stored.attempt}, at position {facts.index}"
        f" of {facts.chain}, signed by {', '.join(facts.signers)}"
    )


def line(report: Report) -> str:
    """One event for people."""
    parts = [report.kind.value]
    if report.attempt:
        parts.append(f"attempt {report.attempt}")
    if report.node:
        parts.append(f"on {report.node}")
    parts += [f"{key} {value}" for key, value in sorted(report.fields.items()) if key != "reason"]
    reason = str(report.fields.get("reason", ""))
    return ", ".join(parts) + (f": {reason}" if reason else "")


def mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _ended(view: WorkloadView) -> bool:
    return view.state.state in FINAL_STATES


def _shows(proof: Proof, view: WorkloadView) -> bool:
    from dwcp.control.proof import proven_state

    proven = proven_state(proof.facts.operation, proof.facts.result, workload=view.id)
    return proven is not None and proven.is_filed_as(view.state.state.value, view.state.attempt)


def _unavailable() -> type[Exception]:
    from dwcp.cli.calls import ServiceUnavailable

    return ServiceUnavailable
