"""Wishes and the views they lead to."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.consensus.core.views.synchroniser import Synchroniser, Turn


def four() -> Synchroniser:
    return Synchroniser(n=4, me=0, weak=2, strong=3)


def test_a_weak_quorum_is_joined_and_a_strong_one_enters() -> None:
    """Goal: f+1 amplify, 2f+1 enter. Method: wishes for view 2 one by one."""
    sync = four()
    sync.note(1, 2)
    assert sync.turn(1) == Turn(0, 0)
    sync.note(2, 2)
    assert sync.turn(1) == Turn(2, 0)
    sync.note(0, 2)
    assert sync.turn(1) == Turn(0, 2)
    assert sync.turn(2) == Turn(0, 0)


def test_liars_alone_move_nobody() -> None:
    """Goal: A10. Method: f replicas wish for absurd views."""
    sync = four()
    sync.note(3, 2**62)
    assert sync.turn(1) == Turn(0, 0)
    assert sync.expired(1) == 2


def test_entering_waits_while_a_weak_quorum_wants_more() -> None:
    """Goal: V2 = V1. Method: two want view 3, one view 2; nobody enters 2, all wish 3."""
    sync = four()
    for replica, view in ((0, 2), (1, 3), (2, 3)):
        sync.note(replica, view)
    assert sync.turn(1) == Turn(3, 0)


def test_a_wish_never_falls() -> None:
    """Goal: bounded, monotone memory. Method: a lower wish is no news."""
    sync = four()
    assert sync.note(1, 5)
    assert not sync.note(1, 4)
    assert sync.wishes == [0, 5, 0, 0]


def test_expiry_wishes_for_the_next_or_what_others_want() -> None:
    """Goal: laggards jump. Method: expire alone, then with f+1 ahead."""
    sync = four()
    assert sync.expired(1) == 2
    sync.note(1, 7)
    sync.note(2, 7)
    assert sync.expired(1) == 7


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), max_size=40))
@settings(derandomize=True, deadline=None)
def test_entered_views_have_a_strong_quorum_of_wishes(wishes: list[tuple[int, int]]) -> None:
    """Goal: no view without 2f+1 wishes. Method: any wishes at n = 7, count at each entry."""
    sync = Synchroniser(n=7, me=0, weak=3, strong=5)
    current = 1
    for replica, view in wishes:
        sync.note(replica, view)
        turn = sync.turn(current)
        if turn.enter:
            assert sum(1 for w in sync.wishes if w >= turn.enter) >= 5
            assert turn.enter > current
            current = turn.enter
