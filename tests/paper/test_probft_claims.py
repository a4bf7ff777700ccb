"""Claims of ProBFT and PBFT that the deterministic profile repeats, each with its section."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from tests.engines.network import Network

from dwcp.consensus.core.quorum import faults, quorum
from dwcp.consensus.engines.probft.messages import Kind

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("n", range(1, 17))
def test_two_quorums_share_a_correct_replica(n: int) -> None:
    """PBFT §3.1 (spec tpbft §3.1). Method: quorum arithmetic against counting, n = 1 … 16."""
    f, q = faults(n), quorum(n, faults(n))
    assert 2 * q - n >= f + 1, "intersection"
    assert q <= n - f, "f silent replicas do not stop it"
    assert 2 * (q - 1) - n < f + 1, "one fewer is too few"


def test_two_f_plus_one_is_too_few_outside_3f_plus_1() -> None:
    """Spec tpbft §3.1: equal at n = 3f+1, unsafe for other n. Method: find quorums meeting in liars only."""
    for n in (5, 6, 8, 9):
        f = faults(n)
        everyone = range(n)
        pairs = combinations(combinations(everyone, 2 * f + 1), 2)
        assert any(len(set(a) & set(b)) <= f for a, b in pairs)
        assert quorum(n, f) > 2 * f + 1


def test_a_slot_takes_three_message_delays_and_2n_squared_messages() -> None:
    """ProBFT §1 / PBFT §4.2: PROPOSE, PREPARE, COMMIT; (n-1) + (n-1)² + n(n-1). Method: count at n = 7."""
    net = Network(7)
    net.run()
    net.sent.clear()
    net.submit("a")
    net.run()
    count = {kind: sum(1 for _, _, m in net.sent if m.kind == kind) for kind in Kind}
    assert (count[Kind.PROPOSE], count[Kind.PREPARE], count[Kind.COMMIT]) == (6, 36, 42)


@pytest.mark.parametrize("n", [4, 7, 10, 13])
def test_f_crashes_do_not_stop_and_never_split(n: int) -> None:
    """Spec §7.2 A16. Method: crash f replicas, the leader among them, commit ten payloads."""
    net = Network(n, seed=n)
    f = faults(n)
    for me in range(f):
        net.crash(me)
    for i in range(10):
        net.submit(f"p{i}")
        net.tick(times=2)
    net.tick(times=120)
    assert all(net.all_committed(f"p{i}", among=tuple(range(f, n))) for i in range(10))


def test_two_correct_halves_make_no_progress_apart_and_agree_once_healed() -> None:
    """Spec §7.2 A15. Method: n = 4 split 2|2, both halves busy; heal; one history."""
    net = Network()
    net.drop = lambda sender, to, message: (sender < 2) != (to < 2)
    net.submit("left", to=(0, 1))
    net.submit("right", to=(2, 3))
    net.tick(times=60)
    assert not net.decisions
    net.drop = lambda sender, to, message: False
    net.submit("left")
    net.submit("right")
    net.tick(times=400)
    assert net.all_committed("left")
    assert net.all_committed("right")


def test_a_slow_drip_leader_is_replaced() -> None:
    """Spec §7.2 A11. Method: the leader orders its own payloads and censors one; its view ends."""
    net = Network()
    net.submit("censored", to=(1, 2, 3))
    for i in range(30):
        net.submit(f"own{i}", to=(0,))
        net.tick(times=1)
    net.tick(times=20)
    assert net.all_committed("censored")
    assert net.nodes[1].engine.view >= 2


SCRIPT = """
from hashlib import sha256
from tests.engines.network import Network
net = Network(7, seed=5)
for i in range(20):
    net.submit(f"p{i}", to=(i % 7, (i + 3) % 7))
    if i == 8: net.crash(0)
    if i == 14: net.restart(0)
    net.tick(times=3)
net.tick(times=60)
print(sha256(repr([(s, t, m.kind, m.raw) for s, t, m in net.sent]).encode()).hexdigest())
"""


def test_hash_seeds_do_not_change_a_history() -> None:
    """Determinism: one seed, one history. Method: run it under three PYTHONHASHSEEDs, compare all frames."""
    digests = set()
    for seed in ("0", "1", "4242"):
        environment = dict(os.environ, PYTHONHASHSEED=seed, PYTHONPATH=f"{ROOT / 'src'}:{ROOT}")
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout)
    assert len(digests) == 1
