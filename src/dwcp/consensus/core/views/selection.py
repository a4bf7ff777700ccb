"""What a new view must propose again: pure functions over what a quorum reported.

PBFT's rule: for each slot the digest prepared in the highest view; where nobody
prepared one, the null batch. A digest decided in view u was prepared by a quorum, so
every quorum of reports holds a row for it, and no other digest can be prepared in
any view from u on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """`digest` was prepared at `slot` in `view`, the reporter's highest such view."""

    slot: int
    view: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """One replica's rows above its stable checkpoint, in order of slots."""

    sender: int
    stable: int
    rows: tuple[Row, ...]


def start_of(reports: Sequence[Report]) -> int:
    """The highest stable checkpoint: the new view begins after it."""
    return max(report.stable for report in reports)


def strongest_rows(reports: Sequence[Report]) -> list[Row]:
    """Per slot above the start, every distinct row of the highest view, in order.

    Two rows for one slot mean that one of them is a lie: at most one can be certified.
    """
    start = start_of(reports)
    best: dict[int, set[Row]] = {}
    for report in reports:
        for row in report.rows:
            if row.slot <= start:
                continue
            known = best.setdefault(row.slot, {row})
            view = next(iter(known)).view
            if row.view > view:
                best[row.slot] = {row}
            elif row.view == view:
                known.add(row)
    return [row for slot in sorted(best) for row in sorted(best[slot])]


def select_proposals(reports: Sequence[Report], null_digest: bytes) -> list[tuple[int, bytes]]:
    """(slot, digest) for every slot after the start up to the last one reported, gaps as null."""
    chosen = {row.slot: row.digest for row in strongest_rows(reports)}
    start = start_of(reports)
    last = max(chosen, default=start)
    return [(slot, chosen.get(slot, null_digest)) for slot in range(start + 1, last + 1)]
