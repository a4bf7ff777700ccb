"""A trace in memory, and the fields that no public trace has, drawn from a seed and labelled synthetic.

Recorded or fitted: arrival, cores, memory, duration, batch, and for openb the class. Synthetic: bandwidth,
storage, priority, tenant, origin, data, budget, and what is predicted of the duration (spec: allocation notes
§3.3, last paragraph).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dwcp.allocation.env.episode import TENANTS, sized
from dwcp.allocation.env.weights import BUDGET_S, CORE_HOUR_USD, PRIORITY_FACTOR, VALUE_HOURS_MAX
from dwcp.allocation.fleet import Floats, Ints

PREDICTION_SIGMA = 0.7  # of the log of predicted / real duration, shared within a batch


@dataclass(frozen=True, slots=True)
class Records:
    """K workloads in order of arrival, as a trace or a fitted generator gives them."""

    arrival_s: Floats  # [K]
    cpu_milli: Ints
    memory_mib: Ints
    duration_s: Ints
    batch: Ints  # workloads of one tenant that arrived together share a number
    priority: Ints | None = None  # where the trace has classes

    def __len__(self) -> int:
        return len(self.arrival_s)

    def part(self, start: int, stop: int) -> Records:
        """Some of them, by position."""
        chosen = slice(start, stop)
        return Records(
            self.arrival_s[chosen],
            self.cpu_milli[chosen],
            self.memory_mib[chosen],
            self.duration_s[chosen],
            self.batch[chosen],
            None if self.priority is None else self.priority[chosen],
        )


@dataclass(frozen=True, slots=True)
class Jobs:
    """K workloads with everything that a placement needs. Origin is a site number below `sites`."""

    arrival_s: Floats
    demand: Ints  # [K, R]
    duration_s: Ints
    predicted_s: Ints
    priority: Ints
    tenant: Ints
    origin: Ints
    data_gb: Floats
    budget_s: Ints
    worth: Floats
    value: Floats

    def __len__(self) -> int:
        return len(self.arrival_s)

    def only(self, rows: Ints) -> Jobs:
        return Jobs(*(getattr(self, name)[rows] for name in self.__slots__))

    def at(self, arrival_s: Floats) -> Jobs:
        """The same workloads at other times."""
        return replace(self, arrival_s=arrival_s)


def complete(records: Records, rng: np.random.Generator, *, sites: int) -> Jobs:
    """Draws the synthetic fields; everything that a batch shares is drawn once per batch."""
    count = len(records)
    _names, batch = np.unique(records.batch, return_inverse=True)
    batches = int(batch.max(initial=-1)) + 1
    cores = records.cpu_milli / 1000.0
    bandwidth = 50 * cores * np.exp(0.8 * rng.standard_normal(batches))[batch]
    storage = 20 * 1024 * cores * np.exp(rng.standard_normal(batches))[batch]
    drawn = rng.choice(3, batches, p=[0.35, 0.45, 0.20])[batch]
    priority = drawn if records.priority is None else records.priority
    noise = np.exp(PREDICTION_SIGMA * rng.standard_normal(batches))[batch]
    predicted = np.maximum(records.duration_s * noise, 30).astype(np.int64)
    data = np.minimum(0.3 * np.exp(1.4 * rng.standard_normal(batches))[batch], 500.0)
    limit = 60 * np.maximum(cores, 0.5)
    demand = np.stack(
        [
            records.cpu_milli,
            records.memory_mib,
            np.minimum(storage, limit * 1024).astype(np.int64),
            np.minimum(bandwidth, limit * 2).astype(np.int64),
        ],
        axis=1,
    ).astype(np.int64)
    worth = sized(demand, predicted, hours_max=VALUE_HOURS_MAX, usd=CORE_HOUR_USD)
    real = sized(demand, records.duration_s, hours_max=VALUE_HOURS_MAX, usd=CORE_HOUR_USD)
    return Jobs(
        arrival_s=records.arrival_s,
        demand=demand,
        duration_s=records.duration_s,
        predicted_s=predicted,
        priority=priority.astype(np.int64),
        tenant=rng.choice(TENANTS, batches, p=_skewed(TENANTS))[batch],
        origin=_origins(rng, records.arrival_s, batch, batches, sites=sites),
        data_gb=data * np.where(rng.random(count) < 0.8, 1.0, 0.0),
        budget_s=np.array(BUDGET_S)[priority],
        worth=worth,
        value=real * np.array(PRIORITY_FACTOR)[priority],
    )


def _skewed(count: int) -> Floats:
    share = 1.0 / np.arange(1, count + 1)
    return np.asarray(share / share.sum(), dtype=np.float64)


def _origins(rng: np.random.Generator, arrival_s: Floats, batch: Ints, batches: int, *, sites: int) -> Ints:
    """[K]: sites take turns to be busy through the day, as offices in different time zones do."""
    first = np.full(batches, np.inf)
    np.minimum.at(first, batch, arrival_s)
    angle = 2 * np.pi * (first[:, None] / 86_400.0 - np.arange(sites)[None, :] / max(sites, 1))
    weight = np.exp(1.2 * np.sin(angle)) * _skewed(sites)[None, :] ** 0.5
    edges = np.cumsum(weight / weight.sum(axis=1, keepdims=True), axis=1)
    picked = np.minimum((rng.random(batches)[:, None] > edges).sum(axis=1), sites - 1)
    return np.asarray(picked[batch], dtype=np.int64)
