"""The client's session against honest, silent and lying replicas."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from tests.unit.consensus.ledger.network import Network
from tests.unit.consensus.ledger.scene import USER, authenticators, failure

from dwcp.api import kv
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.crypto import codec
from dwcp.consensus.ledger import messages, operations, receipts
from dwcp.consensus.ledger.client import RETRY_MS, ClientSession, Completed, Event, Outcome, ToReplica
from dwcp.consensus.ledger.messages import Overloaded, Reply, Request

PUT = kv.Put(b"k", b"v")


def _run(network: Network, session: ClientSession) -> list[Completed]:
    return _completed(network.deliver(session, session.flush(now_ms=network.now_ms)))


def _completed(outcomes: list[Outcome]) -> list[Completed]:
    return [outcome for outcome in outcomes if isinstance(outcome, Completed)]


def _retry(network: Network, session: ClientSession) -> list[Completed]:
    assert session.due_ms is not None
    network.now_ms = session.due_ms
    frames, outcomes = session.timer(now_ms=network.now_ms)
    return _completed([*outcomes, *network.deliver(session, frames)])


def test_first_bundle_opens_the_session_and_runs() -> None:
    """Goal: one round for a new client's first operation. Method: submit, flush, count frames."""
    network = Network()
    session = network.session()
    sequence = session.submit(PUT)
    completed = _run(network, session)

    assert [(each.sequence, each.result) for each in completed] == [
        (0, kv.Done(1)),
        (sequence, kv.PutDone(2)),
    ]
    assert len(network.frames) == 1
    assert session.outstanding == 0
    assert session.due_ms is None


def test_many_operations_share_bundles_within_the_window() -> None:
    """Goal: batching, order of sequences, and never more in flight than the server remembers.

    Method: 300 puts.
    """
    network = Network()
    session = network.session()
    for i in range(300):
        session.submit(kv.Put(b"k%d" % i, b""))
    completed = _run(network, session)

    assert sorted(each.sequence for each in completed) == list(range(301))
    assert not any(failure(each.result) for each in completed)
    assert len(network.frames) <= 7
    assert network.ledgers[0].revision == 301


def test_nothing_leaves_beyond_the_window() -> None:
    """Goal: an unanswered operation is never pushed out by later ones. Method: answer nothing, submit 200."""
    network = Network()
    session = network.session(next_sequence=5)
    for _ in range(200):
        session.submit(PUT)
    frames = session.flush(now_ms=0)
    sequences: list[int] = []
    for sent in frames:
        request = messages.decode_client(sent.frame)
        assert isinstance(request, Request)
        bundle = operations.decode(request.body, network.genesis.params)
        sequences += range(bundle.first_sequence, bundle.first_sequence + len(bundle.operations))

    assert sequences == list(range(5, 69))


def test_nothing_overtakes_the_opening() -> None:
    """Goal: an operation ordered before its session is open would be lost.

    Method: submit while the first is out.
    """
    network = Network()
    session = network.session()
    first = session.flush(now_ms=0)
    session.submit(PUT)

    assert len(first) == 1
    assert session.flush(now_ms=0) == []
    completed = _completed(network.deliver(session, first))
    assert [each.sequence for each in completed] == [0, 1]


@pytest.mark.parametrize("n", [4, 7])
def test_f_liars_cannot_make_up_a_result(n: int) -> None:
    """Goal: a result needs f+1 voices.

    Method: f replicas agree on a lie, alone, then together with honest ones.
    """
    network = Network(n)
    f = network.genesis.f
    lie = codec.encode(kv.PutDone(99))

    def twist(replica: int, reply: Reply) -> Reply:
        if replica >= f:
            return reply
        answers = tuple(msgspec.structs.replace(answer, result=lie) for answer in reply.answers)
        return msgspec.structs.replace(reply, answers=answers)

    network.twist = twist
    session = network.session()
    session.submit(PUT)
    completed = _run(network, session)
    while session.outstanding:
        completed += _retry(network, session)

    assert {each.result for each in completed} == {kv.Done(1), kv.PutDone(2)}
    assert network.ledgers[0].revision == 2


def test_one_replica_counts_once() -> None:
    """Goal: repeating oneself convinces nobody. Method: the same reply from one replica many times."""
    network = Network()
    session = network.session()
    session.submit(PUT)
    replies: list[tuple[int, Reply]] = []
    network.twist = lambda replica, reply: replies.append((replica, reply))
    network.deliver(session, session.flush(now_ms=0))
    replica, reply = replies[0]

    for _ in range(5):
        assert session.receive(replica, messages.encode(reply), now_ms=0) == []
    other, second = replies[1]
    assert len(session.receive(other, messages.encode(second), now_ms=0)) == 2


def test_a_replica_cannot_speak_for_another() -> None:
    """Goal: f+1 means f+1 connections. Method: a reply that names another replica or session."""
    network = Network()
    session = network.session()
    for reply in (Reply(2, 1, (), ()), Reply(1, 2, (), ())):
        with pytest.raises(MalformedFrame, match="another replica or session"):
            session.receive(1, messages.encode(reply), now_ms=0)
    with pytest.raises(MalformedFrame):
        session.receive(1, b"junk", now_ms=0)


def test_retries_reach_everyone_and_execute_once() -> None:
    """Goal: a silent leader costs one timeout. Method: nobody hears the first try; the second goes to all."""
    network = Network()
    session = network.session()
    session.submit(PUT)
    network.deaf = {0}
    assert _run(network, session) == []
    completed = _retry(network, session)

    assert [each.result for each in completed] == [kv.Done(1), kv.PutDone(2)]
    assert network.ledgers[0].revision == 2


def test_waits_grow_and_replies_move_to_replicas_that_answer() -> None:
    """Goal: a dead replica is not asked for ever. Method: mute one, look at masks and timeouts."""
    network = Network()
    network.twist = lambda replica, reply: None if replica == 1 else reply
    session = network.session()
    _run(network, session)
    while session.outstanding:
        _retry(network, session)
    for _ in range(5):
        session.submit(PUT)
        started = network.now_ms
        assert len(_run(network, session)) == 1
        assert network.now_ms - started < RETRY_MS


def test_overload_delays_the_retry() -> None:
    """Goal: a busy replica is given time, but cannot silence a client for ever.

    Method: ask for a long wait.
    """
    network = Network()
    session = network.session()
    session.flush(now_ms=0)
    outcomes = session.receive(0, messages.encode(Overloaded(1, 0, 50)), now_ms=100)
    assert isinstance(outcomes[0], Event)
    assert session.due_ms == 150
    session.receive(0, messages.encode(Overloaded(1, 0, 10**12)), now_ms=100)
    assert session.due_ms == 8100


def test_receipts_are_complete_and_verified() -> None:
    """Goal: what the client hands out, anyone can verify. Method: put with receipt, verify offline."""
    network = Network()
    session = network.session()
    session.submit(PUT)
    with_receipt = session.submit(kv.Txn((), (PUT,)), receipt=True)
    completed = {each.sequence: each for each in _run(network, session)}
    receipt = completed[with_receipt].receipt

    assert completed[1].receipt is None
    assert receipt is not None
    facts = receipts.verify(receipts.decode(receipt.encode()), network.genesis)
    assert facts.result == completed[with_receipt].result
    assert facts.index == completed[with_receipt].index
    assert len(facts.signers) >= network.genesis.quorum
    assert facts.client_name == "user"


def _spoil_share(reply: Reply) -> Reply:
    shares = tuple(msgspec.structs.replace(share, signature=bytes(64)) for share in reply.shares)
    return msgspec.structs.replace(reply, shares=shares)


def _spoil_material(reply: Reply) -> Reply:
    materials = tuple(msgspec.structs.replace(each, time_ms=each.time_ms + 1) for each in reply.materials)
    return msgspec.structs.replace(reply, materials=materials)


def _huge_material(reply: Reply) -> Reply:
    materials = tuple(
        msgspec.structs.replace(each, time_ms=-1, count=2**62, position=2**61) for each in reply.materials
    )
    return msgspec.structs.replace(reply, materials=materials)


@pytest.mark.parametrize("spoil", [_spoil_share, _spoil_material, _huge_material])
def test_a_liar_cannot_spoil_a_receipt(spoil: Callable[[Reply], Reply]) -> None:
    """Goal: f bad shares or materials are left out. Method: replica 0, which answers first, lies."""
    network = Network()
    network.twist = lambda replica, reply: spoil(reply) if replica == 0 else reply
    session = network.session()
    sequence = session.submit(PUT, receipt=True)
    completed = {each.sequence: each for each in _run(network, session)}

    receipt = completed[sequence].receipt
    assert receipt is not None
    assert [each.replica for each in receipt.attestations if each.signature == "00" * 64] == []


def test_a_result_without_receipt_is_handed_over_in_the_end() -> None:
    """Goal: lost shares do not hide a committed result. Method: no replica ever gives a share."""
    network = Network()
    network.twist = lambda _, reply: msgspec.structs.replace(reply, shares=())
    session = network.session()
    sequence = session.submit(PUT, receipt=True)
    completed = _run(network, session)
    for _ in range(10):
        if session.outstanding:
            completed += _retry(network, session)

    last = completed[-1]
    assert (last.sequence, last.result, last.receipt) == (sequence, kv.PutDone(2), None)


def test_receipt_after_a_lost_reply() -> None:
    """Goal: a retry brings the receipt of the first execution. Method: all first replies are lost."""
    network = Network()
    session = network.session()
    sequence = session.submit(PUT, receipt=True)
    _run(network, session)
    lost = network.session(session=2)
    sequence = lost.submit(PUT, receipt=True)
    network.twist = lambda replica, reply: None
    _run(network, lost)
    network.twist = lambda replica, reply: reply
    completed: list[Completed] = []
    while lost.outstanding:
        completed += _retry(network, lost)

    receipt = {each.sequence: each.receipt for each in completed}[sequence]
    assert receipt is not None
    assert network.ledgers[0].revision == 3


def test_abandoned_operations_leave_nothing_behind() -> None:
    """Goal: a timed-out caller costs no retries, and sequences stay contiguous.

    Method: abandon queued and sent.
    """
    network = Network()
    session = network.session()
    _run(network, session)
    sent = session.submit(PUT)
    frames = session.flush(now_ms=network.now_ms)
    queued = session.submit(PUT)
    session.abandon(sent)
    session.abandon(queued)
    session.abandon(queued + 50)
    kept = session.submit(kv.Range(b"k"))
    completed = _completed(network.deliver(session, frames)) + _run(network, session)

    assert [each.sequence for each in completed] == [kept]
    assert session.outstanding == 0
    assert session.due_ms is None
    assert network.ledgers[0].revision == 2


def test_an_abandoned_operation_that_arrives_late_changes_nothing() -> None:
    """Goal: after `unknown`, the client's next write is not overwritten by the one before.

    Method: hold the first request back until the second has been executed.
    """
    network = Network()
    session = network.session()
    _run(network, session)
    given_up = session.submit(kv.Put(b"k", b"old"))
    held = session.flush(now_ms=network.now_ms)
    session.abandon(given_up)
    session.submit(kv.Put(b"k", b"new"))
    _run(network, session)
    network.deliver(session, held)
    session.submit(kv.Range(b"k"))
    (read,) = _run(network, session)

    assert isinstance(read.result, kv.RangeDone)
    assert read.result.kvs[0].value == b"new"


def test_connecting_again_sends_what_is_in_flight() -> None:
    """Goal: a reconnect needs no timeout. Method: lose everything, connect, deliver."""
    network = Network()
    session = network.session()
    session.submit(PUT)
    session.flush(now_ms=0)
    completed = _completed(network.deliver(session, session.connected(1)))
    completed += _completed(network.deliver(session, session.connected(2)))

    assert [each.sequence for each in completed] == [0, 1]


def test_requests_avoid_replicas_that_are_not_connected() -> None:
    """Goal: a dead replica costs a new client nothing.

    Method: connect all but the first; no retry is needed.
    """
    network = Network()
    network.twist = lambda replica, reply: reply if replica else None
    network.deaf = {0}
    session = network.session()
    for replica in (1, 2, 3):
        session.connected(replica)
    session.submit(PUT)

    assert len(_run(network, session)) == 2
    session.connected(0)
    session.disconnected(0)
    session.submit(PUT)
    assert len(_run(network, session)) == 1


def test_losing_a_replica_repeats_what_leaned_on_it_at_once() -> None:
    """Goal: a replica that dies costs an operation in flight no second of waiting.

    Method: hand a bundle to the leader, break that connection; the others must get it without a
    timer, replies asked of everybody, and whoever the bundle does not lean on must cause nothing.
    """
    network = Network()
    session = network.session()
    for replica in range(4):
        session.connected(replica)
    session.submit(PUT)
    sent = session.flush(now_ms=0)
    assert [each.replica for each in sent] == [0]
    body = messages.decode_client(sent[0].frame)
    assert isinstance(body, Request)

    asked = [i for i in range(4) if operations.decode(body.body, network.genesis.params).asks(i)]
    idle = next(i for i in (1, 2, 3) if i not in asked)
    assert not _requests(session.disconnected(idle))
    session.connected(idle)
    repeated = session.disconnected(0)
    requests = _requests(repeated)
    assert [replica for replica, _ in requests] == [1, 2, 3]
    assert {request.body for _, request in requests} == {body.body}
    assert {request.replies for _, request in requests} == {messages.Replies.ALL}
    assert [each.sequence for each in _completed(network.deliver(session, repeated))] == [0, 1]


def test_without_the_leader_everybody_hears_of_new_work() -> None:
    """Goal: a dead leader's view is left after one timeout, which takes f+1 replicas that miss it.

    Method: break the leader's connection while idle, submit; then let the others name a new leader.
    """
    network = Network()
    session = network.session()
    for replica in range(4):
        session.connected(replica)
    session.disconnected(0)
    session.submit(PUT)
    frames = session.flush(now_ms=0)
    assert [replica for replica, _ in _requests(frames)] == [1, 2, 3]
    asked = [each.replica for each in frames if not _requests([each])]
    assert asked == [1, 2, 3], "who leads now?"
    network.deliver(session, frames)

    for replica in (1, 2, 3):
        status = messages.StatusReply(replica, 0, 2, 1, 5, 5, True)
        session.receive(replica, messages.encode(status), now_ms=1)
    session.submit(PUT)
    assert [each.replica for each in session.flush(now_ms=1)] == [1]


def _requests(frames: list[ToReplica]) -> list[tuple[int, Request]]:
    decoded = [(each.replica, messages.decode_client(each.frame)) for each in frames]
    return [(replica, frame) for replica, frame in decoded if isinstance(frame, Request)]


def test_greeting_is_for_one_replica() -> None:
    """Goal: a replica cannot use a greeting to pose as the client elsewhere.

    Method: check it at each replica.
    """
    network = Network()
    tags = authenticators(4, USER, network.genesis.chain_id)
    greeting = messages.decode_client(network.session().greeting(1))
    assert isinstance(greeting, messages.Hello)

    assert [messages.hello_holds(greeting, tags[i]) for i in range(4)] == [False, True, False, False]
    stolen = msgspec.structs.replace(greeting, session=2)
    assert not messages.hello_holds(stolen, tags[1])
    assert not messages.hello_holds(msgspec.structs.replace(greeting, session=-1), tags[1])


def test_leader_hints_follow_the_majority() -> None:
    """Goal: one liar cannot draw all requests to itself. Method: one hint, then three."""
    session = Network().session()
    status = messages.StatusReply(3, 0, 1, 3, 0, 1, True)
    session.receive(3, messages.encode(status), now_ms=0)
    assert session.leader == 0
    for replica in (0, 1, 2):
        hint = msgspec.structs.replace(status, replica=replica, leader=2)
        session.receive(replica, messages.encode(hint), now_ms=0)
    assert session.leader == 2
    session.receive(1, messages.encode(msgspec.structs.replace(status, leader=77)), now_ms=0)
    assert session.leader == 2
