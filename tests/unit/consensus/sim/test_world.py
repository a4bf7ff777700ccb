"""The world itself: a seed is a history, the storms really happen, and a planted mistake is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.consensus.sim.toy import ToyCast

from dwcp.consensus.sim.checkers import Violation
from dwcp.consensus.sim.coverage import Coverage
from dwcp.consensus.sim.node import Node
from dwcp.consensus.sim.scenario import Scenario, draw
from dwcp.consensus.sim.world import World


def scenario(seed: int) -> Scenario:
    """The toy tolerates crashes, not liars."""
    return replace(draw(seed, n=3, slots_min=30), liars=())


def history(seed: int, *, eager: bool = False) -> World:
    world = World(scenario(seed), ToyCast(eager=eager))
    world.run()
    return world


def test_a_correct_log_survives_every_storm() -> None:
    """Goal: no false alarm. Method: forty seeds of the toy; each must decide its slots and settle."""
    for seed in range(40):
        assert history(seed).agreement.highest >= 30


def test_a_seed_is_a_history() -> None:
    """Goal: replay is exact. Method: run a seed twice; another seed must differ."""
    assert history(7).trace == history(7).trace
    assert history(7).events == history(7).events
    assert history(7).trace != history(8).trace


def test_the_storms_happen() -> None:
    """Goal: a clean run means something. Method: count faults by kind over some seeds."""
    seen = Coverage()
    for seed in range(40):
        seen.add(history(seed).coverage)

    for point in ("before_write", "after_write", "in_sync", "after_sync", "in_release", "in_recovery"):
        assert seen.crashes[point] > 0, point
    for name in ("torn_writes", "torn_tails", "partitions", "pauses", "clock_jumps", "disk_failures"):
        assert getattr(seen, name) > 0, name


def test_a_promise_sent_before_it_is_durable_is_found() -> None:
    """Goal: the checkers and the crashes together find the classic mistake. Method: plant it in the toy."""
    found = set()
    for seed in range(60):
        try:
            history(seed, eager=True)
        except Violation as violation:
            found.add(violation.checker)
        if found & {"double_vote", "agreement"}:
            return
    raise AssertionError(f"not found: {found}")


def test_a_log_that_cannot_go_on_is_stuck() -> None:
    """Goal: liveness is checked. Method: a cast whose replicas never answer."""

    class Mute(ToyCast):
        def inspect(self, world: World, node: Node, frame: bytes) -> None:
            for each in world.nodes:
                each.paused_until = 10**15

    with pytest.raises(Violation, match="stuck"):
        World(scenario(1), Mute()).run()
