"""Judging a model out of fold: regret against the oracle, the gain over the table, and how errors go together.

L links, S size classes, R rows, C codecs that travel. Every time is a measured one; only choices come from
predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dwcp.compression import costs, costs_predicted, oracle, train_data
from dwcp.compression.codecs import CODECS
from dwcp.compression.costs import Link, Mode
from dwcp.compression.costs_predicted import Bank
from dwcp.compression.feedback import Spread
from dwcp.compression.train_data import MARKED_BPS, RATES_BPS, SIZES_BYTES, Data, Rows

Array = NDArray[np.float64]

_SHRINK = 0.05  # of the covariance towards its diagonal: more values than independent errors
_RHO_MAX = 0.9
_PAIRS_MIN = 8
_RHO_UNKNOWN = 0.5
_MARGINS = (0.0, 0.01, 0.02, 0.04, 0.08)
_CAUTIONS = (0.0, 0.1, 0.2, 0.4)
_WORSE = 0.02
_WORSE_PRICE = 0.1  # one per cent of decisions worse than the table weighs as much as 0.1 % of regret
_MARKED = np.array(RATES_BPS) <= MARKED_BPS


@dataclass(frozen=True, slots=True)
class Outside:
    """Made without the row's own fold: `logs` [R, V], `table` [R, L] places of the table's choices."""

    logs: Array
    table: Rows


@dataclass(frozen=True, slots=True)
class Judged:
    """What goes into the artefact beside the weights."""

    spread: Spread
    gain: Array  # [L, S] mean ln(T_table/T_model)
    margin: float
    caution: float
    figures: dict[str, Any]  # regret per protocol, for the manifest: Any


def bank(data: Data, rows: Rows) -> Bank:
    return Bank(data.y[rows], np.log2(data.grid.size[rows]))


def table_choices(made: Bank, data: Data, rows: Rows, *, rate_bps: float) -> Rows:
    """The table's codec for each of `rows`, by size class."""
    link = Link(rate_bps)
    by_class = [made.choice(size_bytes=size, link=link, mode=Mode.BULK) for size in SIZES_BYTES]
    return np.array(by_class, np.intp)[data.size_class[rows]]


def judge(data: Data, outside: dict[str, Outside]) -> Judged:
    """Protocol A decides covariance, margin and gain; all protocols get their figures."""
    grouped = outside["A"]
    spread = _spread(data, grouped.logs)
    margin, caution = _tuned(data, grouped, spread.sigma)
    chosen = {
        name: choices(data, each, spread.sigma, margin=margin, caution=caution)
        for name, each in outside.items()
    }
    figures = {name: _figures(data, each, chosen[name]) for name, each in outside.items()}
    return Judged(spread, _gain(data, grouped, chosen["A"]), margin, caution, figures)


def choices(data: Data, outside: Outside, sigma: Array, *, margin: float, caution: float) -> Rows:
    """[R, L] what the model with its margin takes."""
    taken = np.zeros_like(outside.table)
    for column, rate_bps in enumerate(RATES_BPS):
        link = Link(rate_bps)
        for row in range(len(data.rows)):
            parts = costs_predicted.stages_of(outside.logs[row], data.grid.size[row], link=link)
            seconds = costs.total_seconds(parts, blocks=1, mode=Mode.BULK, link=link)
            table = int(outside.table[row, column])
            doubt = costs_predicted.doubts(parts, sigma, reference=table)
            taken[row, column] = costs_predicted.leaves(
                seconds, doubt, table=table, margin=margin, caution=caution
            )
    return taken


def _regrets(data: Data, chosen: Rows) -> Array:
    """[R, L] ln(T/T*)."""
    columns = [train_data.log_regret(data, chosen[:, at], rate_bps=rate) for at, rate in enumerate(RATES_BPS)]
    return np.stack(columns, axis=1)


def _tuned(data: Data, outside: Outside, sigma: Array) -> tuple[float, float]:
    """Margin and caution with the least regret, decisions worse than the table weighed in."""
    base = _regrets(data, outside.table)[:, _MARKED]
    best = (float("inf"), 0.0, 0.0)
    for margin in _MARGINS:
        for caution in _CAUTIONS:
            taken = choices(data, outside, sigma, margin=margin, caution=caution)
            mine = _regrets(data, taken)[:, _MARKED]
            score = float(mine.mean() + _WORSE_PRICE * (mine > base + _WORSE).mean())
            best = min(best, (round(score, 9), margin, caution))
    return best[1], best[2]


def _spread(data: Data, logs: Array) -> Spread:
    """Covariance of the errors, and the share that two neighbouring pieces of a file have in common."""
    errors = data.y - logs
    limit = 4 * errors.std(axis=0)
    errors = np.clip(errors, -limit, limit)
    sigma = errors.T @ errors / len(errors)
    sigma = (1 - _SHRINK) * sigma + _SHRINK * np.diag(np.diag(sigma)) + 1e-6 * np.eye(len(sigma))
    first = {(row.stream, row.segment): at for at, row in enumerate(data.rows)}
    pairs = [
        (at, first[stream, number + 1])
        for (stream, number), at in first.items()
        if (stream, number + 1) in first
    ]
    if len(pairs) < _PAIRS_MIN:
        return Spread(sigma, _RHO_UNKNOWN)
    scaled = errors / np.sqrt(np.diag(sigma))
    left, right = scaled[[a for a, _ in pairs]], scaled[[b for _, b in pairs]]
    shared = float((left * right).sum() / ((left**2).sum() + (right**2).sum()) * 2)
    return Spread(sigma, round(min(max(shared, 0.0), _RHO_MAX), 3))


def _gain(data: Data, outside: Outside, chosen: Rows) -> Array:
    difference = _regrets(data, outside.table) - _regrets(data, chosen)
    cells = np.zeros((len(RATES_BPS), len(SIZES_BYTES)))
    for place in range(len(SIZES_BYTES)):
        rows = data.size_class == place
        if rows.any():
            cells[:, place] = difference[rows].mean(axis=0)
    return cells


def _figures(data: Data, outside: Outside, chosen: Rows) -> dict[str, Any]:
    """Regret in per cent: geometric mean, p95, and per link, beside the simple policies."""
    names = [codec.name for codec in CODECS]
    fixed = {name: np.full_like(outside.table, at) for at, name in enumerate(names)}
    floor = np.stack([_floor(data, rate) for rate in RATES_BPS], axis=1)
    mine, base = _regrets(data, chosen), _regrets(data, outside.table)
    everything = {name: _regrets(data, each) for name, each in fixed.items()}
    best = min(everything, key=lambda name: float(everything[name][:, _MARKED].mean()))
    rows = {
        "model": mine,
        "table": base,
        "zstd-3": everything["zstd-3"],
        f"best fixed: {best}": everything[best],
    }
    told = {name: _told(each) for name, each in {**rows, "best of those that travel": floor}.items()}
    worse = float((mine > base + _WORSE)[:, _MARKED].mean())
    same = chosen[:, _MARKED] == np.stack([_best(data, rate) for rate in RATES_BPS], axis=1)[:, _MARKED]
    return {
        "policies": told,
        "worse_than_table_share": round(worse, 4),
        "label_accuracy": round(float(same.mean()), 3),
    }


def _told(regrets: Array) -> dict[str, Any]:
    marked = regrets[:, _MARKED]
    return {
        "gmean": _percent(float(marked.mean())),
        "p95": _percent(float(np.percentile(marked, 95))),
        "per_link": [_percent(float(each)) for each in regrets.mean(axis=0)],
    }


def _floor(data: Data, rate_bps: float) -> Array:
    return train_data.log_regret(data, _best(data, rate_bps), rate_bps=rate_bps)


def _best(data: Data, rate_bps: float) -> Rows:
    seconds = train_data.true_seconds(data.grid, rate_bps=rate_bps)[:, list(oracle.SHIPPED)]
    return np.asarray(np.argmin(seconds, axis=1))


def _percent(log_regret: float) -> float:
    return round(100 * float(np.expm1(log_regret)), 2)
