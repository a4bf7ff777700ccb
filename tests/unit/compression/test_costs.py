"""The cost model: its limits, its order, and its objectives."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression.costs import Goal, Link, Mode, Objective, Prices, money, scores, stages, total_seconds

SECONDS = st.floats(0, 100, allow_subnormal=False)
BYTES = st.floats(1, 1e9)
RATES = st.floats(1e5, 1e11)


def _total(packed: float, c: float, d: float, *, link: Link, blocks: int, mode: Mode) -> float:
    parts = stages(np.array([packed]), compress_s=np.array([c]), decompress_s=np.array([d]), link=link)
    return float(total_seconds(parts, blocks=blocks, mode=mode, link=link)[0])


@settings(deadline=None)
@given(packed=BYTES, c=SECONDS, d=SECONDS, rate=RATES)
def test_one_block_is_the_serial_transfer(packed: float, c: float, d: float, rate: float) -> None:
    """K = 1: nothing overlaps, the time is the sum (§1.1)."""
    link = Link(rate, latency_s=0.01, block_overhead_s=0.001)

    one = _total(packed, c, d, link=link, blocks=1, mode=Mode.PIPELINED)

    assert one == pytest.approx(_total(packed, c, d, link=link, blocks=1, mode=Mode.SERIAL))
    assert one == pytest.approx(0.011 + c + packed * 8 / rate + d)


@settings(deadline=None)
@given(packed=BYTES, c=SECONDS, d=SECONDS, rate=RATES)
def test_many_blocks_approach_the_slowest_stage(packed: float, c: float, d: float, rate: float) -> None:
    """K → ∞: the bulk limit, from above; never below it."""
    link = Link(rate)
    bulk = _total(packed, c, d, link=link, blocks=1, mode=Mode.BULK)

    times = [_total(packed, c, d, link=link, blocks=k, mode=Mode.PIPELINED) for k in (1, 10, 100, 10**9)]

    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(times))
    assert times[-1] == pytest.approx(bulk, rel=1e-6, abs=1e-9)
    assert all(time >= bulk * (1 - 1e-12) for time in times)


@settings(deadline=None)
@given(packed=BYTES, c=SECONDS, d=SECONDS, rate=RATES, factor=st.floats(1, 100), mode=st.sampled_from(Mode))
def test_a_faster_link_is_never_slower(
    packed: float, c: float, d: float, rate: float, factor: float, mode: Mode
) -> None:
    """T falls, or stays, as W grows, in every mode."""
    slow = _total(packed, c, d, link=Link(rate), blocks=7, mode=mode)

    assert _total(packed, c, d, link=Link(rate * factor), blocks=7, mode=mode) <= slow * (1 + 1e-12)


@settings(deadline=None)
@given(share=st.floats(0.05, 1), cores=st.integers(1, 16), c=st.floats(0.1, 10))
def test_cores_and_shares_divide_the_cpu_seconds(share: float, cores: int, c: float) -> None:
    """C = c/(f_s·p_s); the core-seconds that are paid for stay."""
    link = Link(1e12, sender_share=share, sender_cores=cores)
    parts = stages(np.array([1.0]), compress_s=np.array([c]), decompress_s=np.array([0.0]), link=link)

    assert parts.compress[0] == pytest.approx(c / share / cores)
    assert parts.cpu[0] == c


def test_it_is_vectorised_over_rows_and_links() -> None:
    """[rows, codecs] in, the same shape out, row by row what single calls give."""
    rng = np.random.default_rng(1)
    packed, c, d = (rng.random((5, 4)) * 1e6 for _ in range(3))
    link = Link(1e8)

    together = total_seconds(
        stages(packed, compress_s=c, decompress_s=d, link=link), blocks=3, mode=Mode.PIPELINED, link=link
    )

    for row in range(5):
        parts = stages(packed[row], compress_s=c[row], decompress_s=d[row], link=link)
        assert np.allclose(together[row], total_seconds(parts, blocks=3, mode=Mode.PIPELINED, link=link))


def test_objectives_pick_differently() -> None:
    """Three codecs: quick, small, between; each objective has its winner, worked out by hand."""
    link = Link(8e6)  # a byte a microsecond
    parts = stages(
        np.array([9e6, 3e6, 5e6]), compress_s=np.array([0.1, 8.0, 1.0]), decompress_s=np.zeros(3), link=link
    )
    seconds = total_seconds(parts, blocks=1, mode=Mode.BULK, link=link)
    assert seconds.tolist() == [9.0, 8.0, 5.0]

    def best(goal: Goal) -> int:
        return int(np.argmin(scores(parts, seconds, goal)))

    assert best(Goal()) == 2
    assert best(Goal(Objective.TIME_UNDER_CPU, limit=0.5)) == 0
    assert best(Goal(Objective.BYTES_UNDER_DEADLINE, limit=8.5)) == 1
    assert best(Goal(Objective.BYTES_UNDER_DEADLINE, limit=6.0)) == 2
    assert best(Goal(Objective.COST, prices=Prices(byte=1.0, core_second=0.0))) == 1
    assert best(Goal(Objective.COST, prices=Prices(byte=0.0, core_second=1.0))) == 0
    assert money(parts, Prices(byte=1e-6, core_second=1.0)).tolist() == pytest.approx([9.1, 11.0, 6.0])


def test_where_no_choice_keeps_the_limit_the_least_violation_wins() -> None:
    """A deadline of 1 s that nothing meets: the soonest, though another is smaller."""
    link = Link(8e6)
    parts = stages(np.array([9e6, 3e6]), compress_s=np.array([0.1, 9.5]), decompress_s=np.zeros(2), link=link)
    seconds = total_seconds(parts, blocks=1, mode=Mode.BULK, link=link)

    assert int(np.argmin(scores(parts, seconds, Goal(Objective.BYTES_UNDER_DEADLINE, limit=1.0)))) == 0


@pytest.mark.parametrize(
    "wrong",
    [{"rate_bps": 0.0}, {"rate_bps": 1e6, "sender_share": 0.0}, {"rate_bps": 1e6, "receiver_cores": 0}],
)
def test_impossible_links_are_refused(wrong: dict[str, float]) -> None:
    """A rate of nothing or a host without processors is a mistake of the caller."""
    with pytest.raises(ValueError, match=r"needs|above|at least"):
        Link(**wrong)  # type: ignore[arg-type]
