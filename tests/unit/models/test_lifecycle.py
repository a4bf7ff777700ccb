"""The gates between staging and serving."""

from __future__ import annotations

import pytest

from dwcp.models.lifecycle import PASS_MS, GateClosed, Lifecycle, Word
from dwcp.models.shadow import Verdict

OLD, NEW = "a" * 64, "b" * 64
NOW = 1_700_000_000_000


def word(verdict: Verdict, at_ms: int = NOW) -> Word:
    return Word(verdict, at_ms, 500)


def canary() -> Lifecycle:
    return Lifecycle(active=OLD).stage(NEW).start_canary(10)


def test_the_way_up_and_back() -> None:
    """Goal: staged, canary, active, and back. Method: walk it."""
    served = canary().judged(NEW, word(Verdict.PASS)).promote(now_ms=NOW)

    assert (served.active, served.previous, served.canary, served.staged) == (NEW, OLD, "", "")
    assert served.roll_back().active == OLD


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({}, "has not been evaluated"),
        ({OLD: word(Verdict.PASS)}, "has not been evaluated"),
        ({NEW: word(Verdict.FAIL)}, "was judged fail"),
        ({NEW: word(Verdict.INCONCLUSIVE)}, "was judged inconclusive"),
        ({NEW: word(Verdict.PASS, NOW - PASS_MS - 1)}, "older than 24 h"),
        ({NEW: word(Verdict.PASS, NOW + 1)}, "older than 24 h"),
    ],
)
def test_everything_needs_a_fresh_pass_of_the_same_digest(words: dict[str, Word], sentence: str) -> None:
    """Goal: nothing unproven serves all. Method: every way of lacking the pass."""
    with pytest.raises(GateClosed, match=sentence):
        Lifecycle(active=OLD, staged=NEW, words=words).promote(now_ms=NOW)


def test_a_failing_canary_stops_at_once() -> None:
    """Goal: automatic rollback. Method: judge the canary, and judge another."""
    assert canary().judged(NEW, word(Verdict.FAIL)).canary == ""
    assert canary().judged(OLD, word(Verdict.FAIL)).canary == NEW


def test_refusals_say_what_to_do() -> None:
    """Goal: a closed gate explains itself. Method: each step where it cannot be taken."""
    with pytest.raises(GateClosed, match="deploy one to staging"):
        Lifecycle(active=OLD).start_canary(10)
    with pytest.raises(GateClosed, match="1 to 99"):
        Lifecycle(staged=NEW).start_canary(100)
    with pytest.raises(GateClosed, match="failed its evaluation"):
        Lifecycle(staged=NEW, words={NEW: word(Verdict.FAIL)}).start_canary(10)
    with pytest.raises(GateClosed, match="serves already"):
        Lifecycle(active=OLD).stage(OLD)
    with pytest.raises(GateClosed, match="nothing to roll back"):
        Lifecycle().roll_back()
