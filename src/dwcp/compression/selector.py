"""The codec selector: which codec makes bytes arrive soonest on a link, at a cost that pays for itself.

Tiers: the table goes by rate and size alone (a look-up); the model looks at a sample and predicts what each
codec would do; a race tries the best few while the link is busy. A gate moves up a tier only where the gain
that was measured out of fold is worth the time of asking. The model's answer is taken only where it beats
the table's by a margin. Pure: no clock, no codec is run here (but the features' two probes).
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from dwcp.compression import codecs, costs_predicted, features
from dwcp.compression.costs import Link, Mode, Terms
from dwcp.compression.costs_predicted import Alike, Bank
from dwcp.compression.feedback import Belief, Spread
from dwcp.compression.model import PACK, RATIO, UNPACK, VALUES, Model
from dwcp.compression.race import Prospect, Race
from dwcp.compression.selector_gate import Gate

Array = NDArray[np.float64]

SEGMENT_BYTES = 1 << 20
SELECTION_S = 250e-6  # features, networks and pricing of one block, unless it was measured
CAREFUL = 1.0  # standard deviations that packing may take longer than predicted, but for the table's choice
_GAIN_TRUST = 0.4  # a cell's gain comes from a few dozen blocks, and the cost of asking varies
_BINS_PER_DECADE = 8
_SCALE_MAX = math.log(20)
_DRIFT_RATE = 0.05
_DRIFT_MAX = math.log(4)
_SCALE_NOISE = 0.3
_EDGES_BPS = tuple(
    10 ** ((each + 0.5) / _BINS_PER_DECADE) for each in range(12 * _BINS_PER_DECADE)
)  # 1 bit/s … 1 Tbit/s
_LARGE_BYTES = 1 << 19  # from here on a block is of the largest class
SOONEST = Terms(Link(1.0)).goal  # the very object that terms have unless they are told otherwise


class Tier(Enum):
    """Who decided."""

    TABLE = "table"
    FEEDBACK = "feedback"  # the table, corrected by what earlier blocks of the stream showed
    MODEL = "model"
    RACE = "race"


@dataclass(slots=True)
class Step:
    """One segment on its way. `lead` is sent unless a race finds better; `late`: race after sending."""

    size: int
    lead: int
    table: int
    tier: Tier
    race: Race | None = None
    late: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """What the table knows about a link and a size."""

    place: int  # in `codecs.CODECS`
    seconds: float  # typical T of one block
    gain: float  # ln(T_table/T_model), out of fold
    idle_s: float  # of the processor while a typical block is sent
    margin: float  # log of how far the table's choice has to be beaten
    quiet_bytes: float  # a stream with less than this behind its first segment asks nothing: `selector_gate`
    alike: Alike = field(repr=False)
    rest: Step  # of a whole segment in a stream that asks nothing


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer about one block. Seconds are predictions for this host; [C] in the order of `codecs.CODECS`."""

    place: int
    table: int
    tier: Tier
    seconds: Array
    reason: str = ""
    prospect: Prospect | None = field(default=None, repr=False)  # for a race; None: the table answered
    vector: Array | None = field(default=None, repr=False)  # the features that were looked at

    @property
    def codec(self) -> codecs.Codec:
        return codecs.CODECS[self.place]


def host_scale(here: dict[str, tuple[float, float]], reference: dict[str, tuple[float, float]]) -> Array:
    """[VALUES] how much slower (log) this host is than the model's, from two calibrations in bytes/s.

    What all codecs have in common counts, a codec's own deviation by half, and the first third not at all:
    timings of a second on a busy host repeat no better, and a wrong scale costs more than none.
    """
    scale = np.zeros(VALUES)
    for part, which in ((PACK, 0), (UNPACK, 1)):
        ratios = [
            math.log(reference[codec.name][which] / here[codec.name][which])
            if codec.name in reference and codec.name in here
            else 0.0
            for codec in codecs.CODECS[1:]
        ]
        middle = float(np.median(ratios))
        each = middle + 0.5 * (np.array(ratios) - middle)
        beyond = np.sign(each) * np.maximum(np.abs(each) - _SCALE_NOISE, 0.0)
        scale[part] = np.clip(beyond, -_SCALE_MAX, _SCALE_MAX)
    return scale


def selection_seconds(selector: Selector, raw: bytes, *, cpu: Callable[[], float]) -> float:
    """What one decision by the model costs on this host: the median of 15. `cpu` tells CPU seconds."""
    terms = Terms(Link(1e6))
    taken = []
    for _ in range(15):
        begun = cpu()
        selector.decide(raw, terms=terms, shared_blocks=math.inf)
        taken.append(cpu() - begun)
    return sorted(taken)[len(taken) // 2]


class Selector:
    """A model on a host. Keeps only caches; streams keep their own state (`selector_stream`)."""

    def __init__(
        self,
        model: Model,
        *,
        speeds: dict[str, tuple[float, float]] | None = None,
        selection_s: float = SELECTION_S,
    ) -> None:
        self.model = model
        self.gate = Gate(selection_s)
        self.busy = 0.0  # log of how much slower packing is now than calibrated
        reference = model.speeds
        self.scale = host_scale(speeds, reference) if speeds is not None else np.zeros(VALUES)
        self._calibrated = self.scale
        self.bank = Bank(*(model.tensors[name] for name in ("bank", "bank_log2_size", "bank_weight")))
        self.typical = self.bank.logs.mean(axis=0)
        deviations = self.bank.logs - self.typical
        self.typical_spread = Spread(deviations.T @ deviations / len(deviations) + 1e-6 * np.eye(VALUES), 0.8)
        self._belief = Belief(np.zeros(VALUES), model.spread.sigma)  # of a block without a stream
        self._typical_belief = Belief(np.zeros(VALUES), self.typical_spread.sigma)
        self._slower = CAREFUL * np.sqrt(np.maximum(model.spread.sigma.diagonal()[PACK], 0.0))
        self._cells: dict[tuple[object, ...], Cell] = {}

    @property
    def selection_s(self) -> float:
        """What one decision by the model costs here, warm."""
        return self.gate.selection_s

    @selection_s.setter
    def selection_s(self, measured: float) -> None:
        self.gate = Gate(measured)
        self._cells.clear()  # what pays goes by it

    def cell(self, *, size: int, link: Link, mode: Mode = Mode.BULK) -> Cell:
        """The table's answer: a look-up after the first time for a bin of rate and a class of size."""
        rate = bisect(_EDGES_BPS, link.rate_bps)
        size_class = 20 if size >= _LARGE_BYTES else max(16, 2 * round(math.log2(max(1, size)) / 2))
        key = (
            rate,
            size_class,
            id(mode),  # members live for ever, and an enum's own hash is a call into Python
            link.sender_share,
            link.receiver_share,
            link.sender_cores,
            link.receiver_cores,
        )
        found = self._cells.get(key)
        if found is None:
            found = self._cells[key] = self._make_cell(
                10 ** (rate / _BINS_PER_DECADE), 1 << size_class, link, mode
            )
        return found

    def drift(self, pack_error: float) -> None:
        """Packing took `pack_error` (log) longer than predicted: this host is busier, or slower, than its
        calibration says. All predictions follow slowly."""
        self.busy = float(
            np.clip(self.busy + _DRIFT_RATE * min(max(pack_error, -0.3), 0.3), -_DRIFT_MAX, _DRIFT_MAX)
        )
        self.scale = self._calibrated.copy()
        self.scale[PACK] += self.busy

    def decide(
        self,
        raw: bytes | memoryview,
        *,
        terms: Terms,
        size: int | None = None,
        shared_blocks: float = 1.0,
    ) -> Decision:
        """One block, no stream around it. `size` where `raw` is a sample; `shared_blocks`: how many blocks
        will go by this decision."""
        block = max(1, min(len(raw) if size is None else size, SEGMENT_BYTES))
        cell = self.cell(size=block, link=terms.link, mode=terms.mode)
        if terms.plain and cell.gain * cell.seconds * shared_blocks < self.selection_s:
            return self._by_table(cell, block, terms)
        vector = features.extract(raw, total_bytes=block)
        strange = self.model.strange(vector)
        logs = self.typical if strange else self.model.predict(vector)
        belief = self._typical_belief if strange else self._belief
        reason = (
            "far from all training data: typical data was assumed" if strange else "predicted from a sample"
        )
        return self.weigh(logs, belief, size=block, cell=cell, terms=terms, reason=reason, vector=vector)

    def weigh(
        self,
        logs: Array,
        belief: Belief,
        *,
        size: int,
        cell: Cell,
        terms: Terms,
        reason: str = "",
        vector: Array | None = None,
    ) -> Decision:
        """The choice under `logs` corrected by `belief`: the table's, unless another beats it clearly."""
        table = cell.place
        here = logs + belief.mean + self.scale
        rows = np.empty((2, VALUES))
        rows[0] = rows[1] = here
        if belief is self._belief:
            rows[1, PACK] += self._slower
        else:
            rows[1] = costs_predicted.careful(here, belief.covariance, sds=CAREFUL)
        both = costs_predicted.stages_of(rows, size, link=terms.link)
        (seconds, _), (scored, doubtful) = terms.score(both)
        prospect = Prospect(size, terms, here, belief.covariance, both.row(0), scored, table)
        if terms.goal != SOONEST or not math.isfinite(scored[table]):
            place = int(scored.argmin())
        else:
            doubtful[table] = scored[table]
            place = costs_predicted.leaves(doubtful, table=table, margin=cell.margin)
        return Decision(place, table, Tier.MODEL, seconds, reason, prospect, vector)

    def _by_table(self, cell: Cell, size: int, terms: Terms) -> Decision:
        seconds = costs_predicted.seconds_of(
            self.typical, size, link=terms.link, mode=terms.mode, scale=self.scale
        )
        reason = "gate: asking would cost more than it saves"
        return Decision(cell.place, cell.place, Tier.TABLE, seconds, reason)

    def _make_cell(self, rate_bps: float, size: int, link: Link, mode: Mode) -> Cell:
        binned = Link(
            rate_bps, sender_share=link.sender_share, receiver_share=link.receiver_share,
            sender_cores=link.sender_cores, receiver_cores=link.receiver_cores,
        )  # fmt: skip
        near = self.bank.near(size)
        logs = near.log_seconds(size_bytes=size, link=binned, mode=mode, scale=self.scale)
        place = int(np.argmin(near.weight @ logs))
        sizes = np.full(len(near.logs), size)
        parts = costs_predicted.stages_of(near.logs, sizes, link=binned, scale=self.scale)
        here = (near.logs + self.scale).T
        learned = self.model.tensors
        row = int(np.argmin(np.abs(np.log(learned["rates"] / rate_bps))))
        column = int(np.argmin(np.abs(np.log(learned["sizes"] / size))))
        seconds = float(np.exp(np.median(logs[:, place])))
        gain = _GAIN_TRUST * float(learned["gain"][row, column])
        idle_s = float(np.median(parts.send[:, place] - parts.compress[:, place]))
        return Cell(
            place=place,
            seconds=seconds,
            gain=gain,
            idle_s=idle_s,
            margin=float(learned["margins"][row]),
            quiet_bytes=SEGMENT_BYTES * self.gate.quiet_segments(gain, seconds, idle_s=idle_s),
            alike=Alike(here[RATIO], here[PACK], logs, np.log(near.weight)),
            rest=Step(SEGMENT_BYTES, place, place, Tier.TABLE),
        )
