"""The adaptive view timeout."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.consensus.core.pacemaker import FLOOR_FACTOR, REVIEW_EVERY, SAMPLES_MAX, Pacemaker


def test_it_grows_by_half_up_to_the_cap() -> None:
    """Goal: × 1.5 per failed view, capped. Method: fail twenty times."""
    pace = Pacemaker(start_ms=300, cap_ms=30_000)
    seen = []
    for _ in range(20):
        pace.failed()
        seen.append(pace.timeout_ms)
    assert seen[:3] == [450, 675, 1012]
    assert seen[-1] == 30_000


def test_it_decays_to_the_start_on_progress() -> None:
    """Goal: recovery. Method: fail, then commit quickly for long."""
    pace = Pacemaker(start_ms=300, cap_ms=30_000)
    for _ in range(8):
        pace.failed()
    for _ in range(REVIEW_EVERY * 60):
        pace.progressed(5)
    assert pace.timeout_ms == 300


def test_the_floor_is_four_times_the_slowest_percent() -> None:
    """Goal: slow disks and links raise the floor. Method: 5 % of commits take 500 ms."""
    pace = Pacemaker(start_ms=300, cap_ms=30_000)
    for i in range(SAMPLES_MAX * 2):
        pace.progressed(500 if i % 20 == 0 else 10)
    assert pace.floor_ms == FLOOR_FACTOR * 500
    assert pace.timeout_ms == pace.floor_ms


@given(st.lists(st.integers(-10, 10**7), max_size=400))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_it_stays_between_floor_and_cap(latencies: list[int]) -> None:
    """Goal: the invariant, also when clocks jump backwards. Method: any latencies, negative among them."""
    pace = Pacemaker(start_ms=300, cap_ms=30_000)
    for latency in latencies:
        pace.progressed(latency)
        if latency % 7 == 0:
            pace.failed()
        assert 300 <= pace.timeout_ms <= 30_000
        assert pace.floor_ms <= 30_000
