"""The selector: the gate, the margin, objectives, the race and the feedback along a stream."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dwcp.compression import calibration, features, model_shipped
from dwcp.compression.codecs import CODECS
from dwcp.compression.corpus_generated import generate
from dwcp.compression.costs import Goal, Link, Mode, Objective, Terms
from dwcp.compression.race import ENTRANTS_MAX, Entry
from dwcp.compression.selector import Selector, Tier, host_scale, selection_seconds
from dwcp.compression.selector_stream import StreamSelector

MIB = 1 << 20
PLACES = {codec.name: place for place, codec in enumerate(CODECS)}
PROSE = generate("gen-prose", seed=50, size=MIB)
NOISE = random.Random(1).randbytes(MIB)
SELECTOR = Selector(model_shipped.shipped(), selection_s=2e-4)


def _terms(rate_bps: float, **changes: object) -> Terms:
    return replace(Terms(Link(rate_bps)), **changes)  # type: ignore[arg-type]


def _name(raw: bytes, rate_bps: float, **changes: object) -> str:
    return SELECTOR.decide(raw, terms=_terms(rate_bps, **changes), shared_blocks=1e9).codec.name


def test_slow_links_get_small_and_fast_links_get_quick_codecs() -> None:
    """Prose at four rates: the order of §2.2."""
    assert _name(PROSE, 1e6) in {"bz2-9", "xz-6"}
    assert _name(PROSE, 1e7) in {"brotli-5", "bz2-9", "zstd-9", "zstd-5"}
    assert _name(PROSE, 1e8) in {"zstd-3", "zstd-5", "zstd-9", "brotli-5"}
    assert _name(PROSE, 1e10) in {"none", "lz4", "lz4-a8"}


def test_what_cannot_be_packed_is_not_worked_on_long() -> None:
    """Noise at 1 Gbit/s: nothing that takes longer than sending it raw."""
    decided = SELECTOR.decide(NOISE, terms=_terms(1e9), shared_blocks=1e9)

    assert decided.seconds[decided.place] <= decided.seconds[0] * 1.1


def test_the_gate_asks_only_where_it_pays() -> None:
    """One small block on a fast link goes by the table, a long stream on a slow one by the model."""
    fast = SELECTOR.decide(PROSE[: 64 << 10], terms=_terms(1e9))
    slow = SELECTOR.decide(PROSE, terms=_terms(3e6, mode=Mode.BULK))

    assert fast.tier is Tier.TABLE
    assert fast.place == fast.table
    assert "gate" in fast.reason
    assert slow.tier is Tier.MODEL


def test_only_allowed_codecs_are_taken() -> None:
    """A peer that reads lz4 alone gets that or raw bytes, from decision and stream alike."""
    allowed = frozenset({PLACES["lz4"]})

    assert _name(PROSE, 1e6, allowed=allowed) == "lz4"
    stream = StreamSelector(SELECTOR, _terms(1e9, allowed=allowed))
    assert stream.begin(PROSE, left_bytes=8 * MIB).lead in {0, PLACES["lz4"]}


def test_objectives_change_the_choice() -> None:
    """Bytes under a deadline that everyone meets: the smallest; no CPU at all: raw."""
    smallest = _name(PROSE, 1e8, goal=Goal(Objective.BYTES_UNDER_DEADLINE, limit=60.0))
    lazy = _name(PROSE, 1e6, goal=Goal(Objective.TIME_UNDER_CPU, limit=1e-6))

    assert smallest in {"bz2-9", "xz-6"}
    assert lazy == "none"


def test_a_slow_host_gets_quicker_codecs() -> None:
    """All speeds a tenth of the reference's: at 3 Mbit/s xz would be the bottleneck."""
    reference = SELECTOR.model.speeds
    slow = Selector(SELECTOR.model, speeds={name: (a / 10, b / 10) for name, (a, b) in reference.items()})
    terms = _terms(3e6, mode=Mode.BULK)

    assert slow.decide(PROSE, terms=terms, shared_blocks=1e9).codec.name not in {"xz-6", "bz2-9"}
    assert slow.cell(size=MIB, link=terms.link).place != PLACES["xz-6"]


def test_the_noise_of_a_calibration_changes_nothing() -> None:
    """20 % off is within what timings repeat by; a factor of ten is not."""
    reference = SELECTOR.model.speeds

    near = host_scale({name: (a / 1.2, b * 1.2) for name, (a, b) in reference.items()}, reference)
    far = host_scale({name: (a / 10, b / 10) for name, (a, b) in reference.items()}, reference)

    assert not near.any()
    assert far.mean() == pytest.approx(np.log(10) - 0.3, abs=1.0)
    assert (far[len(far) // 3 :] > 1.9).all()


def test_strange_data_goes_by_typical_data() -> None:
    """Features far out of the trained range: said so, and answered."""
    strange = SELECTOR.model.strange

    assert strange(np.full(features.COUNT, 1e6))
    assert not strange(features.extract(PROSE))


def test_the_table_is_a_look_up() -> None:
    """The same cell object for the same bin; neighbouring rates share it."""
    cell = SELECTOR.cell(size=MIB, link=Link(1e8))

    assert SELECTOR.cell(size=MIB, link=Link(1.01e8)) is cell
    assert cell.seconds > 0


def test_the_cost_of_asking_is_measured() -> None:
    """With a clock that counts, a decision costs one step."""
    ticks = iter(range(1000))
    raw = b"".join(calibration.reference_blocks())

    assert selection_seconds(SELECTOR, raw, cpu=lambda: float(next(ticks))) == 1.0


# ----- streams -----


def _drive(
    raws: list[bytes], terms: Terms, *, packed: Callable[[int, bytes], Entry] | None = None
) -> tuple[list[str], list[Tier], list[int]]:
    """Runs a stream with real packing but made-up seconds: (codecs, tiers, trials) by segment."""
    stream = StreamSelector(SELECTOR, terms)
    left = sum(map(len, raws))
    names, tiers, trials = [], [], []
    pack = packed or (lambda place, raw: Entry(place, len(CODECS[place].pack(raw)), 0.002))
    for raw in raws:
        step = stream.begin(raw, left_bytes=left)
        if step.race is not None and not step.late:
            while (place := step.race.next()) is not None:
                step.race.observe(pack(place, raw))
        place = stream.settle(step)
        stream.done(step, pack(place, raw))
        names.append(CODECS[place].name)
        tiers.append(step.tier)
        trials.append(len(step.race.entries) if step.race is not None else 0)
        left -= len(raw)
    return names, tiers, trials


def test_the_first_segment_is_never_held_back() -> None:
    """On a slow link the first leaves with the lead; later ones may be raced, within the limit of entrants."""
    _, tiers, trials = _drive([PROSE[: 256 << 10]] * 3, _terms(3e6))

    assert tiers[0] is Tier.MODEL
    assert trials[0] == 0
    assert tiers[1:] == [Tier.RACE] * 2
    assert all(0 < count <= ENTRANTS_MAX for count in trials[1:])


def test_fast_links_are_not_raced() -> None:
    """At 1 Gbit/s the processor is the bottleneck."""
    _, tiers, trials = _drive([PROSE] * 3, _terms(1e9))

    assert trials == [0, 0, 0]
    assert Tier.RACE not in tiers


def test_the_race_takes_what_turned_out_best() -> None:
    """Trials in which one codec shrinks everything to nothing and the others nothing at all."""
    stream = StreamSelector(SELECTOR, _terms(1e6))
    first = stream.begin(PROSE, left_bytes=4 * MIB)
    stream.done(first, Entry(first.lead, 300_000, 0.05))
    step = stream.begin(PROSE, left_bytes=3 * MIB)
    assert step.race is not None
    tried = []
    while (place := step.race.next()) is not None:
        tried.append(place)
        step.race.observe(Entry(place, 1000 if len(tried) == 1 else MIB, 0.001))

    assert stream.settle(step) == tried[0]


def test_trials_stay_within_the_sending_that_hides_them() -> None:
    """With packing that takes as long as predicted, the sum of all trials is below the time of sending."""
    for rate in (1e6, 3e6, 1e7):
        stream = StreamSelector(SELECTOR, _terms(rate))
        first = stream.begin(PROSE, left_bytes=4 * MIB)
        stream.done(first, Entry(first.lead, 300_000, 0.05))
        step = stream.begin(PROSE, left_bytes=3 * MIB)
        assert step.race is not None
        parts = step.race.prospect.parts
        while (place := step.race.next()) is not None:
            step.race.observe(Entry(place, int(parts.sent_bytes[place]) - 64, float(parts.compress[place])))
        spent = sum(entry.pack_s for entry in step.race.entries)

        assert spent <= float(parts.send[stream.settle(step)]) * 1.001


def test_a_stream_that_turns_to_noise_is_noticed() -> None:
    """100 Mbit/s, prose and then noise: feedback alone moves away from working for nothing."""
    seconds = {"zstd-9": 0.02, "zstd-5": 0.007, "zstd-3": 0.004, "brotli-5": 0.02, "bz2-9": 0.09}

    def pack(place: int, raw: bytes) -> Entry:
        return Entry(place, len(raw) if raw is NOISE else 300_000, seconds.get(CODECS[place].name, 0.001))

    _, tiers, _ = _drive([PROSE] * 3 + [NOISE] * 5, _terms(1e8), packed=pack)

    assert Tier.FEEDBACK in tiers[3:]


def test_a_choice_that_turned_out_slow_is_left() -> None:
    """Goal: never worse than the table for long. Method: 100 Mbit/s; whatever is not the table's choice packs ten
    times slower than anything measured; the stream ends with the table's choice."""
    terms = _terms(1e8)
    table = SELECTOR.cell(size=MIB, link=terms.link).place

    def pack(place: int, raw: bytes) -> Entry:
        return Entry(place, 350_000, 0.008 if place == table else 0.3)

    names, _, _ = _drive([PROSE] * 4, terms, packed=pack)

    assert names[-1] == CODECS[table].name


def test_blocks_alike_say_what_suits_them() -> None:
    """Goal: one codec's outcome finds blocks like the one at hand. Method: at 1 Gbit/s blocks that hardly shrink
    are not worked on, those that shrink tenfold are."""
    cell = SELECTOR.cell(size=MIB, link=Link(1e9))
    typical = float(np.median(cell.alike.pack[PLACES["zstd-1"] - 1]))

    noise = cell.alike.seconds(PLACES["zstd-1"], ratio=0.0, pack=typical - 1.5, keeps=1.0)
    rich = cell.alike.seconds(PLACES["zstd-1"], ratio=2.5, pack=typical - 0.5, keeps=1.0)

    assert noise[0] < 1.2 * noise.min()
    assert noise[PLACES["xz-6"]] > 20 * noise[0]
    assert rich[0] > 3 * rich.min()


def test_a_block_of_next_to_nothing_does_not_decide_for_the_next() -> None:
    """Goal: zeros between other content cost nothing. Method: 3 Mbit/s, what the next block of a stream would be
    sent with, behind a block that every codec shrinks to nothing: not what suits zeros best."""
    cell = SELECTOR.cell(size=MIB, link=Link(3e6))
    quick = float(cell.alike.pack[cell.place - 1].min())

    alone = cell.alike.seconds(cell.place, ratio=6.0, pack=quick, keeps=1.0)
    mixed = cell.alike.seconds(cell.place, ratio=6.0, pack=quick, keeps=0.7)

    assert int(np.argmin(alone)) != cell.place
    assert alone[1:].max() < 0.1 * cell.alike.typical[1:].max()
    assert mixed[cell.place] < 1.03 * mixed.min()
    assert alone[cell.place] > 1.5 * alone.min()


@pytest.mark.parametrize("rate", [3.16e8, 1e9, 3.16e9, 1e10])
def test_a_stream_where_nothing_pays_is_asked_once(rate: float) -> None:
    """Goal: a fast link costs no thinking. Method: 316 Mbit/s to 10 Gbit/s; from the first segment on the
    same answer, until the link changes."""
    stream = StreamSelector(SELECTOR, _terms(rate))
    steps = []
    for at in range(5):
        steps.append(stream.begin(PROSE, left_bytes=(20 - at) * MIB))
        stream.done(steps[-1], Entry(steps[-1].lead, 500_000, 0.001))
    assert all(step is steps[0] for step in steps)

    stream.retune(Link(1e6))
    assert stream.begin(PROSE, left_bytes=15 * MIB) is not steps[4]


@pytest.mark.parametrize(("selection_s", "again"), [(1e-3, False), (1e-4, True)])
def test_segments_alike_are_raced_again_only_where_thinking_is_cheap(selection_s: float, again: bool) -> None:
    """Goal: a race pays for its thinking. Method: 10 Mbit/s, the same segment over and over, then another content;
    on a host that thinks for 1 ms the second one alike is followed by no race, until what was sent comes out
    otherwise; with a tenth of that each is raced."""
    stream = StreamSelector(Selector(model_shipped.shipped(), selection_s=selection_s), _terms(1e7))
    raced = []
    for at in range(6):
        step = stream.begin(PROSE, left_bytes=(20 - at) * MIB)
        raced.append(step.race is not None)
        place = 4 if step.race is not None else step.lead
        stream.done(step, Entry(place, 300_000 if at < 4 else 900_000, 0.02))

    assert raced == [True, True, again, again, again, True]


def test_a_link_that_changes_is_followed() -> None:
    """From 1 Mbit/s to 10 Gbit/s in mid-stream: the next segment goes by the new link."""
    stream = StreamSelector(SELECTOR, _terms(1e6))
    first = stream.begin(PROSE, left_bytes=4 * MIB)
    stream.done(first, Entry(first.lead, 300_000, 0.05))
    stream.retune(Link(1e10))

    assert CODECS[stream.begin(PROSE, left_bytes=3 * MIB).lead].name in {"none", "lz4-a8", "lz4"}


def test_a_busy_host_moves_the_predictions_within_limits() -> None:
    """Trials that take twice as long, again and again: all packing is predicted slower, never beyond fourfold."""
    busy = Selector(SELECTOR.model)
    before = busy.decide(PROSE, terms=_terms(1e6), shared_blocks=1e9).seconds[PLACES["xz-6"]]
    for _ in range(500):
        busy.drift(0.7)

    assert busy.busy == pytest.approx(np.log(4))
    assert busy.decide(PROSE, terms=_terms(1e6), shared_blocks=1e9).seconds[PLACES["xz-6"]] > before


def test_equal_streams_get_equal_decisions() -> None:
    """No clock, no randomness: two runs are the same."""
    raws = [PROSE[: 256 << 10], NOISE[: 256 << 10], bytes(256 << 10), b"", b"x"]
    one = StreamSelector(Selector(SELECTOR.model), _terms(1e7))
    two = StreamSelector(Selector(SELECTOR.model), _terms(1e7))
    for raw in raws[:3]:
        first, second = one.begin(raw, left_bytes=MIB), two.begin(raw, left_bytes=MIB)
        assert (first.lead, first.tier) == (second.lead, second.tier)
        for stream, step in ((one, first), (two, second)):
            stream.done(step, Entry(step.lead, 100_000, 0.01))


@pytest.mark.parametrize("raw", [b"", b"x", bytes(100), NOISE[:5000]], ids=["empty", "one", "zeros", "noise"])
@pytest.mark.parametrize("rate", [1e3, 1e6, 1e9, 1e13])
def test_tiny_blocks_and_odd_links_are_answered(raw: bytes, rate: float) -> None:
    """Nothing to send and links beyond all bins end in an answer with finite seconds."""
    decided = SELECTOR.decide(raw, terms=_terms(rate), shared_blocks=1e9)

    assert 0 <= decided.place < len(CODECS)
    assert np.isfinite(decided.seconds).all()
