"""The selector along one stream: a decision for each segment, fed back by what the segments before it showed.

The caller drives it, so that time and codecs stay outside:

    step = stream.begin(raw, left_bytes=…)          what to send this segment with, and whether to race
    while step.race and (place := step.race.next()) is not None:
        …pack with it…; step.race.observe(Entry(place, packed, pack_s))
    place = stream.settle(step)                     the codec of this segment
    stream.done(step, Entry(place, packed, pack_s)) what was sent: feedback

The first segment is never held back: it leaves with the lead, and its race (`step.late`) runs while it is on
the wire, for what the next ones can learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dwcp.compression import features
from dwcp.compression.costs import Link, Terms
from dwcp.compression.feedback import StreamErrors
from dwcp.compression.model import RATIO, RATIO_MIN
from dwcp.compression.race import Entry, Race, errors_of
from dwcp.compression.selector import SEGMENT_BYTES, Cell, Decision, Selector, Tier

_HORIZON_SEGMENTS = 8.0  # content rarely stays the same for longer
_KEEPS = 0.7  # share of a decision's worth that the following segments still have
_COLD = 2.0  # a decision between blocks finds cold caches, the measured ones were warm
_RACE_WORTH = 0.003  # of a segment's time: what a race saves beside the model's gain
_REVISION_WORTH = 0.005
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
        self._expected: float | None = None  # log ratio that it should have; None: what is predicted
        self._revise = False
        self._watches = True  # whether what is learned can still pay
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
        cost_s = _COLD * self._selector.selection_s
        races = (max(0.0, cell.gain) + _RACE_WORTH) * cell.seconds > cost_s and cell.idle_s > cost_s
        fresh = self._index == 0
        if races or (fresh and (not self._terms.plain or cell.gain * cell.seconds * blocks > cost_s)):
            return self._by_model(raw, cell, races=races)
        self._watches = _REVISION_WORTH * cell.seconds * blocks > _REVISION_COST * cost_s
        if self._revise and self._watches:
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
        elif sent.place and self._watches:
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
        if races and decided.prospect is not None:
            step.late = self._index == 0
            step.race = Race(decided.prospect)
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
        """All trials of the block, and what was sent if it was not one of them."""
        entries = race.entries
        if sent.place and all(entry.place != sent.place for entry in entries):
            entries = [*entries, sent]
        self._learn(race.prospect.size, entries)

    def _learn_one(self, size: int, sent: Entry) -> None:
        """A block like those before it, or like typical data, costs a comparison and teaches nothing."""
        ratio = math.log(max(RATIO_MIN, size / max(1, sent.packed)))
        if abs(ratio - self._expected_of(sent.place)) < _CHANGED:
            return
        if self._expected is not None:
            self._errors.reset()
        self._learn(size, [sent])
        self._expected = ratio
        self._revise = True

    def _expected_of(self, place: int) -> float:
        """The log ratio that the codec should have."""
        if self._expected is not None:
            return self._expected
        return float(self._logs[RATIO.start + place - 1])

    def _learn(self, size: int, entries: list[Entry]) -> None:
        places, errors = errors_of(entries, self._logs, size=size, scale=self._selector.scale)
        if not places:
            return
        if self._errors.surprising(places, errors):
            self._errors.reset()
        self._errors.observe(places, errors)
        self._errors.advance()
        self._selector.drift(float(errors[1::2].mean()))
