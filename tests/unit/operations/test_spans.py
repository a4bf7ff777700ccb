"""Spans of time as operators write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp.operations.spans import SpanUnclear, span


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


NOW = at("2026-03-04T10:30:00")  # a Wednesday


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("24h ago", "2026-03-03T10:30", None),
        ("4h", "2026-03-04T06:30", None),
        ("last 90 minutes", "2026-03-04T09:00", None),
        ("2 weeks ago", "2026-02-18T10:30", None),
        ("today", "2026-03-04", None),
        ("Yesterday", "2026-03-03", "2026-03-04"),
        ("last-week", "2026-02-23", "2026-03-02"),
        ("this  week", "2026-03-02", None),
        ("2026-02-20", "2026-02-20", "2026-02-21"),
        ("2026-03-04", "2026-03-04", None),
        ("2026-03-01T06:00Z", "2026-03-01T06:00", None),
        ("2026-03-01T06:00+02:00", "2026-03-01T04:00", None),
        ("2026-02-01..2026-02-03", "2026-02-01", "2026-02-04"),
        ("2h..1h ago", "2026-03-04T08:30", "2026-03-04T09:30"),
        ("yesterday..", "2026-03-03", None),
    ],
)
def test_what_operators_write(text: str, start: str, end: str | None) -> None:
    """Goal: the grammar of `--since`. Method: one example of each form, in UTC."""
    found = span(text, now_ms=NOW)

    assert (found.start_ms, found.end_ms) == (at(start), NOW if end is None else at(end))


@pytest.mark.parametrize("text", ["", "soon", "-4h", "4", "2026-13-01", "1h..2h", "now", "today..yesterday"])
def test_what_is_refused(text: str) -> None:
    """Goal: a guess is never made. Method: what is no time, and spans that end before they begin."""
    with pytest.raises(SpanUnclear):
        span(text, now_ms=NOW)


@given(st.text(alphabet="0123456789hdwms ago.T:-Zlastoy", max_size=30), st.integers(0, 4_000_000_000_000))
def test_any_text_is_a_span_or_a_sentence(text: str, now_ms: int) -> None:
    """Goal: no other fault than the one with a sentence, no empty span. Method: any text at any time."""
    try:
        found = span(text, now_ms=now_ms)
    except SpanUnclear:
        return

    assert found.start_ms < found.end_ms
