"""Is the committed table true here? Pieces that this host's files still give, measured again, and the regret of the
model's choices told from both measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from dwcp.compression import oracle, oracle_campaign, train_data
from dwcp.compression.corpus import Piece
from dwcp.compression.costs import Link, Terms
from dwcp.compression.oracle import Measurement, Oracle, Table
from dwcp.compression.selector import Selector
from dwcp.compression.train_data import MARKED_BPS, RATES_BPS


@dataclass(frozen=True, slots=True)
class Again:
    """Regrets in per cent, geometric means up to 1 Gbit/s."""

    pieces: int
    then: float
    now: float


def remeasure(
    table: Table,
    pieces: Iterable[Piece],
    selector: Selector,
    *,
    most: int,
    seconds_max: float = float("inf"),
    wall: Callable[[], float] = time.monotonic,
) -> Again:
    """Those of `pieces` that the table holds, until there are `most` or the time is over."""
    known = {row.digest: row for row in table.rows}
    measure, begun = Oracle(), wall()
    then: list[Measurement] = []
    now: list[Measurement] = []
    chosen: list[list[int]] = []
    for piece in pieces:
        row = known.get(oracle.digest(piece.raw))
        if row is None:
            continue
        then.append(row)
        now.append(oracle_campaign.measured_again(measure, row, piece.raw))
        chosen.append(_choices(selector, piece.raw))
        if len(then) >= most or wall() - begun > seconds_max:
            break
    places = np.array(chosen, np.intp).reshape(len(then), -1)
    return Again(len(then), _regret(then, places), _regret(now, places))


def _rates() -> list[float]:
    return [rate for rate in RATES_BPS if rate <= MARKED_BPS]


def _choices(selector: Selector, raw: bytes) -> list[int]:
    """The model's choice for each link, whatever asking costs."""
    return [
        selector.decide(raw, terms=Terms(Link(rate)), shared_blocks=float("inf")).place for rate in _rates()
    ]


def _regret(rows: list[Measurement], places: train_data.Rows) -> float:
    if not rows:
        return 0.0
    data = train_data.arrays(tuple(rows))
    logs = [train_data.log_regret(data, places[:, at], rate_bps=rate) for at, rate in enumerate(_rates())]
    return 100 * float(np.expm1(np.mean(logs)))
