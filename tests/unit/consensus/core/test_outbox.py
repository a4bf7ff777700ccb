"""The Persist barrier: what waits, what does not, and in which order it comes out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp.consensus.core.errors import InvariantBroken
from dwcp.consensus.core.machine import (
    Accuse,
    CancelTimer,
    Commit,
    Effect,
    Fetch,
    InstallSnapshot,
    Note,
    Persist,
    Send,
    SetTimer,
    Truncate,
    Verify,
)
from dwcp.consensus.core.outbox import Group, Outbox

HELD: list[Effect] = [
    Send((1,), b"frame"),
    Commit(1, 0, 5, ()),
    Truncate(3),
    InstallSnapshot(4, bytes(32), (1,)),
]
FREE: list[Effect] = [
    Verify("m", ()),
    Fetch((bytes(32),), (1,)),
    SetTimer("view", 5),
    CancelTimer("view"),
    Accuse(1, "equivocation", b""),
    Note("n"),
]


def test_without_a_barrier_everything_passes_at_once() -> None:
    """Goal: no delay where nothing was promised. Method: push every kind before any Persist."""
    outbox = Outbox()

    assert outbox.push(HELD + FREE) == HELD + FREE
    assert outbox.take_group() is None


@pytest.mark.parametrize("effect", HELD)
def test_a_held_kind_waits_for_the_barrier_of_an_earlier_step(effect: Effect) -> None:
    """Goal: the barrier outlives its step. Method: Persist in one push, the effect in the next."""
    outbox = Outbox()
    assert outbox.push([Persist(b"vote")]) == []
    assert outbox.push([effect]) == []

    group = outbox.take_group()
    assert group == Group(1, (b"vote",))
    assert outbox.durable(1) == [effect]


@pytest.mark.parametrize("effect", FREE)
def test_a_free_kind_passes_the_barrier(effect: Effect) -> None:
    """Goal: verification, fetches and timers never wait for the disk. Method: push behind a Persist."""
    outbox = Outbox()

    assert outbox.push([Persist(b"vote"), effect]) == [effect]


def test_effects_before_the_barrier_of_the_same_step_pass() -> None:
    """Goal: order within a step decides. Method: a Send before and one after a Persist."""
    before, after = Send((1,), b"before"), Send((1,), b"after")
    outbox = Outbox()

    assert outbox.push([before, Persist(b"r"), after]) == [before]


def test_a_group_takes_all_that_waits_and_releases_only_its_own() -> None:
    """Goal: a record pushed while a group is in flight is not taken for durable with it.

    Method: two records, take, a third record and its send, then durable: the send stays.
    """
    outbox = Outbox()
    first, second, third = (Send((1,), name) for name in (b"1", b"2", b"3"))
    outbox.push([Persist(b"a"), first, Persist(b"b"), second])
    group = outbox.take_group()
    assert group is not None
    assert group.records == (b"a", b"b")
    outbox.push([Persist(b"c"), third])

    assert outbox.take_group() is None  # one in flight
    assert outbox.durable(1) == [first, second]
    assert outbox.take_group() == Group(2, (b"c",))
    assert outbox.durable(2) == [third]
    assert len(outbox) == 0


def test_durable_of_another_group_is_our_own_bug() -> None:
    """Goal: a host that reports the wrong group stops. Method: report without one, and a wrong number."""
    outbox = Outbox()
    with pytest.raises(InvariantBroken):
        outbox.durable(1)
    outbox.push([Persist(b"a")])
    outbox.take_group()
    with pytest.raises(InvariantBroken):
        outbox.durable(2)


MOVES = st.lists(st.sampled_from(["persist", "send", "commit", "verify", "take", "durable"]), max_size=80)


@given(MOVES)
def test_nothing_overtakes_its_barrier(moves: list[str]) -> None:
    """Goal: the contract, whatever the interleaving.

    Method: number every record and effect; a held effect may leave only when all records emitted
    before it are durable, held effects leave in emission order, and at the end nothing is lost.
    """
    outbox = Outbox()
    emitted, durable, flying = 0, 0, 0
    sequence = 0
    needs: dict[bytes, int] = {}
    left: list[bytes] = []

    def leave(effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                assert needs[effect.frame] <= durable
                left.append(effect.frame)

    for number, move in enumerate([*moves, "durable", "take", "durable"]):
        if move == "persist":
            emitted += 1
            leave(outbox.push([Persist(b"%d" % number)]))
        elif move in ("send", "commit"):
            frame = b"%d" % number
            needs[frame] = emitted
            leave(outbox.push([Send((1,), frame)]))
        elif move == "verify":
            assert outbox.push([Verify(number, ())]) == [Verify(number, ())]
        elif move == "take":
            group = outbox.take_group()
            if group is not None:
                sequence, flying = group.sequence, len(group.records)
        elif flying:
            durable, flying = durable + flying, 0
            leave(outbox.durable(sequence))
    assert left == list(needs)
    assert len(outbox) == 0
