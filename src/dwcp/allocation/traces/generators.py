"""Workload generators: G1 (fitted to Azure 2017), G2 (fitted to openb 2023), G5 (stress).

The numbers are the fits of the allocation notes §3.3. `perturbed` varies them for training, so that a policy
never trains on the fit that it is later measured on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dwcp.allocation.fleet import Bools, Floats, Ints
from dwcp.allocation.traces.jobs import Records

FLAVOURS = np.array([[1, 1.75], [2, 3.5], [4, 7], [8, 14], [8, 56], [1, 0.75]])  # vCPU, GB
FLAVOUR_SHARE = (0.43, 0.28, 0.11, 0.11, 0.046, 0.024)
BATCH_TAIL = (  # (size, share of batches at least as large)
    (1, 1.0), (2, 0.429), (3, 0.248), (5, 0.141), (10, 0.069), (20, 0.029), (50, 0.0073), (100, 0.0031), (788, 1e-5),
)  # fmt: skip
SURVIVAL_S = (  # (seconds, share of workloads that live longer)
    (0, 1.0), (600, 0.77), (1800, 0.43), (3600, 0.31), (7200, 0.23), (21_600, 0.15), (43_200, 0.10), (86_400, 0.049),
    (259_200, 0.028), (1_728_000, 0.002),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Azure:
    """G1. Batches are gamma-Poisson with a daily profile; a batch shares flavour and nearly its lifetime."""

    batches_per_s: float = 52.8 / 300
    shape: float = 54.0  # of the gamma that modulates 5-minute bins
    day: float = 0.36  # amplitude: max/min 2.06
    same_flavour: float = 0.83
    lifetime_correlation: float = 0.86
    flavour_share: tuple[float, ...] = FLAVOUR_SHARE
    lifetime_factor: float = 1.0
    batch_factor: float = 1.0  # on the logarithm of the batch size
    bursts: bool = False  # G5: an MMPP on top
    adversarial: bool = False  # G5: small workloads first, then large ones


G1 = Azure()
G5 = Azure(bursts=True, adversarial=True, shape=8.0, batch_factor=1.15)


@dataclass(frozen=True, slots=True)
class Openb:
    """G2. Log-normal bodies; the longest hundredth comes from a Pareto tail, which makes the mean."""

    pods_per_s: float = 10.2 / 3600
    mean_log_s: float = 6.44
    sigma_log_s: float = 1.88
    tail_share: float = 0.025
    tail_alpha: float = 0.7
    sensitive_share: float = 0.57
    correlation: float = 0.87  # of log CPU and log memory


G2 = Openb()


def perturbed(family: Azure | Openb, rng: np.random.Generator) -> Azure | Openb:
    """The family with other numbers: rates, mixes and tails within a third to three times."""

    def factor(limit: float) -> float:
        return float(np.exp(rng.uniform(-np.log(limit), np.log(limit))))

    if isinstance(family, Openb):
        return replace(
            family,
            mean_log_s=family.mean_log_s + float(rng.uniform(-0.7, 0.7)),
            sigma_log_s=family.sigma_log_s * factor(1.25),
            tail_share=family.tail_share * factor(2.0),
            sensitive_share=float(rng.uniform(0.2, 0.8)),
        )
    share = rng.dirichlet(np.array(family.flavour_share) * 12 + 0.2)
    return replace(
        family,
        shape=family.shape * factor(3.0),
        day=float(rng.uniform(0.0, 0.6)),
        lifetime_factor=factor(2.0),
        batch_factor=family.batch_factor * factor(1.2),
        lifetime_correlation=float(rng.uniform(0.5, 0.95)),
        flavour_share=tuple(float(value) for value in share),
    )


def generate(family: Azure | Openb, rng: np.random.Generator, *, count: int) -> Records:
    """`count` workloads."""
    return _openb(family, rng, count) if isinstance(family, Openb) else _azure(family, rng, count)


def lifetimes(uniform: Floats) -> Floats:
    """Seconds with the survival function of the fit, log-linear between its points; `uniform` in (0, 1]."""
    times = np.log1p([float(at) for at, _share in SURVIVAL_S])
    shares = np.log([share for _at, share in SURVIVAL_S])
    return np.asarray(
        np.expm1(np.interp(-np.log(np.maximum(uniform, 1e-9)), -shares, times)), dtype=np.float64
    )


def beyond(seconds: Floats, uniform: Floats) -> Floats:
    """Lifetimes given that they exceed `seconds`."""
    times = np.log1p([float(at) for at, _share in SURVIVAL_S])
    shares = np.log([share for _at, share in SURVIVAL_S])
    alive = np.exp(np.interp(np.log1p(seconds), times, shares))
    return np.asarray(np.maximum(lifetimes(uniform * alive), seconds), dtype=np.float64)


def _azure(family: Azure, rng: np.random.Generator, count: int) -> Records:
    sizes = _batch_sizes(rng, count, family.batch_factor)
    batches = len(sizes)
    starts = _batch_arrivals(family, rng, batches)
    batch = np.repeat(np.arange(batches), sizes)
    shared = rng.choice(len(FLAVOURS), batches, p=np.array(family.flavour_share) / sum(family.flavour_share))
    single = rng.choice(
        len(FLAVOURS), len(batch), p=np.array(family.flavour_share) / sum(family.flavour_share)
    )
    alike = (rng.random(batches) < family.same_flavour)[batch]
    flavour = np.where(alike, shared[batch], single)
    if (
        family.adversarial
    ):  # ascending within a run of 16 batches: small ones fill the gaps that large ones need
        flavour = _ascending(flavour, batch // 16)
    rho = family.lifetime_correlation
    normal = np.sqrt(rho) * rng.standard_normal(batches)[batch]
    normal = normal + np.sqrt(1 - rho) * rng.standard_normal(len(batch))
    duration = lifetimes(1.0 - _normal_cdf(normal)) * family.lifetime_factor
    return Records(
        arrival_s=starts[batch],
        cpu_milli=(FLAVOURS[flavour, 0] * 1000).astype(np.int64),
        memory_mib=(FLAVOURS[flavour, 1] * 1024).astype(np.int64),
        duration_s=np.maximum(duration, 60).astype(np.int64),
        batch=batch,
    ).part(0, count)


def _batch_sizes(rng: np.random.Generator, count: int, factor: float) -> Ints:
    at = np.log([size for size, _share in BATCH_TAIL])
    share = np.log([share for _size, share in BATCH_TAIL])
    draws = np.log(np.maximum(1 - rng.random(count), 1e-6))
    sizes = np.floor(np.exp(np.interp(-draws, -share, at) * factor) + 1e-9).astype(np.int64)
    enough = int(np.searchsorted(np.cumsum(sizes), count)) + 1
    return np.minimum(sizes[:enough], 788)


def _batch_arrivals(family: Azure, rng: np.random.Generator, batches: int) -> Floats:
    """Times of batches: bins of 5 minutes, each with its own rate, spread evenly at random inside."""
    bins = int(batches / (family.batches_per_s * 300) * 2) + 10
    hours = np.arange(bins) * 300 / 3600.0
    rate = family.batches_per_s * 300 * (1 + family.day * np.sin(2 * np.pi * hours / 24))
    rate = rate * rng.gamma(family.shape, 1 / family.shape, bins)
    if family.bursts:
        rate = rate * np.where(_burst_bins(rng, bins), 4.0, 1.0)
    per_bin = rng.poisson(rate)
    times = np.repeat(np.arange(bins) * 300.0, per_bin) + rng.random(int(per_bin.sum())) * 300
    while len(times) < batches:  # only a very unlucky draw
        times = np.concatenate([times, times[-1:] + rng.exponential(1 / family.batches_per_s, 1)])
    return np.asarray(np.sort(times)[:batches], dtype=np.float64)


def _burst_bins(rng: np.random.Generator, bins: int) -> Bools:
    """Bursts of exp(30 min), every exp(6 h)."""
    on = np.zeros(bins, dtype=np.bool_)
    at = rng.exponential(72.0)
    while at < bins:
        length = rng.exponential(6.0)
        on[int(at) : int(at + length) + 1] = True
        at += length + rng.exponential(72.0)
    return on


def _ascending(flavour: Ints, run: Ints) -> Ints:
    order = np.lexsort((FLAVOURS[flavour, 0], run))
    return np.asarray(flavour[order], dtype=np.int64)


def _normal_cdf(values: Floats) -> Floats:
    """Abramowitz and Stegun 7.1.26 on the error function; error below 1.5e-7."""
    x = np.abs(values) / np.sqrt(2)
    t = 1 / (1 + 0.3275911 * x)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = 1 - poly * np.exp(-(x**2))
    return np.asarray(0.5 * (1 + np.sign(values) * erf), dtype=np.float64)


def _openb(family: Openb, rng: np.random.Generator, count: int) -> Records:
    gaps = rng.exponential(1 / family.pods_per_s, count) * rng.gamma(0.2, 5.0, count)  # var/mean 5.7
    body = np.exp(family.mean_log_s + family.sigma_log_s * rng.standard_normal(count))
    tail = 97_000 * (1 - rng.random(count)) ** (-1 / family.tail_alpha)
    duration = np.where(rng.random(count) < family.tail_share, np.minimum(tail, 1e7), body)
    first = rng.standard_normal(count)
    second = family.correlation * first + np.sqrt(1 - family.correlation**2) * rng.standard_normal(count)
    cores = np.clip(11.3 * np.exp(0.45 * first - 0.05), 0.5, 64)
    memory = np.clip(41 * np.exp(0.47 * second), 0.5, 256)
    return Records(
        arrival_s=np.cumsum(gaps),
        cpu_milli=(np.ceil(cores * 2) * 500).astype(np.int64),
        memory_mib=(np.ceil(memory) * 1024).astype(np.int64),
        duration_s=np.maximum(duration, 30).astype(np.int64),
        batch=np.arange(count),
        priority=np.where(rng.random(count) < family.sensitive_share, 2, 0),
    )
