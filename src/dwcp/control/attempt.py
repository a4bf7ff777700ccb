"""What an agent does next for one attempt: pure decisions over committed state and local facts.

Level-triggered: the agent looks, decides one action, performs it, and looks again, so a crash
between any two steps is answered by looking once more. Nothing here knows ledger, disk or clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dwcp.api.workloads import FINAL_STATES, Retry, State, WorkloadState

ATTEMPTS_MAX = 5  # a `retry: safe` job whose command is killed from outside is given this many attempts


class Action(StrEnum):
    """One step of an attempt. `COMMIT_*` and `RENEW` are transactions, the rest is local."""

    RECORD = "record"  # make the attempt durable here, before anything else
    SHIP = "ship"  # fetch and materialise the payload
    COMMIT_RUNNING = "commit_running"
    START = "start"
    RENEW = "renew"
    WAIT = "wait"
    STOP = "stop"  # kill the command; `cause` says why
    ABANDON = "abandon"  # take the start marker, so that no late shim can start the command
    PUBLISH = "publish"  # make the output durable
    COMMIT_END = "commit_end"  # `state` says which
    CLOSE = "close"  # nothing of this attempt is left to do


class Cause(StrEnum):
    """Why the agent, or the shim by itself, stopped a command."""

    CANCELLED = "cancelled"
    LEASE = "lease"
    WALL = "wall"
    STORAGE = "storage"
    FILES = "files"
    MEMORY = "memory"
    SUPERSEDED = "superseded"
    MOVED = "moved"


# The job's own fault: the command broke a limit that its job file sets.
LIMIT_CAUSES = frozenset({Cause.WALL, Cause.STORAGE, Cause.FILES, Cause.MEMORY})

LIMIT_SENTENCES = {
    Cause.WALL: "stopped at its wall limit: raise limits.wall in the job file",
    Cause.STORAGE: "stopped at its storage limit: raise demand.storage_mib in the job file",
    Cause.FILES: "stopped at its file limit: raise limits.files in the job file",
    Cause.MEMORY: "killed at its memory limit: raise demand.memory_mib in the job file",
}


@dataclass(frozen=True, slots=True)
class Exit:
    """How the command ended. `status` is 0 to 255, 128 + n for a death by signal n."""

    status: int
    cause: Cause | None = None  # set if we ended it
    entered: bool = True  # False: the sandbox failed before the command began
    killed: bool = False  # by a SIGKILL or SIGTERM that was not ours


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true on this machine about one attempt. Every field survives a crash of the agent
    except the `_failed` sentences, which are found again by trying again."""

    recorded: bool = False
    shipped: bool = False
    ship_failed: str = ""  # a sentence, only once trying again cannot help
    start_failed: str = ""
    launched: bool = False  # the start marker exists
    abandoned: bool = False  # ... and it is a tombstone: the command never started, and never will
    alive: bool = False  # shim or command still hold the attempt's lock
    exit: Exit | None = None
    published: bool = False
    publish_failed: str = ""


@dataclass(frozen=True, slots=True)
class LeaseView:
    """`due`: a third of the lease has passed; `lapsed`: past the local stop deadline."""

    due: bool = False
    lapsed: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    action: Action
    state: State | None = None
    cause: Cause | None = None
    reason: str = ""


WAIT = Decision(Action.WAIT)
CLOSE = Decision(Action.CLOSE)


def holds(remote: WorkloadState | None, *, node: str, attempt: int) -> bool:
    """Whether the committed state still is this attempt on this node, leased."""
    return (
        remote is not None
        and remote.state in (State.PLACED, State.RUNNING)
        and remote.node == node
        and remote.attempt == attempt
    )


def decide(
    remote: WorkloadState | None, facts: Facts, lease: LeaseView, *, node: str, attempt: int, retry: Retry
) -> Decision:
    """The next step of (`node`, `attempt`); `remote` must come from an ordered read or our own commit."""
    if remote is None or not holds(remote, node=node, attempt=attempt):
        return _leave(facts)
    if remote.state is State.PLACED:
        return _placed(remote, facts, lease)
    return _running(remote, facts, lease, retry)


def _leave(facts: Facts) -> Decision:
    """The attempt is no longer ours (ended, replaced, withdrawn): leave nothing behind that could run."""
    if facts.alive:
        return Decision(Action.STOP, cause=Cause.SUPERSEDED)
    if facts.recorded and not facts.launched:
        return Decision(Action.ABANDON)
    return CLOSE


def _placed(remote: WorkloadState, facts: Facts, lease: LeaseView) -> Decision:
    if facts.launched and not facts.abandoned:
        # `running` is committed before the marker is taken, so the ledger was rolled back or tampered with.
        return _stop_or_end(facts, Cause.SUPERSEDED, State.UNKNOWN, "started without a committed start")
    if remote.cancel:
        return _never_started(facts, State.CANCELLED, "cancelled before it started")
    if facts.ship_failed:
        return _never_started(facts, State.FAILED, facts.ship_failed)
    if facts.abandoned:
        return Decision(Action.COMMIT_END, State.PENDING, reason="given up before it started")
    if remote.move:
        return _never_started(facts, State.PENDING, f"given up before it started, for {remote.move}")
    if lease.due:
        return Decision(Action.RENEW)
    if not facts.recorded:
        return Decision(Action.RECORD)
    if not facts.shipped:
        return Decision(Action.SHIP)
    return Decision(Action.COMMIT_RUNNING)


def _never_started(facts: Facts, state: State, reason: str) -> Decision:
    """First make it impossible to start, then say so: the other order could lie."""
    if facts.recorded and not facts.launched:
        return Decision(Action.ABANDON)
    return Decision(Action.COMMIT_END, state, reason=reason)


def _running(remote: WorkloadState, facts: Facts, lease: LeaseView, retry: Retry) -> Decision:
    if not facts.recorded and facts.alive:
        return Decision(Action.STOP, cause=Cause.SUPERSEDED)
    if not facts.recorded:
        # The record precedes the commit; it is gone, and with it the proof of what was started.
        return _fate_unknown(remote, retry, "the agent lost its record of this attempt")
    if facts.abandoned or _refused_entry(facts):
        return _given_up(remote, facts)
    if not facts.launched:
        return _not_launched(remote, facts, lease)
    if facts.alive:
        return _alive(remote, lease, retry)
    if lease.due and facts.exit is not None and not facts.published:
        return Decision(Action.RENEW)  # capturing an output may outlast a lease
    return _ended(remote, facts, retry)


def _refused_entry(facts: Facts) -> bool:
    """The shim found the lease lapsed, or a stop asked for, before it started the command."""
    found = facts.exit
    return found is not None and found.cause is not None and not found.entered and not facts.alive


def _given_up(remote: WorkloadState, facts: Facts) -> Decision:
    """The command provably never started, so another attempt is safe whatever the job says."""
    if remote.cancel:
        return Decision(Action.COMMIT_END, State.CANCELLED, reason="cancelled before it started")
    if facts.start_failed:
        return Decision(Action.COMMIT_END, State.FAILED, reason=facts.start_failed)
    return Decision(Action.COMMIT_END, State.PENDING, reason="given up before it started")


def _not_launched(remote: WorkloadState, facts: Facts, lease: LeaseView) -> Decision:
    if remote.cancel or facts.start_failed or remote.move:
        return Decision(Action.ABANDON)
    if lease.due or lease.lapsed:
        return Decision(Action.RENEW)  # never start on a lease that is nearly over
    return Decision(Action.START)


def _alive(remote: WorkloadState, lease: LeaseView, retry: Retry) -> Decision:
    if remote.cancel:
        return Decision(Action.STOP, cause=Cause.CANCELLED)
    if lease.lapsed:
        return Decision(Action.STOP, cause=Cause.LEASE)
    if remote.move and retry is Retry.SAFE:
        return Decision(Action.STOP, cause=Cause.MOVED)
    return Decision(Action.RENEW) if lease.due else WAIT


def _ended(remote: WorkloadState, facts: Facts, retry: Retry) -> Decision:
    if facts.exit is None:
        return _fate_unknown(remote, retry, "its shim died without recording how the command ended")
    if facts.exit.cause is Cause.CANCELLED:
        return Decision(Action.COMMIT_END, State.CANCELLED, reason="cancelled while it ran")
    if facts.exit.cause is Cause.MOVED:
        return _fate_unknown(remote, retry, "stopped to be moved")
    if facts.exit.cause in (Cause.LEASE, Cause.SUPERSEDED):
        return _fate_unknown(remote, retry, "stopped because its lease could not be renewed in time")
    if facts.exit.cause is not None:
        return Decision(Action.COMMIT_END, State.FAILED, reason=LIMIT_SENTENCES[facts.exit.cause])
    if not facts.exit.entered:
        return Decision(Action.COMMIT_END, State.FAILED, reason="the sandbox could not be set up: see stderr")
    if facts.exit.killed:
        return _fate_unknown(remote, retry, "its command was killed from outside")
    return _finished(facts, facts.exit)


def _finished(facts: Facts, ended: Exit) -> Decision:
    if facts.publish_failed:
        return Decision(Action.COMMIT_END, State.FAILED, reason=facts.publish_failed)
    if not facts.published:
        return Decision(Action.PUBLISH)
    if ended.status == 0:
        return Decision(Action.COMMIT_END, State.DONE)
    return Decision(Action.COMMIT_END, State.FAILED, reason=f"its command ended with status {ended.status}")


def _fate_unknown(remote: WorkloadState, retry: Retry, why: str) -> Decision:
    """Nothing of it runs any more; what it did is not known. Only the user can allow another run."""
    if remote.cancel:
        return Decision(Action.COMMIT_END, State.CANCELLED, reason=f"cancelled; {why}")
    if retry is not Retry.SAFE:
        return Decision(Action.COMMIT_END, State.UNKNOWN, reason=f"{why}, and the job does not allow a retry")
    if remote.attempt - remote.moves >= ATTEMPTS_MAX and not remote.move:
        return Decision(Action.COMMIT_END, State.FAILED, reason=f"{why}, for the {ATTEMPTS_MAX}th time")
    return Decision(Action.COMMIT_END, State.PENDING, reason=why)


def _stop_or_end(facts: Facts, cause: Cause, state: State, reason: str) -> Decision:
    if facts.alive:
        return Decision(Action.STOP, cause=cause)
    return Decision(Action.COMMIT_END, state, reason=reason)


# --------------------------------------------------------------------------- leases

CLOCK_SKEW_MS_MAX = 1000  # a writer whose clock differs more from committed time is refused


def margin_ms(lease_ms: int) -> int:
    """How long before the lease's end the command is dead: killing and its proof take time."""
    return max(500, lease_ms // 6)


def stop_deadline_ns(*, sent_ns: int, committed_ms: int, lease_deadline_ms: int) -> int:
    """The local clock's moment (ns, same clock as `sent_ns`) by which the command must be dead.

    The batch got its committed time after `sent_ns`, so counting what the lease had left then
    from `sent_ns` errs towards stopping early, however wrong this machine's wall clock is.
    """
    left_ms = lease_deadline_ms - committed_ms
    return sent_ns + max(0, left_ms - margin_ms(left_ms)) * 1_000_000


def renew_at_ns(*, sent_ns: int, lease_ms: int) -> int:
    """A third of the lease after the last confirmed renewal was sent."""
    return sent_ns + lease_ms * 1_000_000 // 3


def is_final(remote: WorkloadState | None) -> bool:
    return remote is not None and remote.state in FINAL_STATES
