"""Everything of a simulated window that no policy can change: machines, prices, workloads, events.

Dimensions: W windows side by side, N nodes, S sites, R = 4 resources (order of `fleet.RESOURCES`), J workloads,
E events. Times are whole seconds since the window's start, resources whole units, money dollars. A node beyond
a window's own number has capacity 0 and is never alive.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from dwcp.allocation.fleet import Floats, Ints

NOTHING, ARRIVE, RETRY, FAIL, RECOVER, CUT, HEAL = range(7)
NEVER: Final = 2**30  # later than every event; times stay below 2^26, so that urgency keys fit 32 bits
TENANTS: Final = 8

Array = Any  # a NumPy or a JAX array: JAX is optional, and both environments share these shapes


class Episode(NamedTuple):
    """Shapes with a leading [W] in the reference; the JAX environment maps over it."""

    capacity: Array  # [N, R]
    node_site: Array  # [N]
    node_usd: Array  # [N] dollars of energy per core-hour
    transfer_s: Array  # [J, S] from the data's site
    wan_usd: Array  # [J, S]
    demand: Array  # [J, R]
    arrival: Array  # [J]
    duration: Array  # [J]
    predicted: Array  # [J] what policies may know of `duration`
    priority: Array  # [J] 0 best effort, 1 batch, 2 latency-sensitive
    tenant: Array  # [J] 0 … TENANTS-1
    origin: Array  # [J] site of data and of the deciding controller
    budget_s: Array  # [J] how long a start may wait
    worth: Array  # [J] contract value at priority 1
    value: Array  # [J] contract value
    event_time: Array  # [E] ascending
    event_kind: Array  # [E]
    event_arg: Array  # [E] workload, node or site
    shape: Array  # [R] 75th percentile demand, for stranding
    gossip_s: Array  # [] 0: every controller sees the truth; else the period of the sites' reports
    measured_from: Array  # [] index of the first event whose cost counts; before it: warm-up


class State(NamedTuple):
    """What decisions change. Invariant: 0 ≤ used ≤ capacity, and used = Σ demand of the running."""

    now: Array  # []
    used: Array  # [N, R]
    alive: Array  # [N]
    cut: Array  # [S] sites that reach only themselves
    node: Array  # [J] where it runs or ran; -1
    end: Array  # [J] NEVER: not running
    remaining: Array  # [J]
    waiting: Array  # [J] urgency of a queued workload, lowest first; NEVER: not queued
    retry_at: Array  # [J]
    since: Array  # [J] start of the present wait
    exit_at: Array  # [N] when the node is predicted to be empty
    last: Array  # [] node of the last placement
    seen_used: Array  # [S, N, R] what each site's controller was told
    seen_alive: Array  # [S, N]
    seen_at: Array  # [S, N] when
    lost: Array  # [TENANTS] value
    stranded: Array  # [] cores
    queued: Array  # [] number in the queue
    counts: Array  # [5] placed, lost, deferred, conflicts, killed


PLACED, LOST, DEFERRED, CONFLICTS, KILLED = range(5)


def stack(episodes: list[Episode]) -> Episode:
    """[W, ...]: windows side by side; shorter ones are padded with events and workloads that do nothing."""
    if not episodes:
        raise ValueError("no episodes: give at least one")
    padded = {}
    for name in Episode._fields:
        arrays = [np.asarray(getattr(one, name)) for one in episodes]
        sizes = tuple(max(array.shape[axis] for array in arrays) for axis in range(arrays[0].ndim))
        fill = "edge" if name == "event_time" else "constant"
        padded[name] = np.stack([_pad(array, sizes, fill) for array in arrays])
    return Episode(**padded)


def _pad(array: Array, sizes: tuple[int, ...], fill: str) -> Array:
    widths = [(0, size - have) for size, have in zip(sizes, array.shape, strict=True)]
    if not any(after for _before, after in widths):
        return array
    return np.pad(array, widths, mode="edge" if fill == "edge" else "constant")


def rows(episode: Episode, wanted: Any) -> Episode:
    """Some of the windows of a stacked episode; `wanted` is an index, a slice or an index array."""
    return Episode(*(array[wanted] for array in episode))


def urgency(priority: Array, start_by: Array) -> Array:
    """Lower is sooner: the higher priority, then the earlier last start. Below 2^28."""
    return (2 - priority) * 2**26 + start_by


def sized(demand: Ints, duration: Ints, *, hours_max: float, usd: float) -> Floats:
    """[J] contract value at priority 1: cores x hours up to a limit."""
    hours = np.minimum(duration / 3600.0, hours_max)
    return np.asarray(demand[:, 0] / 1000.0 * hours * usd, dtype=np.float64)
