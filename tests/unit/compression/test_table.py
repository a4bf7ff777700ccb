"""Calibration and table: speeds of this host, choices that follow the cost model."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from dwcp.compression import calibration as calibrations
from dwcp.compression.calibration import Calibration, Speed
from dwcp.compression.codecs import CODECS
from dwcp.compression.table import RATES_BPS, SIZES_BYTES, Table

MB = 1e6
# MB/s of the reference host, packing and unpacking.
REFERENCE = {
    "none": (30000, 80000),
    "lz4-a8": (1506, 5883),
    "lz4": (1005, 5174),
    "zstd-f1": (717, 2526),
    "zstd-1": (629, 1953),
    "zstd-3": (372, 1729),
    "zstd-5": (155, 1692),
    "brotli-5": (62, 567),
    "bz2-9": (13, 35),
    "xz-6": (3.5, 85),
    "zstd-9": (68, 1711),
    "igzip-1": (636, 797),
}


def _table(scale: float = 1.0) -> Table:
    speeds = {
        name: Speed(pack * MB * scale, unpack * MB * scale) for name, (pack, unpack) in REFERENCE.items()
    }
    return Table(Calibration("reference", 0.0, speeds))


def test_slow_links_get_small_fast_links_get_quick() -> None:
    """The measured pattern: strong codecs at 1 Mbit/s, zstd between, quick ones at 1 Gbit/s, none at 10."""
    table = _table()
    size = 64 << 20

    chosen = {
        rate: table.choose(rate_bps=rate, size_bytes=size).codec.name for rate in (1e6, 1e7, 1e8, 1e9, 1e10)
    }

    assert chosen[1e6] == "xz-6"
    assert chosen[1e7] in {"brotli-5", "zstd-5", "zstd-9"}
    assert chosen[1e8] in {"zstd-3", "zstd-1"}
    assert chosen[1e9] in {"lz4", "lz4-a8", "zstd-1"}
    assert chosen[1e10] == "none"


def test_a_faster_link_never_gets_a_slower_codec() -> None:
    """Along the rates, for every size, the chosen codec's packing speed does not fall."""
    table = _table()
    for size in SIZES_BYTES:
        speeds = [REFERENCE[table.choose(rate_bps=rate, size_bytes=size).codec.name][0] for rate in RATES_BPS]
        assert speeds == sorted(speeds)


def test_a_slow_host_gets_quicker_codecs() -> None:
    """The same link on a host of a tenth the speed: xz would be the bottleneck."""
    choice = _table(0.1).choose(rate_bps=3e6, size_bytes=64 << 20)

    assert choice.codec.name not in {"xz-6", "bz2-9"}


def test_the_choice_is_within_three_percent_of_the_best() -> None:
    """The cheapest-in-CPU rule may cost no more than it says, in any bin."""
    table = _table()
    for rate, size in itertools.product(RATES_BPS, SIZES_BYTES):
        choice = table.choose(rate_bps=rate, size_bytes=size)
        mine = next(row for row in choice.ranked if row.codec == choice.codec.name)

        assert mine.total_s <= choice.ranked[0].total_s * 1.03


def test_only_allowed_codecs_are_chosen() -> None:
    """A receiver that can only read lz4 gets lz4, or nothing packed."""
    choice = _table().choose(rate_bps=1e6, size_bytes=1 << 20, allowed=frozenset({"lz4"}))

    assert choice.codec.name == "lz4"
    assert {row.codec for row in choice.ranked} == {"lz4", "none"}


def test_values_beyond_the_bins_are_answered() -> None:
    """Rates and sizes outside take the outermost bin instead of failing."""
    table = _table()

    assert table.choose(rate_bps=1, size_bytes=0).rate_bps == RATES_BPS[0]
    assert table.choose(rate_bps=1e15, size_bytes=1 << 60).size_bytes == SIZES_BYTES[-1]


def test_measuring_gives_every_codec_a_speed_in_time() -> None:
    """On this host, for real: all codecs, within the budget, and repeatable enough to order extremes."""
    measured = calibrations.measure(host="here")

    assert set(measured.speeds) == {codec.name for codec in CODECS}
    assert measured.seconds < 4 * calibrations.BUDGET_S
    assert measured.speeds["lz4"].pack_bps > 5 * measured.speeds["xz-6"].pack_bps


def test_the_overhead_of_a_block_is_measured() -> None:
    """Above nothing, below 20 ms even on a busy host; and it counts in the table's arithmetic."""
    overhead_s = calibrations.measure(host="here", budget_s=0.01).block_overhead_s
    slow = Table(msgspec.structs.replace(_table().calibration, block_overhead_s=1.0))

    assert 0 < overhead_s < 0.02
    assert slow.choose(rate_bps=1e9, size_bytes=1 << 20).ranked[0].total_s > 1.0


def test_a_budget_that_has_run_out_still_measures_once() -> None:
    """With a clock that leaps, every codec has one run and the result says that it is incomplete."""
    leaps = itertools.count(step=100)
    measured = calibrations.measure(host="here", wall=lambda: float(next(leaps)))

    assert set(measured.speeds) == {codec.name for codec in CODECS}
    assert not measured.complete


def test_the_cache_holds_for_its_host_only() -> None:
    """Another host, a damaged file or a missing codec means: measure again."""
    table = _table()
    data = calibrations.dump(table.calibration)

    assert calibrations.load(data, host="reference") == table.calibration
    assert calibrations.load(data, host="other") is None
    assert calibrations.load(data[:-20], host="reference") is None
    assert calibrations.load(data.replace(b'"lz4":', b'"lz5":'), host="reference") is None


def test_reference_blocks_are_the_same_everywhere() -> None:
    """Hosts can be compared because they pack the same bytes."""
    blocks = calibrations.reference_blocks()

    assert [len(block) for block in blocks] == [65536] * 4
    assert blocks == calibrations.reference_blocks()
    assert calibrations.host_key() == calibrations.host_key()


@pytest.mark.parametrize("rate", RATES_BPS)
def test_small_payloads_are_never_slower_than_sending_them_raw(rate: float) -> None:
    """Whatever is chosen is predicted to arrive no later than raw bytes, near enough."""
    choice = _table().choose(rate_bps=rate, size_bytes=1 << 14)
    raw = next(row for row in choice.ranked if row.codec == "none")
    mine = next(row for row in choice.ranked if row.codec == choice.codec.name)

    assert mine.total_s <= raw.total_s * 1.03
