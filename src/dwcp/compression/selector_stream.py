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
from dataclasses import replace

from dwcp.compression import costs_predicted, features
from dwcp.compression.costs import Link, Terms
from dwcp.compression.feedback import StreamErrors
from dwcp.compression.race import Entry, Race, errors_of
from dwcp.compression.selector import SEGMENT_BYTES, SOONEST, Cell, Selector, Step, Tier
from dwcp.compression.selector_gate import KEEPS

_SAME_RATIO, _SAME_PACK = 0.2, 0.3  # logs by which alike segments differ at most, packed by one codec
_LOOK_MARGIN = 0.03  # log of how far the table's choice has to be beaten
_LOOKS_ALIKE = 3  # segments alike after which another look says nothing new
_UNKNOWN_S = math.inf
_CHANGED = 0.1  # a log ratio or speed this far from the last one is other content


class StreamSelector:
    """State of one stream on one link. What is known of its content is a basis of predicted logs and of
    the errors that they turned out to have."""

    # until something of the stream is known: not set one by one, on a fast link nothing is ever asked
    _known: StreamErrors | None = None  # made when something is asked
    _place: int | None = None  # what goes on unless something happens
    _seen: tuple[int, float, float] | None = None  # place, log ratio, log seconds a byte
    _alike = 0  # segments like the last one in a row, that one included
    _looks = False  # whether what was seen last asks for another look
    _watches = True  # whether a look can still pay
    _typical_s = _UNKNOWN_S  # what a segment of this stream takes: half the last one, half what was thought
    _rest: Step | None = None  # of all segments to come: nothing that could be asked pays any more
    _index = 0
    _first = (-1, 0.0, 0.0)  # of the last segments alike: place, log ratio, log seconds a byte
    _steady = False  # whether there are several

    def __init__(self, selector: Selector, terms: Terms) -> None:
        self._selector, self._terms = selector, terms
        self._logs = selector.typical
        self._plain = (terms.goal is SOONEST or terms.goal == SOONEST) and not terms.allowed

    def retune(self, link: Link) -> None:
        """The link changed; what is known of the content stays."""
        self._terms = replace(self._terms, link=link)
        self._place, self._typical_s, self._rest = None, _UNKNOWN_S, None
        self._steady = False
        self._looks = self._seen is not None

    def begin(self, raw: bytes | memoryview, *, left_bytes: int) -> Step:
        """Decides about a segment. `left_bytes` of the stream, this segment included."""
        size = len(raw)
        if self._rest is not None and size == self._rest.size:
            return self._rest
        selector, terms = self._selector, self._terms
        cell = selector.cell(size=size, link=terms.link, mode=terms.mode)
        if self._typical_s == _UNKNOWN_S:
            self._typical_s = cell.seconds
        fresh = self._index == 0
        if fresh and left_bytes - size < cell.quiet_bytes and self._plain:
            whole = size == SEGMENT_BYTES
            self._rest = cell.rest if whole else Step(size, cell.place, cell.place, Tier.TABLE)
            self._watches = False
            return self._rest
        return self._begin(raw, cell, behind=max(0, left_bytes - size) / SEGMENT_BYTES)

    def _begin(self, raw: bytes | memoryview, cell: Cell, *, behind: float) -> Step:
        size, gate = len(raw), self._selector.gate
        segment_s = min(cell.seconds, self._typical_s)
        could_race = cell.idle_s > gate.cost_s and gate.races(cell.gain, cell.seconds)
        races = could_race and gate.races(cell.gain, segment_s)
        if races and self._steady and not gate.races_again(segment_s):
            return Step(size, self._first[0], cell.place, Tier.FEEDBACK)
        fresh = self._index == 0
        if races or (fresh and (not self._plain or gate.asks(cell.gain, cell.seconds, behind=behind))):
            return self._by_model(raw, cell, races=races)
        self._watches = gate.looks(segment_s, behind=behind)
        if self._looks and self._watches and self._plain:
            return self._looked(size, cell)
        place = cell.place if self._place is None else self._place
        if self._terms.allowed and place not in self._terms.allowed:
            place = 0
        step = Step(size, place, cell.place, Tier.TABLE)
        if not (could_race or gate.looks(cell.seconds, behind=behind)):
            self._rest = step  # not even for a typical segment
        return step

    def settle(self, step: Step) -> int:
        """The codec of the segment: the best that was tried before sending, else the lead."""
        if step.race is None or step.late or not step.race.entries:
            return step.lead
        step.tier = Tier.RACE
        return step.race.winner(step.lead)

    def done(self, step: Step, sent: Entry) -> None:
        """What was sent with which codec; call once for each segment."""
        if step is self._rest:
            return
        if step.race is not None:
            self._learn_race(step.race, sent)
        if sent.place and self._watches:
            self._note(step.size, sent)
        self._compare(step.size, sent)
        if step.tier is not Tier.TABLE:
            self._place = sent.place
        took_s = max(sent.pack_s, 8 * sent.packed / self._terms.link.rate_bps)
        self._typical_s = 0.5 * (self._typical_s + took_s)
        self._index += 1

    @property
    def _errors(self) -> StreamErrors:
        if self._known is None:
            self._known = StreamErrors(self._selector.typical_spread)
        return self._known

    def _by_model(self, raw: bytes | memoryview, cell: Cell, *, races: bool) -> Step:
        size, selector = len(raw), self._selector
        vector = features.extract(raw)
        if not selector.model.strange(vector):
            self._logs = selector.model.predict(vector)
            if self._known is None or self._known.spread is not selector.model.spread:
                self._known = StreamErrors(selector.model.spread)
        elif self._errors.spread is not selector.typical_spread:
            self._logs, self._known = selector.typical, StreamErrors(selector.typical_spread)
        decided = selector.weigh(self._logs, self._errors.belief(), size=size, cell=cell, terms=self._terms)
        step = Step(size, decided.place, cell.place, Tier.MODEL)
        if races and decided.prospect is not None:
            step.late = self._index == 0
            step.race = Race(decided.prospect)
        return step

    def _looked(self, size: int, cell: Cell) -> Step:
        """From what the last segments showed alone: nothing of this one is looked at."""
        self._looks = False
        assert self._seen is not None
        place, ratio, pack = self._seen
        keeps = 1.0 - (1.0 - KEEPS) ** self._alike
        seconds = cell.alike.seconds(place, ratio=ratio, pack=pack, keeps=keeps)
        self._place = costs_predicted.leaves(seconds, table=cell.place, margin=_LOOK_MARGIN)
        return Step(size, self._place, cell.place, Tier.FEEDBACK)

    def _compare(self, size: int, sent: Entry) -> None:
        """Whether this segment came out as the first of those alike did, sent with the same codec."""
        ratio, pack = sent.logs(size)
        place, first_ratio, first_pack = self._first
        near = abs(ratio - first_ratio) < _SAME_RATIO and abs(pack - first_pack) < _SAME_PACK
        self._steady = near and place == sent.place
        if not self._steady:
            self._first = (sent.place, ratio, pack)

    def _learn_race(self, race: Race, sent: Entry) -> None:
        """All trials of the block, and what was sent if it was not one of them."""
        entries = race.entries
        if sent.place and all(entry.place != sent.place for entry in entries):
            entries = [*entries, sent]
        self._learn(race.prospect.size, entries)

    def _note(self, size: int, sent: Entry) -> None:
        """A block like those before it costs a comparison; a few of them teach that the content stays."""
        ratio, pack = sent.logs(size)
        if self._seen is not None:
            place, last_ratio, last_pack = self._seen
            if place == sent.place and abs(ratio - last_ratio) < _CHANGED > abs(pack - last_pack):
                self._alike += 1
                self._looks = self._alike <= _LOOKS_ALIKE
                return
        self._seen = (sent.place, ratio, pack)
        self._alike, self._looks = 1, True

    def _learn(self, size: int, entries: list[Entry]) -> None:
        places, errors = errors_of(entries, self._logs + self._selector.scale, size=size)
        if not places:
            return
        if self._errors.surprising(places, errors):
            self._errors.reset()
        self._errors.observe(places, errors)
        self._errors.advance()
        self._selector.drift(float(errors[1::2].mean()))
