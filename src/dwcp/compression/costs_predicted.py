"""From predicted logs to what each codec costs on a link, how doubtful that is, and the table without a model.

Codecs are in the order of `codecs.CODECS`, `none` first: C = 1 + PACKERS of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dwcp.compression import costs
from dwcp.compression.costs import Link, Mode, Stages
from dwcp.compression.model import PACK, PACKERS, RATIO, UNPACK

Array = NDArray[np.float64]
Places = NDArray[np.intp]

_OFFSETS = np.array([PACK.start, RATIO.start, UNPACK.start])  # of the stages compress, send, decompress
_SIGNS = np.array([1.0, -1.0, 1.0])  # a larger log makes the stage longer, but a larger ratio shorter


def stages_of(logs: Array, size: Array | float, *, link: Link, scale: Array | None = None) -> Stages:
    """`logs` [..., VALUES] to stages [..., C]. `size` [...] bytes of a block.

    `scale` [VALUES] is added: how much slower than the reference host this one is. A codec that does
    not shrink becomes a stored block: raw bytes, free to unpack.
    """
    if scale is not None:
        logs = logs + scale
    size = np.asarray(size, np.float64)[..., None]
    packed = size * np.exp(-logs[..., RATIO])
    stored = packed >= size
    packed = np.minimum(packed, size)
    pack_s = size * np.exp(logs[..., PACK])
    unpack_s = np.where(stored, 0.0, size * np.exp(logs[..., UNPACK]))
    zero = np.zeros_like(size)
    return costs.stages(
        np.concatenate((size, packed), axis=-1) + costs.HEADER_BYTES,
        compress_s=np.concatenate((zero, pack_s), axis=-1),
        decompress_s=np.concatenate((zero, unpack_s), axis=-1),
        link=link,
    )


def seconds_of(
    logs: Array, size: Array | float, *, link: Link, mode: Mode = Mode.BULK, scale: Array | None = None
) -> Array:
    """T of one block under each codec, [..., C]."""
    return costs.total_seconds(stages_of(logs, size, link=link, scale=scale), blocks=1, mode=mode, link=link)


def doubts(parts: Stages, covariance: Array, *, reference: int) -> Array:
    """[C] standard deviation of ln T_j − ln T_reference, each time taken as its slowest stage alone."""
    slowest = np.argmax(np.stack((parts.compress, parts.send, parts.decompress)), axis=0)
    places = _OFFSETS[slowest] + np.arange(-1, PACKERS)
    signs = _SIGNS[slowest]
    signs[0] = 0.0  # `none` is known
    places[0] = 0
    own = covariance[places, places] * signs * signs
    shared = covariance[places, places[reference]] * signs * signs[reference]
    return np.asarray(np.sqrt(np.maximum(own + own[reference] - 2 * shared, 0.0)))


def leaves(seconds: Array, doubt: Array | float, *, table: int, margin: float, caution: float) -> int:
    """The codec to take: the soonest, if it beats the table's choice by the margin and a share of the doubt.

    `doubt` is relative to the table's choice.
    """
    gains = np.log(seconds[table] / seconds) - caution * doubt
    gains[table] = margin
    return int(np.argmax(gains))


@dataclass(frozen=True)
class Bank:
    """Measured blocks that stand for all data: `logs` [R, VALUES], `log2_size` [R]. The table is made from it,
    so that it follows the host's own speeds."""

    logs: Array
    log2_size: Array

    def choice(self, *, size_bytes: float, link: Link, mode: Mode, scale: Array | None = None) -> int:
        """The codec with the least geometric mean of T over the blocks of the nearest size class."""
        near = np.abs(self.log2_size - np.clip(np.log2(max(size_bytes, 1.0)), 16, 20)) <= 1.0
        logs = self.logs[near] if near.sum() >= 8 else self.logs
        seconds = seconds_of(logs, np.full(len(logs), size_bytes), link=link, mode=mode, scale=scale)
        return int(np.argmin(np.log(seconds).mean(axis=0)))
