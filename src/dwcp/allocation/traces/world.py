"""Machines, sites, prices and links that workloads are placed on; made from a seed.

Node classes are those of the Alibaba openb catalogue (cluster-trace-gpu-v2023), which lists CPU and memory;
storage and bandwidth are synthetic. Link rates: Persico et al. as quoted by SustainCluster. GPUs are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dwcp.allocation.fleet import Floats, Ints

CATALOGUE = np.array([[96, 384], [104, 512], [32, 256], [16, 120], [64, 256]])  # cores, GiB
CATALOGUE_SHARE = np.array([0.40, 0.28, 0.12, 0.08, 0.12])
MBPS = np.array([50.0, 60.0, 100.0, 160.0, 250.0])  # between two regions
USD_PER_GB = np.array([0.01, 0.02, 0.05, 0.08])
STORAGE_MIB_PER_CORE, BANDWIDTH_MBPS_PER_CORE = 61_440, 120


@dataclass(frozen=True, slots=True)
class World:
    """N nodes at S sites."""

    capacity: Ints  # [N, R]
    node_site: Ints  # [N]
    node_usd: Floats  # [N] dollars of energy per core-hour: kWh x PUE x price
    mbps: Floats  # [S, S]; the diagonal is not used
    price: Floats  # [S, S] dollars per GB; 0 on the diagonal

    @property
    def sites(self) -> int:
        return len(self.price)


def make_world(
    rng: np.random.Generator,
    *,
    nodes: int = 12,
    sites: int = 4,
    scale: float = 1.0,
    prices: Floats | None = None,
) -> World:
    """A fleet; `scale` multiplies capacities, `prices` [S', S'] is a published matrix to draw regions from."""
    if not 1 <= sites <= nodes:
        raise ValueError(f"sites: {sites}; between 1 and the number of nodes, {nodes}")
    picked = CATALOGUE[rng.choice(len(CATALOGUE), nodes, p=CATALOGUE_SHARE)] * scale
    cores = picked[:, 0].round()
    capacity = np.stack(
        [
            cores * 1000,
            (picked[:, 1] * 1024).round(),
            cores * STORAGE_MIB_PER_CORE,
            cores * BANDWIDTH_MBPS_PER_CORE,
        ],
        axis=1,
    ).astype(np.int64)
    site = np.concatenate([np.arange(sites), rng.integers(0, sites, nodes - sites)])
    rate = rng.choice(MBPS, (sites, sites))
    upper = np.triu(rate, 1)
    usd_kwh = rng.uniform(0.05, 0.30, sites) * rng.uniform(1.1, 1.6, sites)
    kwh = rng.uniform(0.006, 0.012, nodes)
    return World(
        capacity=capacity,
        node_site=np.sort(site),
        node_usd=kwh * usd_kwh[np.sort(site)],
        mbps=upper + upper.T + np.eye(sites) * 1000,
        price=_prices(rng, sites, prices),
    )


def parse_prices(text: str) -> Floats:
    """[S, S] dollars per GB from a table with region names in the first row and column. ValueError: malformed."""
    lines = [line.split(",") for line in text.strip().splitlines()]
    try:
        table = np.array([[float(cell) for cell in line[1:]] for line in lines[1:]])
    except ValueError as fault:
        raise ValueError(f"price table: {fault}") from fault
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ValueError("price table: it needs one row and one column per region")
    return table


def _prices(rng: np.random.Generator, sites: int, published: Floats | None) -> Floats:
    if published is not None:
        regions = rng.choice(len(published), sites, replace=len(published) < sites)
        price = published[np.ix_(regions, regions)].copy()
    else:
        price = rng.choice(USD_PER_GB, (sites, sites))
    np.fill_diagonal(price, 0.0)
    return price
