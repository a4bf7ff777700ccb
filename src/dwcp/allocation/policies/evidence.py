"""What paired costs prove: gap closed with its interval, and the word that may be printed.

Windows of one trace overlap and seeds share worlds, so the bootstrap resamples seeds, and within a seed blocks of
neighbouring windows (moving blocks, Künsch 1989).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dwcp.allocation.fleet import Floats, Ints

NO_GAP = 0.05  # where rival and bound differ by less of the rival's cost, nothing can be won


@dataclass(frozen=True, slots=True)
class Gap:
    """`closed` is Σ(rival − ours) / Σ(rival − bound), with its 95 % interval; None where `no_gap`."""

    closed: float | None
    low: float | None
    high: float | None
    no_gap: bool

    @property
    def verdict(self) -> str:
        """`better` and `worse` only where the interval excludes 0."""
        if self.no_gap or self.low is None or self.high is None:
            return "no gap"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "ties"


def gap_closed(
    ours: Floats,
    rival: Floats,
    bound: Floats,
    *,
    seeds: Ints,
    block: int,
    rng: np.random.Generator,
    rounds: int = 2000,
) -> Gap:
    """All arrays [W], dollars on the bounded components; windows in order of time within each seed."""
    room = float((rival - bound).sum())
    if room < NO_GAP * float(rival.sum()):
        return Gap(None, None, None, no_gap=True)
    picked = resamples(seeds, block=block, rng=rng, rounds=rounds)
    won, possible = (rival - ours)[picked].sum(axis=1), (rival - bound)[picked].sum(axis=1)
    low, high = np.quantile(won / np.maximum(possible, 1e-12), [0.025, 0.975])
    return Gap(float((rival - ours).sum()) / room, float(low), float(high), no_gap=False)


def paired_difference(
    ours: Floats, rival: Floats, *, seeds: Ints, block: int, rng: np.random.Generator, rounds: int = 2000
) -> tuple[float, float, float]:
    """Mean of ours − rival, with its 95 % interval; negative: ours is cheaper."""
    picked = resamples(seeds, block=block, rng=rng, rounds=rounds)
    means = (ours - rival)[picked].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float((ours - rival).mean()), float(low), float(high)


def normal(difference: Floats) -> tuple[float, float]:
    """The mean's 95 % interval over independent windows [W], by the normal distribution; the mean alone for one."""
    half = 1.96 * float(difference.std(ddof=1)) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    mean = float(difference.mean())
    return mean - half, mean + half


def resamples(seeds: Ints, *, block: int, rng: np.random.Generator, rounds: int) -> Ints:
    """[rounds, W] window numbers: seeds with replacement, then blocks of neighbours (circular) within each."""
    if block < 1:
        raise ValueError(f"block: {block}; at least 1")
    names = np.unique(seeds)
    members = [np.nonzero(seeds == name)[0] for name in names]
    return np.stack([_resample(members, block, len(seeds), rng) for _round in range(rounds)])


def _resample(members: list[Ints], block: int, count: int, rng: np.random.Generator) -> Ints:
    found: list[Ints] = []
    have = 0
    while have < count:
        own = members[int(rng.integers(len(members)))]
        blocks = -(-len(own) // block)
        starts = rng.integers(0, len(own), blocks)
        found.append(own[circular(starts, size=min(block, len(own)), count=len(own))])
        have += len(found[-1])
    return np.concatenate(found)[:count]


def circular(starts: Ints, *, size: int, count: int) -> Ints:
    """[..., count] of `count` rows: blocks of `size` neighbours from `starts` [..., B] on, the first after the last."""
    rows = (starts[..., None] + np.arange(size)) % count
    return np.asarray(rows.reshape(*starts.shape[:-1], -1)[..., :count])
