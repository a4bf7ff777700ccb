"""What a new view must propose again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.consensus.core.views.selection import Report, Row, select_proposals, strongest_rows

NULL = b"0" * 32
A, B = b"a" * 32, b"b" * 32


def test_nothing_prepared_nothing_proposed() -> None:
    """Goal: an empty view starts fresh. Method: three empty reports."""
    assert select_proposals([Report(i, 0, ()) for i in range(3)], NULL) == []


def test_the_highest_view_wins() -> None:
    """Goal: a later prepared digest supersedes. Method: the same slot prepared in views 1 and 3."""
    reports = [Report(0, 0, (Row(1, 1, A),)), Report(1, 0, (Row(1, 3, B),)), Report(2, 0, ())]
    assert select_proposals(reports, NULL) == [(1, B)]
    assert strongest_rows(reports) == [Row(1, 3, B)]


def test_gaps_become_null_and_the_start_is_the_highest_checkpoint() -> None:
    """Goal: contiguous slots after the start. Method: rows at 8, 11 and 13; checkpoints 0 and 10."""
    reports = [Report(0, 10, (Row(13, 2, A),)), Report(1, 0, (Row(8, 1, B), Row(11, 1, B)))]
    assert select_proposals(reports, NULL) == [(11, B), (12, NULL), (13, A)]


def test_two_digests_in_one_view_are_both_shown() -> None:
    """Goal: a lie must be proven, so both rows need certificates. Method: conflicting rows."""
    reports = [Report(0, 0, (Row(1, 2, A),)), Report(1, 0, (Row(1, 2, B),))]
    assert strongest_rows(reports) == [Row(1, 2, A), Row(1, 2, B)]


rows = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 4)), max_size=8, unique_by=lambda pair: pair[0])


@given(st.lists(st.tuples(st.integers(0, 5), rows), min_size=1, max_size=5))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_against_the_obvious(shapes: list[tuple[int, list[tuple[int, int]]]]) -> None:
    """Goal: the rule itself. Method: a slow twin that looks at every slot by itself.

    As certificates force it, one view has one digest per slot.
    """
    reports = [
        Report(i, stable, tuple(sorted(Row(s, v, bytes([s, v]) * 16) for s, v in found if s > stable)))
        for i, (stable, found) in enumerate(shapes)
    ]
    start = max(r.stable for r in reports)
    flat = [row for r in reports for row in r.rows if row.slot > start]
    expected = []
    for slot in range(start + 1, max((row.slot for row in flat), default=start) + 1):
        views = {row.view: row.digest for row in flat if row.slot == slot}
        expected.append((slot, views[max(views)] if views else NULL))
    assert select_proposals(reports, NULL) == expected
    assert select_proposals(reports[::-1], NULL) == expected
