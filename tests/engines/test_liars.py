"""Byzantine replicas that hold a real key: what they can and cannot do."""

from __future__ import annotations

import pytest
from tests.engines.network import CHAIN, EPOCH, KeyedSigner, KeyedVerifier, Network, payload

from dwcp.consensus.core import evidence, machine
from dwcp.consensus.core.evidence import statement
from dwcp.consensus.core.views.slotlog import Content
from dwcp.consensus.crypto.codec import encode
from dwcp.consensus.crypto.envelope import Context, Envelope
from dwcp.consensus.engines.probft import messages as wire
from dwcp.consensus.engines.probft import params as bounds
from dwcp.consensus.engines.probft.messages import Kind, Message
from dwcp.consensus.engines.probft.params import Params

CONTEXT = Context(wire.CONTEXT, CHAIN)


def sign(me: int, kind: Kind, part: bytes) -> bytes:
    return KeyedSigner(me).sign(CONTEXT.signed(kind=kind, epoch=EPOCH, sender=me, body=part))


def frame(me: int, kind: Kind, body: wire.Body, part: bytes) -> Message:
    signature = sign(me, kind, part)
    return wire.decode(Envelope(kind, EPOCH, me, encode(body), signature).encode())


def propose(me: int, slot: int, view: int, *texts: str, time_ms: int = 1_000_000) -> Message:
    batch = wire.pack(Content(time_ms, tuple(payload(text) for text in texts)))
    digest = wire.batch_digest(batch)
    body = wire.Propose(slot, view, digest, batch)
    return frame(me, Kind.PROPOSE, body, statement(slot, view, digest))


def vote(me: int, kind: Kind, header: Message) -> Message:
    body = header.body
    assert isinstance(body, wire.Propose)
    cast = wire.Vote(body.slot, body.view, body.digest, header.signature)
    return frame(me, kind, cast, statement(body.slot, body.view, body.digest))


def give(net: Network, to: int, message: Message, *, by: int | None = None) -> None:
    sender = message.sender if by is None else by
    net.feed(to, machine.Received(sender, message))


@pytest.mark.parametrize("n", [4, 7])
@pytest.mark.parametrize("seed", range(10))
def test_an_equivocating_leader_is_caught_and_replaced(n: int, seed: int) -> None:
    """Goal: S5, A1. Method: the leader shows each half another batch; no split, accused, next view decides."""
    net = Network(n, seed=seed)
    net.nodes[0].up = False
    one, two = propose(0, 1, 1, "left"), propose(0, 1, 1, "right")
    for me in range(1, n):
        give(net, me, one if me % 2 else two)
    for text in ("left", "right"):
        net.submit(text)
    net.tick(times=60)
    rest = tuple(range(1, n))
    assert net.all_committed("left", among=rest)
    assert net.all_committed("right", among=rest)
    for me in rest:
        accusations = net.nodes[me].accusations
        assert [(a.culprit, a.kind) for a in accusations] == [(0, "equivocation")]
        assert_proof(accusations[0])


def assert_proof(accused: machine.Accuse) -> None:
    """Anyone who holds the culprit's key can check the proof; a changed one fails."""
    conflict = evidence.decode(accused.proof)

    def check(part: bytes, signature: bytes) -> bool:
        signed = CONTEXT.signed(kind=conflict.kind, epoch=conflict.epoch, sender=conflict.culprit, body=part)
        claim = machine.SignatureClaim(conflict.culprit, signed, signature)
        return KeyedVerifier().holds(claim)

    assert conflict.holds(check)
    broken = evidence.decode(accused.proof[:-1] + bytes([accused.proof[-1] ^ 1]))
    assert not broken.holds(check)


def test_two_proposals_to_one_replica_are_evidence() -> None:
    """Goal: S5 at one replica. Method: give it both headers; it blocks the view and tells the others."""
    net = Network()
    net.nodes[0].up = False
    give(net, 1, propose(0, 1, 1, "a"))
    give(net, 1, propose(0, 1, 1, "b"))
    assert net.nodes[1].accusations[0].kind == "equivocation"
    net.run()
    assert all(net.nodes[me].accusations for me in (2, 3))
    assert {net.nodes[me].engine.view for me in (1, 2, 3)} == {2}


def test_a_vote_exposes_a_proposal_made_to_one_victim() -> None:
    """Goal: A2, H2. Method: the leader tells replica 3 something else; its vote carries the header."""
    net = Network()
    net.nodes[0].up = False
    for me in (1, 2):
        give(net, me, propose(0, 1, 1, "public"))
    give(net, 3, propose(0, 1, 1, "secret"))
    net.run()
    assert all(node.accusations for node in net.nodes[1:])


def test_a_proposal_reaches_those_whom_the_leader_left_out() -> None:
    """Goal: H2. Method: the leader proposes to two of three; the third pulls the batch from a voter."""
    net = Network()
    header = propose(0, 1, 1, "a")
    net.nodes[0].up = False
    for me in (1, 2):
        give(net, me, header)
    for me in (1, 2, 3):
        give(net, me, vote(0, Kind.COMMIT, header))
    net.tick(ms=60, times=4)
    assert net.all_committed("a", among=(1, 2))
    net.tick(ms=250, times=20)
    assert net.all_committed("a", among=(1, 2, 3))


def test_a_voter_who_votes_twice_is_accused() -> None:
    """Goal: evidence against voters. Method: replica 3 sends PREPAREs for two digests of one slot."""
    net = Network()
    one, two = propose(0, 1, 1, "a"), propose(0, 1, 1, "b")
    net.nodes[0].up = False
    give(net, 1, one)
    give(net, 1, vote(3, Kind.PREPARE, one))
    give(net, 1, vote(3, Kind.PREPARE, two))
    kinds = {a.kind: a.culprit for a in net.nodes[1].accusations}
    assert kinds["double-prepare"] == 3


def test_a_non_leader_cannot_frame_the_leader() -> None:
    """Goal: evidence needs the culprit's signatures. Method: forge a header and an EQUIVOCATION."""
    net = Network()
    net.nodes[0].up = False
    real = propose(0, 1, 1, "a")
    give(net, 1, real)
    forged = wire.Vote(1, 1, bytes(32), sign(3, Kind.PROPOSE, statement(1, 1, bytes(32))))
    give(net, 1, frame(3, Kind.PREPARE, forged, statement(1, 1, bytes(32))))
    conflict = evidence.Conflict(
        Kind.PROPOSE,
        EPOCH,
        0,
        1,
        1,
        (bytes(32), bytes(64)),
        (real.body.digest, real.signature),
    )
    give(net, 1, frame(3, Kind.EQUIVOCATION, wire.Equivocation(conflict.encode()), b""))
    assert not net.nodes[1].accusations
    assert net.nodes[1].engine.view == 1


def test_votes_with_bad_signatures_are_not_counted_and_spoil_nobody_elses() -> None:
    """Goal: A8. Method: replica 3 sends junk signatures first; the rest still decide."""
    net = Network(7)
    header = propose(0, 1, 1, "a")
    net.nodes[0].up = False
    for liar in (5, 6):
        net.nodes[liar].up = False
    for me in range(1, 5):
        for liar in (5, 6):
            for kind in (Kind.PREPARE, Kind.COMMIT):
                good = vote(liar, kind, header)
                give(net, me, Message(kind, EPOCH, liar, bytes(64), good.body, good.raw))
        give(net, me, header)
        give(net, me, vote(0, Kind.COMMIT, header))
    net.run()
    assert net.all_committed("a", among=(1, 2, 3, 4))


def test_the_leaders_own_prepare_does_not_count_twice() -> None:
    """Goal: q distinct promises. Method: header plus the leader's PREPARE plus own: not prepared at n = 4."""
    net = Network(7)
    header = propose(0, 1, 1, "a")
    for me in (0, 2, 3, 4, 5, 6):
        net.nodes[me].up = False
    give(net, 1, header)
    for me in (0, 2, 3):
        give(net, 1, vote(me, Kind.PREPARE, header))
    assert not [m for _, _, m in net.sent if m.kind == Kind.COMMIT]
    give(net, 1, vote(4, Kind.PREPARE, header))
    assert [m for _, _, m in net.sent if m.kind == Kind.COMMIT]


def test_commits_without_being_prepared_decide_nothing() -> None:
    """Goal: H1. Method: a quorum of COMMITs before any PREPARE of others; nothing is delivered."""
    net = Network(7)
    header = propose(0, 1, 1, "a")
    for me in (0, 2, 3, 4, 5, 6):
        net.nodes[me].up = False
    give(net, 1, header)
    for me in (0, 2, 3, 4, 5):
        give(net, 1, vote(me, Kind.COMMIT, header))
    assert not net.decisions


@pytest.mark.parametrize(
    ("slot", "view"), [(0, 1), (17, 1), (2**40, 1), (1, 2**40), (1, 0), (1, 10), (16, 10)]
)
def test_far_future_floods_keep_nothing(slot: int, view: int) -> None:
    """Goal: A10, bounds ahead. Method: votes outside the window or more than V views ahead."""
    net = Network()
    header = propose(0, slot, view, "x")
    before = net.nodes[1].engine.status()
    for me in (2, 3):
        give(net, 1, vote(me, Kind.PREPARE, header))
        give(net, 1, vote(me, Kind.COMMIT, header))
    assert net.nodes[1].engine.status() == before


def test_messages_for_coming_views_are_bounded_per_sender() -> None:
    """Goal: the share of a sender. Method: flood views 2..9; only the sender's own share is used."""
    net = Network(params=Params(checkpoint_interval=128, window=256))
    for view in range(2, 10):
        for slot in range(1, 257):
            give(net, 1, vote(2, Kind.PREPARE, propose(0, slot, view, "x")))
    assert net.nodes[1].engine.status().ahead_messages == bounds.AHEAD_MESSAGES_MAX
    give(net, 1, vote(3, Kind.PREPARE, propose(0, 1, 2, "x")))
    assert net.nodes[1].engine.status().ahead_messages == bounds.AHEAD_MESSAGES_MAX + 1


def test_proposals_for_coming_views_are_bounded_per_sender() -> None:
    """Goal: large messages have a smaller share. Method: replica 1 leads view 2 and floods it."""
    net = Network(params=Params(checkpoint_interval=128, window=256))
    for slot in range(1, 100):
        give(net, 2, propose(1, slot, 2, "x"))
    assert net.nodes[2].engine.status().ahead_messages == bounds.AHEAD_PROPOSALS_MAX


def test_proposals_out_of_order_are_held_up_to_a_bound() -> None:
    """Goal: held proposals are bounded. Method: slots 2..256 without slot 1; then slot 1 comes."""
    net = Network(params=Params(checkpoint_interval=128, window=256))
    net.nodes[0].up = False
    for slot in range(2, 257):
        give(net, 1, propose(0, slot, 1, f"p{slot}", time_ms=1_000_000 + slot))
    assert not net.sent or all(m.kind == Kind.BEACON for _, _, m in net.sent)
    give(net, 1, propose(0, 1, 1, "first"))
    prepared = {m.body.slot for _, _, m in net.sent if m.kind == Kind.PREPARE}
    assert prepared == set(range(1, bounds.HELD_PROPOSALS_MAX + 2))


def test_the_pool_is_bounded() -> None:
    """Goal: pending caps. Method: submit more than fits to a replica that does not lead."""
    net = Network(params=Params(pending_count_max=10, pending_bytes_max=60))
    for i in range(100):
        net.feed(2, machine.Submitted((payload(f"p{i}"),)))
    status = net.nodes[2].engine.status()
    assert status.pending_count == 10
    assert status.pending_bytes <= 60


def test_refused_payloads_are_not_voted_for() -> None:
    """Goal: external validity. Method: the leader proposes a payload that the verifier refuses."""
    net = Network()
    net.nodes[0].up = False
    give(net, 1, propose(0, 1, 1, "bad operation"))
    assert not [m for _, _, m in net.sent if m.kind == Kind.PREPARE]


@pytest.mark.parametrize("time_ms", [0, 1_000_501])
def test_refused_times_are_not_voted_for(time_ms: int) -> None:
    """Goal: tpbft §3.10. Method: a time not after the last batch, and one too far ahead."""
    net = Network()
    net.nodes[0].up = False
    give(net, 1, propose(0, 1, 1, "a", time_ms=time_ms))
    assert not [m for _, _, m in net.sent if m.kind == Kind.PREPARE]


def test_a_digest_must_bind_its_batch() -> None:
    """Goal: votes name what they are for. Method: PROPOSE a batch under another batch's digest."""
    net = Network()
    net.nodes[0].up = False
    good, other = propose(0, 1, 1, "a"), propose(0, 1, 1, "b")
    body = wire.Propose(1, 1, good.body.digest, other.body.batch)
    give(net, 1, frame(0, Kind.PROPOSE, body, statement(1, 1, good.body.digest)))
    assert not [m for _, _, m in net.sent if m.kind == Kind.PREPARE]


def test_a_changed_body_is_refused_even_where_the_own_copy_is_held() -> None:
    """Goal: what the journal keeps is what was voted for. Method: a leader sends right digests, another body.

    Its signature covers digests only; the receiver waits for the same payload itself.
    """
    net = Network()
    net.nodes[0].up = False
    net.submit("a", to=(1,))
    good = propose(0, 1, 1, "a")
    batch = good.body.batch
    changed = wire.Batch(batch.time_ms, batch.digests, (b"changed",), batch.tags)
    body = wire.Propose(1, 1, good.body.digest, changed)
    give(net, 1, frame(0, Kind.PROPOSE, body, statement(1, 1, good.body.digest)))

    assert not [m for _, _, m in net.sent if m.kind == Kind.PREPARE]
    assert not any(b"changed" in record for record in net.nodes[1].journal)


def test_a_false_decision_proof_is_refused() -> None:
    """Goal: catch-up needs q distinct COMMITs. Method: too few, duplicate, forged, wrong bodies."""
    net = Network(learners=frozenset({3}))
    header = propose(0, 1, 1, "a")
    part = statement(1, 1, header.body.digest)
    real = tuple((me, sign(me, Kind.COMMIT, part)) for me in (0, 1, 2))
    other = propose(0, 1, 1, "b").body.batch
    lies = [
        (real[:2], header.body.batch),
        ((real[0], real[0], real[1]), header.body.batch),
        ((*real[:2], (2, bytes(64))), header.body.batch),
        ((*real[:2], (9, real[2][1])), header.body.batch),
        (real, other),
    ]
    for votes, batch in lies:
        body = wire.Decided(1, 1, header.body.digest, votes, batch)
        give(net, 3, frame(2, Kind.DECIDED, body, b""))
    assert not net.decisions
    body = wire.Decided(1, 1, header.body.digest, real, header.body.batch)
    give(net, 3, frame(2, Kind.DECIDED, body, b""))
    assert net.nodes[3].applied == 1


def test_a_body_under_a_certificate_must_hash_to_its_digest() -> None:
    """Goal: certified batches are not rechecked, but bound. Method: swap a body in a true DECIDED."""
    net = Network()
    header = propose(0, 1, 1, "a")
    batch = header.body.batch
    swapped = wire.Batch(batch.time_ms, batch.digests, (b"swapped",), batch.tags)
    part = statement(1, 1, header.body.digest)
    votes = tuple((me, sign(me, Kind.COMMIT, part)) for me in (0, 1, 2))
    give(net, 3, frame(2, Kind.DECIDED, wire.Decided(1, 1, header.body.digest, votes, swapped), b""))
    assert not net.decisions


def test_a_relayed_vote_is_ignored() -> None:
    """Goal: one sender cannot use another's place. Method: deliver replica 2's vote on replica 3's link."""
    net = Network()
    header = propose(0, 1, 1, "a")
    give(net, 1, vote(2, Kind.PREPARE, header), by=3)
    assert net.nodes[1].engine.status().slots == 0
