"""Placement rules that need no learning. Each scores every node, higher is better: [N] float64.

Scores say nothing about feasibility (`feasibility.choose` does) and are
deterministic. `balance-wan` is the default: of the rules without training it
was the best against costs that include the wide area network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from dwcp.allocation.fleet import Fleet, Floats, Ints

BANDWIDTH = 3  # column of the node's link to the others, Mbit/s
WAN_HALF_S = 60.0  # a transfer of this length costs half of the most that a transfer can cost
WAN_WEIGHT = 1.0  # λ of balance − λ·WAN


Links = Mapping[str, tuple[float, float]]  # site -> (uplink, downlink), Mbit/s


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is placed: `demand` [R] int64, and the data that would have to travel."""

    demand: Ints
    data_site: str = ""
    data_bytes: int = 0
    links: Links = field(default_factory=dict)


Heuristic = Callable[[Fleet, Wanted], Floats]


def first_fit(fleet: Fleet, _wanted: Wanted) -> Floats:
    """The first node by name that fits: predictable, and packs."""
    order = sorted(range(len(fleet.nodes)), key=lambda row: fleet.nodes[row].name)
    scores = np.zeros(len(fleet.nodes))
    scores[order] = -np.arange(len(order), dtype=np.float64)
    return scores


def best_fit(fleet: Fleet, wanted: Wanted) -> Floats:
    """The node left with least (L2 over the resources' free fractions): keeps large gaps whole."""
    left = 1.0 - _filled(fleet, wanted)
    return np.asarray(-np.sqrt((left**2).mean(axis=1)), dtype=np.float64)


def local_site_first(fleet: Fleet, wanted: Wanted) -> Floats:
    """Where the data is, if anything fits there; best fit within and without."""
    here = np.array([node.site == wanted.data_site for node in fleet.nodes], dtype=np.float64)
    return np.asarray(best_fit(fleet, wanted) + 10.0 * here, dtype=np.float64)


def balance_wan(fleet: Fleet, wanted: Wanted) -> Floats:
    """Even use of the resources within the node, minus λ times the price of shipping the data.

    Balance is 1 − the standard deviation of the filled fractions after the
    placement, so a node is not left with one resource that nothing can use.
    """
    balance = 1.0 - _filled(fleet, wanted).std(axis=1)
    return np.asarray(balance - WAN_WEIGHT * wan_cost(fleet, wanted), dtype=np.float64)


def wan_cost(fleet: Fleet, wanted: Wanted) -> Floats:
    """[N] in 0 … 1: t / (t + 60 s), t = the time to ship the data over the slower of both links.

    A site without a known link has the best of its nodes' own; a link of 0 costs the most.
    """
    if not wanted.data_site or not wanted.data_bytes:
        return np.zeros(len(fleet.nodes))
    own = fleet.capacity[:, BANDWIDTH].astype(np.float64)
    best = max(
        (own[row] for row, node in enumerate(fleet.nodes) if node.site == wanted.data_site), default=0.0
    )
    uplink = wanted.links.get(wanted.data_site, (best, 0.0))[0]
    downlinks = [wanted.links.get(node.site, (0.0, own[row]))[1] for row, node in enumerate(fleet.nodes)]
    megabits = np.minimum(np.array(downlinks), uplink)
    with np.errstate(divide="ignore"):
        seconds = np.where(megabits > 0, wanted.data_bytes * 8 / 1e6 / megabits, np.inf)
    cost = np.where(np.isinf(seconds), 1.0, seconds / (np.minimum(seconds, 1e18) + WAN_HALF_S))
    local = np.array([node.site == wanted.data_site for node in fleet.nodes], dtype=np.bool_)
    return np.asarray(np.where(local, 0.0, np.minimum(cost, 1.0)), dtype=np.float64)


def _filled(fleet: Fleet, wanted: Wanted) -> Floats:
    """[N, R]: the fraction of each resource in use after the placement; 0 where a node has none of it."""
    capacity = np.maximum(fleet.capacity, 1).astype(np.float64)
    filled = (fleet.used + wanted.demand) / capacity
    return np.asarray(np.where(fleet.capacity > 0, filled, 0.0), dtype=np.float64)


HEURISTICS: dict[str, Heuristic] = {
    "balance-wan": balance_wan,
    "best-fit": best_fit,
    "first-fit": first_fit,
    "local-site-first": local_site_first,
}
DEFAULT = "balance-wan"
