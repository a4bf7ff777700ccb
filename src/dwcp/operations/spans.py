"""Spans of time as operators write them: `24h ago`, `4h`, `today`, `last week`, ISO, ranges. Pure; UTC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dwcp.consensus.core.errors import CoreError

_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_LENGTH = re.compile(
    r"(?:last\s+)?(\d{1,9})\s*(s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?|w|weeks?)(?:\s+ago)?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SpanUnclear(CoreError):
    """A time cannot be read: say `24h ago`, `4h`, `today`, `2026-11-20T06:00`, or `FROM..TO`."""


@dataclass(frozen=True, slots=True)
class Span:
    """From `start_ms` up to, not with, `end_ms`; Unix ms."""

    start_ms: int
    end_ms: int


def span(text: str, *, now_ms: int) -> Span:
    """What `--since` and `--last` mean. Raises `SpanUnclear`; a span is never empty or turned round."""
    told = " ".join(text.lower().split())
    first, dots, second = told.partition("..")
    if dots:
        found = Span(_moment(first, now_ms), _moment(second or "now", now_ms, end=True))
    else:
        found = _named(told, now_ms) or Span(_moment(told, now_ms), now_ms)
    if found.start_ms >= found.end_ms:
        raise SpanUnclear(f"{text!r} ends before it begins: say FROM..TO, both in UTC")
    return found


def _named(text: str, now_ms: int) -> Span | None:
    """Whole UTC days and ISO weeks (Monday first)."""
    today = _day(now_ms)
    monday = today - timedelta(days=today.weekday())
    spans = {
        "today": (today, None),
        "yesterday": (today - timedelta(days=1), today),
        "this week": (monday, None),
        "last week": (monday - timedelta(days=7), monday),
        "last-week": (monday - timedelta(days=7), monday),
    }
    if text in spans:
        start, end = spans[text]
        return Span(_ms(start), now_ms if end is None else _ms(end))
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        start = _iso(text)
        return Span(_ms(start), min(_ms(start + timedelta(days=1)), max(now_ms, _ms(start) + 1)))
    return None


def _moment(text: str, now_ms: int, *, end: bool = False) -> int:
    told = text.strip()
    if told == "now":
        return now_ms
    if told in {"today", "yesterday"}:
        day = _day(now_ms) - timedelta(days=told == "yesterday")
        return min(_ms(day + timedelta(days=end)), now_ms)
    length = _LENGTH.fullmatch(told)
    if length:
        before = now_ms - int(length[1]) * _UNITS_MS[length[2][0]]
        if before < 0:
            raise SpanUnclear(f"{text!r} is before 1970")
        return before
    day_only = bool(re.fullmatch(r"\d{4}-\d{2}-\d{2}", told))
    return _ms(_iso(told) + timedelta(days=end and day_only))


def _iso(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text.upper())
    except ValueError as exc:
        raise SpanUnclear(
            f"{text[:40]!r} is no time: say `24h ago`, `4h`, `today`, `2026-11-20T06:00`, or FROM..TO"
        ) from exc
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _day(now_ms: int) -> datetime:
    moment = _EPOCH + timedelta(milliseconds=now_ms)
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)
