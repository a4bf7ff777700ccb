"""What may be claimed: intervals hold, and noise is called a tie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dwcp.allocation.policies import evidence, tuned
from dwcp.allocation.policies.rules import RULES

SEEDS = np.repeat(np.arange(5), 40)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_a_clear_win_a_tie_and_a_loss() -> None:
    """Goal: the word follows the interval. Method: costs with a known difference."""
    noise = rng().normal(0, 1, (2, 200))
    rival, bound = 100 + noise[0], np.full(200, 60.0)

    gaps = [
        evidence.gap_closed(rival - won + noise[1], rival, bound, seeds=SEEDS, block=5, rng=rng())
        for won in (10.0, 0.0, -10.0)
    ]

    assert [gap.verdict for gap in gaps] == ["better", "ties", "worse"]
    assert gaps[0].closed is not None
    assert abs(gaps[0].closed - 0.25) < 0.02


def test_a_small_gap_is_no_gap() -> None:
    """Goal: no percentages of nothing. Method: a bound within 5 % of the rival."""
    rival = np.full(200, 100.0)

    gap = evidence.gap_closed(rival - 3, rival, rival - 4, seeds=SEEDS, block=5, rng=rng())

    assert gap.no_gap
    assert gap.closed is None
    assert gap.verdict == "no gap"


def test_blocks_widen_the_interval_of_dependent_windows() -> None:
    """Goal: overlapping windows are not counted as independent. Method: costs that move slowly."""
    slow = np.repeat(rng().normal(0, 5, 10), 20)
    narrow, wide = (
        evidence.paired_difference(slow, np.zeros(200), seeds=np.zeros(200, int), block=block, rng=rng())
        for block in (1, 20)
    )

    assert wide[2] - wide[1] > 2 * (narrow[2] - narrow[1])


def test_resamples_stay_within_seeds_blocks() -> None:
    """Goal: a block never crosses from one world to another. Method: look at the picked numbers."""
    picked = evidence.resamples(SEEDS, block=4, rng=rng(), rounds=20)

    assert picked.shape == (20, 200)
    assert picked.min() >= 0
    assert picked.max() < 200
    with pytest.raises(ValueError, match="block"):
        evidence.resamples(SEEDS, block=0, rng=rng(), rounds=1)


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b'{"sets": {"a": {"command": "", "entries": {"b": {"cost": "x"}}}}}',
        b'{"sets": {}, "more": 1}',
    ],
)
def test_wrong_tables_are_refused(text: bytes) -> None:
    """Goal: no half-read table. Method: broken, mistyped and unknown keys."""
    with pytest.raises(tuned.TunedMalformed):
        tuned.parse(text)


def test_unknown_policies_and_weights_are_refused() -> None:
    """Goal: as above, for what is inside. Method: an unknown rule, an unknown knob, too few weights."""
    for entries in (
        {"magic": tuned.Entry(cost=1, steps=1)},
        {"first-fit": tuned.Entry(cost=1, steps=1, knobs={"luck": 1.0})},
        {tuned.LINEAR: tuned.Entry(cost=1, steps=1, weights=[1.0])},
    ):
        with pytest.raises(tuned.TunedMalformed):
            tuned.causal_policies(entries)


def test_the_shipped_table_is_usable() -> None:
    """Goal: tuned rivals stand in the benchmark. Method: parse the table; every set makes every policy, all
    rules of a set had the same number of steps, and the linear scorer no fewer."""
    table = tuned.parse((Path(tuned.__file__).parent / "tuned.json").read_bytes())

    for load in (0.7, 0.85, 0.95, 1.1):
        entries = table.entries(load, stale=False)
        assert {f"{name}+" for name in RULES} | {tuned.LINEAR} <= set(tuned.causal_policies(entries))
        steps = {entry.steps for name, entry in entries.items() if name != tuned.LINEAR}
        assert len(steps) == 1
        assert entries[tuned.LINEAR].steps >= max(steps)
