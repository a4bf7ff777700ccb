"""The links between places: delay, loss, duplication, reordering, clogs and partitions.

A *place* is a machine: replicas are places 0..n-1, a twin has a place of its own,
clients follow. Times are integer microseconds of virtual time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

CALM_DELAY_US = 1_000


@dataclass(frozen=True, slots=True)
class Climate:
    """How bad it gets. Probabilities are per frame, periods are means."""

    delay_us: int = CALM_DELAY_US  # of the fastest link
    spread_us: int = 0  # links differ by up to this
    jitter_us: int = 500  # and frames of one link by up to this, so that they overtake each other
    loss: float = 0.0
    duplication: float = 0.0
    partition_every_us: int = 0  # 0: never
    partition_for_us: int = 0
    clog_every_us: int = 0
    clog_for_us: int = 0


CALM = Climate()


class Weather:
    """Decides the fate of each frame. `partitions` counts those that really cut a link."""

    def __init__(self, rng: Random, climate: Climate, *, places: int) -> None:
        self._rng = rng
        self._climate = climate
        self._places = places
        self._cut = [[False] * places for _ in range(places)]
        self._clogged_until = [[0] * places for _ in range(places)]
        spread = climate.spread_us
        self._base = [
            [climate.delay_us + (rng.randrange(spread) if spread else 0) for _ in range(places)]
            for _ in range(places)
        ]
        self.partitions = 0
        self.lost = 0

    def delays(self, sender: int, receiver: int, now_us: int) -> tuple[int, ...]:
        """When copies of a frame arrive, from now; empty where it is lost."""
        if self._cut[sender][receiver]:
            self.lost += 1
            return ()
        random = self._rng.random
        climate = self._climate
        if climate.loss and random() < climate.loss:
            self.lost += 1
            return ()
        delay = self.delay(sender, receiver, now_us)
        if climate.duplication and random() < climate.duplication:
            return delay, self.delay(sender, receiver, now_us) + int(random() * 4 * delay)
        return (delay,)

    def delay(self, sender: int, receiver: int, now_us: int) -> int:
        """How long a frame that is not lost takes; most are quick, few are late."""
        late = self._rng.random()
        wait = max(0, self._clogged_until[sender][receiver] - now_us)
        return wait + self._base[sender][receiver] + int(late * late * late * self._climate.jitter_us)

    def is_cut(self, sender: int, receiver: int) -> bool:
        return self._cut[sender][receiver]

    # ------------------------------------------------------------------ storms

    def partition(self, places: Sequence[int]) -> str:
        """Cut some links among `places` by a random shape; answers its name. Replaces an earlier one."""
        self.heal()
        rng = self._rng
        shuffled = list(places)
        rng.shuffle(shuffled)
        split = rng.randrange(1, len(shuffled))
        left, right = shuffled[:split], shuffled[split:]
        shape = rng.choice(["split", "one-way", "bridge", "isolate"])
        if shape == "isolate":
            left, right = shuffled[:1], shuffled[1:]
        elif shape == "bridge" and len(right) > 1:
            right = right[1:]  # the place left out reaches both sides
        for a in left:
            for b in right:
                self._cut[a][b] = True
                self._cut[b][a] = shape != "one-way"
        self.partitions += 1
        return shape

    def clog(self, places: Sequence[int], now_us: int) -> None:
        """Hold back everything on one directed link for a while, then deliver it in a burst."""
        a, b = self._rng.sample(list(places), 2)
        self._clogged_until[a][b] = now_us + self._rng.randrange(1, 2 * self._climate.clog_for_us + 2)

    def heal(self) -> None:
        for row in self._cut:
            row[:] = [False] * self._places

    def calm(self) -> None:
        """From now on nothing is lost, and the links keep only their own delay."""
        self.heal()
        for row in self._clogged_until:
            row[:] = [0] * self._places
        self._climate = Climate(delay_us=self._climate.delay_us, jitter_us=CALM_DELAY_US)
