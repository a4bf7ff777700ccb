"""Links, disks and scenarios: the faults are what their names say, and a seed decides them."""

from __future__ import annotations

from random import Random

import pytest

from dwcp.consensus.core.errors import DiskFailed
from dwcp.consensus.sim.disks import PowerLost, SimDisk
from dwcp.consensus.sim.scenario import LIES, draw
from dwcp.consensus.sim.weather import Climate, Weather


def weather(climate: Climate, seed: int = 1) -> Weather:
    return Weather(Random(seed), climate, places=4)


def test_frames_overtake_each_other() -> None:
    """Goal: reordering happens. Method: later frames arrive before earlier ones on one link."""
    sky = weather(Climate(jitter_us=30_000))
    arrivals = [sent * 100 + sky.delays(0, 1, 0)[0] for sent in range(50)]

    assert arrivals != sorted(arrivals)


def test_loss_and_duplication_are_as_often_as_asked() -> None:
    """Goal: rates mean what they say. Method: 4,000 frames at 10 % each, within five deviations."""
    sky = weather(Climate(loss=0.1, duplication=0.1))
    copies = [len(sky.delays(0, 1, 0)) for _ in range(4000)]

    assert 300 < copies.count(0) < 500
    assert 260 < copies.count(2) < 460


def test_every_shape_of_partition_appears_and_heals() -> None:
    """Goal: full, one-way, bridge, isolated. Method: many draws; each cuts something, heal frees all."""
    sky = weather(Climate())
    shapes = set()
    for _ in range(60):
        shapes.add(sky.partition(range(4)))
        pairs = [(a, b) for a in range(4) for b in range(4) if sky.is_cut(a, b)]
        assert pairs
        assert sky.delays(*pairs[0], 0) == ()
        sky.heal()
        assert not any(sky.is_cut(a, b) for a in range(4) for b in range(4))
    assert shapes == {"split", "one-way", "bridge", "isolate"}


def test_calm_loses_nothing() -> None:
    """Goal: liveness is judged fairly. Method: calm in the worst weather, then 1,000 frames."""
    sky = weather(Climate(loss=0.5, clog_for_us=1_000_000, clog_every_us=1))
    sky.partition(range(4))
    sky.clog(range(4), 0)
    sky.calm()

    assert all(len(sky.delays(a, b, 0)) == 1 for a in range(4) for b in range(4) for _ in range(60))
    assert max(sky.delays(a, b, 0)[0] for a in range(4) for b in range(4)) < 10_000


def test_power_loss_has_every_fate() -> None:
    """Goal: kept, lost, cut short and holes. Method: many crashes over one unsynced tail."""
    fates = set()
    for seed in range(60):
        disk = SimDisk(Random(seed))
        disk.create("f")
        disk.sync_dir()
        disk.append("f", b"s" * 600)
        disk.sync("f")
        disk.append("f", b"t" * 2000)
        disk.lose_power()
        data = disk.read("f")
        assert data[:600] == b"s" * 600
        tail = data[600:]
        if tail == b"t" * 2000:
            fates.add("kept")
        elif not tail:
            fates.add("lost")
        elif b"\0" in tail:
            fates.add("holes")
        else:
            fates.add("cut")
    assert fates == {"kept", "lost", "holes", "cut"}


def test_a_name_is_durable_after_sync_dir_only() -> None:
    """Goal: directories need a sync, too. Method: rename, crash; both outcomes appear, nothing else."""
    seen = set()
    for seed in range(20):
        disk = SimDisk(Random(seed))
        disk.create("old")
        disk.sync_dir()
        disk.rename("old", "new")
        disk.lose_power()
        seen.add(tuple(disk.list()))
    assert seen == {("old",), ("new",)}


def test_disk_faults_are_told_and_scheduled() -> None:
    """Goal: EIO, ENOSPC and power loss on demand. Method: arm each, do one operation."""
    disk = SimDisk(Random(1))
    disk.create("f")
    disk.refuse_sync = True
    with pytest.raises(DiskFailed):
        disk.sync("f")
    disk.full = True
    with pytest.raises(DiskFailed):
        disk.append("f", b"x")
    disk.lose_power()
    disk.fail_after(0)
    with pytest.raises(PowerLost):
        disk.create("g")


def test_a_rolled_back_disk_is_an_older_one() -> None:
    """Goal: the rollback of a lying disk. Method: image, more writes, restore."""
    disk = SimDisk(Random(1))
    disk.create("f")
    disk.append("f", b"one")
    disk.sync("f")
    disk.sync_dir()
    image = disk.image()
    disk.append("f", b"two")
    disk.restore(image)

    assert disk.read("f") == b"one"


@pytest.mark.parametrize("nodes", [4, 7])
def test_liars_are_never_more_than_the_protocol_bears(nodes: int) -> None:
    """Goal: a violation is the product's fault. Method: count liars over 300 seeds; all kinds appear."""
    lies = set()
    for seed in range(300):
        scenario = draw(seed, n=nodes)
        assert len(scenario.liar_ids) == len(scenario.liars) <= scenario.f
        assert scenario.window >= 2 * scenario.checkpoint_interval
        lies.update(liar.lie for liar in scenario.liars)
    assert lies == set(LIES)


def test_scenarios_differ_by_seed_only() -> None:
    """Goal: replay on another machine. Method: equal draws for equal seeds, a spread over others."""
    assert draw(5, n=4) == draw(5, n=4)
    assert len({draw(seed, n=4).climate for seed in range(50)}) > 30
