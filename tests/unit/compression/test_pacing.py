"""The bucket: no more bits than the link has, none lost to waiting."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression.pacing import MBIT, Bucket, Goodput, Outlook, Shares


@settings(deadline=None)
@given(
    rate=st.floats(1e4, 1e9),
    steps=st.lists(st.tuples(st.integers(0, 1 << 18), st.floats(0, 2)), min_size=1, max_size=40),
)
def test_never_more_than_the_rate(rate: float, steps: list[tuple[int, float]]) -> None:
    """A caller that waits as told never passes more than rate × time + burst."""
    bucket = Bucket(rate)
    now = sent = 0.0
    for size, idle in steps:
        now += idle
        now += bucket.take(size, now_s=now)
        sent += size * 8

        assert sent <= rate * now + 8 * (64 << 10) + 1


def test_the_rate_is_used_up() -> None:
    """5 Mbit/s carries 5 MB in 8 seconds, less the burst: pacing that waits too long would show."""
    bucket = Bucket(5 * MBIT)
    now = 0.0
    for _ in range(5_000_000 // 65_536):
        now += bucket.take(65_536, now_s=now)

    assert now == pytest.approx(7.9, abs=0.2)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    """Time that runs backwards neither adds nor takes tokens."""
    bucket = Bucket(MBIT, burst_bytes=0)
    bucket.take(0, now_s=10.0)

    assert bucket.take(125_000, now_s=9.0) == pytest.approx(1.0)


def test_a_link_without_rate_is_refused() -> None:
    """Zero would wait for ever."""
    with pytest.raises(ValueError, match="above 0"):
        Bucket(0)


def test_the_outlook_promises_nothing_too_early() -> None:
    """No rate before a second has passed; nothing left is 0 at once."""
    outlook = Outlook(now_s=5.0)

    assert outlook.left_s(100, 1000, now_s=5.5) is None
    assert outlook.left_s(1000, 1000, now_s=5.6) == 0.0
    assert outlook.left_s(1000, 2000, now_s=7.0) == pytest.approx(2.0)


def test_goodput_follows_a_link_that_changes() -> None:
    """100 Mbit/s, then 10: within three seconds of waiting the estimate is below 40 Mbit/s."""
    link = Goodput()
    assert link.rate_bps == 100 * MBIT
    for _ in range(100):
        link.add(1_250_000, waited_s=0.1)
    assert link.rate_bps == pytest.approx(100 * MBIT)
    for _ in range(30):
        link.add(125_000, waited_s=0.1)
    assert link.rate_bps < 40 * MBIT


def test_a_link_that_is_never_waited_for_is_fast() -> None:
    """Bytes without waiting: the other side of the pipe is not the bottleneck."""
    link = Goodput()
    for _ in range(10):
        link.add(1 << 20, waited_s=0.0)

    assert link.rate_bps == 10e9


def test_shares_follow_the_weights() -> None:
    """Two that always want the link, weights 3 and 1: of 400 pieces one gets 300; a third that comes late
    and was idle gets its share from then on, no more."""
    shares = Shares()
    weights = {"a": 3.0, "b": 1.0}
    served = dict.fromkeys("abc", 0)
    waiting = {name: shares.tag(name, 1000, weight=weight) for name, weight in weights.items()}
    for number in range(800):
        if number == 400:
            assert (served["a"], served["b"]) == (300, 100)
            weights["c"] = 4.0
            waiting["c"] = shares.tag("c", 1000, weight=4.0)
        name = min(waiting, key=waiting.__getitem__)
        shares.serve(waiting[name])
        served[name] += 1
        waiting[name] = shares.tag(name, 1000, weight=weights[name])

    assert abs(served["c"] - 200) <= 2
    assert abs(served["a"] - 450) <= 2
