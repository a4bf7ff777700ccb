"""Agreement while the leader is correct, over several committee sizes."""

from __future__ import annotations

import pytest
from tests.engines.network import Network, payload

from dwcp.consensus.core.machine import Submitted
from dwcp.consensus.engines.probft.messages import Kind
from dwcp.consensus.engines.probft.params import Params


@pytest.mark.parametrize("n", [1, 4, 5, 7, 10])
@pytest.mark.parametrize("seed", range(5))
def test_everything_submitted_is_committed_everywhere_in_one_order(n: int, seed: int) -> None:
    """Goal: agreement and validity. Method: shuffle deliveries; the network compares every commit."""
    net = Network(n, seed=seed)
    for i in range(30):
        net.submit(f"p{i}")
        if i % 3 == 0:
            net.run()
    net.tick(times=60)
    assert all(net.all_committed(f"p{i}") for i in range(30))
    assert len({tuple(net.committed(me)) for me in range(n)}) == 1
    assert len(set(net.committed(0))) == 30
    assert all(node.engine.view == 1 for node in net.nodes)


def test_a_payload_known_to_all_is_committed_once() -> None:
    """Goal: no payload is placed twice. Method: submit it again before and after its commit."""
    net = Network()
    net.submit("twice")
    net.submit("twice")
    net.run()
    net.submit("twice")
    net.tick(times=30)
    assert net.committed(0) == [payload("twice").digest.hex()[:8]]


def test_what_waits_goes_into_one_batch() -> None:
    """Goal: adaptive batching. Method: hold deliveries back; the second slot takes all the rest."""
    net = Network()
    for i in range(20):
        net.submit(f"p{i}")
    net.tick(times=10)
    assert [len(digests) for _, _, digests in net.nodes[0].history] == [1, 19]


def test_a_batch_respects_its_limits() -> None:
    """Goal: limits in count and bytes. Method: small limits, many and large payloads."""
    net = Network(params=Params(checkpoint_interval=8, window=16, batch_count_max=4, batch_bytes_max=100))
    for i in range(12):
        net.submit(f"p{i}")
    for i in range(3):
        net.submit(f"{i}" + "x" * 90)
    net.tick(times=30)
    sizes = [len(digests) for _, _, digests in net.nodes[1].history]
    assert sum(sizes) == 15
    assert max(sizes) == 4
    assert sizes[-2:] == [1, 1]


def test_one_slot_is_proposed_once_its_predecessor_is_prepared() -> None:
    """Goal: the pipelining rule. Method: no PREPARE arrives; the leader proposes one slot only."""
    net = Network()
    net.drop = lambda sender, to, message: message.kind == Kind.PREPARE
    net.submit("a")
    net.submit("b")
    net.run()
    proposed = {m.body.slot for _, _, m in net.sent if m.kind == Kind.PROPOSE}
    assert proposed == {1}


def test_a_slot_runs_ahead_of_an_undecided_one_only_where_its_batch_is_no_smaller() -> None:
    """Goal: fewer, fuller slots under load, no waiting without. Method: no COMMIT arrives; 1, 2, 1, then 2 wait."""
    net = Network()
    net.drop = lambda sender, to, message: message.kind == Kind.COMMIT

    def submit(*names: str) -> set[int]:
        for name in names:
            net.submit(name)
        net.run()
        return {m.body.slot for _, _, m in net.sent if m.kind == Kind.PROPOSE}

    assert submit("a", "b", "c") == {1, 2}, "a alone, then b with c: both as they came"
    assert submit("d") == {1, 2}, "one is fewer than the two before it"
    assert submit("e") == {1, 2, 3}


def test_signatures_checked_per_slot_stay_within_two_quorums() -> None:
    """Goal: the CPU budget of a slot. Method: count verified claims; 2q+1 is the most allowed."""
    net = Network(4, params=Params())
    for i in range(50):
        net.submit(f"p{i}")
        net.run()
    for node in net.nodes:
        assert node.verified <= 50 * 5, "header, payload, one PREPARE, two COMMITs"


def test_f_silent_replicas_do_not_stop_the_others() -> None:
    """Goal: progress with f crashes (A5, A16). Method: crash f followers, commit."""
    for n in (4, 7, 10):
        net = Network(n)
        f = (n - 1) // 3
        for me in range(n - f, n):
            net.crash(me)
        net.submit("a")
        net.tick(times=20)
        assert net.all_committed("a", among=tuple(range(n - f)))


def test_no_quorum_no_commit() -> None:
    """Goal: f+1 missing replicas stop the log rather than split it. Method: crash f+1."""
    net = Network(4)
    net.crash(2)
    net.crash(3)
    net.submit("a")
    net.tick(times=100)
    assert not net.decisions


def test_committed_time_follows_the_clock_and_increases() -> None:
    """Goal: tpbft §3.10. Method: commit with a standing and with a moving clock; times must rise."""
    net = Network()
    for i in range(5):
        net.submit(f"p{i}")
        net.run()
    net.tick(ms=1000)
    net.submit("late")
    net.tick(times=5)
    times = [time_ms for _, time_ms, _ in net.nodes[0].history]
    assert times == sorted(set(times))
    assert times[0] == 1_000_000
    assert times[-1] >= net.now_ms - 300


def test_clocks_that_all_went_back_do_not_stop_the_log() -> None:
    """Goal: an hour's correction of the time is no hour without a log.

    Method: every clock goes back by an hour; committed time creeps on until clocks have caught up.
    """
    net = Network()
    net.submit("before")
    net.run()
    (first,) = {node.history[-1][1] for node in net.nodes}
    net.now_ms -= 3_600_000
    net.submit("after")
    net.run()
    assert net.all_committed("after")
    assert {node.history[-1][1] for node in net.nodes} == {first + 1}


def test_a_proposal_from_the_future_is_held_not_refused() -> None:
    """Goal: a fast clock delays, it does not stop. Method: the leader runs 2 s ahead of the others."""
    net = Network()
    net.now_ms += 2_000
    net.feed(0, _submitted("ahead"))
    net.now_ms -= 2_000
    net.run()
    assert not net.decisions
    net.tick(ms=100, times=14)
    assert not net.decisions
    net.tick(ms=100, times=4)
    assert net.all_committed("ahead")
    assert all(node.engine.view == 1 for node in net.nodes)


def _submitted(text: str) -> Submitted:
    return Submitted((payload(text),))
