"""The circuit breaker and the recovery steps, by their documented numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dwcp.control.breaker import Breaker, BreakerLimits, BreakerState
from dwcp.control.health import Condition, Observation, Watchlist
from dwcp.control.recovery import Recovery


def opened(now_ms: int = 0) -> Breaker:
    breaker = Breaker("d")
    for _ in range(5):
        breaker.failed("down", now_ms=now_ms)
    return breaker


def test_it_opens_after_five_failures_in_a_row() -> None:
    """Goal: 4 failures and a success do not open it, 5 do. Method: both histories."""
    breaker = Breaker("d")
    for _ in range(4):
        breaker.failed("down", now_ms=0)
    breaker.succeeded()
    breaker.failed("down", now_ms=0)

    assert breaker.state is BreakerState.CLOSED
    assert opened().state is BreakerState.OPEN
    assert not opened().allows(now_ms=29_999)


def test_it_half_opens_after_thirty_seconds_and_closes_after_two_successes() -> None:
    """Goal: one trial at a time, two successes close. Method: walk through the states."""
    breaker = opened()

    assert breaker.allows(now_ms=30_000)
    assert not breaker.allows(now_ms=30_001), "the one trial is under way"
    breaker.succeeded()
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.allows(now_ms=30_002)
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED


def test_a_failed_trial_opens_it_again_for_the_whole_time() -> None:
    """Goal: no flood on a dependency that is not well. Method: fail the trial, look at the wait."""
    breaker = opened()
    breaker.allows(now_ms=30_000)
    breaker.failed("still down", now_ms=31_000)

    assert breaker.state is BreakerState.OPEN
    assert breaker.retry_after_ms(now_ms=31_000) == 30_000


def test_a_lost_trial_does_not_block_for_ever() -> None:
    """Goal: a call that never reported back is forgotten. Method: take the trial, report nothing."""
    breaker = opened()

    assert breaker.allows(now_ms=30_000)
    assert breaker.allows(now_ms=60_001)


def test_reset_closes_it() -> None:
    """Goal: the operator has the last word. Method: open, reset, ask."""
    breaker = opened()
    breaker.reset()

    assert breaker.allows(now_ms=0)
    assert (breaker.failures, breaker.last_error) == (0, "")


@given(st.lists(st.tuples(st.sampled_from(["ok", "fail", "ask"]), st.integers(-5_000, 40_000))))
def test_it_is_never_shut_for_longer_than_open_ms(steps: list[tuple[str, int]]) -> None:
    """Goal: no history, not even with a jumping clock, keeps it shut. Method: random histories, then wait."""
    breaker, now_ms = Breaker("d", BreakerLimits()), 0
    for action, by_ms in steps:
        now_ms += by_ms
        if action == "ok":
            breaker.succeeded()
        elif action == "fail":
            breaker.failed("x", now_ms=now_ms)
        else:
            breaker.allows(now_ms=now_ms)

    latest = max([now_ms, *(sum(by for _, by in steps[: n + 1]) for n in range(len(steps)))])
    assert breaker.allows(now_ms=latest + 30_000 + 1)


def test_recovery_waits_one_two_four_four() -> None:
    """Goal: DESIGN's steps. Method: fail four times."""
    recovery = Recovery()

    assert [recovery.failed("x", now_ms=0) for _ in range(4)] == [1_000, 2_000, 4_000, 4_000]
    assert not recovery.due("x", now_ms=3_999)
    assert recovery.due("x", now_ms=4_000)
    assert recovery.due("y", now_ms=0)


def test_recovery_hurries_and_forgets() -> None:
    """Goal: a change lets everybody try at once, success clears the count. Method: both calls."""
    recovery = Recovery()
    recovery.failed("x", now_ms=0)
    recovery.hurry()

    assert recovery.due("x", now_ms=1)
    assert recovery.failed("x", now_ms=1) == 2_000
    recovery.forget("x")
    assert recovery.failed("x", now_ms=1) == 1_000


def test_old_news_is_unknown() -> None:
    """Goal: unreachable, healthy and not known are three things. Method: observe, then let time pass."""
    watchlist = Watchlist(interval_ms=10)

    assert watchlist.condition("a", now_ms=0) is Condition.UNKNOWN
    assert watchlist.observed("a", Observation(True, 0, "answered"))
    assert watchlist.condition("a", now_ms=30) is Condition.OK
    assert watchlist.condition("a", now_ms=31) is Condition.UNKNOWN
    assert watchlist.observed("a", Observation(False, 31, "refused"))
    assert watchlist.condition("a", now_ms=31) is Condition.FAILING
