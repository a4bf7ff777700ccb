"""The checkpoint window and the slot log."""

from __future__ import annotations

from collections.abc import Container

import pytest

from dwcp.consensus.core.views.slotlog import CONTENTS_MAX, Content, Decision, Slot, SlotLog
from dwcp.consensus.core.views.votes import Arrival
from dwcp.consensus.core.views.window import Checkpoint, CheckpointWindow, StableCheckpoint, key_of


def first(known: Container[int], sender: int) -> bool:
    return sender not in known


def test_a_window_holds_two_intervals() -> None:
    """Goal: one checkpoint may fail. Method: refuse a smaller one by a sentence."""
    with pytest.raises(ValueError, match="two checkpoint intervals"):
        CheckpointWindow(interval=8, size=15)


def test_only_open_checkpoint_positions_are_collected() -> None:
    """Goal: bounded checkpoints. Method: below, between, inside, at the end, beyond."""
    window = CheckpointWindow(interval=8, size=16)
    assert [i for i in range(40) if window.collects(i)] == [8, 16]
    window.settle(StableCheckpoint(Checkpoint(8, b"r" * 32, 5), ()))
    assert [i for i in range(40) if window.collects(i)] == [16, 24]
    assert (window.low, window.high, window.low_ms) == (8, 24, 5)


def test_other_roots_are_counted_apart_and_once_per_sender() -> None:
    """Goal: a liar's root gets no honest votes. Method: own vote for one root, a liar's for another."""
    window = CheckpointWindow(interval=8, size=16)
    mine, other = Checkpoint(8, b"a" * 32, 1), Checkpoint(8, b"b" * 32, 1)
    window.sign_own(0, mine, b"s")
    assert window.add(1, other, b"s", fresh=first) is Arrival.KEPT
    assert window.add(1, mine, b"s", fresh=first) is Arrival.CONFLICT
    box = window.box(8)
    assert box is not None
    assert box.take(key_of(other), 2) == ()
    assert len(box.valid(key_of(mine))) == 1


def test_settling_forgets_older_votes() -> None:
    """Goal: bounded memory. Method: collect two positions, settle the first."""
    window = CheckpointWindow(interval=8, size=16)
    for index in (8, 16):
        window.sign_own(0, Checkpoint(index, b"a" * 32, 1), b"s")
    window.settle(StableCheckpoint(Checkpoint(8, b"a" * 32, 1), ()))
    assert sorted(window.own) == [16]
    assert window.box(8) is None


def test_dropping_slots_raises_the_base() -> None:
    """Goal: truncation. Method: three slots, drop two; ordered by index whatever came first."""
    log = SlotLog()
    for index in (3, 1, 2):
        log.at(index)
    assert [slot.index for slot in log.ordered()] == [1, 2, 3]
    assert [slot.index for slot in log.drop_up_to(2)] == [1, 2]
    assert (log.base, len(log)) == (2, 1)


def test_undecided_slots_are_those_accepted_here() -> None:
    """Goal: what to repeat. Method: one empty, one accepted, one decided slot."""
    log = SlotLog()
    log.at(1)
    for index in (2, 3):
        log.at(index).accept(b"d" * 32, b"", certified=False, now_ms=0)
    log.at(3).decision = Decision(1, b"d" * 32, ())
    assert [slot.index for slot in log.undecided()] == [2]


def test_contents_of_an_undecided_slot_are_bounded() -> None:
    """Goal: views without decisions cost bounded memory. Method: one content per view for many views."""
    slot = Slot(1)
    for view in range(3 * CONTENTS_MAX):
        digest = bytes([view]) * 32
        slot.accept(digest, b"", certified=False, now_ms=0)
        slot.keep(digest, Content(view, ()))
    assert len(slot.contents) == CONTENTS_MAX
    assert slot.content() == Content(3 * CONTENTS_MAX - 1, ())
