"""Payloads that wait."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.consensus.core.machine import Payload
from dwcp.consensus.engines.probft.pool import Pool, size_of


def payload(number: int, size: int = 10) -> Payload:
    return Payload(number.to_bytes(32, "big"), b"x" * size, b"")


def pool(*, bytes_max: int = 1000, count_max: int = 100, patience: int = 3) -> Pool:
    return Pool(bytes_max=bytes_max, count_max=count_max, patience=patience)


def test_batches_are_oldest_first_and_within_limits() -> None:
    """Goal: fairness and limits. Method: five payloads, limits in count and in bytes."""
    waiting = pool()
    waiting.submit(payload(i) for i in range(5))
    assert waiting.batch(count_max=2, bytes_max=1000) == (payload(0), payload(1))
    assert len(waiting.batch(count_max=9, bytes_max=35)) == 3
    assert len(waiting.batch(count_max=9, bytes_max=1)) == 1


def test_placed_payloads_are_not_taken_twice() -> None:
    """Goal: no payload in two slots. Method: place, submit again."""
    waiting = pool()
    waiting.submit([payload(1)])
    waiting.place(7, [payload(1)])
    assert waiting.submit([payload(1)]) == 0
    assert (len(waiting), waiting.pending_bytes, waiting.placed_count) == (0, 0, 1)
    assert waiting.find(payload(1).digest) == (None, 7)


def test_restored_payloads_come_before_younger_ones() -> None:
    """Goal: a view change does not cost a place in the queue. Method: place, submit another, restore."""
    waiting = pool()
    waiting.submit([payload(1)])
    waiting.place(7, [payload(1)])
    waiting.submit([payload(2)])
    waiting.restore(8, [payload(1)])
    assert waiting.oldest() == payload(2).digest, "only its own slot gives it back"
    waiting.restore(7, [payload(1)])
    assert waiting.pending() == (payload(1), payload(2))


def test_what_does_not_fit_is_counted() -> None:
    """Goal: bounds. Method: too many, too large."""
    assert pool(count_max=3).submit(payload(i) for i in range(5)) == 2
    assert pool(bytes_max=25).submit(payload(i) for i in range(5)) == 3


def test_a_payload_over_which_views_fail_is_abandoned_in_the_end() -> None:
    """Goal: one bad client cannot fail views for ever. Method: blame it as often as there are leaders."""
    waiting = pool(patience=3)
    waiting.submit([payload(1), payload(2)])
    assert [waiting.blame_oldest() for _ in range(3)] == [False, False, True]
    assert waiting.pending() == (payload(2),)
    assert waiting.pending_bytes == size_of(payload(2))
    assert not pool().blame_oldest()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(1, 5)), max_size=60))
@settings(derandomize=True, deadline=None)
def test_books_balance(steps: list[tuple[int, int, int]]) -> None:
    """Goal: bytes and places stay true. Method: any sequence of operations against recounting."""
    waiting = pool(bytes_max=80)
    for action, number, slot in steps:
        match action:
            case 0:
                waiting.submit([payload(number)])
            case 1:
                waiting.place(slot, [payload(number)])
            case 2:
                waiting.restore(slot, [payload(number)])
            case 3:
                waiting.forget(slot, [payload(number)])
        assert waiting.pending_bytes == sum(size_of(p) for p in waiting.pending())
        found = [waiting.find(payload(i).digest) for i in range(13)]
        assert not any(held is not None and at for held, at in found)
