"""Leaders that fail, and what the next view owes to what came before."""

from __future__ import annotations

import pytest
from tests.engines.network import Network, payload

from dwcp.consensus.core.machine import Submitted, TimerFired
from dwcp.consensus.engines.probft.messages import NULL_DIGEST, Kind, Message, NewView
from dwcp.consensus.engines.probft.params import Params


@pytest.mark.parametrize("n", [4, 5, 7])
@pytest.mark.parametrize("seed", range(8))
def test_a_silent_leader_is_replaced(n: int, seed: int) -> None:
    """Goal: A11, progress within a view timeout. Method: crash the leader with requests pending."""
    net = Network(n, seed=seed)
    net.crash(0)
    net.submit("a")
    net.submit("b")
    net.tick(times=40)
    rest = tuple(range(1, n))
    assert net.all_committed("a", among=rest)
    assert net.all_committed("b", among=rest)
    assert {net.nodes[me].engine.view for me in rest} == {2}


def test_two_silent_leaders_in_a_row_at_seven() -> None:
    """Goal: the synchroniser passes several failed views. Method: crash leaders of views 1 and 2."""
    net = Network(7)
    net.crash(0)
    net.crash(1)
    net.submit("a")
    net.tick(times=80)
    assert net.all_committed("a", among=(2, 3, 4, 5, 6))
    assert net.nodes[3].engine.view == 3


def test_an_idle_replica_does_not_leave_its_view() -> None:
    """Goal: idle is quiet. Method: 30 s without requests; only beacons may fly, once a second."""
    net = Network()
    net.submit("a")
    net.tick(times=20)
    net.sent.clear()
    net.tick(times=600)
    assert {node.engine.view for node in net.nodes} == {1}
    assert {m.kind for _, _, m in net.sent} == {Kind.BEACON}
    assert len(net.sent) <= 31 * 4 * 3
    assert all(set(node.timers) == {"beacon"} for node in net.nodes)


@pytest.mark.parametrize("seed", range(10))
def test_a_decided_slot_survives_the_view_change(seed: int) -> None:
    """Goal: nothing decided is lost. Method: only one replica sees the COMMITs, then the leader dies."""
    net = Network(seed=seed)
    net.drop = lambda sender, to, message: message.kind == Kind.COMMIT and to != 3
    net.submit("kept")
    net.run()
    assert net.nodes[3].applied == 1
    assert net.nodes[1].applied == 0
    net.drop = lambda sender, to, message: False
    net.crash(0)
    net.crash(3) if seed % 2 else None
    net.nodes[3].up = True
    net.submit("after", to=(1, 2))
    net.tick(times=60)
    assert net.all_committed("kept", among=(1, 2, 3))
    assert net.all_committed("after", among=(1, 2, 3))


def test_a_prepared_slot_is_proposed_again_with_its_digest() -> None:
    """Goal: A4's rule, the highest prepared digest. Method: no COMMIT arrives, then view 2."""
    net = Network()
    net.drop = lambda sender, to, message: message.kind == Kind.COMMIT
    net.submit("prepared")
    net.run()
    net.drop = lambda sender, to, message: False
    net.crash(0)
    net.tick(times=60)
    assert net.all_committed("prepared", among=(1, 2, 3))
    assert net.decisions[1][1] == (payload("prepared").digest,)


def test_an_unprepared_slot_goes_back_to_the_pool() -> None:
    """Goal: payloads outlive their slot. Method: no PREPARE arrives in view 1, then its leader dies."""
    net = Network()
    net.drop = lambda sender, to, message: message.kind == Kind.PREPARE
    net.submit("again")
    net.run()
    net.drop = lambda sender, to, message: False
    net.crash(0)
    net.tick(times=60)
    assert net.committed(1) == [payload("again").digest.hex()[:8]]


def test_a_gap_becomes_a_null_batch() -> None:
    """Goal: PBFT's null rule. Method: slot 2 is prepared nowhere but at the dead leader, slot 3 is.

    With two slots in flight the leader alone sees slot 2 prepared.
    """
    net = Network(params=Params(checkpoint_interval=8, window=16, unprepared_max=3))

    def lossy(sender: int, to: int, message: Message) -> bool:
        slot = getattr(message.body, "slot", 0)
        if message.kind == Kind.PREPARE and slot == 2:
            return to != 0
        return message.kind == Kind.COMMIT and slot >= 2

    net.drop = lossy
    for text in ("one", "two", "three"):
        net.feed(0, _submitted(text))
    net.run()
    assert net.nodes[1].applied == 1
    net.drop = lambda sender, to, message: False
    net.crash(0)
    net.tick(ms=50, times=60)
    views = [m.body for _, _, m in net.sent if isinstance(m.body, NewView)]
    assert [(h.slot, h.digest == NULL_DIGEST) for h in views[0].headers] == [
        (1, False),
        (2, True),
        (3, False),
    ]
    assert net.decisions[2][1] == ()
    assert net.all_committed("three", among=(1, 2, 3))


def test_executed_slots_are_agreed_on_again_but_not_committed_again() -> None:
    """Goal: exactly once per start. Method: five slots, a view change; the network counts commits."""
    net = Network(params=Params())
    for i in range(5):
        net.submit(f"p{i}")
        net.run()
    net.crash(0)
    net.submit("after")
    net.tick(times=40)
    assert [index for index, _, _ in net.nodes[1].history] == list(range(1, 7))


def test_f_wishes_move_nobody() -> None:
    """Goal: A10. Method: f replicas time out alone, again and again; the view stays."""
    net = Network(7)
    for _ in range(10):
        for me in (5, 6):
            net.nodes[me].engine._changes.give_up(net.now_ms)
        net.submit(f"p{net.random.random()}", to=(0,))
        net.tick(times=5)
    assert {node.engine.view for node in net.nodes} == {1}


def test_a_replica_that_missed_the_view_change_follows() -> None:
    """Goal: NEWVIEW reaches laggards. Method: cut one replica off during the change, then heal."""
    net = Network(7)
    cut = 5
    net.drop = lambda sender, to, message: cut in (sender, to)
    net.crash(0)
    net.submit("a")
    net.tick(times=60)
    assert net.nodes[cut].engine.view == 1
    net.drop = lambda sender, to, message: False
    net.tick(times=100)
    assert net.nodes[cut].engine.view == net.nodes[3].engine.view
    assert net.all_committed("a", among=(1, 2, 3, 4, 5, 6))


def test_the_timeout_grows_with_failed_views_and_recovers() -> None:
    """Goal: the adaptive timeout. Method: count it after failed views and after many commits."""
    net = Network(params=Params())
    net.crash(0)
    net.submit("a")
    net.tick(times=40)
    assert net.nodes[1].engine.status().timeout_ms == 450
    for i in range(100):
        net.submit(f"p{i}")
        net.run()
    assert net.nodes[1].engine.status().timeout_ms == 300


@pytest.mark.parametrize("seed", range(30))
def test_lossy_links_never_split_the_log(seed: int) -> None:
    """Goal: safety under loss, liveness after it. Method: 15 % loss with changing leaders, then calm."""
    net = Network(seed=seed)
    net.drop = lambda sender, to, message: net.random.random() < 0.15
    for i in range(30):
        net.submit(f"p{i}", to=(net.random.randrange(4), net.random.randrange(4)))
        if i % 2:
            net.tick(times=3)
        if i == 10:
            net.crash(0)
        if i == 20:
            net.restart(0)
    net.drop = lambda sender, to, message: False
    for i in range(30):
        net.submit(f"p{i}")
    net.tick(times=250)
    assert all(net.all_committed(f"p{i}") for i in range(30))


def _submitted(text: str) -> Submitted:
    return Submitted((payload(text),))


@pytest.mark.parametrize("seed", range(12))
def test_nobody_names_a_leader_that_does_not_lead_yet(seed: int) -> None:
    """Goal: what waits is forwarded to a new leader that takes it, not to one still in the old view.

    Method: a view change in random order of messages, journals synced late; whenever a replica
    begins to name another leader, that replica must name itself.
    """
    net = Network(seed=seed, instant=False)
    net.crash(0)
    net.submit("a", to=(1, 2, 3))
    named = {me: net.nodes[me].engine.leader for me in (1, 2, 3)}
    changes = 0
    for _ in range(60):
        net.now_ms += 50
        for me in (1, 2, 3):
            node = net.nodes[me]
            for name in sorted(n for n, at in node.timers.items() if at <= net.now_ms):
                del node.timers[name]
                net.feed(me, TimerFired(name))
        moving = True
        while moving:
            moving = net.step()
            if not moving or net.random.random() < 0.2:
                for me in net.random.sample((1, 2, 3), 3):
                    net.sync(me)
                moving = moving or bool(net.flying)
            for me in (1, 2, 3):
                leader = net.nodes[me].engine.leader
                if leader != named[me]:
                    changes += 1
                    assert net.nodes[leader].engine.leader == leader
                named[me] = leader
    assert changes >= 3
    assert named == {1: 1, 2: 1, 3: 1}
