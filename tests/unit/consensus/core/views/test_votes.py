"""Counting votes once, and checking no more of them than a quorum needs."""

from __future__ import annotations

from collections.abc import Container

from dwcp.consensus.core.views.votes import Arrival, VoteBox

A, B = b"a" * 32, b"b" * 32


def first(known: Container[int], sender: int) -> bool:
    return sender not in known


def add(box: VoteBox, sender: int, digest: bytes = A, signature: bytes = b"s") -> Arrival:
    return box.add(sender, digest, signature, view=1, fresh=first)


def test_one_vote_per_sender() -> None:
    """Goal: a repetition counts for nothing. Method: add one sender thrice."""
    box = VoteBox()
    assert add(box, 1) is Arrival.KEPT
    assert add(box, 1) is Arrival.KNOWN
    assert box.take(A, 2) == ()


def test_nothing_is_checked_before_a_quorum_is_in_reach() -> None:
    """Goal: the fewest checks. Method: need three; two give nothing, the third gives exactly three."""
    box = VoteBox()
    add(box, 1)
    add(box, 2)
    assert box.take(A, 3) == ()
    add(box, 3, B)
    assert box.take(A, 3) == ()
    add(box, 4)
    add(box, 5)
    taken = box.take(A, 3)
    assert [sender for sender, _, _ in taken] == [1, 2, 4]
    assert box.take(A, 3) == (), "one check at a time"


def test_a_failed_check_takes_its_place_from_the_rest() -> None:
    """Goal: a bad signature costs its sender only. Method: fail a check, split it, go on."""
    box = VoteBox()
    for sender in range(1, 6):
        add(box, sender)
    taken = box.take(A, 3)
    box.split(taken)
    for vote in taken:
        box.settle(A, (vote,), valid=vote[0] != 2)
    assert [sender for sender, _ in box.valid(A)] == [1, 3]
    assert [sender for sender, _, _ in box.take(A, 3)] == [4]
    assert add(box, 2) is Arrival.KNOWN


def test_the_own_vote_counts_without_a_check() -> None:
    """Goal: one check fewer. Method: own vote plus one other reach two."""
    box = VoteBox()
    box.add_own(0, A, b"own")
    add(box, 1)
    assert len(box.take(A, 2)) == 1


def test_votes_for_another_digest_are_counted_apart() -> None:
    """Goal: digests never mix. Method: valid votes for A do not help B."""
    box = VoteBox()
    box.add_own(0, A, b"own")
    add(box, 1, B)
    add(box, 2, B)
    taken = box.take(B, 2)
    box.settle(B, taken, valid=True)
    assert len(box.valid(A)) == 1
    assert len(box.valid(B)) == 2


def test_a_conflict_is_reported_once() -> None:
    """Goal: bounded evidence. Method: three digests by one sender; the first conflict is told."""
    box = VoteBox()
    assert add(box, 1) is Arrival.KEPT
    assert add(box, 1, B) is Arrival.CONFLICT
    assert add(box, 1, b"c" * 32) is Arrival.KNOWN
    assert box.first_of(1) == (A, b"s")


def test_the_leading_digest_is_the_one_with_most_votes() -> None:
    """Goal: whom to ask for a batch. Method: two camps, ties by digest."""
    box = VoteBox()
    assert box.leading() is None
    add(box, 3, B)
    add(box, 1, A)
    assert box.leading() == (A, [1])
    add(box, 2, B)
    assert box.leading() == (B, [2, 3])
