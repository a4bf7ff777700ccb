"""A race: which codecs are worth trying on a block before it is sent, while the processor would be idle.

Pure: `next` names a codec, the caller packs with it and tells `observe` the size and the CPU seconds. The
race never takes longer than the sending it hides behind, and stops when no other codec promises anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwcp.compression import costs_predicted
from dwcp.compression.costs import Stages, Terms
from dwcp.compression.feedback import Belief, StreamErrors
from dwcp.compression.model import PACK, RATIO, RATIO_MIN

Array = NDArray[np.float64]

IDLE_SHARE = 0.95  # of the predicted sending may be spent packing, the winner included
_PROMISE_MIN = 0.002  # expected share of the time that a trial has to save to be worth it
ENTRANTS_MAX = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One trial: place in `codecs.CODECS`, packed bytes, CPU seconds of packing on this host."""

    place: int
    packed: int
    pack_s: float


class Race:
    """One block's race. `logs` are predictions without what the stream has taught; `errors` is that."""

    def __init__(
        self,
        logs: Array,
        *,
        size: int,
        terms: Terms,
        errors: StreamErrors,
        scale: Array,
        budget_share: float = IDLE_SHARE,
    ) -> None:
        self._logs, self._size, self._terms = logs, size, terms
        self._errors, self._scale, self._share = errors, scale, budget_share
        self.entries: list[Entry] = []
        self._set(errors.belief())

    @property
    def seconds(self) -> Array:
        """T of every codec, as believed now; those that may not be used are infinite."""
        return self._seconds

    def best(self) -> int:
        return int(np.argmin(self._scores))

    def winner(self, lead: int) -> int:
        """The best of what was tried and of sending raw; the lead where nothing was tried."""
        if not self.entries:
            return lead
        tried = (0, *(entry.place for entry in self.entries))
        return min(tried, key=lambda place: float(self._scores[place]))

    def spent_s(self) -> float:
        return sum(entry.pack_s for entry in self.entries)

    def next(self, *, must: int | None = None) -> int | None:
        """The codec to try now, or None: the race is over. `must` (the table's choice) is tried in any case
        that leaves time for it."""
        tried = {entry.place for entry in self.entries}
        if len(tried) >= ENTRANTS_MAX:
            return None
        best = self.best()
        budget_s = self._share * float(self._parts.send[best]) - self.spent_s()
        cost_s = self._parts.compress
        if best not in tried and best != 0 and cost_s[best] <= budget_s:
            return best
        if must is not None and must not in tried and must != 0 and cost_s[must] <= budget_s:
            return must
        promise = self._promises(best)
        for place in np.argsort(-promise):
            if promise[place] < _PROMISE_MIN:
                return None
            if int(place) not in tried and place != 0 and cost_s[place] <= budget_s:
                return int(place)
        return None

    def observe(self, entry: Entry) -> None:
        """The outcome of a trial; moves what is believed of the others."""
        self.entries.append(entry)
        self._set(self._errors.given(*self._observed()))

    def learn(self) -> None:
        """Keeps what the stream shares; once, when the block is done."""
        if self.entries:
            self._errors.observe(*self._observed())

    def outliers(self) -> bool:
        """Whether what was seen lies outside what the stream made likely."""
        return bool(self.entries) and self._errors.surprising(*self._observed())

    def _observed(self) -> tuple[list[int], Array]:
        """Places among the predicted values and the errors there, on the reference host's scale."""
        at, errors = [], []
        for entry in self.entries:
            index = entry.place - 1
            ratio = math.log(max(RATIO_MIN, self._size / max(1, entry.packed)))
            pack = math.log(max(entry.pack_s, 1e-7) / self._size) - self._scale[PACK.start + index]
            at += [RATIO.start + index, PACK.start + index]
            errors += [ratio - self._logs[RATIO.start + index], pack - self._logs[PACK.start + index]]
        return at, np.array(errors)

    def _set(self, belief: Belief) -> None:
        self._belief = belief
        self._parts: Stages = costs_predicted.stages_of(
            self._logs + belief.mean, self._size, link=self._terms.link, scale=self._scale
        )
        self._seconds, self._scores = self._terms.score(self._parts)

    def _promises(self, best: int) -> Array:
        """[C] E[max(0, ln T_best − ln T_j)]: what a trial of j is expected to save."""
        doubt = costs_predicted.doubts(self._parts, self._belief.covariance, reference=best)
        gain = np.log(self._scores[best]) - np.log(self._scores)
        z = gain / np.maximum(doubt, 1e-9)
        shape = np.exp(-0.5 * np.minimum(z * z, 700.0)) / math.sqrt(2 * math.pi)
        below = np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in z])
        promise = np.where(np.isfinite(z), gain * below + doubt * shape, 0.0)
        return np.asarray(promise)
