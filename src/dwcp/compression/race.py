"""A race: which codecs are worth trying on a block before it is sent, while the processor would be idle.

Pure: `next` names a codec, the caller packs with it and tells `observe` the size and the CPU seconds. Each
trial corrects what is believed of the codecs that were not tried, as far as the model's errors go together;
another one runs only while it is expected to save more than it may cost, its packing taken at the slow end of
what is likely. What was tried is what is sent: a codec that was not tried would have to be packed with as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dwcp.compression import costs_predicted
from dwcp.compression.costs import HEADER_BYTES, Objective, Stages, Terms
from dwcp.compression.model import NAMES, PACK, RATIO, RATIO_MIN

Array = NDArray[np.float64]

ENTRANTS_MAX = 5
PROBE = 1 + NAMES.index("zstd-1")  # tells in 2 ms a MiB how a block compresses
_SLOW = 0.1  # of the sending: a codec that takes longer is probed for first
_PROMISE_MIN = 0.004  # expected share of the time that a trial has to save to be worth it
_CAREFUL = 1.5  # standard deviations that packing may take longer than predicted
_NOISE_2 = 1e-4 * np.eye(2)  # variance of a measurement's own errors, log units²
_RARE_SHARE = 0.05  # of packings take
_RARE_TIMES = 3.5  # times as long as predicted: block sorting of long repeats
_SURPRISE = 2.5  # standard deviations from which on the rest is doubted as much more
SECONDS_MIN = 1e-7
_NEVER = 99.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One trial: place in `codecs.CODECS`, packed bytes, CPU seconds of packing on this host."""

    place: int
    packed: int
    pack_s: float


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
        self._spent_s = 0.0

    def next(self) -> int | None:
        """The codec to try now, or None: the race is over."""
        if len(self.entries) >= ENTRANTS_MAX:
            return None
        if not self.entries:
            return self._first()
        parts = self._outlook(self._careful())
        seconds, scored = self.prospect.terms.score(parts)
        tried = {0, *(entry.place for entry in self.entries)}
        best = min((*tried, self.prospect.table), key=lambda place: float(scored[place]))
        promises = self._promises(parts, seconds, scored, best=best)
        place = max(
            (place for place in range(1, len(scored)) if place not in tried), key=promises.__getitem__
        )
        if promises[place] > _PROMISE_MIN:
            return place
        return None if best in tried else best

    def observe(self, entry: Entry) -> None:
        """The outcome of a trial."""
        self.entries.append(entry)
        self._spent_s += entry.pack_s
        if not entry.place:
            return
        at, errors = errors_of([entry], self._logs, size=self.prospect.size)
        rows = self._covariance[at]  # [2, VALUES]
        own = rows[:, at] + _NOISE_2
        beyond = float(np.max(np.abs(errors) / np.sqrt(own.diagonal()))) / _SURPRISE
        if beyond > 1.0:
            self._covariance = self._covariance * beyond**2
            rows, own = rows * beyond**2, own * beyond**2
        (a, b), (_, d) = own
        gain = np.array(((d, -b), (-b, a))) @ rows / (a * d - b * b)  # own⁻¹ rows
        self._logs = self._logs + errors @ gain
        self._covariance = self._covariance - rows.T @ gain

    def winner(self, lead: int) -> int:
        """The best of what was tried and of sending raw; of a race that was cut short the lead and the table's
        choice may be it untried."""
        if not self.entries:
            return lead
        parts = self._outlook(self._careful())
        scored = self.prospect.terms.score(parts)[1]
        places = (*(entry.place for entry in self.entries), 0, lead, self.prospect.table)
        return min(places, key=lambda place: (float(scored[place]), float(parts.sent_bytes[place])))

    def _first(self) -> int | None:
        """The soonest, or a quick one where the soonest is slow and might be slower than predicted."""
        prospect = self.prospect
        parts = self._outlook(self._careful())
        scored = prospect.terms.score(parts)[1]
        best = int(np.argmin(scored))
        probes = parts.compress[best] > _SLOW * parts.send[best] and np.isfinite(scored[PROBE])
        return (PROBE if probes else best) or None

    def _careful(self) -> Array:
        """The logs with packing at the slow end of what is likely, but for the table's choice: to be slow with
        that is no worse than the table."""
        logs = costs_predicted.careful(self._logs, self._covariance, sds=_CAREFUL)
        if self.prospect.table:
            at = PACK.start + self.prospect.table - 1
            logs[at] = self._logs[at]
        return logs

    def _outlook(self, logs: Array) -> Stages:
        """The stages with each codec as the next trial, or as it was seen; what was spent is spent in any case."""
        prospect = self.prospect
        link, size = prospect.terms.link, prospect.size
        parts = costs_predicted.stages_of(logs, size, link=link)
        compress = parts.compress + self._spent_s / (link.sender_share * link.sender_cores)
        cpu, sent = parts.cpu + self._spent_s, parts.sent_bytes.copy()
        for entry in self.entries:
            compress[entry.place] = compress[0]
            cpu[entry.place] -= parts.compress[entry.place] * link.sender_share * link.sender_cores
            sent[entry.place] = min(entry.packed, size) + HEADER_BYTES
        return replace(parts, compress=compress, send=sent * (8 / link.rate_bps), sent_bytes=sent, cpu=cpu)

    def _promises(self, parts: Stages, seconds: Array, scored: Array, *, best: int) -> list[float]:
        """[C] what a trial of each is expected to save, a share (log) of what the best so far takes: its size may
        come out better than predicted, but nothing is sooner than packing ends; one that fails holds up the best."""
        in_time = self.prospect.terms.goal.objective is Objective.TIME
        with np.errstate(divide="ignore", invalid="ignore"):
            gains = _finite(np.log(scored[best] / scored), -_NEVER)
            losses = _finite(np.log(self._failed(parts, best) / scored[best]), _NEVER)
            longer = np.log(parts.compress / seconds[best])
        caps = -longer if in_time else np.full_like(longer, _NEVER)
        rare = np.maximum(longer + math.log(_RARE_TIMES), 0.0)
        rare[self.prospect.table] = 0.0
        losses += _RARE_SHARE * rare
        doubts = np.sqrt(np.maximum(np.diag(self._covariance)[RATIO], 0.0))
        rows = zip(gains[1:].tolist(), losses[1:].tolist(), caps[1:].tolist(), doubts.tolist(), strict=True)
        promises = [min(_expected(gain + loss, doubt) - loss, cap) for gain, loss, cap, doubt in rows]
        return [-_NEVER, *promises]

    def _failed(self, parts: Stages, best: int) -> Array:
        """[C] scores if each was tried in vain and the best so far is sent after all."""

        def same(values: Array) -> Array:
            return np.full_like(values, values[best])

        fallback = replace(
            parts,
            send=same(parts.send), decompress=same(parts.decompress), sent_bytes=same(parts.sent_bytes),
        )  # fmt: skip
        return self.prospect.terms.score(fallback)[1]


def errors_of(entries: list[Entry], logs: Array, *, size: int) -> tuple[list[int], Array]:
    """(places among the predicted values, observed minus predicted there). `logs` are for this host."""
    at: list[int] = []
    errors: list[float] = []
    for entry in entries:
        ratio, pack = RATIO.start + entry.place - 1, PACK.start + entry.place - 1
        at += [ratio, pack]
        errors.append(math.log(max(RATIO_MIN, size / max(1, entry.packed))) - float(logs[ratio]))
        errors.append(math.log(max(entry.pack_s, SECONDS_MIN) / size) - float(logs[pack]))
    return at, np.array(errors)


def _finite(values: Array, otherwise: float) -> Array:
    return np.where(np.isfinite(values), values, otherwise)


def _expected(mean: float, sd: float) -> float:
    """E[max(0, X)] of a normal X."""
    z = mean / max(sd, 1e-9)
    if z < -5:
        return 0.0
    return mean * 0.5 * math.erfc(-z / math.sqrt(2)) + sd * math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
