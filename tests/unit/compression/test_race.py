"""The race: what is tried, in which order, what a trial teaches about the rest, and who wins."""

from __future__ import annotations

import numpy as np
import pytest

from dwcp.compression import costs_predicted
from dwcp.compression.codecs import CODECS
from dwcp.compression.costs import HEADER_BYTES, Goal, Link, Objective, Terms
from dwcp.compression.model import PACK, RATIO, UNPACK, VALUES
from dwcp.compression.race import ENTRANTS_MAX, PROBE, Entry, Prospect, Race

MIB = 1 << 20
PLACES = {codec.name: place for place, codec in enumerate(CODECS)}
BROTLI, SORTED, XZ = PLACES["brotli-5"], PLACES["bz2-9"], PLACES["xz-6"]
# log ratio, packing ms and unpacking ms of a MiB, roughly as measured
FACTS = {
    "lz4-a8": (0.6, 0.8, 0.3), "lz4": (0.7, 1.2, 0.3), "zstd-f1": (0.9, 1.7, 0.6), "zstd-1": (1.0, 2.0, 0.7),
    "zstd-3": (1.05, 3.2, 0.8), "zstd-5": (1.1, 7.0, 0.8), "zstd-9": (1.14, 15.0, 0.8), "igzip-1": (0.85, 1.9, 1.0),
    "brotli-5": (1.15, 22.0, 2.0), "bz2-9": (1.25, 75.0, 26.0), "xz-6": (1.25, 300.0, 10.0),
}  # fmt: skip


def _prospect(
    rate_bps: float,
    *,
    table: str = "brotli-5",
    sd: float = 0.2,
    together: float = 0.9,
    goal: Goal | None = None,
) -> Prospect:
    """Errors of all ratios go together by `together`, so do those of all speeds."""
    logs, covariance = np.zeros(VALUES), np.zeros((VALUES, VALUES))
    for at, codec in enumerate(CODECS[1:]):
        ratio, pack_ms, unpack_ms = FACTS[codec.name]
        logs[RATIO.start + at] = ratio
        logs[PACK.start + at] = np.log(pack_ms * 1e-3 / MIB)
        logs[UNPACK.start + at] = np.log(unpack_ms * 1e-3 / MIB)
    for part in (RATIO, PACK, UNPACK):
        covariance[part, part] = sd**2 * together
    covariance += sd**2 * (1 - together) * np.eye(VALUES)
    terms = Terms(Link(rate_bps), goal=goal or Goal())
    parts = costs_predicted.stages_of(logs, MIB, link=terms.link)
    return Prospect(MIB, terms, logs, covariance, parts, terms.score(parts)[1], PLACES[table])


def _run(race: Race, *, larger: dict[int, float] | None = None, smaller: float = 1.0) -> list[int]:
    """Trials that come out as predicted, but for factors on bytes: of some codecs, of all."""
    tried = []
    parts = race.prospect.parts
    while (place := race.next()) is not None:
        tried.append(place)
        packed = (float(parts.sent_bytes[place]) - HEADER_BYTES) * smaller * (larger or {}).get(place, 1.0)
        race.observe(Entry(place, int(packed), float(parts.compress[place])))
    return tried


@pytest.mark.parametrize("rate", [1e6, 3e6, 1e7])
def test_a_slow_link_tries_a_few_the_quick_probe_first(rate: float) -> None:
    """Goal: trials pay. Method: everything comes out as predicted; nobody runs twice."""
    tried = _run(Race(_prospect(rate)))

    assert tried[0] == PROBE or rate == 1e6  # there even block sorting takes a thirtieth of the sending
    assert 2 <= len(tried) <= ENTRANTS_MAX
    assert len(set(tried)) == len(tried)


def test_what_would_hold_up_the_sending_is_not_tried() -> None:
    """Goal: trials hide behind the sending. Method: 100 Mbit/s, where 1 MiB is sent in 30 ms."""
    assert not {SORTED, XZ} & set(_run(Race(_prospect(1e8, table="zstd-5"))))


def test_the_winner_is_what_was_seen_not_what_was_predicted() -> None:
    """Goal: facts decide. Method: block sorting makes twice the bytes that were predicted at 10 Mbit/s."""
    race = Race(_prospect(1e7))
    tried = _run(race, larger={SORTED: 2.0})

    assert SORTED in tried
    assert race.winner(SORTED) != SORTED


def test_a_trial_teaches_about_the_rest() -> None:
    """Goal: content that shrinks ten times better than predicted is sent before a slow codec is done. Method: the
    probe's size comes out at a tenth; what is tried then is quick."""
    race = Race(_prospect(1e7))
    tried = _run(race, smaller=0.1)

    assert tried[0] == PROBE
    assert not {SORTED, XZ} & set(tried)


def test_the_tables_choice_is_tried_where_nothing_promises_more() -> None:
    """Goal: never worse than the table. Method: errors so small that only predictions count; the table's choice is
    the best; it runs last and wins."""
    race = Race(_prospect(1e7, table="bz2-9", sd=0.001))
    tried = _run(race)

    assert tried[-1] == SORTED
    assert race.winner(0) == SORTED


def test_no_time_is_lost_after_a_trial_that_went_wrong() -> None:
    """Goal: spent time is spent. Method: the first trial took as long as ten sendings; nothing can help any more."""
    race = Race(_prospect(1e7))
    race.observe(Entry(PROBE, 300_000, 3.0))

    assert race.next() is None
    assert race.winner(BROTLI) == PROBE


def test_a_race_that_was_cut_short_does_not_send_its_probe() -> None:
    """Goal: the lead stays where only the probe had the time. Method: one trial that came out as predicted."""
    race = Race(_prospect(1e7))
    parts = race.prospect.parts
    race.observe(Entry(PROBE, int(parts.sent_bytes[PROBE]) - HEADER_BYTES, float(parts.compress[PROBE])))

    assert race.winner(BROTLI) == BROTLI


def test_nothing_tried_leaves_the_lead() -> None:
    """Goal: a race that could not run changes nothing. Method: ask for the winner at once."""
    assert Race(_prospect(1e7)).winner(BROTLI) == BROTLI


def test_blocked_codecs_are_never_tried() -> None:
    """Goal: objectives and allowed codecs hold in a race as well. Method: the cheapest, with two allowed."""
    prospect = _prospect(1e6, table="lz4", goal=Goal(Objective.COST))
    blocked = frozenset({PLACES["lz4"], PLACES["zstd-3"]})
    terms = Terms(prospect.terms.link, goal=prospect.terms.goal, allowed=blocked)
    scored = terms.score(prospect.parts)[1]
    race = Race(
        Prospect(MIB, terms, prospect.logs, prospect.covariance, prospect.parts, scored, PLACES["lz4"])
    )

    assert set(_run(race)) <= blocked
