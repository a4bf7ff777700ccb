"""What a seed means: every parameter and every fault of one history, drawn once.

Swarm testing: a seed enables a random subset of the faults, because a history
with all of them at once reaches less than many that go deep into a few.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from dwcp.consensus.sim.weather import Climate

LIES = ("twins", "equivocate", "silent", "withhold", "mutate", "rollback", "wiped")
UNDISTORTED = ("twins", "rollback", "wiped")  # the world makes these; their frames are honest code's
REAL_SIGNATURES_EVERY = 50


@dataclass(frozen=True, slots=True)
class Liar:
    """Replica `replica` is faulty in one way; all of them together are at most f."""

    replica: int
    lie: str


@dataclass(frozen=True, slots=True)
class DiskHabits:
    sync_us: int = 500
    slow_replica: int = -1  # its disk is slower by `SLOW_FACTOR`
    save_syncs: int = 2  # a snapshot takes as long as so many syncs: a large state, a slow disk
    fail_rate: float = 0.0  # of syncs that answer EIO, or appends that find the disk full


@dataclass(frozen=True, slots=True)
class Scenario:
    """Rates are per group written (crashes) or means between two faults (microseconds)."""

    seed: int
    n: int
    slots_min: int
    climate: Climate
    disk: DiskHabits
    liars: tuple[Liar, ...]
    crash_rate: float
    blackout_every_us: int  # all machines lose power together
    pause_every_us: int
    skew_ms: int
    clock_jumps: bool
    real_signatures: bool
    window: int
    checkpoint_interval: int
    batch_count_max: int
    clients: int
    outstanding: int

    @property
    def f(self) -> int:
        return (self.n - 1) // 3

    @property
    def liar_ids(self) -> frozenset[int]:
        return frozenset(liar.replica for liar in self.liars)


def draw(seed: int, *, n: int, slots_min: int = 50) -> Scenario:
    """The scenario of a seed; the same on every machine and in every process."""
    rng = Random(f"scenario/{seed}")
    late = Random(f"late/{seed}")
    interval = rng.choice([4, 8, 16])
    return Scenario(
        seed=seed,
        n=n,
        slots_min=slots_min,
        climate=_climate(rng),
        disk=_disk(rng, n, save_syncs=late.choice([2, 2, 2, 500])),
        liars=_liars(rng, n),
        crash_rate=rng.choice([0.0, 0.005, 0.02, 0.05]),
        blackout_every_us=late.choice([0, 0, 0, 3_000_000]),
        pause_every_us=rng.choice([0, 0, 2_000_000]),
        skew_ms=rng.choice([0, 50, 300]),
        clock_jumps=rng.random() < 0.3,
        real_signatures=seed % REAL_SIGNATURES_EVERY == REAL_SIGNATURES_EVERY - 1,
        window=interval * rng.choice([2, 4]),
        checkpoint_interval=interval,
        batch_count_max=rng.choice([1, 2, 8]),
        clients=rng.choice([2, 3, 4]),
        outstanding=rng.choice([1, 2, 4]),
    )


def _climate(rng: Random) -> Climate:
    def sometimes(value: int, chance: float = 0.5) -> int:
        return value if rng.random() < chance else 0

    return Climate(
        delay_us=rng.choice([200, 1_000, 5_000, 20_000]),
        spread_us=sometimes(10_000),
        jitter_us=rng.choice([0, 1_000, 30_000]),
        loss=rng.choice([0.0, 0.0, 0.01, 0.05, 0.15]),
        duplication=rng.choice([0.0, 0.0, 0.05]),
        partition_every_us=sometimes(1_500_000),
        partition_for_us=rng.choice([200_000, 1_000_000, 4_000_000]),
        clog_every_us=sometimes(800_000, 0.3),
        clog_for_us=300_000,
    )


def _disk(rng: Random, n: int, *, save_syncs: int) -> DiskHabits:
    return DiskHabits(
        sync_us=rng.choice([100, 500, 3_000, 10_000]),
        slow_replica=rng.choice([-1, rng.randrange(n)]),
        save_syncs=save_syncs,
        fail_rate=rng.choice([0.0, 0.0, 0.005]),
    )


def _liars(rng: Random, n: int) -> tuple[Liar, ...]:
    """At most f of them, often none."""
    count = rng.randrange((n - 1) // 3 + 1) if rng.random() < 0.3 else (n - 1) // 3
    return tuple(Liar(replica, rng.choice(LIES)) for replica in sorted(rng.sample(range(n), count)))
