"""The oracle and its tables: true sizes, least times, resumable files."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from dwcp.compression import codecs, oracle, oracle_campaign
from dwcp.compression.corpus import Piece
from dwcp.compression.errors import CodecLied, MeasurementInvalid
from dwcp.compression.oracle import NAMES, SHIPPED, Measurement, Oracle

pytest.importorskip("cramjam", reason="the oracle's list needs cramjam: run `make environment-dev`")
pytest.importorskip("isal", reason="the oracle's list needs isal: run `make environment-dev`")

TEXT = b" ".join(b"%d green bottles" % n for n in range(9000))
NOISE = random.Random(1).randbytes(100_000)


def _row(raw: bytes = TEXT, **changes: object) -> Measurement:
    packed, pack, unpack = Oracle().measure(raw, repeats=1)
    row = Measurement(oracle.digest(raw), "text", "text/a", "s", 0, len(raw), packed, pack, unpack)
    return msgspec.structs.replace(row, **changes)


def test_all_that_travels_is_in_the_list_of_nineteen() -> None:
    """The list is fixed, and our choices can be priced by it."""
    assert len(NAMES) == len(set(NAMES)) == 19
    assert [NAMES[at] for at in SHIPPED] == [codec.name for codec in codecs.CODECS]


def test_every_codec_is_measured_with_its_true_size() -> None:
    """Sizes equal what our own codecs give; times are above nothing."""
    row = _row()

    for at, codec in zip(SHIPPED, codecs.CODECS, strict=True):
        assert row.packed[at] == len(codec.pack(TEXT))
    assert all(each < len(TEXT) / 2 for each in row.packed[1:])
    assert all(each > 0 for each in (*row.pack_us[1:], *row.unpack_us[1:]))
    assert (row.packed[0], row.pack_us[0], row.unpack_us[0]) == (len(TEXT), 0.0, 0.0)


def test_the_least_of_the_repeats_counts() -> None:
    """A clock whose steps shrink: the last and shortest run is the one that is told."""
    now, step = 0.0, 64.0

    def clock() -> float:
        nonlocal now, step
        step /= 2
        now += step
        return now

    one = Oracle(cpu=clock)._one("lz4", TEXT, repeats=1, patience_s=1e9)
    now, step = 0.0, 64.0
    three = Oracle(cpu=clock)._one("lz4", TEXT, repeats=3, patience_s=1e9)

    assert three[1] < one[1]
    assert three[2] < one[2]


def test_patience_ends_the_repeats() -> None:
    """A codec that used its time on the first run is not run again."""
    calls = 0

    def clock() -> float:
        nonlocal calls
        calls += 1
        return float(calls)

    Oracle(cpu=clock)._one("lz4", TEXT, repeats=3, patience_s=0.5)

    assert calls == 4


def test_a_codec_that_gives_back_other_bytes_is_found() -> None:
    """The round trip is asserted, not assumed."""
    lying = Oracle()
    lying._pairs["lz4"] = (lambda raw: raw, lambda packed, _size: packed[:-1])

    with pytest.raises(CodecLied, match="lz4"):
        lying.measure(TEXT, repeats=1)


def test_what_does_not_shrink_is_stored() -> None:
    """Noise costs its own size and nothing to unpack, whatever the library says."""
    grid = oracle.grid([_row(NOISE)])

    assert (grid.packed == len(NOISE)).all()
    assert (grid.unpack_s == 0).all()
    assert grid.take(SHIPPED).packed.shape == (1, len(codecs.CODECS))


def test_a_campaign_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    """Time runs out after two pieces, the file loses the end of its last line; the next run measures the rest."""
    pieces = [Piece("text", f"text/{n}", "s", n, TEXT[n * 1000 : n * 1000 + 50_000]) for n in range(4)]
    path = tmp_path / "rows"
    ticks = iter(range(100))

    first, complete = oracle_campaign.run(path, pieces, seconds_max=2.5, wall=lambda: float(next(ticks)))
    assert (len(first), complete) == (2, False)
    late = iter(range(0, 1000, 100))
    slow, _ = oracle_campaign.run(
        tmp_path / "slow", pieces, seconds_max=2.5, least=3, wall=lambda: float(next(late))
    )
    assert len(slow) == 3, "a slow host measures what training needs at least"
    path.write_bytes(path.read_bytes()[:-20])
    told: list[tuple[int, int]] = []
    rows, complete = oracle_campaign.run(path, pieces, report=lambda *at: told.append(at))

    assert complete
    assert told[-1] == (4, 3)
    assert [row.digest for row in rows] == [oracle.digest(piece.raw) for piece in pieces]
    assert all(len(row.features) > 10 for row in rows)


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    """A torn end is normal, damage elsewhere is not."""
    path = tmp_path / "rows"
    for _ in range(2):
        oracle.append_line(path, _row())
    path.write_bytes(b"{broken\n" + path.read_bytes())

    with pytest.raises(MeasurementInvalid, match="line 1"):
        oracle.read_lines(path)


def test_tables_are_packed_and_checked() -> None:
    """The same table back; damage and other lists of codecs are refused."""
    data = oracle_campaign.table([_row()])

    table = oracle.unpack_table(data)
    assert table.rows == (_row(pack_us=table.rows[0].pack_us, unpack_us=table.rows[0].unpack_us),)
    for damaged in (b"", b"junk", data[:-10]):
        with pytest.raises(MeasurementInvalid):
            oracle.unpack_table(damaged)
    other = msgspec.structs.replace(table, codecs=("none",))
    with pytest.raises(MeasurementInvalid, match="another release"):
        oracle.unpack_table(oracle.pack_table(other))
