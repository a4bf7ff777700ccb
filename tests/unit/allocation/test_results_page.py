"""The page of results says what was measured, and claims only what it may."""

from __future__ import annotations

import pytest
from benchmarks import allocator_page

RESULT = {
    "load": 0.95,
    "windows": 200,
    "rival": "lifetime+",
    "cost_per_1k": {"lifetime+": 10.0, "balance": 11.0, "best-fit-l2": 12.0, "kube-default": 13.0, "random": 14.0},
    "rival_bounded": 9.0,
    "bound": 5.0,
    "violations_size_weighted": 0.0123,
    "model": "maddpg",
    "model_share": 0.998,
    "saved": {"mean": 1.0, "low": 0.5, "high": 1.5},
    "decision_ms_p50": 0.1,
    "decision_ms_p99": 0.2,
    "gap_closed": 0.2,
    "gap_closed_low": 0.1,
    "gap_closed_high": 0.3,
    "no_gap": False,
    "verdict": "better",
}  # fmt: skip
ANSWER = {
    "command": "python benchmarks/bench_allocator.py",
    "commit": "abc",
    "machine": "m",
    "cpu_seconds": 1.0,
    "digest": "d",
    "results": [RESULT],
}


def test_the_page_is_current() -> None:
    """Goal: docs cannot quote what was not measured. Method: make the page from the saved results; compare."""
    expected = allocator_page.render(allocator_page.saved())

    assert allocator_page.PAGE.read_text() == expected, "run the benchmark with --save"


@pytest.mark.parametrize(("seeds", "word"), [(10, "better"), (3, "too few seeds")])
def test_a_claim_needs_ten_seeds(seeds: int, word: str) -> None:
    """Goal: small runs claim nothing. Method: the same result with 10 and with 3 seeds."""
    page = allocator_page.render({"g1": {**ANSWER, "seeds": seeds}})

    assert f"| 99.8 % | 20.0 % (10.0 … 30.0) | 1.00 (0.50 … 1.50) | - | 0.10, 0.20 | {word} |" in page
    assert "| 0.95 | 200 | lifetime+ | 10.00 | 9.00 | 5.00 | 11.00 | 12.00 | 13.00 | 14.00 | 1.23 % |" in page


def test_no_gap_and_no_bound_are_said() -> None:
    """Goal: nothing is made up. Method: a result without a gap, and one without a bound."""
    none = {**RESULT, "gap_closed": None, "no_gap": True, "verdict": "no gap"}
    unknown = {**none, "no_gap": None, "bound": None, "verdict": "no bound"}

    page = allocator_page.render({"g1": {**ANSWER, "seeds": 10, "results": [none, unknown]}})

    assert "| none | 1.00 (0.50 … 1.50) | - | 0.10, 0.20 | no gap |" in page
    assert "| unknown |" in page
    assert "| - | 1.00 (0.50 … 1.50) | - | 0.10, 0.20 | no bound |" in page


def test_what_is_won_back_is_told_where_it_has_a_price() -> None:
    """Goal: the price of old information is beside the share of it. Method: with a price, and without."""
    stale = {**RESULT, "won_back": 0.25, "stale_price_per_window": 8.0}

    page = allocator_page.render(
        {"g1": {**ANSWER, "seeds": 10, "results": [stale, {**stale, "won_back": None}]}}
    )

    assert "| 25 % of 8.00 a window | 0.10, 0.20 |" in page
    assert "| - | 0.10, 0.20 |" in page
