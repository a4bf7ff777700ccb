"""Judging a model out of fold: regret against the oracle, the gain over the table, and how errors go together.

L links, S size classes, R rows, C codecs that travel. Every time is a measured one; only choices come from
predictions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwcp.compression import costs_predicted, oracle, train_data
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
_MARGINS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16)
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
    margins: tuple[float, ...]  # [L]
    figures: dict[str, float]  # for the manifest: shares, by names that `figure` makes


def bank(data: Data, rows: Rows) -> Bank:
    """The rows with weights: a group of files counts as the root of how many of its pieces there are."""
    groups = [data.rows[row].group for row in rows]
    counts = Counter(groups)
    weight = np.array([counts[group] ** -0.5 for group in groups])
    return Bank(data.y[rows], np.log2(data.grid.size[rows]), weight)


def table_choices(made: Bank, data: Data, rows: Rows, *, rate_bps: float) -> Rows:
    """The table's codec for each of `rows`, by size class."""
    link = Link(rate_bps)
    by_class = [made.choice(size_bytes=size, link=link, mode=Mode.BULK) for size in SIZES_BYTES]
    return np.array(by_class, np.intp)[data.size_class[rows]]


def judge(data: Data, outside: dict[str, Outside]) -> Judged:
    """Protocol A decides covariance, margin and gain; all protocols get their figures."""
    grouped = outside["A"]
    spread = _spread(data, grouped.logs)
    seconds = {name: _predicted(data, each) for name, each in outside.items()}
    margins = _tuned(data, grouped, seconds["A"])
    chosen = {name: choices(each, seconds[name], margins=margins) for name, each in outside.items()}
    figures = {
        key: value
        for name, each in outside.items()
        for key, value in _figures(data, each, chosen[name], protocol=name).items()
    }
    return Judged(spread, _gain(data, grouped, chosen["A"]), margins, figures)


def choices(outside: Outside, seconds: Array, *, margins: tuple[float, ...]) -> Rows:
    """[R, L] what the model takes: the table's choice unless another is sooner by the link's margin (log).
    `seconds` [R, L, C] as predicted."""
    best = seconds.argmin(axis=2)
    least = seconds.min(axis=2)
    table = np.take_along_axis(seconds, outside.table[:, :, None], axis=2)[:, :, 0]
    return np.where(least * np.exp(margins) < table, best, outside.table)


def _predicted(data: Data, outside: Outside) -> Array:
    """[R, L, C] T as predicted out of fold."""
    columns = [
        costs_predicted.seconds_of(outside.logs, data.grid.size, link=Link(rate)) for rate in RATES_BPS
    ]
    return np.stack(columns, axis=1)


def _regrets(data: Data, chosen: Rows) -> Array:
    """[R, L] ln(T/T*)."""
    columns = [train_data.log_regret(data, chosen[:, at], rate_bps=rate) for at, rate in enumerate(RATES_BPS)]
    return np.stack(columns, axis=1)


def _tuned(data: Data, outside: Outside, seconds: Array) -> tuple[float, ...]:
    """For each link the margin with the least regret, decisions worse than the table weighed in. Neighbouring
    links are judged together, so that a few dozen blocks do not decide."""
    base = _regrets(data, outside.table)
    scored = np.zeros((len(_MARGINS), len(RATES_BPS)))
    for at, margin in enumerate(_MARGINS):
        mine = _regrets(data, choices(outside, seconds, margins=(margin,) * len(RATES_BPS)))
        scored[at] = (mine + _WORSE_PRICE * (mine > base + _WORSE)).mean(axis=0)
    smooth = np.stack(
        [scored[:, max(0, link - 1) : link + 2].mean(axis=1) for link in range(len(RATES_BPS))], axis=1
    )
    return tuple(_MARGINS[at] for at in smooth.round(9).argmin(axis=0).tolist())


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


def figure(protocol: str, policy: str, what: str) -> str:
    """The name of a regret among a model's figures; `what`: gmean, p95, or a link in Mbit/s."""
    return f"policy/{protocol}/{policy}/{what}"


def _figures(data: Data, outside: Outside, chosen: Rows, *, protocol: str) -> dict[str, float]:
    """Regrets: geometric mean, p95, and per link, beside the simple policies."""
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
        "best of those that travel": floor,
    }
    told = {
        figure(protocol, name, what): value
        for name, each in rows.items()
        for what, value in _told(each).items()
    }
    same = chosen[:, _MARKED] == np.stack([_best(data, rate) for rate in RATES_BPS], axis=1)[:, _MARKED]
    return {
        **told,
        f"regret_gmean_{protocol}": told[figure(protocol, "model", "gmean")],
        f"regret_p95_{protocol}": told[figure(protocol, "model", "p95")],
        f"worse_than_table_{protocol}": _rounded(float((mine > base + _WORSE)[:, _MARKED].mean())),
        f"label_accuracy_{protocol}": _rounded(float(same.mean())),
    }


def _told(regrets: Array) -> dict[str, float]:
    marked = regrets[:, _MARKED]
    links = {f"{rate / 1e6:.0f}": each for rate, each in zip(RATES_BPS, regrets.mean(axis=0), strict=True)}
    every = {"gmean": marked.mean(), "p95": np.percentile(marked, 95), **links}
    return {what: _rounded(float(np.expm1(value))) for what, value in every.items()}


def _floor(data: Data, rate_bps: float) -> Array:
    return train_data.log_regret(data, _best(data, rate_bps), rate_bps=rate_bps)


def _best(data: Data, rate_bps: float) -> Rows:
    seconds = train_data.true_seconds(data.grid, rate_bps=rate_bps)[:, list(oracle.SHIPPED)]
    return np.asarray(np.argmin(seconds, axis=1))


def _rounded(share: float) -> float:
    return round(share, 5)
