"""Training of the codec selector's model from a measurement table, the same bits every time.

Trees teach, networks ship: an ensemble of extremely randomised trees answers for many points around the
measured ones, and three small networks learn measurements and answers together (spec of the selector, §1.5).
Errors are judged out of fold; their covariance, the gain over the table and the margin go into the artefact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from dwcp.compression import features, model, oracle, train_data, train_judging, train_network
from dwcp.compression.codecs import CODECS
from dwcp.compression.errors import MeasurementInvalid
from dwcp.compression.feedback import Spread
from dwcp.compression.model import Model
from dwcp.compression.oracle import Table
from dwcp.compression.train_data import RATES_BPS, SIZES_BYTES, Data, Rows
from dwcp.compression.train_judging import Outside
from dwcp.compression.train_network import Recipe, Weights
from dwcp.models.artefact import Artefact, Made

Array = NDArray[np.float64]
Report = Callable[[str], None]

MEASUREMENTS_MIN = 40
_NETS = 3
_TREES = 200
_AROUND = 4  # synthetic points for each measured one
_SPREAD_AROUND = 0.15  # of a feature's deviation
_BANK_ROWS = 320
_QUICK = 10  # a quick training takes a tenth of steps and trees


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training gives: two files, checked by loading them."""

    made: Made
    model: Model
    facts: Artefact


@dataclass(frozen=True, slots=True)
class Fitted:
    """Networks and the scales of their inputs and outputs."""

    nets: tuple[Weights, ...]
    scales: dict[str, Array]

    def predict(self, x: Array) -> Array:
        """[rows, F] to [rows, V], as the shipped model does it."""
        s = self.scales
        clipped = np.clip(x, s["x_low"], s["x_high"])
        inside = (clipped - s["x_mean"]) / s["x_scale"]
        answers = [train_network.apply(net, inside) for net in self.nets]
        mean = np.mean(answers, axis=0) * s["y_scale"] + s["y_mean"]
        return np.asarray(np.clip(mean, s["y_low"], s["y_high"]))


def from_bytes(packed: bytes, *, seed: int = 1, quick: bool = False, report: Report | None = None) -> Trained:
    """From a measurement table as it is committed; its digest is noted. Raises `MeasurementInvalid`."""
    table = oracle.unpack_table(packed)
    if table.features != features.NAMES or table.features_version != features.VERSION:
        raise MeasurementInvalid("the measurement table holds other features: measure again")
    return train(table, table_digest=model.digest(packed), seed=seed, quick=quick, report=report)


def train(
    table: Table, *, table_digest: str, seed: int = 1, quick: bool = False, report: Report | None = None
) -> Trained:
    """The whole of it. Raises `MeasurementInvalid` where there is too little to learn from."""
    data = train_data.arrays(table.rows)
    if len(data.rows) < MEASUREMENTS_MIN:
        raise MeasurementInvalid(
            f"{len(data.rows)} measurements are too few to learn from, {MEASUREMENTS_MIN} are the least"
        )
    say = report or (lambda _text: None)
    recipe, trees = (
        (Recipe(steps=Recipe().steps // _QUICK), _TREES // _QUICK) if quick else (Recipe(), _TREES)
    )

    def fit(rows: Rows) -> Fitted:
        return _fit(data, rows, recipe=recipe, trees=trees, seed=seed)

    grouped = _outside(data, train_data.by_group(data), fit, lambda at: say(f"protocol A, fold {at}"))
    by_kind = _outside(data, train_data.by_kind(data), fit, lambda at: say(f"protocol B, bunch {at}"))
    say(f"fitting {_NETS} networks on {len(data.rows)} measurements")
    judged = train_judging.judge(data, {"A": grouped, "B": by_kind})
    return _assemble(
        table, data, fit(np.arange(len(data.rows))), judged, table_digest=table_digest, seed=seed
    )


def _outside(
    data: Data,
    folds: Iterable[tuple[Rows, Rows]],
    fit: Callable[[Rows], Fitted],
    report: Callable[[int], None],
) -> Outside:
    """Predictions and the table's choices for every row, made without its fold."""
    logs = np.zeros_like(data.y)
    table = np.zeros((len(data.rows), len(RATES_BPS)), np.intp)
    for at, (inside, out) in enumerate(folds, 1):
        report(at)
        logs[out] = fit(inside).predict(data.x[out])
        bank = train_judging.bank(data, inside)
        for column, rate_bps in enumerate(RATES_BPS):
            table[out, column] = train_judging.table_choices(bank, data, out, rate_bps=rate_bps)
    return Outside(logs, table)


def _fit(data: Data, rows: Rows, *, recipe: Recipe, trees: int, seed: int) -> Fitted:
    x, y = data.x[rows], data.y[rows]
    around, answers = _taught(x, y, trees=trees, seed=seed)
    points = np.vstack((x, x, around))
    targets = np.vstack((y, y, answers))
    scales = {
        "x_mean": points.mean(axis=0), "x_scale": points.std(axis=0) + 1e-6,
        "x_low": x.min(axis=0), "x_high": x.max(axis=0),
        "y_mean": targets.mean(axis=0), "y_scale": targets.std(axis=0) + 1e-6,
        "y_low": y.min(axis=0), "y_high": y.max(axis=0),
    }  # fmt: skip
    scales = {name: np.float64(np.float32(value)) for name, value in scales.items()}
    inputs = (np.clip(points, scales["x_low"], scales["x_high"]) - scales["x_mean"]) / scales["x_scale"]
    outputs = (targets - scales["y_mean"]) / scales["y_scale"]
    nets = tuple(
        train_network.fit(inputs, outputs, recipe=recipe, seed=seed * 100 + net) for net in range(_NETS)
    )
    return Fitted(nets, scales)


def _taught(x: Array, y: Array, *, trees: int, seed: int) -> tuple[Array, Array]:
    """Points around and between the measured ones, and what the trees say about them."""
    from sklearn.ensemble import ExtraTreesRegressor  # heavy, and only training needs it

    teacher = ExtraTreesRegressor(
        trees, min_samples_leaf=2, max_features=0.5, random_state=seed, n_jobs=1
    ).fit(x, y)
    rng = np.random.default_rng(seed)
    start = np.tile(x, (_AROUND, 1))
    other = start[rng.integers(0, len(start), len(start))]
    part = 0.5 * rng.random((len(start), 1)) * (rng.random((len(start), 1)) < 0.5)
    blur = rng.standard_normal(start.shape) * rng.random((len(start), 1)) * _SPREAD_AROUND * x.std(axis=0)
    around = start * (1 - part) + other * part + blur
    return around, np.asarray(teacher.predict(around))


def _assemble(
    table: Table,
    data: Data,
    fitted: Fitted,
    judged: train_judging.Judged,
    *,
    table_digest: str,
    seed: int,
) -> Trained:
    tensors = _tensors(table, data, fitted, judged, seed=seed)
    made = model.make(
        tensors,
        trained_on={"measurements": table_digest, "code": code_digest()},
        figures={**_facts(data), "seed": float(seed), **judged.figures},
    )
    return Trained(made, *model.load(made))


def _tensors(
    table: Table, data: Data, fitted: Fitted, judged: train_judging.Judged, *, seed: int
) -> dict[str, Array]:
    parts = [np.stack(each) for each in zip(*fitted.nets, strict=True)]
    names = ("w1", "b1", "w2", "b2", "w3", "b3")
    count = len(data.rows)
    chosen = np.random.default_rng(seed).permutation(count)[:_BANK_ROWS]
    bank = train_judging.bank(data, np.sort(chosen))
    spread: Spread = judged.spread
    return {
        **dict(zip(names, parts, strict=True)),
        **fitted.scales,
        "sigma": spread.sigma,
        "bank": bank.logs,
        "bank_log2_size": bank.log2_size,
        "bank_weight": bank.weight,
        "gain": judged.gain,
        "margins": np.array(judged.margins),
        "rates": np.array(RATES_BPS),
        "sizes": np.array(SIZES_BYTES, np.float64),
        "rho": np.array([spread.rho]),
        "speeds": np.array([table.speeds[codec.name] for codec in CODECS]),
    }


def _facts(data: Data) -> dict[str, float]:
    kinds = Counter(row.kind for row in data.rows)
    return {
        "measurements": float(len(data.rows)),
        "groups": float(len({row.group for row in data.rows})),
        "megabytes": round(float(data.grid.size.sum()) / 1e6, 1),
        **{f"kind/{kind}": float(count) for kind, count in kinds.items()},
    }


def code_digest() -> str:
    """BLAKE3 of the sources that decide what a training gives."""
    hasher = blake3()
    folder = Path(__file__).parent
    for pattern in ("codecs.py", "costs*.py", "features.py", "feedback.py", "model.py", "train*.py"):
        for path in sorted(folder.glob(pattern)):
            hasher.update(path.name.encode() + b"\0" + path.read_bytes())
    return hasher.hexdigest()
