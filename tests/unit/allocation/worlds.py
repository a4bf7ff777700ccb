"""Small windows and hostile policies for the allocation tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from dwcp.allocation.env.episode import Episode
from dwcp.allocation.env.view import View
from dwcp.allocation.traces import splits
from dwcp.allocation.traces.windows import Wanted


def small(
    *,
    name: str = "g1",
    seed: int = 0,
    count: int = 3,
    load: float = 1.0,
    measured: int = 120,
    warm: int = 30,
    gossip_s: int = 0,
    faults: float = 1.0,
) -> Episode:
    """[W]: windows of few workloads on few nodes; `faults` divides the time between failures."""
    wanted = Wanted(
        load=load,
        measured=measured,
        warm=warm,
        gossip_s=gossip_s,
        node_mtbf_s=86_400.0 / max(faults, 1e-9),
        cut_mtbf_s=43_200.0 / max(faults, 1e-9) if gossip_s else 0.0,
    )
    records = splits.generated(name, "dev", seed, count=2600)
    return splits.windows(records, count=count, seed=seed, wanted=wanted, nodes=5, sites=3)


def hostile(view: View, xp: Any) -> Any:
    """Bids from the view's coin: a third NaN or infinite, else random; deferring at random."""
    coin = view.coin
    bids = xp.where(coin < 0.2, xp.nan, xp.where(coin < 0.3, xp.inf, xp.where(coin < 0.4, -xp.inf, coin)))
    bids = xp.where(coin > 0.95, 1e38, bids)
    defer = xp.where(coin[..., :1] < 0.3, 2.0, -1.0)
    return xp.concatenate([bids, defer], -1)


def random_bids(view: View, xp: Any) -> Any:
    """Random feasible placement; never defers by choice."""
    return xp.concatenate([view.coin, xp.zeros((*view.coin.shape[:-1], 1)) - 1.0], -1)


def one(episode: Episode, window: int) -> Episode:
    return Episode(*(np.asarray(array)[window] for array in episode))
