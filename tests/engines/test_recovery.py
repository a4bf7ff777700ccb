"""Crashes between any two records, laggards, learners, checkpoints and snapshots."""

from __future__ import annotations

import random

import pytest
from tests.engines.network import Network, payload

from dwcp.consensus.core import machine
from dwcp.consensus.core.errors import InvariantBroken, LogCorrupt
from dwcp.consensus.engines.probft import recovery
from dwcp.consensus.engines.probft.messages import Kind, NewView
from dwcp.consensus.engines.probft.params import Params
from dwcp.consensus.engines.probft.records import DecidedHere, OwnCheckpoint


@pytest.mark.parametrize("seed", range(40))
def test_a_crash_after_any_record_never_votes_twice(seed: int) -> None:
    """Goal: A12. Method: sync record by record, crash replicas at random points, compare every vote.

    The network remembers every statement that left a replica and fails on a second digest.
    """
    choose = random.Random(seed)
    net = Network(seed=seed, instant=False)
    waiting = 0
    for _ in range(1500):
        roll = choose.random()
        me = choose.randrange(4)
        if roll < 0.35:
            net.sync(me, records=1)
        elif roll < 0.39:
            waiting += 1
            net.submit(f"p{waiting}", to=(me, choose.randrange(4)))
        elif roll < 0.40 and all(node.up for node in net.nodes):
            net.crash(me)
        elif roll < 0.42:
            for node in net.nodes:
                if not node.up:
                    net.restart(node.me)
        elif roll < 0.45:
            net.now_ms += 60
            for node in net.nodes:
                for name in sorted(n for n, at in node.timers.items() if at <= net.now_ms):
                    node.timers.pop(name, None)
                    net.feed(node.me, machine.TimerFired(name))
        else:
            net.step()
    net.instant = True
    for node in net.nodes:
        if not node.up:
            net.restart(node.me)
        net.sync(node.me)
    for i in range(1, waiting + 1):
        net.submit(f"p{i}")
    net.tick(times=300)
    assert waiting > 20
    assert all(net.all_committed(f"p{i}") for i in range(1, waiting + 1))


def test_power_loss_everywhere_while_snapshots_lag_behind_checkpoints() -> None:
    """Goal: nothing decided is lost where saving a snapshot takes longer than two checkpoints.

    Method: two checkpoints become stable, then the first one's snapshot is durable and the journal is
    cut below it; everybody restarts. No disk holds the second snapshot: the journals must do.
    """
    net = Network()
    for node in net.nodes:
        node.saves = False
    for i in range(18):
        net.submit(f"p{i}")
        net.run()
    net.tick(times=40)
    assert {(node.applied, node.engine.status().stable) for node in net.nodes} == {(18, 16)}
    for node in net.nodes:
        kept = [entry for entry in node.history if entry[0] <= 8]
        node.snapshot = (8, kept)
        net.feed(node.me, machine.Snapshotted(8, node.root(8)))
        assert node.engine.status().floor == 8
    for me in range(4):
        net.crash(me)
    for me in range(4):
        net.nodes[me].saves = True
        net.restart(me)
    net.submit("after")
    net.tick(times=100)
    assert all(node.applied >= 19 for node in net.nodes)
    assert all(net.all_committed(f"p{i}") for i in range(18))
    assert net.all_committed("after")


def test_checkpoints_whose_signatures_were_lost_are_signed_after_a_restart() -> None:
    """Goal: the window moves on, however often everybody loses power just before signing.

    Method: at each of three checkpoints in a row the snapshots are durable and neither the
    signatures nor the newest decision are; the window holds two.
    """
    net = Network()
    for point in (8, 16, 24):
        net.drop = lambda sender, to, message: message.kind == Kind.CHECKPOINT
        while min(node.applied for node in net.nodes) < point:
            net.submit(f"p{net.nodes[0].applied}")
            net.tick(times=20)
        for me in range(4):
            net.crash(me)
            node = net.nodes[me]
            found = [recovery.decode(record) for record in node.journal]
            keep = [not isinstance(e, OwnCheckpoint) for e in found]
            if me < 2:
                keep = [
                    k and not (isinstance(e, DecidedHere) and e.slot == point)
                    for k, e in zip(keep, found, strict=True)
                ]
            node.journal = [r for r, kept in zip(node.journal, keep, strict=True) if kept]
        net.drop = lambda sender, to, message: False
        for me in range(4):
            net.restart(me)
        net.tick(times=60)
        assert {node.engine.status().stable for node in net.nodes} == {point}


@pytest.mark.parametrize("records", range(7))
def test_restart_at_each_persist_point_of_a_slot(records: int) -> None:
    """Goal: every prefix of the journal is a state to go on from. Method: cut replica 1's journal there."""
    net = Network(params=Params())
    net.submit("a")
    net.run()
    net.submit("b")
    net.run()
    whole = list(net.nodes[1].journal)
    net.crash(1)
    net.nodes[1].journal = whole[:records]
    net.restart(1)
    net.submit("c")
    net.tick(times=60)
    assert net.all_committed("c")
    assert [recovery.decode(r) for r in whole]


def test_a_restarted_replica_repeats_the_same_votes() -> None:
    """Goal: §5.8. Method: compare the statements sent before and after a restart, bit for bit."""
    net = Network()
    net.drop = lambda sender, to, message: message.kind == Kind.COMMIT
    net.submit("a")
    net.run()
    before = [m for who, _, m in net.sent if who == 1 and m.kind in (Kind.PREPARE, Kind.COMMIT)]
    net.sent.clear()
    net.crash(1)
    net.restart(1)
    again = [m for who, _, m in net.sent if who == 1 and m.kind in (Kind.PREPARE, Kind.COMMIT)]
    assert before
    assert again == before


def test_a_restarted_leader_goes_on_in_its_view() -> None:
    """Goal: durable proposals. Method: the leader restarts before it heard a vote; its repetition earns them."""
    net = Network()
    net.drop = lambda sender, to, message: to == 0
    net.submit("a")
    net.run()
    net.drop = lambda sender, to, message: False
    net.crash(0)
    net.restart(0)
    net.submit("b", to=(0,))
    net.tick(ms=20, times=12)
    assert net.all_committed("a")
    assert net.all_committed("b")
    assert {node.engine.view for node in net.nodes} == {1}


def test_all_replicas_lose_power_at_once() -> None:
    """Goal: durability. Method: commit, cut everybody's power, restart; the history is the same."""
    net = Network(seed=3)
    for i in range(21):
        net.submit(f"p{i}")
        net.tick(times=2)
    before = net.committed(0)
    for me in range(4):
        net.crash(me)
    net.flying.clear()
    for me in range(4):
        net.restart(me)
    net.submit("after")
    net.tick(times=60)
    assert net.committed(2)[:21] == before
    assert net.all_committed("after")


def test_a_view_left_is_never_returned_to() -> None:
    """Goal: Entered binds. Method: crash after entering view 2, before NEWVIEW; restart stays out of 1."""
    net = Network()
    net.drop = lambda sender, to, message: isinstance(message.body, NewView)
    net.crash(0)
    net.submit("a")
    net.tick(times=8)
    assert net.nodes[3].engine.view >= 2
    entered = net.nodes[3].engine.view
    net.crash(3)
    net.restart(3)
    assert net.nodes[3].engine.view == entered
    assert not net.nodes[3].engine.status().installed or entered == 1
    net.drop = lambda sender, to, message: False
    net.tick(times=200)
    assert net.all_committed("a", among=(1, 2, 3))


def test_a_restart_in_an_installed_view_keeps_it() -> None:
    """Goal: NEWVIEW is durable. Method: change the view, restart everyone, go on in view 2."""
    net = Network()
    net.crash(0)
    net.submit("a")
    net.tick(times=20)
    for me in (1, 2, 3):
        net.crash(me)
        net.restart(me)
    net.submit("b")
    net.tick(times=40)
    assert net.all_committed("b", among=(1, 2, 3))
    assert {net.nodes[me].engine.view for me in (1, 2, 3)} == {2}


def test_the_journal_is_rewritten_at_truncation_and_restarts_from_there() -> None:
    """Goal: records() holds every promise. Method: 40 slots with interval 8, then restart; bounded size."""
    net = Network(seed=5)
    sizes = []
    for i in range(40):
        net.submit(f"p{i}")
        net.tick(times=2)
        sizes.append(sum(map(len, net.nodes[2].journal)))
    assert net.nodes[2].engine.status().floor >= 32
    assert max(sizes[20:]) <= 2 * max(sizes[:20])
    net.crash(2)
    net.restart(2)
    net.submit("after")
    net.tick(times=40)
    assert net.all_committed("after")
    assert net.nodes[2].engine.status().view == 1


def test_rewriting_the_journal_at_any_moment_changes_nothing() -> None:
    """Goal: records() is equivalent to the journal. Method: rewrite before each restart, under loss."""
    net = Network(seed=11)
    net.drop = lambda sender, to, message: net.random.random() < 0.1
    for i in range(24):
        net.submit(f"p{i}", to=(i % 4, (i + 1) % 4))
        net.tick(times=3)
        me = i % 4
        net.nodes[me].journal = net.nodes[me].engine.records()
        net.crash(me)
        net.restart(me)
    net.drop = lambda sender, to, message: False
    for i in range(24):
        net.submit(f"p{i}")
    net.tick(times=250)
    assert all(net.all_committed(f"p{i}") for i in range(24))


def test_a_laggard_inside_the_window_is_healed_by_decisions() -> None:
    """Goal: catch-up by DECIDED, no snapshot. Method: cut replica 3 off for forty slots, then heal."""
    net = Network(params=Params())
    net.drop = lambda sender, to, message: 3 in (sender, to)
    for i in range(40):
        net.submit(f"p{i}")
        net.run()
    net.drop = lambda sender, to, message: False
    net.tick(times=60)
    assert net.nodes[3].applied == 40
    assert not net.nodes[3].installs


def test_a_laggard_beyond_the_window_installs_a_snapshot() -> None:
    """Goal: state transfer. Method: cut replica 3 off for 40 slots with interval 8; the rest truncates."""
    net = Network()
    net.drop = lambda sender, to, message: 3 in (sender, to)
    for i in range(43):
        net.submit(f"p{i}", to=(0, 1, 2))
        net.run()
    net.drop = lambda sender, to, message: False
    net.tick(times=60)
    assert net.nodes[3].installs
    assert net.nodes[3].applied == 43
    net.submit("after")
    net.tick(times=10)
    assert net.all_committed("after")


@pytest.mark.parametrize("more", [8, 16, 24])
def test_a_snapshot_that_is_gone_is_not_waited_for(more: int) -> None:
    """Goal: a laggard always catches up. Method: the snapshot it asks for no longer exists when it asks.

    `more` slots follow, then all is idle: a newer one must be asked for without further progress.
    """
    net = Network()
    net.drop = lambda sender, to, message: 3 in (sender, to)
    for i in range(24):
        net.submit(f"p{i}", to=(0, 1, 2))
        net.run()
    net.serves = lambda index: False
    net.drop = lambda sender, to, message: False
    net.tick(times=40)
    assert net.nodes[3].installs
    gone = max(net.nodes[3].installs)
    net.serves = lambda index: index > gone
    for i in range(more):
        net.submit(f"more{i}", to=(0, 1, 2))
        net.tick(times=1)
    net.tick(ms=250, times=60)
    assert net.nodes[3].applied == 24 + more


def test_a_learner_follows_and_signs_nothing() -> None:
    """Goal: a replica without its journal. Method: replica 3 learns; it never signs, and catches up."""
    net = Network(learners=frozenset({3}))
    for i in range(30):
        net.submit(f"p{i}")
        net.tick(times=2)
    net.crash(0)
    net.tick(times=5)
    net.restart(0)
    net.submit("last")
    net.tick(times=60)
    assert net.all_committed("last")
    assert not net.nodes[3].journal
    signed = {m.kind for who, _, m in net.sent if who == 3 and m.sender == 3}
    assert signed <= {Kind.BEACON, Kind.ASK, Kind.ASK_BATCH, Kind.DECIDED, Kind.STABLE, Kind.BATCH}


def test_a_learner_follows_through_a_view_change() -> None:
    """Goal: learners enter views by proof. Method: with seven replicas, one learns, the leader dies."""
    net = Network(7, learners=frozenset({6}))
    net.submit("a")
    net.tick(times=2)
    net.crash(0)
    net.submit("b")
    net.tick(times=80)
    assert net.all_committed("b", among=(1, 2, 3, 4, 5, 6))
    assert net.nodes[6].engine.view == 2


def test_a_checkpoint_needs_a_quorum() -> None:
    """Goal: the window moves on a quorum's word only. Method: withhold CHECKPOINTs of two replicas."""
    net = Network()
    net.drop = lambda sender, to, message: message.kind == Kind.CHECKPOINT and sender in (1, 2)
    for i in range(10):
        net.submit(f"p{i}")
        net.tick(times=1)
    assert net.nodes[0].engine.status().stable == 0
    net.drop = lambda sender, to, message: False
    net.tick(times=60)
    assert net.nodes[0].engine.status().stable == 8


def test_the_leader_stops_at_the_end_of_the_window() -> None:
    """Goal: bounded log. Method: no CHECKPOINT arrives; slots stop at window's end, go on afterwards."""
    net = Network()
    net.drop = lambda sender, to, message: message.kind in (Kind.CHECKPOINT, Kind.WISH)
    for i in range(25):
        net.submit(f"p{i}", to=(0,))
        net.run()
    assert net.nodes[0].applied == 16
    assert len(net.nodes[0].engine._log) == 16
    net.drop = lambda sender, to, message: False
    net.tick(times=100)
    assert all(net.all_committed(f"p{i}") for i in range(25))


def test_the_log_is_cut_only_below_the_own_snapshot() -> None:
    """Goal: stable and durable here. Method: replica 3's snapshots never finish; it alone keeps its log."""
    net = Network()
    net.nodes[3].saves = False
    for i in range(8):
        net.submit(f"p{i}")
        net.tick(times=25)
    assert [node.engine.status().floor for node in net.nodes] == [8, 8, 8, 0]
    assert net.nodes[3].engine.status().stable == 8
    net.feed(3, machine.Snapshotted(8, net.nodes[3].root(8)))
    assert net.nodes[3].engine.status().floor == 8


def test_a_replica_whose_state_differs_from_the_certified_one_stops() -> None:
    """Goal: silent divergence is impossible. Method: report another root than the quorum's."""
    net = Network()
    net.nodes[3].root = lambda index: bytes(32)  # type: ignore[method-assign]
    for i in range(7):
        net.submit(f"p{i}")
        net.tick(times=2)
    net.submit("eighth")
    with pytest.raises(InvariantBroken, match="a quorum certified"):
        net.tick(times=60)


def test_a_foreign_record_is_refused() -> None:
    """Goal: an unreadable journal stops the node with a sentence. Method: junk that passed its checksum."""
    net = Network()
    with pytest.raises(LogCorrupt, match="another format"):
        net._engine(0).start(now_ms=0, journal=[b"\x99junk"], applied=0, applied_ms=0)


def test_payloads_are_found_for_peers_that_fetch() -> None:
    """Goal: bodies can be fetched. Method: ask for a pending one, a committed one, an unknown one."""
    net = Network(params=Params())
    net.submit("a")
    net.run()
    net.feed(2, machine.Submitted((payload("waiting"),)))
    engine = net.nodes[2].engine
    assert engine.payload(payload("a").digest) == payload("a")
    assert engine.payload(payload("waiting").digest) == payload("waiting")
    assert engine.payload(bytes(32)) is None
