"""The gate: a question is asked only where it pays, and never where asking in vain would be felt."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp.compression import model_shipped
from dwcp.compression.corpus_generated import generate
from dwcp.compression.costs import Link, Terms
from dwcp.compression.race import Entry
from dwcp.compression.selector import SEGMENT_BYTES, Selector, Tier
from dwcp.compression.selector_gate import Gate
from dwcp.compression.selector_stream import StreamSelector

MIB = 1 << 20
PROSE = generate("gen-prose", seed=51, size=MIB)
QUICK = Selector(
    model_shipped.shipped(), selection_s=8e-5
)  # a host on which the model's gain at 10 Gbit/s pays

gains = st.floats(-0.02, 0.1)
segments_s = st.floats(1e-5, 10.0)
selections_s = st.floats(1e-5, 1e-3)


@given(gains, segments_s, st.floats(-1e-3, 10.0), selections_s, st.floats(0.0, 1e4))
def test_what_is_quiet_asks_nothing(
    gain: float, seconds: float, idle_s: float, selection_s: float, behind: float
) -> None:
    """Any cell: with fewer segments behind than it says, no race, no model and no look pays."""
    gate = Gate(selection_s)

    if behind < gate.quiet_segments(gain, seconds, idle_s=idle_s):
        assert not (idle_s > gate.cost_s and gate.races(gain, seconds))
        assert not gate.asks(gain, seconds, behind=behind)
        assert not gate.looks(seconds, behind=behind)


@given(gains, segments_s, selections_s, st.floats(0.0, 1e4))
def test_asking_in_vain_is_not_felt(gain: float, seconds: float, selection_s: float, behind: float) -> None:
    """Any cell: where the model is asked, its cost is under 2 % of what the stream takes, agreeing or not."""
    gate = Gate(selection_s)

    if gate.asks(gain, seconds, behind=behind):
        assert gate.cost_s < 0.02 * seconds * (1.0 + behind)
        assert gate.cost_s < gain * seconds * gate.blocks(math.inf)


@pytest.mark.parametrize(("mib", "tier"), [(8, Tier.TABLE), (400, Tier.MODEL)])
def test_a_fast_link_asks_for_long_streams_alone(mib: int, tier: Tier) -> None:
    """10 Gbit/s on a quick host: over 8 MiB a decision would be 2 % of the time, over 400 MiB it is nothing."""
    stream = StreamSelector(QUICK, Terms(Link(1e10)))

    assert stream.begin(PROSE, left_bytes=mib * MIB).tier is tier


def test_a_quiet_stream_is_one_look_up() -> None:
    """10 Gbit/s, whole segments and a shorter last one: the table's choice, the same step every time; streams
    share it, and nothing changes it."""
    terms = Terms(Link(1e10))
    table = QUICK.cell(size=MIB, link=terms.link).place
    first, second = StreamSelector(QUICK, terms), StreamSelector(QUICK, terms)
    steps = []
    for stream in (first, second):
        for left in (3 * MIB, 2 * MIB):
            step = stream.begin(PROSE, left_bytes=left)
            assert stream.settle(step) == table
            stream.done(step, Entry(table, MIB, 1e-3))
            steps.append(step)
    last = first.begin(PROSE[:1000], left_bytes=1000)

    assert all(step is steps[0] for step in steps)
    assert (steps[0].size, steps[0].tier, steps[0].race) == (SEGMENT_BYTES, Tier.TABLE, None)
    assert (last.size, last.tier) == (1000, Tier.TABLE)


def test_what_is_quiet_goes_by_the_cost_that_was_measured_last() -> None:
    """A host whose decisions turn out a thousand times quicker asks where it did not."""
    selector = Selector(QUICK.model, selection_s=1e-3)
    terms = Terms(Link(1e10))
    before = StreamSelector(selector, terms).begin(PROSE, left_bytes=8 * MIB)
    selector.selection_s = 1e-6
    after = StreamSelector(selector, terms).begin(PROSE, left_bytes=8 * MIB)

    assert (before.tier, after.tier) == (Tier.TABLE, Tier.MODEL)


def test_a_quiet_stream_wakes_up_on_a_slower_link() -> None:
    """The link falls to 1 Mbit/s in mid-stream: the model is asked and a race begins."""
    stream = StreamSelector(QUICK, Terms(Link(1e10)))
    step = stream.begin(PROSE, left_bytes=8 * MIB)
    stream.done(step, Entry(stream.settle(step), MIB, 1e-3))
    stream.retune(Link(1e6))

    assert stream.begin(PROSE, left_bytes=7 * MIB).race is not None
