"""From predicted logs to what each codec costs on a link, and the table without a model.

Codecs are in the order of `codecs.CODECS`, `none` first: C = 1 + PACKERS of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dwcp.compression import costs
from dwcp.compression.costs import Link, Mode, Stages
from dwcp.compression.model import PACK, PACKERS, RATIO, VALUES

Array = NDArray[np.float64]

_SIZE_REACH = 1.5  # doublings
_NEAR_MIN = 8
RATIO_REACH = 0.2  # a block is like another if one codec's log ratio and log speed differ by so much
PACK_REACH = 0.3
_SIGNS = np.where(
    np.arange(VALUES) < RATIO.stop, -1.0, 1.0
)  # a ratio makes bytes fewer, a speed's log is of seconds


def stages_of(logs: Array, size: Array | float, *, link: Link, scale: Array | None = None) -> Stages:
    """`logs` [..., VALUES] to stages [..., C]. `size` [...] bytes of a block.

    `scale` [VALUES] is added: how much slower than the reference host this one is. A codec that does
    not shrink becomes a stored block: raw bytes, free to unpack. One `exp` and one array: at some dozen values the
    calls are what costs.
    """
    if scale is not None:
        logs = logs + scale
    size = np.asarray(size, np.float64)[..., None]
    values = np.exp(logs * _SIGNS)
    values *= size
    table = np.zeros((*values.shape[:-1], 3, 1 + PACKERS))  # packed bytes, packing and unpacking seconds; [C]
    table[..., 1:] = values.reshape(*values.shape[:-1], 3, PACKERS)
    table[..., 0, :1] = size
    sizes = table[..., 0, :]
    table[..., 2, :][sizes >= size] = 0.0
    np.minimum(sizes, size, out=sizes)
    return costs.stages(
        sizes + costs.HEADER_BYTES, compress_s=table[..., 1, :], decompress_s=table[..., 2, :], link=link
    )


def seconds_of(
    logs: Array, size: Array | float, *, link: Link, mode: Mode = Mode.BULK, scale: Array | None = None
) -> Array:
    """T of one block under each codec, [..., C]."""
    return costs.total_seconds(stages_of(logs, size, link=link, scale=scale), blocks=1, mode=mode, link=link)


def careful(logs: Array, covariance: Array, *, sds: float) -> Array:
    """[VALUES] with packing longer by so many standard deviations: a slow codec that turns out slower still
    holds everything up, one that turns out quicker changes little."""
    longer = logs.copy()
    longer[PACK] += sds * np.sqrt(np.maximum(covariance.diagonal()[PACK], 0.0))
    return longer


def leaves(seconds: Array, *, table: int, margin: float) -> int:
    """The codec to take: the soonest, if it beats the table's choice by the margin (log)."""
    best = int(seconds.argmin())
    return best if seconds[best] * math.exp(margin) < seconds[table] else table


@dataclass(frozen=True)
class Bank:
    """Measured blocks that stand for all data: `logs` [R, VALUES], `log2_size` [R], `weight` [R] (the more
    alike blocks there are, the less each counts). The table is made from it, so that it follows the host's
    own speeds."""

    logs: Array
    log2_size: Array
    weight: Array

    def near(self, size_bytes: float) -> Bank:
        """Blocks of the nearest size class, or all where there are few."""
        near = np.abs(self.log2_size - np.clip(np.log2(max(size_bytes, 1.0)), 16, 20)) <= _SIZE_REACH
        if near.sum() < _NEAR_MIN:
            return self
        return Bank(self.logs[near], self.log2_size[near], self.weight[near])

    def log_seconds(self, *, size_bytes: float, link: Link, mode: Mode, scale: Array | None = None) -> Array:
        """[R, C] ln T of a block of this size, were it like each of the bank's."""
        sizes = np.full(len(self.logs), size_bytes)
        return np.log(seconds_of(self.logs, sizes, link=link, mode=mode, scale=scale))

    def choice(self, *, size_bytes: float, link: Link, mode: Mode, scale: Array | None = None) -> int:
        """The codec with the least geometric mean of T over the blocks of the nearest size class."""
        near = self.near(size_bytes)
        logs = near.log_seconds(size_bytes=size_bytes, link=link, mode=mode, scale=scale)
        return int(np.argmin(near.weight @ logs))


@dataclass(frozen=True)
class Alike:
    """The bank as one link sees it: answers what suits blocks that one codec treats like the one at hand.

    `ratio`, `pack` [C-1, R] logs on this host, `log_seconds` [R, C], `log_weight` [R].
    """

    ratio: Array
    pack: Array
    log_seconds: Array
    log_weight: Array

    @cached_property
    def typical(self) -> Array:
        """[C] geometric mean of T over all blocks."""
        weight = np.exp(self.log_weight)
        return np.asarray(np.exp(weight @ self.log_seconds / weight.sum()))

    def seconds(self, place: int, *, ratio: float, pack: float, keeps: float) -> Array:
        """[C] what is expected of a block behind one that the codec at `place` > 0 shrank by `ratio` (log) at
        `pack` seconds a byte (log): with probability `keeps` it is like the blocks that this codec treats so,
        else like any. A block that took next to no time says little of what the next may cost."""
        distance = ((self.ratio[place - 1] - ratio) / RATIO_REACH) ** 2
        distance += ((self.pack[place - 1] - pack) / PACK_REACH) ** 2
        exponent = self.log_weight - 0.5 * distance
        near = np.exp(exponent - exponent.max())
        alike = np.exp(near @ self.log_seconds / near.sum())
        return np.asarray(keeps * alike + (1.0 - keeps) * self.typical)
