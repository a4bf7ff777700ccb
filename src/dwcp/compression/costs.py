"""What a choice of codec costs on a link: pure arithmetic over sizes and CPU seconds, no codec is run here.

A payload in K blocks passes three stages: compress C, send S, decompress D (seconds for the whole):

    C = c/(f_s·p_s)    S = s/W    D = d/(f_r·p_r)
    T = L + K·h + (C+S+D)/K + (K−1)/K · max(C, S, D)

K = 1 is the serial transfer, K → ∞ the bulk one, whose time is that of its slowest stage (spec of the
selector, §1.1). Everything is vectorised: sizes and seconds may have any shape, with codecs last; rates
broadcast against them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HEADER_BYTES = 64  # framing of one block: the container's header and the transport's


class Mode(Enum):
    """How stages overlap."""

    SERIAL = "serial"
    PIPELINED = "pipelined"
    BULK = "bulk"


class Objective(Enum):
    """What is made small. The last two fall back to the least violation where nothing is feasible."""

    TIME = "time"
    COST = "cost"
    TIME_UNDER_CPU = "time_under_cpu"
    BYTES_UNDER_DEADLINE = "bytes_under_deadline"


@dataclass(frozen=True, slots=True)
class Link:
    """The path between two hosts and what of their processors may be used.

    `rate_bps` bit/s; `latency_s` one way; shares in (0, 1]; cores ≥ 1 that can pack blocks side by side;
    `block_overhead_s` is h, measured by the calibration.
    """

    rate_bps: float
    latency_s: float = 0.0
    sender_share: float = 1.0
    receiver_share: float = 1.0
    sender_cores: int = 1
    receiver_cores: int = 1
    block_overhead_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.rate_bps > 0:
            raise ValueError(f"a link needs a rate above 0 bit/s, got {self.rate_bps}")
        if not (0 < self.sender_share <= 1 and 0 < self.receiver_share <= 1):
            raise ValueError("a share of a core is above 0 and at most 1")
        if self.sender_cores < 1 or self.receiver_cores < 1:
            raise ValueError("each end has at least one core")


@dataclass(frozen=True, slots=True)
class Prices:
    """What one pays: dollars per byte sent and per core-second at either end (§2.3: 0.02 $/GB, 0.04 $/h)."""

    byte: float = 0.02 / 1e9
    core_second: float = 0.04 / 3600


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds of the three stages and bytes on the wire; one shape, codecs last."""

    compress: Array
    send: Array
    decompress: Array
    sent_bytes: Array
    cpu: Array  # core-seconds of both ends together

    def row(self, at: int) -> Stages:
        """Those of one block, where the first dimension is of blocks."""
        return Stages(
            self.compress[at], self.send[at], self.decompress[at], self.sent_bytes[at], self.cpu[at]
        )


@dataclass(frozen=True, slots=True)
class Goal:
    """An objective and its limit: CPU core-seconds for `TIME_UNDER_CPU`, seconds for the deadline."""

    objective: Objective = Objective.TIME
    limit: float = float("inf")
    prices: Prices = Prices()


@dataclass(frozen=True, slots=True)
class Terms:
    """Under what a block is sent. `allowed`: places in `codecs.CODECS`, empty for all; `none` always is."""

    link: Link
    mode: Mode = Mode.BULK
    goal: Goal = Goal()
    allowed: frozenset[int] = frozenset()

    @property
    def plain(self) -> bool:
        """Whether only time counts and every codec may be used: what the table was made for."""
        return self.goal == Goal() and not self.allowed

    def score(self, parts: Stages) -> tuple[Array, Array]:
        """([C] seconds, [C] what is made small, infinite where a codec may not be used)."""
        seconds = total_seconds(parts, blocks=1, mode=self.mode, link=self.link)
        scored = scores(parts, seconds, self.goal)
        if self.allowed:
            blocked = [place not in self.allowed and place != 0 for place in range(scored.shape[-1])]
            scored = np.where(blocked, np.inf, scored)
        return seconds, scored


def stages(packed_bytes: Array, *, compress_s: Array, decompress_s: Array, link: Link) -> Stages:
    """The stages of whole payloads: packed bytes (framing included by the caller) and one-core CPU seconds."""
    compress = compress_s / (link.sender_share * link.sender_cores)
    decompress = decompress_s / (link.receiver_share * link.receiver_cores)
    send = packed_bytes * (8.0 / link.rate_bps)
    return Stages(compress, send, decompress, packed_bytes, compress_s + decompress_s)


def total_seconds(parts: Stages, *, blocks: int, mode: Mode, link: Link) -> Array:
    """T for each codec. `blocks` is K ≥ 1; serial ignores it but for the overhead, bulk is the limit K → ∞
    of the overlapped part with the overhead of the K blocks that there are."""
    if blocks < 1:
        raise ValueError(f"a payload has at least one block, got {blocks}")
    slowest = np.maximum(np.maximum(parts.compress, parts.send), parts.decompress)
    fixed = link.latency_s + blocks * link.block_overhead_s
    if mode is Mode.BULK:
        return np.asarray(fixed + slowest)
    together = parts.compress + parts.send + parts.decompress
    if mode is Mode.SERIAL:
        return np.asarray(fixed + together)
    return np.asarray(fixed + together / blocks + (blocks - 1) / blocks * slowest)


def money(parts: Stages, prices: Prices) -> Array:
    """Dollars for each codec: egress and the processors of both ends."""
    return np.asarray(parts.sent_bytes * prices.byte + parts.cpu * prices.core_second)


def scores(parts: Stages, seconds: Array, goal: Goal) -> Array:
    """Lower is better, for each codec; where a limit holds for none, the one that breaks it least wins."""
    if goal.objective is Objective.TIME:
        return seconds
    if goal.objective is Objective.COST:
        return money(parts, goal.prices)
    if goal.objective is Objective.TIME_UNDER_CPU:
        return _limited(seconds, used=parts.cpu, limit=goal.limit)
    return _limited(parts.sent_bytes, used=seconds, limit=goal.limit)


def _limited(wanted: Array, *, used: Array, limit: float) -> Array:
    """`wanted` where the limit holds, else above all of those, ordered by how far the limit is exceeded."""
    above = np.max(wanted, axis=-1, keepdims=True) + used
    return np.where(used <= limit, wanted, above)
