"""What a peer can make a replica keep or do, and that every seam of the rules is explained."""

from __future__ import annotations

import dataclasses

import pytest
from tests.engines.network import EPOCH, Network, payload
from tests.engines.test_liars import frame, give, propose, vote

from dwcp.consensus.core.evidence import Conflict
from dwcp.consensus.core.machine import Submitted
from dwcp.consensus.engines.probft import agreement, faults, params, rules
from dwcp.consensus.engines.probft import messages as wire
from dwcp.consensus.engines.probft.messages import Kind
from dwcp.consensus.engines.probft.params import Params


def test_every_seam_says_which_mistake_it_invites() -> None:
    """Goal: the table stays whole. Method: compare the fields with the module's table."""
    table = {line.split("`")[1] for line in (rules.__doc__ or "").splitlines() if line.startswith("| `")}
    assert table == {field.name for field in dataclasses.fields(rules.Rules)}
    assert len(table) >= 14


@pytest.mark.parametrize(
    "changed", [{"window": 255}, {"checkpoint_interval": 0}, {"unprepared_max": 0}, {"batch_count_max": 0}]
)
def test_params_that_contradict_themselves_are_refused(changed: dict[str, int]) -> None:
    """Goal: broken relations never start. Method: one broken value each."""
    with pytest.raises(ValueError, match="at least"):
        Params(**changed)


def test_headers_known_from_votes_only_are_bounded() -> None:
    """Goal: RUMOURS_MAX. Method: six voters name six headers for one slot."""
    net = Network(13)
    for me in range(2, 12):
        give(net, 1, vote(me, Kind.PREPARE, propose(0, 1, 1, f"p{me}")))
    slot = net.nodes[1].engine._log.get(1)
    assert slot is not None
    assert len(slot.rumours) == agreement.RUMOURS_MAX


def test_an_asking_peer_has_a_budget() -> None:
    """Goal: ASK_BURST and ASK_GAP_MS. Method: a flood of ASKs at once, then after a pause."""
    net = Network(params=Params())
    net.submit("a")
    net.run()
    net.sent.clear()

    def answers() -> int:
        return sum(1 for who, to, m in net.sent if (who, to, m.kind) == (0, 3, Kind.DECIDED))

    for _ in range(1000):
        give(net, 0, frame(3, Kind.ASK, wire.Ask(1), b""))
    assert answers() == params.ASK_BURST
    net.now_ms += 10 * params.ASK_GAP_MS
    for _ in range(1000):
        give(net, 0, frame(3, Kind.ASK, wire.Ask(1), b""))
    assert answers() == params.ASK_BURST + 10


def test_one_answer_is_bounded_in_slots() -> None:
    """Goal: CATCH_UP_SLOTS. Method: ask for everything after forty slots."""
    net = Network(params=Params())
    for i in range(40):
        net.submit(f"p{i}")
        net.run()
    net.sent.clear()
    give(net, 0, frame(3, Kind.ASK, wire.Ask(1), b""))
    slots = [m.body.slot for _, _, m in net.sent if m.kind == Kind.DECIDED]
    assert slots == list(range(1, params.CATCH_UP_SLOTS + 1))


def test_beacons_draw_large_answers_only_now_and_then() -> None:
    """Goal: HEAVY_GAP_MS, no amplification. Method: a flood of beacons from far behind, in view 2."""
    net = Network(params=Params())
    net.crash(0)
    net.submit("a")
    net.tick(times=30)
    assert net.nodes[1].engine.view == 2
    net.sent.clear()
    for _ in range(500):
        give(net, 1, frame(3, Kind.BEACON, wire.Beacon(1, 1, 0, 0), b""))
    views = [m for who, to, m in net.sent if (who, to, m.kind) == (1, 3, Kind.NEWVIEW)]
    assert len(views) == 1


def test_convictions_are_bounded() -> None:
    """Goal: CONVICTIONS_MAX. Method: convict in many views; the oldest is forgotten."""
    net = Network()
    held = net.nodes[1].engine._faults
    for view in range(1, faults.CONVICTIONS_MAX + 50):
        held.convict(Conflict(Kind.COMMIT, EPOCH, 3, 1, view, (b"a" * 32, b"s"), (b"b" * 32, b"s")))
    assert len(held._convicted) == faults.CONVICTIONS_MAX


def test_evidence_about_far_views_is_ignored() -> None:
    """Goal: VIEWS_AHEAD_MAX for evidence too. Method: a conflict in view 10 seen from view 1."""
    net = Network()
    for view, expected in ((10, 0), (6, 1)):
        one, two = propose(1, 1, view, "a"), propose(1, 1, view, "b")
        pair = sorted([(one.body.digest, one.signature), (two.body.digest, two.signature)])
        proof = Conflict(Kind.PROPOSE, EPOCH, 1, 1, view, pair[0], pair[1]).encode()
        give(net, 2, frame(3, Kind.EQUIVOCATION, wire.Equivocation(proof), b""))
        assert len(net.nodes[2].accusations) == expected


def test_a_future_view_of_a_caught_leader_is_blocked_on_entry() -> None:
    """Goal: future-view evidence is applied. Method: replica 1 is caught in view 2 before view 2 begins."""
    net = Network()
    one, two = propose(1, 1, 2, "a"), propose(1, 1, 2, "b")
    pair = sorted([(one.body.digest, one.signature), (two.body.digest, two.signature)])
    proof = Conflict(Kind.PROPOSE, EPOCH, 1, 1, 2, pair[0], pair[1]).encode()
    for me in (2, 3):
        give(net, me, frame(0, Kind.EQUIVOCATION, wire.Equivocation(proof), b""))
    net.crash(0)
    net.submit("after")
    net.tick(times=60)
    assert net.all_committed("after", among=(2, 3))
    assert net.nodes[2].engine.view >= 3


def test_an_abandoned_payload_does_not_fail_views_for_ever() -> None:
    """Goal: one bad client cannot keep the views turning. Method: a payload that every other replica refuses."""
    net = Network()
    for me in range(1, 4):
        net.feed(me, Submitted((payload("bad signature"),)))
    net.tick(ms=100, times=400)
    view = net.nodes[1].engine.view
    net.tick(ms=100, times=100)
    assert net.nodes[1].engine.view == view
    net.submit("good")
    net.tick(times=60)
    assert net.all_committed("good")
