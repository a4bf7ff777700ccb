"""The selector along one stream: a decision for each segment, fed back by what the segments before it showed.

The caller drives it, so that time and codecs stay outside:

    step = stream.begin(raw, left_bytes=…)          what to send this segment with, and whether to race
    while step.race and (place := step.race.next(must=step.table)) is not None:
        …pack with it…; step.race.observe(Entry(place, packed, pack_s))
    place = stream.settle(step)                     the codec of this segment
    stream.done(step, Entry(place, packed, pack_s)) what was sent: feedback

The first segment is never held back: it leaves with the lead, and its race (`step.late`) runs while it is on
the wire, for what the next ones can learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from dwcp.compression import features
from dwcp.compression.costs import Link, Terms
from dwcp.compression.feedback import StreamErrors
from dwcp.compression.model import PACK, RATIO, RATIO_MIN
from dwcp.compression.race import Entry, Race
from dwcp.compression.selector import SEGMENT_BYTES, Cell, Decision, Selector, Tier

_HORIZON_SEGMENTS = 8.0  # content rarely stays the same for longer
_KEEPS = 0.7  # share of a decision's worth that the following segments still have
_RACE_WORTH = 0.01  # a race saves about so much of a segment's time
_REVISION_WORTH = 0.02
_REVISION_COST = 0.5  # of a decision by the model
_CHANGED = 0.3  # a log ratio this far off what was expected is other content


@dataclass(slots=True)
class Step:
    """One segment on its way. `lead` is sent unless a race finds better; `late`: race after sending."""

    size: int
    lead: int
    table: int
    tier: Tier
    race: Race | None = None
    late: bool = False


class StreamSelector:
    """State of one stream on one link. What is known of its content is a basis of predicted logs and of
    the errors that they turned out to have."""

    def __init__(self, selector: Selector, terms: Terms) -> None:
        self._selector, self._terms = selector, terms
        self._logs = selector.typical
        self._errors = StreamErrors(selector.typical_spread)
        self._place: int | None = None  # what goes on unless something happens
        self._expected = math.inf  # log ratio that it should have; infinite: nothing is known yet
        self._revise = False
        self._index = 0

    def retune(self, link: Link) -> None:
        """The link changed; what is known of the content stays."""
        self._terms = replace(self._terms, link=link)
        self._place = None
        self._revise = not self._errors.fresh

    def begin(self, raw: bytes | memoryview, *, left_bytes: int) -> Step:
        """Decides about a segment. `left_bytes` of the stream, this segment included."""
        size = len(raw)
        cell = self._selector.cell(size=size, link=self._terms.link, mode=self._terms.mode)
        blocks = 1.0 + _KEEPS * min(_HORIZON_SEGMENTS, max(0, left_bytes - size) / SEGMENT_BYTES)
        cost_s = self._selector.selection_s
        races = _RACE_WORTH * cell.seconds > cost_s and cell.idle_s > cost_s
        fresh = self._index == 0
        if races or (fresh and (not self._terms.plain or cell.gain * cell.seconds * blocks > cost_s)):
            return self._by_model(raw, cell, races=races)
        if self._revise and _REVISION_WORTH * cell.seconds * blocks > _REVISION_COST * cost_s:
            return self._revised(size, cell)
        place = cell.place if self._place is None else self._place
        if self._terms.allowed and place not in self._terms.allowed:
            place = 0
        return Step(size, place, cell.place, Tier.TABLE)

    def settle(self, step: Step) -> int:
        """The codec of the segment: the best that was tried before sending, else the lead."""
        if step.race is None or step.late or not step.race.entries:
            return step.lead
        step.tier = Tier.RACE
        return step.race.winner(step.lead)

    def done(self, step: Step, sent: Entry) -> None:
        """What was sent with which codec; call once for each segment."""
        if step.race is not None:
            self._learn_race(step.race, sent)
        elif sent.place:
            self._learn_one(step.size, sent)
        self._place = sent.place
        self._index += 1

    def _by_model(self, raw: bytes | memoryview, cell: Cell, *, races: bool) -> Step:
        size, selector = len(raw), self._selector
        vector = features.extract(raw)
        if not selector.model.strange(vector):
            self._logs = selector.model.predict(vector)
            if self._errors.spread is not selector.model.spread:
                self._errors = StreamErrors(selector.model.spread)
        elif self._errors.spread is not selector.typical_spread:
            self._logs, self._errors = selector.typical, StreamErrors(selector.typical_spread)
        decided = self._weigh(size, cell, Tier.MODEL)
        step = Step(size, decided.place, cell.place, Tier.MODEL)
        if races:
            step.late = self._index == 0
            step.race = Race(
                self._logs, size=size, terms=self._terms, errors=self._errors, scale=selector.scale
            )
        return step

    def _revised(self, size: int, cell: Cell) -> Step:
        """From the feedback alone: nothing of this segment is looked at."""
        self._revise = False
        decided = self._weigh(size, cell, Tier.FEEDBACK)
        self._place = decided.place
        if decided.place:
            at = RATIO.start + decided.place - 1
            self._expected = float(self._logs[at] + self._errors.belief().mean[at])
        return Step(size, decided.place, cell.place, Tier.FEEDBACK)

    def _weigh(self, size: int, cell: Cell, tier: Tier) -> Decision:
        return self._selector.weigh(
            self._logs, self._errors.belief(), size=size, table=cell.place, terms=self._terms, tier=tier
        )

    def _learn_race(self, race: Race, sent: Entry) -> None:
        if sent.place and all(entry.place != sent.place for entry in race.entries):
            race.observe(sent)
        if race.outliers():
            self._errors.reset()
        race.learn()
        self._errors.advance()

    def _learn_one(self, size: int, sent: Entry) -> None:
        """A block that does not surprise costs a comparison, no more."""
        ratio = math.log(max(RATIO_MIN, size / max(1, sent.packed)))
        if abs(ratio - self._expected) < _CHANGED:
            return
        if self._expected != math.inf:
            self._errors.reset()
        at = sent.place - 1
        places = [RATIO.start + at, PACK.start + at]
        pack = math.log(max(sent.pack_s, 1e-7) / size) - self._selector.scale[places[1]]
        self._errors.observe(places, np.array([ratio, pack]) - self._logs[places])
        self._expected = ratio
        self._revise = True
