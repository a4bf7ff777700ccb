"""What can pay along a stream: the value of asking, less what asking costs on this host.

Seconds are those of one segment of a link's cell, `behind` the segments that come after the one at hand,
`gain` the log by which the model's choices beat the table's, out of fold. On a fast link a segment takes no longer
than a few decisions: there nothing is asked, and that is known before the stream begins (`quiet_segments`). Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_HORIZON_SEGMENTS = 8.0  # content rarely stays the same for longer
KEEPS = 0.7  # share of a decision's worth that the following segments still have
_COLD = 2.0  # a decision between blocks finds cold caches, the measured ones were warm
_RACE_WORTH = 0.005  # of a segment's time: what a race saves beside the model's gain
_RACE_AGAIN = 0.01  # of a segment's time: what one more race saves where the last two segments were alike
_RACE_COST = 4.0  # decisions by the model: each trial is thought about
_LOOK_WORTH = 0.0014
_LOOK_COST = 0.2  # of a decision by the model
_RISK_MAX = 0.0125  # of a stream's time: where the model agrees with the table, asking it is all loss


@dataclass(frozen=True, slots=True)
class Gate:
    """`selection_s`: what one decision by the model costs, warm."""

    selection_s: float

    @staticmethod
    def blocks(behind: float) -> float:
        """How many segments a decision is worth."""
        return 1.0 + KEEPS * min(_HORIZON_SEGMENTS, behind)

    @property
    def cost_s(self) -> float:
        """Of a decision between segments."""
        return _COLD * self.selection_s

    def races(self, gain: float, segment_s: float) -> bool:
        """Whether a race saves more than thinking about its trials costs."""
        return (max(0.0, gain) + _RACE_WORTH) * segment_s > _RACE_COST * self.selection_s

    def races_again(self, segment_s: float) -> bool:
        """The same where the last two segments came out alike."""
        return _RACE_COST * self.selection_s <= _RACE_AGAIN * segment_s

    def asks(self, gain: float, seconds: float, *, behind: float) -> bool:
        """Whether the model is worth its cost, and in vain costs the stream next to nothing."""
        wins = gain * seconds * self.blocks(behind) > self.cost_s
        return wins and self.cost_s <= _RISK_MAX * seconds * (1.0 + behind)

    def looks(self, segment_s: float, *, behind: float) -> bool:
        """Whether what the last segments showed is worth a look."""
        return _LOOK_WORTH * segment_s * self.blocks(behind) > _LOOK_COST * self.cost_s

    def quiet_segments(self, gain: float, seconds: float, *, idle_s: float) -> float:
        """With fewer segments than so many behind it, the first of a stream goes by the table and so do all:
        nothing that could be asked pays. Negative: something may."""
        races = idle_s > self.cost_s and self.races(gain, seconds)
        if races or self.looks(seconds, behind=math.inf):
            return -1.0
        if gain * seconds * self.blocks(math.inf) <= self.cost_s:
            return math.inf
        return self.cost_s / (_RISK_MAX * seconds) - 1.0
