"""Who answers which codec to use: the seam between the service and what it has learned.

A `Decider` is told a question and answers with a codec and what each codec would cost. The table
is one; a learned model is another, made from an artefact by a `Family` (`learned`). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from typing import Any, Protocol

from dwcp.compression import codecs
from dwcp.compression.table import TIER, Estimate, Table

NOT_LOOKED_AT = "the table goes by link rate and size; it does not look at the data"
_EGRESS_PER_BYTE = 0.02 / 1e9  # dollars (spec of the selector, §2.3)
_CORE_SECOND = 0.04 / 3600
_TOTAL = attrgetter("total_s")


class Objective(StrEnum):
    """What is made small; the last two fall back to the least violation where nothing is feasible."""

    TIME = "time"
    COST = "cost"
    TIME_UNDER_CPU = "time_under_cpu"
    BYTES_UNDER_DEADLINE = "bytes_under_deadline"


@dataclass(frozen=True, slots=True)
class Ask:
    """One question. Sizes in bytes, rates in bit/s, times in seconds; `allowed` empty: every codec."""

    total_size: int
    rate_bps: float
    sample: bytes = b""
    allowed: frozenset[str] = frozenset()
    objective: Objective = Objective.TIME
    limit: float = float("inf")  # CPU seconds or the deadline, by the objective
    rtt_s: float = 0.0
    stream_id: str = ""
    reason: str = ""  # why the table must answer, where a form of question allows nothing else


@dataclass(frozen=True, slots=True)
class Decided:
    """An answer. `rows`: every codec that was allowed, best first by the objective."""

    codec: codecs.Codec
    rows: tuple[Estimate, ...]
    tier: str
    reason: str
    bin: Mapping[str, int] | None = None
    features: Mapping[str, float] = field(default_factory=dict)

    @property
    def chosen(self) -> Estimate:
        name = self.codec.name
        first = self.rows[0]
        return first if first.codec == name else next(row for row in self.rows if row.codec == name)


class Decider(Protocol):
    """Decides by one model or table. `digest` names the model, "" for the table."""

    @property
    def digest(self) -> str: ...

    def decide(self, ask: Ask) -> Decided: ...

    def describe(self) -> dict[str, Any]:
        """What the answers rest on, as JSON values read from the artefact."""
        ...


class TableDecider:
    """The calibrated table: never looks at data, always there."""

    digest = ""

    def __init__(self, table: Table) -> None:
        self.table = table

    def decide(self, ask: Ask) -> Decided:
        """Raises nothing: the names in `allowed` were checked when the question was read."""
        choice = self.table.choose(rate_bps=ask.rate_bps, size_bytes=ask.total_size, allowed=ask.allowed)
        rows = self.table.estimate(rate_bps=ask.rate_bps, size_bytes=ask.total_size)
        rows = ranked(rows, ask)
        plain = ask.objective is Objective.TIME
        codec = choice.codec if plain else codecs.by_name(rows[0].codec)
        place = {"rate_bps": round(choice.rate_bps), "size_bytes": choice.size_bytes}
        return Decided(codec, rows, TIER, ask.reason or NOT_LOOKED_AT, place)

    def describe(self) -> dict[str, Any]:
        return {"model": "none", "tier": TIER, "accuracy": None}


def ranked(rows: tuple[Estimate, ...], ask: Ask) -> tuple[Estimate, ...]:
    """The rows that are allowed, best first; `none` always is."""
    if ask.objective is Objective.TIME and not ask.allowed:
        return tuple(sorted(rows, key=_TOTAL))
    kept = [row for row in rows if not ask.allowed or row.codec in ask.allowed or row.codec == "none"]
    return tuple(sorted(kept, key=lambda row: _score(row, ask)))


def _score(row: Estimate, ask: Ask) -> tuple[float, float]:
    cpu_s = row.compress_s + row.decompress_s
    total_s = row.total_s + ask.rtt_s / 2
    wire = ask.total_size / row.ratio
    match ask.objective:
        case Objective.TIME:
            return (0.0, total_s)
        case Objective.COST:
            return (0.0, wire * _EGRESS_PER_BYTE + cpu_s * _CORE_SECOND)
        case Objective.TIME_UNDER_CPU:
            return (max(0.0, cpu_s - ask.limit), total_s)
        case Objective.BYTES_UNDER_DEADLINE:
            return (max(0.0, total_s - ask.limit), wire)
