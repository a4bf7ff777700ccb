"""Which data may be used for what: fixed here, and by nothing else.

| split | used for | seeds of generators | part of a recorded trace |
|---|---|---|---|
| `train` | weights, knobs, CEM, learning | 0 … 9,999: G5, and G1 and G2 perturbed | none |
| `dev` | looking while developing | 10,000 … 19,999 | first tenth, of short traces the first 2,900 |
| `validation` | early stop, choice of the rival | 20,000 … 29,999 | first four tenths |
| `test` | what is quoted | 30,000 … 39,999 | the rest |

G1 and G2 were fitted to Azure 2017 and openb: results on those records are "unseen records, fitted family".
"""

from __future__ import annotations

import numpy as np

from dwcp.allocation.env.episode import Episode
from dwcp.allocation.fleet import Floats, Ints
from dwcp.allocation.traces import generators
from dwcp.allocation.traces.jobs import Records, complete
from dwcp.allocation.traces.windows import LOOKBACK, Wanted, WindowImpossible, cut, together
from dwcp.allocation.traces.world import World, make_world

SEEDS = {"train": 0, "dev": 10_000, "validation": 20_000, "test": 30_000}
SEEDS_PER_SPLIT = 10_000
SHARES = {"dev": (0.0, 0.1), "validation": (0.0, 0.4), "test": (0.4, 1.0)}
FAMILIES: dict[str, generators.Azure | generators.Openb] = {
    "g1": generators.G1,
    "g2": generators.G2,
    "g5": generators.G5,
}
DEV_LEAST = (
    2_900  # workloads: a tenth of a short trace would hold no window; it stays within validation's part
)
MINIMUM_BEFORE = 500  # workloads before the first window: what runs when it begins is drawn from them
TRAINING_BEFORE = 6_000


def generator_seed(split: str, number: int) -> int:
    """ValueError: no such split, or the number belongs to the next."""
    if split not in SEEDS or not 0 <= number < SEEDS_PER_SPLIT:
        raise ValueError(
            f"split {split!r}, seed {number}: splits: {', '.join(SEEDS)}; below {SEEDS_PER_SPLIT}"
        )
    return SEEDS[split] + number


def generated(name: str, split: str, number: int, *, count: int) -> Records:
    """A stream of family `name`; perturbed on `train`, except for G5. ValueError: no such family."""
    if name not in FAMILIES:
        raise ValueError(f"generator {name!r}; generators: {', '.join(FAMILIES)}")
    rng = np.random.default_rng([generator_seed(split, number), 1])
    family = FAMILIES[name]
    if split == "train" and name != "g5":
        family = generators.perturbed(family, rng)
    return generators.generate(family, rng, count=count)


def recorded(records: Records, split: str) -> Records:
    """The part of a recorded trace that belongs to the split. ValueError: nothing of it is for `train`."""
    if split not in SHARES:
        raise ValueError(f"split {split!r} of a recorded trace; splits: {', '.join(SHARES)}")
    low, high = (int(share * len(records)) for share in SHARES[split])
    if split == "dev":
        high = min(max(high, DEV_LEAST), int(SHARES["validation"][1] * len(records)))
    return records.part(low, high)


def windows(
    records: Records,
    *,
    count: int,
    seed: int,
    wanted: Wanted,
    nodes: int = 12,
    sites: int = 4,
    prices: Floats | None = None,
) -> Episode:
    """[W, ...]: `count` evenly spaced, overlapping windows of the records on one world made from `seed`."""
    rng = np.random.default_rng([seed, 2])
    world = make_world(rng, nodes=nodes, sites=sites, prices=prices)
    jobs = complete(records, rng, sites=world.sites)
    return together([cut(jobs, int(start), world, wanted, rng) for start in starts(len(jobs), count, wanted)])


def training_window(
    number: int, *, wanted: Wanted, nodes: int = 12, sites: int = 4, pad_nodes: int | None = None
) -> Episode:
    """One window of the training split on a world of its own, padded to `pad_nodes` nodes."""
    name = ("g5", "g1", "g2")[number % 3]
    records = generated(name, "train", number, count=TRAINING_BEFORE + wanted.warm + wanted.measured)
    rng = np.random.default_rng([generator_seed("train", number), 2])
    world = make_world(rng, nodes=nodes, sites=sites, scale=float(rng.uniform(0.7, 1.4)))
    jobs = complete(records, rng, sites=sites)
    return cut(jobs, TRAINING_BEFORE, _padded(world, pad_nodes or nodes), wanted, rng)


def _padded(world: World, nodes: int) -> World:
    more = nodes - len(world.capacity)
    if more < 0:
        raise ValueError(f"pad_nodes: {nodes}; there are {len(world.capacity)} nodes")
    return World(
        capacity=np.pad(world.capacity, ((0, more), (0, 0))),
        node_site=np.pad(world.node_site, (0, more)),
        node_usd=np.pad(world.node_usd, (0, more)),
        mbps=world.mbps,
        price=world.price,
    )


def starts(length: int, count: int, wanted: Wanted) -> Ints:
    """[count] evenly spaced first workloads of windows in a trace of `length`. Raises `WindowImpossible`."""
    last = length - wanted.warm - wanted.measured
    first = min(LOOKBACK, max(MINIMUM_BEFORE, last // 4), last)
    if last < min(MINIMUM_BEFORE, LOOKBACK):
        raise WindowImpossible(
            f"{length} workloads: a window needs {MINIMUM_BEFORE + wanted.warm + wanted.measured}"
        )
    return np.linspace(first, last, count).astype(np.int64)
