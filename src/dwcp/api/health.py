"""The verdicts that every health report uses."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Verdict(StrEnum):
    """What a check found; a check that could not be made is `unknown`, never `ok`."""

    OK = "ok"
    WARN = "warn"
    CRIT = "crit"
    UNKNOWN = "unknown"


_WORST_FIRST = (Verdict.CRIT, Verdict.UNKNOWN, Verdict.WARN, Verdict.OK)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The one to act on first; nothing checked is `unknown`."""
    return min(verdicts, key=_WORST_FIRST.index, default=Verdict.UNKNOWN)
