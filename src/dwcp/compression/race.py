"""A race: which codecs are worth trying on a block before it is sent, while the processor would be idle.

Pure: `next` names a codec, the caller packs with it and tells `observe` the size and the CPU seconds. Each
trial corrects what is believed of the codecs that were not tried, as far as the model's errors go together;
another one runs only while it is expected to save more than it may cost, its packing taken at the slow end of
what is likely. What was tried is what is sent: a codec that was not tried would have to be packed with as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwcp.compression import costs_predicted
from dwcp.compression.costs import HEADER_BYTES, Objective, Stages, Terms
from dwcp.compression.model import NAMES, PACK, RATIO, RATIO_MIN
from dwcp.compression.race_outlook import Outlook, Seen, outlook

Array = NDArray[np.float64]

ENTRANTS_MAX = 5
PROBE = 1 + NAMES.index("zstd-1")  # tells in 2 ms a MiB how a block compresses
_SLOW = 0.1  # of the sending: a codec that takes longer is probed for first
_PROMISE_MIN = 0.004  # expected share of the time that a trial has to save to be worth it
_CAREFUL = 1.5  # standard deviations that packing may take longer than predicted
_NOISE_2 = 1e-4  # variance of a measurement's own errors, log units²
_RARE_SHARE = 0.05  # of packings take
_RARE = math.log(3.5)  # times as long as predicted: block sorting of long repeats
_SURPRISE = 2.5  # standard deviations from which on the rest is doubted as much more
SECONDS_MIN = 1e-7
_NEVER = 99.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One trial: place in `codecs.CODECS`, packed bytes, CPU seconds of packing on this host."""

    place: int
    packed: int
    pack_s: float

    def logs(self, size: int) -> tuple[float, float]:
        """ln of the ratio, and of the seconds for each of `size` raw bytes: what the model predicts."""
        ratio = max(RATIO_MIN, size / max(1, self.packed))
        return math.log(ratio), math.log(max(self.pack_s, SECONDS_MIN) / max(1, size))


@dataclass(frozen=True, slots=True)
class Prospect:
    """What is believed of a block on this host: logs [VALUES] and their covariance; stages and scores [C] that
    follow, lower is better."""

    size: int
    terms: Terms
    logs: Array
    covariance: Array
    parts: Stages
    scored: Array
    table: int


class Race:
    """One block's race."""

    def __init__(self, prospect: Prospect) -> None:
        self.prospect = prospect
        self.entries: list[Entry] = []
        self._logs, self._covariance = prospect.logs, prospect.covariance
        self._seen: dict[int, int] = {}  # bytes that would be sent, by place
        self._spent_s = 0.0

    def next(self) -> int | None:
        """The codec to try now, or None: the race is over."""
        if len(self.entries) >= ENTRANTS_MAX:
            return None
        view = self._outlook()
        if not self.entries:
            return self._first(view)
        scored = view.scored
        tried = {0, *(entry.place for entry in self.entries)}
        best = min((*tried, self.prospect.table), key=scored.__getitem__)
        promises = self._promises(view, best=best, tried=tried)
        place = max(promises, key=promises.__getitem__)
        if promises[place] > _PROMISE_MIN:
            return place
        return None if best in tried else best

    def observe(self, entry: Entry) -> None:
        """The outcome of a trial."""
        self.entries.append(entry)
        self._spent_s += entry.pack_s
        self._seen[entry.place] = min(entry.packed, self.prospect.size) + HEADER_BYTES
        if not entry.place:
            return
        at, (ratio, pack) = _errors(entry, self._logs, size=self.prospect.size)
        rows = self._covariance[at]  # [2, VALUES]
        a, b, d = rows[0, at[0]] + _NOISE_2, rows[0, at[1]], rows[1, at[1]] + _NOISE_2
        beyond = max(ratio**2 / a, pack**2 / d) / _SURPRISE**2
        if beyond > 1.0:
            self._covariance = self._covariance * beyond
            rows, a, b, d = rows * beyond, a * beyond, b * beyond, d * beyond
        gain = np.array(((d, -b), (-b, a))) @ rows / (a * d - b * b)  # own⁻¹ rows
        self._logs = self._logs + (ratio * gain[0] + pack * gain[1])
        self._covariance = self._covariance - rows.T @ gain

    def winner(self, lead: int) -> int:
        """The best of what was tried and of sending raw; of a race that was cut short the lead and the table's
        choice may be it untried."""
        if not self.entries:
            return lead
        view = self._outlook()
        places = (*(entry.place for entry in self.entries), 0, lead, self.prospect.table)
        return min(places, key=lambda place: (view.scored[place], view.sent_bytes[place]))

    def _first(self, view: Outlook) -> int | None:
        """The soonest, or a quick one where the soonest is slow and might be slower than predicted."""
        best = min(range(len(view.scored)), key=view.scored.__getitem__)
        probes = view.compress[best] > _SLOW * view.send[best] and math.isfinite(view.scored[PROBE])
        return (PROBE if probes else best) or None

    def _outlook(self) -> Outlook:
        """With packing at the slow end of what is likely, but for the table's choice: to be slow with that is
        no worse than the table."""
        table = self.prospect.table
        logs = costs_predicted.careful(self._logs, self._covariance, sds=_CAREFUL)
        if table:
            logs[PACK.start + table - 1] = self._logs[PACK.start + table - 1]
        seen = Seen(self._seen, self._spent_s)
        return outlook(logs, self.prospect.size, terms=self.prospect.terms, seen=seen)

    def _promises(self, view: Outlook, *, best: int, tried: set[int]) -> dict[int, float]:
        """What a trial of each is expected to save, a share (log) of what the best so far takes: its size may
        come out better than predicted, but nothing is sooner than packing ends; one that fails holds up the best."""
        in_time = self.prospect.terms.goal.objective is Objective.TIME
        failed, now, now_s = view.failed(best), view.scored[best], view.seconds[best]
        variances = self._covariance.diagonal()[RATIO].tolist()
        promises = {}
        for place in range(1, len(failed)):
            if place in tried:
                continue
            gain, loss = _log(now, view.scored[place], -_NEVER), _log(failed[place], now, _NEVER)
            longer = _log(view.compress[place], now_s, _NEVER)
            if place != self.prospect.table:
                loss += _RARE_SHARE * max(longer + _RARE, 0.0)
            expected = _expected(gain + loss, math.sqrt(max(variances[place - 1], 0.0))) - loss
            promises[place] = min(expected, -longer if in_time else _NEVER)
        return promises


def errors_of(entries: list[Entry], logs: Array, *, size: int) -> tuple[list[int], Array]:
    """(places among the predicted values, observed minus predicted there). `logs` are for this host."""
    at: list[int] = []
    errors: list[float] = []
    for entry in entries:
        places, seen = _errors(entry, logs, size=size)
        at += places
        errors += seen
    return at, np.array(errors)


def _errors(entry: Entry, logs: Array, *, size: int) -> tuple[list[int], tuple[float, float]]:
    """Of ratio and packing time."""
    ratio, pack = RATIO.start + entry.place - 1, PACK.start + entry.place - 1
    shrunk, took = entry.logs(size)
    return [ratio, pack], (shrunk - float(logs[ratio]), took - float(logs[pack]))


def _log(value: float, base: float, otherwise: float) -> float:
    """ln(value / base), where both are finite and above nothing."""
    return math.log(value / base) if 0.0 < value < math.inf and 0.0 < base < math.inf else otherwise


def _expected(mean: float, sd: float) -> float:
    """E[max(0, X)] of a normal X."""
    z = mean / max(sd, 1e-9)
    if z < -5:
        return 0.0
    return mean * 0.5 * math.erfc(-z / math.sqrt(2)) + sd * math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
