"""An agent's decisions: every committed state against every set of local facts, and a model that crashes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp.api.workloads import FINAL_STATES, Retry, State, WorkloadState
from dwcp.control.attempt import (
    ATTEMPTS_MAX,
    LIMIT_CAUSES,
    Action,
    Cause,
    Decision,
    Exit,
    Facts,
    LeaseView,
    decide,
    margin_ms,
    stop_deadline_ns,
)

NODE, ATTEMPT = "rome", 2

WISHES = ((False, ""), (True, ""), (False, "lima"), (True, "lima"))  # to be cancelled, to be moved
EXITS = (
    None,
    Exit(0),
    Exit(3),
    Exit(137, killed=True),
    Exit(1, entered=False),
    *(Exit(137, cause=cause) for cause in Cause),
    Exit(1, cause=Cause.LEASE, entered=False),
    Exit(1, cause=Cause.CANCELLED, entered=False),
)


def remotes() -> Iterator[WorkloadState | None]:
    yield None
    for state, (cancel, move), node, attempt in itertools.product(
        State, WISHES, (NODE, "oslo", ""), (ATTEMPT - 1, ATTEMPT, ATTEMPT + 1)
    ):
        yield WorkloadState(state=state, attempt=attempt, node=node, cancel=cancel, move=move)


def all_facts() -> Iterator[Facts]:
    """Every combination that a disk can show."""
    for recorded, shipped, published in itertools.product((False, True), repeat=3):
        for marker in ("none", "shim", "tombstone"):
            for alive, exit_ in itertools.product((False, True), EXITS):
                if (alive or exit_) and marker != "shim":
                    continue
                yield Facts(
                    recorded=recorded,
                    shipped=shipped,
                    launched=marker != "none",
                    abandoned=marker == "tombstone",
                    alive=alive,
                    exit=exit_,
                    published=published,
                )


LEASES = (LeaseView(), LeaseView(due=True), LeaseView(due=True, lapsed=True))


def every_case() -> Iterator[tuple[WorkloadState | None, Facts, LeaseView, Retry, Decision]]:
    facts = list(all_facts())
    for remote in remotes():
        for fact, lease, retry in itertools.product(facts, LEASES, Retry):
            yield (
                remote,
                fact,
                lease,
                retry,
                decide(remote, fact, lease, node=NODE, attempt=ATTEMPT, retry=retry),
            )


def mine(remote: WorkloadState | None) -> bool:
    return (
        remote is not None
        and remote.state in (State.PLACED, State.RUNNING)
        and (remote.node, remote.attempt) == (NODE, ATTEMPT)
    )


def test_rules_that_hold_in_every_case() -> None:
    """Goal: the safety rules of an attempt. Method: all combinations, each rule checked on each."""
    seen = set()
    for remote, facts, lease, retry, decision in every_case():
        action = decision.action
        seen.add(action)
        case = (remote, facts, lease, retry, decision)
        if action in (Action.START, Action.COMMIT_RUNNING, Action.RENEW, Action.COMMIT_END, Action.SHIP):
            assert mine(remote), case
        if action is Action.START:
            assert remote is not None
            assert remote.state is State.RUNNING, case
            assert facts.recorded, case
            assert not facts.launched, case
            assert not lease.due, case
            assert not remote.cancel, case
            assert not remote.move, case
        if action is Action.COMMIT_RUNNING:
            assert facts.recorded, case
            assert facts.shipped, case
        if action in (Action.COMMIT_END, Action.CLOSE, Action.PUBLISH):
            assert not facts.alive, case
        if action is Action.STOP:
            assert facts.alive, case
    assert seen == set(Action)


def test_a_job_that_may_not_be_retried_waits_again_only_if_it_never_started() -> None:
    """Goal: `retry: never` means at most one start. Method: every way back to pending, over all cases."""
    count = 0
    for remote, facts, lease, retry, decision in every_case():
        if decision.state is State.PENDING and retry is Retry.NEVER:
            count += 1
            assert remote is not None
            never_entered = facts.exit is not None and not facts.exit.entered
            placed_and_unlaunched = remote.state is State.PLACED and (not facts.launched or facts.abandoned)
            assert facts.abandoned or never_entered or placed_and_unlaunched, (remote, facts, lease)
    assert count


def test_what_runs_is_stopped_for_a_move_only_if_it_may_run_again() -> None:
    """Goal: no other job is stopped, and what ended by itself is not run again. Method: all cases with the wish."""
    stopped = set()
    for remote, facts, _, retry, decision in every_case():
        if decision.cause is Cause.MOVED:
            assert remote is not None
            assert remote.move, remote
            assert remote.state is State.RUNNING, remote
            stopped.add(retry)
        ended = (
            facts.exit is not None and facts.exit.entered and not facts.exit.killed and not facts.exit.cause
        )
        if remote is not None and remote.move and ended and facts.recorded and facts.launched:
            assert decision.state is not State.PENDING
    assert stopped == {Retry.SAFE}


def test_moves_do_not_use_up_the_attempts() -> None:
    """Goal: a job moved often is not taken for one that keeps dying. Method: moved ten times, then killed once."""
    facts = Facts(recorded=True, shipped=True, launched=True, exit=Exit(137, killed=True))
    remote = WorkloadState(state=State.RUNNING, attempt=11, node=NODE, moves=10)
    moving = WorkloadState(state=State.RUNNING, attempt=ATTEMPTS_MAX, node=NODE, move="lima")
    stopped = Facts(recorded=True, shipped=True, launched=True, exit=Exit(143, cause=Cause.MOVED))

    assert decide(remote, facts, LeaseView(), node=NODE, attempt=11, retry=Retry.SAFE).state is State.PENDING
    assert (
        decide(moving, stopped, LeaseView(), node=NODE, attempt=ATTEMPTS_MAX, retry=Retry.SAFE).state
        is State.PENDING
    )


def test_done_needs_a_zero_status_and_a_published_output() -> None:
    """Goal: no success without proof. Method: every decision for `done` over all cases."""
    for _, facts, _, _, decision in every_case():
        if decision.state is State.DONE:
            assert facts.exit == Exit(0)
            assert facts.published


def test_a_cancel_never_ends_as_pending() -> None:
    """Goal: a cancelled workload is not placed again. Method: all cases with the cancel flag."""
    for remote, facts, _, _, decision in every_case():
        if remote is not None and remote.cancel and facts.recorded and not facts.exit:
            assert decision.state in (None, State.CANCELLED, State.UNKNOWN)


@pytest.mark.parametrize("cause", sorted(LIMIT_CAUSES))
def test_a_broken_limit_is_the_jobs_failure_and_says_which(cause: Cause) -> None:
    """Goal: the user learns what to raise.
    Method: each limit's exit record, sentence naming the job's key."""
    facts = Facts(recorded=True, shipped=True, launched=True, exit=Exit(137, cause=cause))
    remote = WorkloadState(state=State.RUNNING, attempt=ATTEMPT, node=NODE)
    decision = decide(remote, facts, LeaseView(), node=NODE, attempt=ATTEMPT, retry=Retry.SAFE)
    assert decision.state is State.FAILED
    assert "in the job file" in decision.reason


def test_killed_commands_are_not_retried_for_ever() -> None:
    """Goal: a job that kills itself ends. Method: the same fate at growing attempt numbers."""
    facts = Facts(recorded=True, shipped=True, launched=True, exit=Exit(137, killed=True))
    states = []
    for attempt in range(1, ATTEMPTS_MAX + 1):
        remote = WorkloadState(state=State.RUNNING, attempt=attempt, node=NODE)
        states.append(decide(remote, facts, LeaseView(), node=NODE, attempt=attempt, retry=Retry.SAFE).state)
    assert states == [State.PENDING] * (ATTEMPTS_MAX - 1) + [State.FAILED]


# --------------------------------------------------------------------------- a model that runs and crashes

EVENTS = st.lists(
    st.sampled_from(["step", "step", "step", "crash", "cancel", "late", "kill_shim", "finish", "expire"]),
    max_size=60,
)


class Model:
    """One workload, one agent: the log and the disk survive a crash, nothing else does."""

    def __init__(self, retry: Retry) -> None:
        self.retry = retry
        self.remote = WorkloadState(state=State.PLACED, attempt=ATTEMPT, node=NODE)
        self.facts = Facts()
        self.lease = LeaseView()
        self.starts = self.outputs = 0
        self.closed = False

    def step(self) -> None:
        decision = decide(self.remote, self.facts, self.lease, node=NODE, attempt=ATTEMPT, retry=self.retry)
        changes: dict[Action, dict[str, object]] = {
            Action.RECORD: {"recorded": True},
            Action.SHIP: {"shipped": True},
            Action.ABANDON: {"launched": True, "abandoned": True},
            Action.PUBLISH: {"published": True},
            Action.STOP: {"alive": False, "exit": Exit(137, cause=decision.cause)},
        }
        self.facts = replace(self.facts, **changes.get(decision.action, {}))  # type: ignore[arg-type]
        if decision.action is Action.START:
            self.starts += 1
            self.facts = replace(self.facts, launched=True, alive=True)
        elif decision.action is Action.COMMIT_RUNNING:
            self.remote = WorkloadState(
                state=State.RUNNING, attempt=ATTEMPT, node=NODE, started=True, cancel=self.remote.cancel
            )
            self.lease = LeaseView()
        elif decision.action is Action.RENEW:
            self.lease = LeaseView()
        elif decision.action is Action.COMMIT_END:
            assert decision.state is not None
            self.outputs += decision.state is State.DONE
            self.remote = WorkloadState(state=decision.state, attempt=ATTEMPT)
        elif decision.action is Action.CLOSE:
            self.closed = True

    def happen(self, event: str) -> None:
        if event == "step":
            self.step()
        elif event == "crash":
            self.lease = LeaseView(due=True, lapsed=self.lease.lapsed)
        elif event == "cancel" and self.remote.state not in FINAL_STATES:
            self.remote = WorkloadState(
                state=self.remote.state, attempt=self.remote.attempt, node=self.remote.node, cancel=True
            )
        elif event == "late":
            self.lease = LeaseView(due=True, lapsed=True)
        elif event == "kill_shim" and self.facts.alive:
            self.facts = replace(self.facts, alive=False)
        elif event == "finish" and self.facts.alive:
            self.facts = replace(self.facts, alive=False, exit=Exit(0))
        elif event == "expire" and mine(self.remote) and not self.facts.alive:
            self.remote = WorkloadState(state=State.PENDING, attempt=ATTEMPT)


@given(events=EVENTS, retry=st.sampled_from(list(Retry)))
def test_any_history_starts_at_most_once_and_comes_to_an_end(events: list[str], retry: Retry) -> None:
    """Goal: at most one start and one output per attempt, and no livelock.
    Method: random histories, then calm."""
    model = Model(retry)
    for event in events:
        model.happen(event)
    for _ in range(30):
        model.step()
        if model.facts.alive and model.remote.state is State.RUNNING and not model.remote.cancel:
            model.happen("finish")
    assert model.closed
    assert model.starts <= 1
    assert model.outputs <= 1
    assert not mine(model.remote)


# --------------------------------------------------------------------------- leases


@given(
    lease_ms=st.integers(1000, 600_000),
    skew_ms=st.integers(-1000, 1000),
    travel_ms=st.integers(0, 5000),
)
def test_the_command_is_dead_before_the_lease_ends_whatever_the_clocks(
    lease_ms: int, skew_ms: int, travel_ms: int
) -> None:
    """Goal: no overlap of two attempts. Method: true time against a wrong wall clock and a slow answer:
    the local deadline, in true time, precedes the lease's end in committed time by the margin."""
    sent_true_ms = 1_000_000
    deadline_ms = sent_true_ms + skew_ms + lease_ms  # by the writer's wall clock
    committed_ms = sent_true_ms + travel_ms  # by the replicas, somewhere between sending and answer
    stop_ns = stop_deadline_ns(
        sent_ns=sent_true_ms * 1_000_000, committed_ms=committed_ms, lease_deadline_ms=deadline_ms
    )
    left_ms = deadline_ms - committed_ms
    latest_true_ms = max(sent_true_ms, deadline_ms - margin_ms(left_ms))
    assert stop_ns <= latest_true_ms * 1_000_000
