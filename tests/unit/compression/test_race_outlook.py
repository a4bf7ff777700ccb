"""The outlook of a race: floats that say what the arrays say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression import costs_predicted
from dwcp.compression.codecs import CODECS
from dwcp.compression.costs import HEADER_BYTES, Goal, Link, Mode, Objective, Terms
from dwcp.compression.model import PACK, RATIO, UNPACK, VALUES
from dwcp.compression.race_outlook import Seen, outlook

SIZE = 1 << 20
GOALS = [
    Goal(),
    Goal(Objective.COST),
    Goal(Objective.TIME_UNDER_CPU, limit=0.01),
    Goal(Objective.BYTES_UNDER_DEADLINE, limit=0.5),
]


def _logs(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logs = np.zeros(VALUES)
    logs[RATIO] = rng.uniform(-0.02, 3.0, len(CODECS) - 1)
    logs[PACK] = rng.uniform(-21, -14, len(CODECS) - 1)
    logs[UNPACK] = rng.uniform(-22, -17, len(CODECS) - 1)
    return logs


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rate=st.floats(1e5, 1e11),
    goal=st.sampled_from(GOALS),
    mode=st.sampled_from(list(Mode)),
    allowed=st.sampled_from([frozenset[int](), frozenset({2, 4, 9})]),
)
def test_floats_say_what_the_arrays_say(
    seed: int, rate: float, goal: Goal, mode: Mode, allowed: frozenset[int]
) -> None:
    """Goal: one cost model. Method: nothing was tried yet; stages, T and scores against `costs_predicted`."""
    link = Link(rate, sender_share=0.5, receiver_cores=2, latency_s=0.01, block_overhead_s=1e-4)
    terms = Terms(link, mode, goal, allowed)
    logs = _logs(seed)
    found = outlook(logs, SIZE, terms=terms, seen=Seen({}, 0.0))
    parts = costs_predicted.stages_of(logs, SIZE, link=link)
    seconds, scored = terms.score(parts)

    for name in ("compress", "send", "decompress", "sent_bytes", "cpu"):
        np.testing.assert_allclose(getattr(found, name), getattr(parts, name), rtol=1e-12)
    np.testing.assert_allclose(found.seconds, seconds, rtol=1e-12)
    np.testing.assert_allclose(found.scored, scored, rtol=1e-12)


@pytest.mark.parametrize("goal", GOALS)
def test_what_was_seen_counts_and_what_was_spent_is_spent(goal: Goal) -> None:
    """Goal: facts replace predictions. Method: one codec tried: its bytes, others wait."""
    logs, terms = _logs(1), Terms(Link(1e7), goal=goal)
    before = outlook(logs, SIZE, terms=terms, seen=Seen({}, 0.0))
    after = outlook(logs, SIZE, terms=terms, seen=Seen({3: 12_345 + HEADER_BYTES}, 0.25))

    assert after.sent_bytes[3] == 12_345 + HEADER_BYTES
    assert after.compress[3] == after.compress[0] == 0.25
    assert after.compress[5] == pytest.approx(before.compress[5] + 0.25)
    if goal == Goal():  # with limits all scores follow from each other
        assert after.failed(3)[3] == pytest.approx(after.scored[3])
        assert after.failed(3)[5] >= after.compress[5]
