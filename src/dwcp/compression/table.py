"""The codec table: for a link rate and a size, the codec whose bytes arrive soonest on this host.

Pipelined cost model: a payload of n bytes in K blocks, stages compress C, send S, decompress D
(seconds for the whole) and h seconds of overhead per block:

    T = K·h + (C + S + D)/K + (K−1)/K · max(C, S, D)

Speeds are measured on this host, ratios are the aggregates of the reference corpus: the table never
looks at the data (tier "table"). Bins are half a decade of rate and a factor of four of size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from dwcp.compression.calibration import BLOCK_OVERHEAD_S, Calibration, Speed
from dwcp.compression.codecs import CODECS, Codec

TIER = "table"
BLOCK_BYTES = 1 << 20
CPU_SHARE = 0.5  # of one core: both ends have other work
_NEAR_BEST = 1.03  # within 3 % of the best the cheapest in CPU wins: ratios are not known better than that
RATES_BPS = tuple(10 ** (6 + step / 2) for step in range(9))  # 1 Mbit/s to 10 Gbit/s
SIZES_BYTES = tuple(1 << (14 + 2 * step) for step in range(9))  # 16 KiB to 1 GiB


class Estimate(msgspec.Struct, frozen=True, gc=False):
    """What one codec would cost, seconds for the whole payload. A struct: ten are made for each decision."""

    codec: str
    ratio: float
    compress_s: float
    send_s: float
    decompress_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The table's answer. `ranked` has every codec allowed, soonest first."""

    codec: Codec
    rate_bps: float
    size_bytes: int
    ranked: tuple[Estimate, ...]


class Table:
    """Calculated once from a calibration; an answer is one look-up."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self._choices = {
            (rate, size): self.estimate(rate_bps=RATES_BPS[rate], size_bytes=SIZES_BYTES[size])
            for rate in range(len(RATES_BPS))
            for size in range(len(SIZES_BYTES))
        }

    def choose(self, *, rate_bps: float, size_bytes: int, allowed: frozenset[str] = frozenset()) -> Choice:
        """The codec of the bin; `allowed` empty means all. `none` is always allowed."""
        rate, size = _bin(rate_bps, RATES_BPS), _bin(size_bytes, SIZES_BYTES)
        ranked = self._choices[rate, size]
        if allowed:
            ranked = tuple(each for each in ranked if each.codec in allowed or each.codec == "none")
        return Choice(_cheapest_near_best(ranked), RATES_BPS[rate], SIZES_BYTES[size], ranked)

    def estimate(self, *, rate_bps: float, size_bytes: int) -> tuple[Estimate, ...]:
        """Every codec's cost for exactly this link and size, soonest first."""
        rows = [self._cost(codec, rate_bps=rate_bps, size_bytes=size_bytes) for codec in CODECS]
        return tuple(sorted(rows, key=lambda row: row.total_s))

    def _cost(self, codec: Codec, *, rate_bps: float, size_bytes: int) -> Estimate:
        speed = self.calibration.speeds[codec.name]
        overhead_s = self.calibration.block_overhead_s
        return price(
            codec,
            ratio=codec.ratio,
            speed=speed,
            rate_bps=rate_bps,
            size_bytes=size_bytes,
            block_overhead_s=overhead_s,
        )


def price(
    codec: Codec,
    *,
    ratio: float,
    speed: Speed,
    rate_bps: float,
    size_bytes: int,
    block_overhead_s: float = BLOCK_OVERHEAD_S,
) -> Estimate:
    """What a codec that shrinks by `ratio` at these speeds costs on this link, by the module's cost model."""
    blocks = max(1, math.ceil(size_bytes / BLOCK_BYTES))
    compress = size_bytes / (speed.pack_bps * CPU_SHARE) if codec.wire else 0.0
    decompress = size_bytes / (speed.unpack_bps * CPU_SHARE) if codec.wire else 0.0
    send = size_bytes / ratio * 8 / rate_bps
    overlap = (blocks - 1) / blocks * max(compress, send, decompress)
    total = blocks * block_overhead_s + (compress + send + decompress) / blocks + overlap
    return Estimate(codec.name, ratio, compress, send, decompress, total)


def _cheapest_near_best(ranked: tuple[Estimate, ...]) -> Codec:
    limit = ranked[0].total_s * _NEAR_BEST
    near = [row for row in ranked if row.total_s <= limit]
    best = min(near, key=lambda row: row.compress_s + row.decompress_s)
    return next(codec for codec in CODECS if codec.name == best.codec)


def _bin(value: float, bins: tuple[float, ...]) -> int:
    """The nearest bin on a logarithmic scale; the ends take all beyond them."""
    wanted = math.log(max(value, 1.0))
    return min(range(len(bins)), key=lambda at: abs(math.log(bins[at]) - wanted))
