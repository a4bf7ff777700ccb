"""A race: which codecs are worth trying on a block before it is sent, while the processor would be idle.

Pure: `next` names a codec, the caller packs with it and tells `observe` the size and the CPU seconds. All
trials together take no longer than the sending that they hide behind. Who may run is settled once, from the
predictions and their doubts; the winner is settled by what was seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dwcp.compression import costs_predicted
from dwcp.compression.costs import HEADER_BYTES, Stages, Terms
from dwcp.compression.model import NAMES, PACK, RATIO, RATIO_MIN

Array = NDArray[np.float64]

IDLE_SHARE = 0.8  # of the sending may be spent packing, the winner included
ENTRANTS_MAX = 5
PROBE = 1 + NAMES.index("zstd-1")  # tells in 2 ms a MiB how a block compresses
_SLOW = 0.1  # of the sending: a codec that takes longer is probed for first
_PROMISE_MIN = 0.004  # expected share of the time that a trial has to save to be worth it
_SECONDS_MIN = 1e-7


@dataclass(frozen=True, slots=True)
class Entry:
    """One trial: place in `codecs.CODECS`, packed bytes, CPU seconds of packing on this host."""

    place: int
    packed: int
    pack_s: float


@dataclass(frozen=True, slots=True)
class Prospect:
    """What is believed of a block: stages and scores [C], lower is better, and the covariance of the logs."""

    size: int
    terms: Terms
    parts: Stages
    scored: Array
    covariance: Array
    table: int


class Race:
    """One block's race, the quickest codec first: what it shows tells whether the slow ones may run."""

    def __init__(self, prospect: Prospect) -> None:
        self.prospect = prospect
        self.entries: list[Entry] = []
        best = int(np.argmin(prospect.scored))
        self._send_s = float(prospect.parts.send[best])
        self._surprise = 1.0  # bytes seen over bytes predicted
        self._spent_s = 0.0
        self._line = _line(prospect, best, self._send_s)

    def next(self) -> int | None:
        """The codec to try now, or None: the race is over."""
        while self._line:
            place = self._line.pop(0)
            room_s = self._send_s * min(1.0, self._surprise) - self._spent_s
            tried = any(entry.place == place for entry in self.entries)
            if not tried and self.prospect.parts.compress[place] <= room_s:
                return place
        return None

    def observe(self, entry: Entry) -> None:
        """The outcome of a trial."""
        self.entries.append(entry)
        self._spent_s += entry.pack_s
        self._surprise = (entry.packed + HEADER_BYTES) / float(self.prospect.parts.sent_bytes[entry.place])

    def winner(self, lead: int) -> int:
        """The best of what was tried, of sending raw, of the lead and of the table's choice; the last two as
        predicted, but corrected by how far the trials were off."""
        if not self.entries:
            return lead
        _, scored = self.prospect.terms.score(self._seen())
        places = (*(entry.place for entry in self.entries), 0, lead, self.prospect.table)
        return min(places, key=lambda place: float(scored[place]))

    def _seen(self) -> Stages:
        """The stages with what was seen in the place of what was predicted. The trials are spent in any case:
        one that was not tried costs its own packing on top."""
        parts, link = self.prospect.parts, self.prospect.terms.link
        cores = link.sender_share * link.sender_cores
        compress, cpu = parts.compress + self._spent_s / cores, parts.cpu + self._spent_s
        sent = np.minimum(parts.sent_bytes * self._surprise, self.prospect.size + HEADER_BYTES)
        sent[0] = parts.sent_bytes[0]
        for entry in self.entries:
            compress[entry.place] = self._spent_s / cores
            cpu[entry.place] -= parts.compress[entry.place] * cores
            sent[entry.place] = min(entry.packed, self.prospect.size) + HEADER_BYTES
        return replace(parts, compress=compress, send=sent * (8 / link.rate_bps), sent_bytes=sent, cpu=cpu)


def errors_of(entries: list[Entry], logs: Array, *, size: int, scale: Array) -> tuple[list[int], Array]:
    """(places among the predicted values, observed minus predicted there, on the reference host's scale)."""
    at: list[int] = []
    errors: list[float] = []
    for entry in entries:
        ratio, pack = RATIO.start + entry.place - 1, PACK.start + entry.place - 1
        at += [ratio, pack]
        errors.append(math.log(max(RATIO_MIN, size / max(1, entry.packed))) - float(logs[ratio]))
        errors.append(math.log(max(entry.pack_s, _SECONDS_MIN) / size) - float(scale[pack] + logs[pack]))
    return at, np.array(errors)


def _line(prospect: Prospect, best: int, send_s: float) -> list[int]:
    """Who runs, quickest first: the best, a probe where the best is slow, the table's choice, then whoever
    promises to save time, while there is room. `none` needs no trial."""
    cost_s = prospect.parts.compress
    promise = _promises(prospect, best)
    others = [int(place) for place in np.argsort(-promise) if promise[place] >= _PROMISE_MIN]
    wanted = [best, *([PROBE] if cost_s[best] > _SLOW * send_s else []), prospect.table, *others]
    room_s = send_s
    line: list[int] = []
    for place in dict.fromkeys(wanted):
        if (
            place
            and np.isfinite(prospect.scored[place])
            and cost_s[place] <= room_s
            and len(line) < ENTRANTS_MAX
        ):
            line.append(place)
            room_s = IDLE_SHARE * send_s - sum(cost_s[each] for each in line)
    return sorted(line, key=lambda place: float(cost_s[place]))


def _promises(prospect: Prospect, best: int) -> Array:
    """[C] E[max(0, ln T_best − ln T_j)] of a normal difference: what a trial of j is expected to save."""
    doubt = costs_predicted.doubts(prospect.parts, prospect.covariance, reference=best)
    with np.errstate(divide="ignore"):  # of codecs that may not be used
        gains = np.log(prospect.scored[best] / prospect.scored).tolist()
    promise = [_expected(gain, sd) for gain, sd in zip(gains, doubt.tolist(), strict=True)]
    return np.array(promise)


def _expected(mean: float, sd: float) -> float:
    z = mean / max(sd, 1e-9)
    if z < -5:
        return 0.0
    return mean * 0.5 * math.erfc(-z / math.sqrt(2)) + sd * math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
