"""The measurement table as arrays for training and for judging: features, targets, folds, regret.

Protocol A keeps groups together in five folds; protocol B leaves whole kinds out. Nothing here reads the
held-out corpora.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from dwcp.compression import costs, model, oracle
from dwcp.compression.costs import Link, Mode
from dwcp.compression.oracle import Grid, Measurement

Array = NDArray[np.float64]
Rows = NDArray[np.intp]

RATES_BPS = tuple(10.0 ** (step / 2) * 1e6 for step in range(9))  # 1, 3.2, 10 … 10,000 Mbit/s
MARKED_BPS = 1.01e9  # figures are told up to 1 Gbit/s
SIZES_BYTES = (64 << 10, 256 << 10, 1 << 20)
FOLDS = 5
_DIGITS = 9
_MICROSECOND_MIN = 0.2


@dataclass(frozen=True, slots=True)
class Data:
    """R rows. `x` [R, F], `y` [R, VALUES] logs, `grid` of all 19 codecs, `place` of the size class."""

    rows: tuple[Measurement, ...]
    x: Array
    y: Array
    grid: Grid
    size_class: Rows


def arrays(rows: tuple[Measurement, ...]) -> Data:
    """Everything that training needs; logs are rounded so that they do not depend on the processor."""
    x = np.array([row.features for row in rows], np.float64)
    y = np.array([_targets(row) for row in rows], np.float64)
    sizes = np.array([row.size for row in rows])
    size_class = np.array([int(np.argmin(np.abs(np.log2(SIZES_BYTES) - math.log2(size)))) for size in sizes])
    return Data(rows, x, y, oracle.grid(list(rows)), size_class)


def _targets(row: Measurement) -> list[float]:
    places = oracle.SHIPPED[1:]
    ratio = [math.log(max(model.RATIO_MIN, row.size / row.packed[at])) for at in places]
    pack = [math.log(max(_MICROSECOND_MIN, row.pack_us[at]) * 1e-6 / row.size) for at in places]
    unpack = [math.log(max(_MICROSECOND_MIN, row.unpack_us[at]) * 1e-6 / row.size) for at in places]
    return [round(value, _DIGITS) for value in (*ratio, *pack, *unpack)]


def by_group(data: Data) -> Iterator[tuple[Rows, Rows]]:
    """Protocol A: (training rows, test rows), groups whole; the fold of a group is a hash of its name."""
    fold = np.array([blake3(row.group.encode()).digest()[1] % FOLDS for row in data.rows])
    for each in range(FOLDS):
        yield np.flatnonzero(fold != each), np.flatnonzero(fold == each)


def by_kind(data: Data) -> Iterator[tuple[Rows, Rows]]:
    """Protocol B: all kinds once left out, in up to five bunches of kinds."""
    kinds = sorted({row.kind for row in data.rows})
    bunch = {kind: place % FOLDS for place, kind in enumerate(kinds)}
    of = np.array([bunch[row.kind] for row in data.rows])
    for each in sorted(set(bunch.values())):
        yield np.flatnonzero(of != each), np.flatnonzero(of == each)


def true_seconds(grid: Grid, *, rate_bps: float, mode: Mode = Mode.BULK) -> Array:
    """[R, codecs]: measured sizes and times priced for a link, framing included."""
    link = Link(rate_bps)
    parts = costs.stages(
        grid.packed + costs.HEADER_BYTES, compress_s=grid.pack_s, decompress_s=grid.unpack_s, link=link
    )
    return costs.total_seconds(parts, blocks=1, mode=mode, link=link)


def log_regret(data: Data, chosen: Rows, *, rate_bps: float) -> Array:
    """[R] ln(T/T*): `chosen` are places in `codecs.CODECS`, T* the best of all 19."""
    seconds = true_seconds(data.grid, rate_bps=rate_bps)
    shipped = seconds[:, list(oracle.SHIPPED)]
    return np.asarray(np.log(shipped[np.arange(len(chosen)), chosen] / seconds.min(axis=1)))
