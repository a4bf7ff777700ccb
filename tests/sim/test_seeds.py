"""The product under the simulator: fresh seeds, seeds that once found something, and planted bugs."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dwcp.consensus.sim.bugs import BUGS
from dwcp.consensus.sim.coverage import Coverage
from dwcp.consensus.sim.run import SimRequest, play, replay_command, run

ROOT = Path(__file__).parents[2]
NAMED = tomllib.loads((Path(__file__).parent / "seeds.toml").read_text())
COUNTERS = ("torn_writes", "partitions", "equivocations", "view_changes", "state_transfers", "disk_failures")


@pytest.mark.parametrize("name", NAMED)
def test_a_seed_that_found_something_stays_clean(name: str) -> None:
    """Goal: repaired mistakes stay repaired. Method: play the named seed again."""
    entry = NAMED[name]
    result = play(entry["seed"], nodes=entry["nodes"])

    assert not result.checker, f"{entry['what']}: {result.sentence}"


@pytest.mark.parametrize(("nodes", "first"), [(4, 1000), (4, 1010), (7, 2000)])
def test_fresh_seeds_hold(nodes: int, first: int) -> None:
    """Goal: safety at every step, liveness after calm. Method: ten seeds that no earlier run used."""
    for seed in range(first, first + 10):
        result = play(seed, nodes=nodes)
        command = replay_command(SimRequest(nodes=nodes), seed)
        assert not result.checker, f"{result.checker}: {result.sentence}\nreplay: {command}"
        assert result.slots >= 50


def test_the_histories_are_worth_something() -> None:
    """Goal: clean because checked, not because calm. Method: every fault counter above zero over 25 seeds."""
    coverage = Coverage()
    for seed in range(25):
        coverage.add(play(seed, nodes=4).coverage)

    assert all(coverage.crashes[point] for point in ("before_write", "after_write", "in_sync", "after_sync"))
    assert all(coverage.crashes[point] for point in ("in_release", "in_recovery", "in_rotation"))
    for name in COUNTERS:
        assert getattr(coverage, name) > 0, name


def test_a_seed_with_real_signatures_holds() -> None:
    """Goal: stand-ins hide nothing. Method: seed 49 signs with Ed25519."""
    assert not play(49, nodes=4).checker


def test_the_hash_seed_changes_nothing() -> None:
    """Goal: no set or hash order reaches a history. Method: two interpreters, two hash seeds, one trace."""
    traces = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, "-m", "dwcp.consensus.sim", "--seeds", "0:6", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        traces.append(done.stdout.partition('"trace": "')[2][:16])

    assert traces[0] == traces[1] != ""


@pytest.mark.parametrize("name", ["quorum-too-small", "commit-before-persist", "vote-forgotten-at-restart"])
def test_a_planted_bug_is_found(name: str) -> None:
    """Goal: the checkers can fail. Method: hunt a planted bug over a few seeds; all of them: `--bug all`."""
    report = run(SimRequest(bug=name, seeds=(0, 60)))

    assert report.found == 1, name


def test_there_are_enough_bugs() -> None:
    """Goal: a dozen at least, each described. Method: count."""
    assert len(BUGS) >= 12
    assert all(bug.mistake for bug in BUGS.values())
