"""What a training run may be told, and the profiles that are offered by name."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class Config:
    """One run. Times in seconds of the simulated world."""

    algorithm: str = "matd3"  # matd3, mappo or canonical
    seed: int = 0
    stale: bool = False  # partial information in training and validation
    windows: int = 96  # training windows
    validation: int = 304
    jobs: int = 600  # measured workloads per window
    warm_jobs: int = 200
    generations: int = 24  # of the search of what waiting is worth, before the gradient; 0: none
    pairs: int = 10  # of opposite candidates per generation
    sitting: int = 16  # windows per generation
    hidden: int = 32
    envs: int = 16  # windows played side by side
    events: int = 128  # of a chunk
    ahead: int = 24  # events before a return may end at a decision
    reach: int = 48  # events before it must
    horizon_s: float = 6 * 3600.0  # of the discount exp(−Δt / horizon)
    updates: int = 16  # per chunk
    batch: int = 256
    ring: int = 65_536
    chunks: int = 48  # per segment; validated after each
    segments: int = 16
    patience: int = 6  # segments without a better validation, then stop
    actor_rate: float = 3e-4
    critic_rate: float = 1e-3
    actor_norm: float = 0.5
    critic_norm: float = 10.0
    actor_after: int = 3000  # critic updates before the first of the actor
    actor_every: int = 2
    learn_defer: bool = True  # matd3: may the actor learn to wait where the rule would place
    keep: float = 0.99  # Polyak
    temperature: float = 0.5  # of exploration, falling …
    temperature_end: float = 0.15
    temperature_until: float = 0.4  # … over this share of the run
    uniform: float = 0.05

    def __post_init__(self) -> None:
        """ValueError: a number is out of its range; the message names it."""
        for name in WHOLE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; at least 1")
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm {self.algorithm[:40]!r}; algorithms: {', '.join(ALGORITHMS)}")
        if not self.ahead < self.reach < self.events:
            raise ValueError(f"ahead {self.ahead} < reach {self.reach} < events {self.events} does not hold")
        if self.ring < self.envs * self.events:
            raise ValueError(f"ring: {self.ring}; a chunk alone has {self.envs * self.events} rows")

    @property
    def updates_total(self) -> int:
        return self.segments * self.chunks * self.updates


WHOLE = (
    "windows", "validation", "jobs", "pairs", "sitting", "envs", "events", "updates", "batch", "chunks", "segments",
)  # fmt: skip
ALGORITHMS = ("matd3", "mappo", "canonical")
PROFILES: dict[str, Config] = {
    "smoke": Config(
        windows=6, validation=8, jobs=200, warm_jobs=60, envs=8, events=64, ahead=12, reach=28, chunks=16, segments=5,
        updates=8, batch=128, ring=8_192, actor_after=64, patience=5, actor_rate=1e-3, learn_defer=False, generations=0,
    ),
    "dev": Config(
        windows=24, validation=12, jobs=1500, warm_jobs=300, segments=12, chunks=64, updates=12, patience=12,
        generations=0,
    ),
    "default": Config(),
}  # fmt: skip


def profile(name: str, **changes: object) -> Config:
    """A named profile with some fields replaced. ValueError: no such profile or field, or a field out of range."""
    if name not in PROFILES:
        raise ValueError(f"profile {name[:40]!r}; profiles: {', '.join(PROFILES)}")
    known = {field.name for field in fields(Config)}
    if unknown := sorted(set(changes) - known):
        raise ValueError(f"no such setting of training: {unknown[0]}")
    return replace(PROFILES[name], **changes)  # type: ignore[arg-type]  # checked by name above
