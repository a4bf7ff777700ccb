"""From 27 predicted logs to what each codec costs on a link: the bridge between model and cost model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dwcp.compression import costs
from dwcp.compression.costs import Link, Mode, Stages
from dwcp.compression.model import PACK, RATIO, UNPACK

Array = NDArray[np.float64]


def stages_of(logs: Array, size: Array | float, *, link: Link, scale: Array | None = None) -> Stages:
    """`logs` [..., VALUES] to stages [..., 1 + PACKERS], `none` first. `size` [...] bytes of a block.

    `scale` [VALUES] is added: how much slower than the reference host this one is. A codec that does
    not shrink becomes a stored block: raw bytes, free to unpack.
    """
    if scale is not None:
        logs = logs + scale
    size = np.asarray(size, np.float64)[..., None]
    packed = size * np.exp(-logs[..., RATIO])
    stored = packed >= size
    packed = np.where(stored, size, packed)
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
    logs: Array, size: Array | float, *, link: Link, mode: Mode, scale: Array | None = None
) -> Array:
    """T of one block under each codec, [..., 1 + PACKERS]."""
    return costs.total_seconds(stages_of(logs, size, link=link, scale=scale), blocks=1, mode=mode, link=link)
