"""Each checker must be able to fail: crafted histories that break exactly one property."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dwcp.api import kv
from dwcp.consensus.core.machine import Commit, Payload, Persist, Send
from dwcp.consensus.crypto.codec import encode
from dwcp.consensus.ledger.ledger import Executed, Outcome
from dwcp.consensus.ledger.messages import Answer
from dwcp.consensus.ledger.operations import Bundle
from dwcp.consensus.sim.checkers import (
    Agreement,
    Barriers,
    Certificate,
    Linearizability,
    Model,
    Sessions,
    Violation,
    Vote,
    Votes,
)

CLIENT = bytes(32)


def commit(index: int, content: bytes = b"a", time_ms: int | None = None, *, final: bool = True) -> Commit:
    return Commit(index, 0, index if time_ms is None else time_ms, (Payload(content, b""),), final)


def executed(
    index: int, *, history: bytes = b"h", root: bytes | None = None, outcomes: tuple[Outcome, ...] = ()
) -> Executed:
    return Executed(index, 0, index, b"", history, b"b", b"r", root, outcomes, 0, 0)


def outcome(index: int, sequence: int, operation: kv.Operation, result: kv.Result) -> Outcome:
    bundle = Bundle(b"", CLIENT, 1, sequence, 0, 0, 0, (encode(operation),))
    return Outcome(bundle, b"", (Answer(sequence, index, encode(result)),))


def two_places() -> Agreement:
    agreement = Agreement()
    for place in (0, 1):
        agreement.stands_at(place, 0)
    agreement.executed(0, commit(1), executed(1))
    return agreement


BREAKS: list[tuple[str, Callable[[Agreement], None]]] = [
    ("agreement", lambda a: a.executed(1, commit(1, b"b"), executed(1))),
    ("agreement", lambda a: a.executed(1, commit(1, time_ms=9), executed(1))),
    ("history", lambda a: a.executed(1, commit(1), executed(1, history=b"x"))),
    ("contiguity", lambda a: a.executed(1, commit(2), executed(2))),
    ("contiguity", lambda a: a.executed(0, commit(1), executed(1))),
    ("contiguity", lambda a: a.installed(0, 1, b"root")),
    ("finality", lambda a: a.executed(0, commit(2, final=False), executed(2))),
    ("time", lambda a: a.executed(0, commit(2, time_ms=1), executed(2))),
]


@pytest.mark.parametrize(("checker", "deed"), BREAKS)
def test_agreement_sees(checker: str, deed: Callable[[Agreement], None]) -> None:
    """Goal: every way to disagree is noticed. Method: one replica did position 1, then one wrong deed."""
    agreement = two_places()
    with pytest.raises(Violation) as caught:
        deed(agreement)
    assert caught.value.checker == checker


def test_equal_histories_agree() -> None:
    """Goal: no false alarm. Method: both replicas execute the same; one restarts from a snapshot."""
    agreement = two_places()
    agreement.executed(1, commit(1), executed(1))
    agreement.executed(0, commit(2), executed(2, root=b"s"))
    agreement.executed(1, commit(2), executed(2, root=b"s"))
    agreement.stands_at(0, 1)
    agreement.executed(0, commit(2), executed(2, root=b"s"))
    agreement.stands_at(1, 0)
    agreement.installed(1, 2, b"s")

    assert agreement.highest == 2


def test_two_states_at_one_checkpoint_are_seen() -> None:
    """Goal: state roots are compared. Method: the same history, another root."""
    agreement = two_places()
    agreement.executed(0, commit(2), executed(2, root=b"s"))
    agreement.executed(1, commit(1), executed(1))
    with pytest.raises(Violation, match="state_root"):
        agreement.executed(1, commit(2), executed(2, root=b"t"))


def test_a_second_digest_is_a_double_vote_and_the_same_one_is_not() -> None:
    """Goal: resending is fine, changing one's mind is not. Method: the same vote twice, then another."""
    votes = Votes()
    votes.sent(1, [Vote("prepare", 1, 5, b"a")])
    votes.sent(1, [Vote("prepare", 1, 5, b"a"), Vote("commit", 1, 5, b"b"), Vote("prepare", 2, 5, b"b")])
    with pytest.raises(Violation, match="double_vote"):
        votes.sent(1, [Vote("prepare", 1, 5, b"b")])


def test_a_new_vote_in_a_view_that_was_left_is_seen() -> None:
    """Goal: after its report to view 3 a replica is silent below. Method: resend old, then vote anew."""
    votes = Votes()
    votes.sent(1, [Vote("prepare", 2, 5, b"a")])
    votes.reported(1, 3)
    votes.sent(1, [Vote("prepare", 2, 5, b"a"), Vote("prepare", 3, 5, b"a")])
    with pytest.raises(Violation, match="stale_vote"):
        votes.sent(1, [Vote("prepare", 2, 6, b"a")])


def test_a_proof_of_votes_that_nobody_gave_is_seen() -> None:
    """Goal: certificates hold real votes. Method: a vote of another view, too few signers, then a true one."""
    votes = Votes()
    given, other = Vote("prepare", 2, 5, b"a"), Vote("prepare", 1, 5, b"a")
    for replica in (0, 1):
        votes.sent(replica, [given])
    for wrong in (
        Certificate(other, (0, 1), 2),
        Certificate(given, (0, 0), 2),
        Certificate(given, (0, 3), 2),
    ):
        with pytest.raises(Violation, match="certificate"):
            votes.shown(2, wrong, liars=frozenset())
    votes.shown(2, Certificate(given, (0, 1), 2), liars=frozenset())
    votes.shown(2, Certificate(given, (0, 3), 2), liars=frozenset({3}))


def test_a_vote_that_only_its_giver_showed_may_be_passed_on() -> None:
    """Goal: no false alarm where a crash swallowed the frame. Method: the giver shows it, then another one."""
    votes = Votes()
    proof = Certificate(Vote("prepare", 2, 5, b"a"), (1,), 1)
    votes.shown(1, proof, liars=frozenset())
    votes.shown(2, proof, liars=frozenset())


def test_what_leaves_before_its_record_is_durable_is_seen() -> None:
    """Goal: the barrier holds by the disk's count. Method: a record, then a frame and a decision behind it."""
    barriers = Barriers()
    barriers.started(0)
    barriers.emitted(0, [Send((1,), b"before"), Persist(b"r"), Send((1,), b"after"), commit(1)])
    barriers.sent(0, b"before")
    with pytest.raises(Violation, match="barrier"):
        barriers.sent(0, b"after")
    with pytest.raises(Violation, match="barrier"):
        barriers.executed(0, 1)
    barriers.synced(0, 1)
    barriers.sent(0, b"after")
    barriers.executed(0, 1)


PUT = kv.Put(b"k", b"v")


def test_an_operation_executed_at_two_positions_is_seen() -> None:
    """Goal: exactly once. Method: the same sequence answered from another index."""
    sessions = Sessions()
    sessions.executed(0, executed(1, outcomes=(outcome(1, 1, PUT, kv.PutDone(2)),)))
    with pytest.raises(Violation, match="exactly_once"):
        sessions.executed(1, executed(2, outcomes=(outcome(2, 1, PUT, kv.PutDone(3)),)))


def test_a_forgotten_bundle_ordered_again_is_refused_not_executed() -> None:
    """Goal: `expired` may follow an answer, but only one that its client has. Method: before and after it."""
    sessions, refused = Sessions(), kv.Failed("expired", "forgotten")
    sessions.executed(0, executed(1, outcomes=(outcome(1, 1, PUT, kv.PutDone(2)),)))
    again = executed(2, outcomes=(outcome(2, 1, PUT, refused),))
    with pytest.raises(Violation, match="exactly_once"):
        sessions.executed(0, again)
    sessions.acknowledge((CLIENT, 1, 1), (1, encode(kv.PutDone(2))))
    sessions.executed(0, again)
    with pytest.raises(Violation, match="exactly_once"):
        sessions.executed(0, executed(3, outcomes=(outcome(3, 1, PUT, kv.PutDone(4)),)))


def test_an_acknowledgement_that_nobody_honest_backs_is_seen() -> None:
    """Goal: what a client was told is true. Method: acknowledge what never happened, or otherwise."""
    sessions = Sessions()
    with pytest.raises(Violation, match="durability"):
        sessions.acknowledge((CLIENT, 1, 1), (1, b""))
    sessions.executed(0, executed(1, outcomes=(outcome(1, 1, PUT, kv.PutDone(2)),)))
    with pytest.raises(Violation, match="durability"):
        sessions.acknowledge((CLIENT, 1, 1), (1, encode(kv.PutDone(3))))
    sessions.acknowledge((CLIENT, 1, 1), (1, encode(kv.PutDone(2))))

    assert sessions.acknowledged == 1


def test_an_operation_placed_before_one_that_had_returned_is_seen() -> None:
    """Goal: real time is respected. Method: one returns at index 5, a later one claims index 4."""
    reads = Linearizability()
    reads.invoked((CLIENT, 1, 1))
    reads.returned((CLIENT, 1, 1), 5)
    reads.invoked((CLIENT, 1, 2))
    with pytest.raises(Violation, match="linearizability"):
        reads.returned((CLIENT, 1, 2), 4)


def test_concurrent_operations_may_be_placed_either_way() -> None:
    """Goal: no false alarm. Method: both invoked before either returns."""
    reads = Linearizability()
    reads.invoked((CLIENT, 1, 1))
    reads.invoked((CLIENT, 1, 2))
    reads.returned((CLIENT, 1, 1), 5)
    reads.returned((CLIENT, 1, 2), 4)


def test_a_stale_read_is_seen() -> None:
    """Goal: reads see the latest write. Method: a put, then a read that saw nothing."""
    reads = Linearizability()
    reads.executed(executed(1, outcomes=(outcome(1, 1, PUT, kv.PutDone(2)),)))
    stale = kv.RangeDone(2, (), 0, False)
    reads.executed(executed(2, outcomes=(outcome(2, 2, kv.Range(b"k"), stale),)))
    with pytest.raises(Violation, match="linearizability"):
        reads.conclude()


def test_the_model_answers_like_the_store() -> None:
    """Goal: the model is right where the store is. Method: put, read, a swap that holds, one that fails."""
    model = Model()
    entry = kv.KeyValue(b"k", b"v", 2, 2, 1)
    guard = kv.Compare(b"k", kv.Target.MOD, kv.Relation.LESS, 3)
    swap = kv.Txn((guard,), (kv.Put(b"k", b"w"),), (kv.Range(b"k"),))
    newer = kv.KeyValue(b"k", b"w", 2, 3, 2)

    assert not model.disagrees(PUT, kv.PutDone(2))
    assert not model.disagrees(kv.Range(b"k"), kv.RangeDone(2, (entry,), 1, False))
    assert not model.disagrees(swap, kv.TxnDone(3, 9, True, (kv.PutDone(3),)))
    assert not model.disagrees(swap, kv.TxnDone(3, 9, False, (kv.RangeDone(3, (newer,), 1, False),)))
    assert model.disagrees(PUT, kv.PutDone(9))
    assert model.disagrees(PUT, kv.Failed("expired", ""))
