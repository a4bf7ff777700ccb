"""A measuring campaign: pieces of a corpus through the oracle into a table file, resumable at any point."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from dwcp.compression import calibration, features, oracle
from dwcp.compression.corpus import Piece
from dwcp.compression.oracle import Measurement, Oracle

PATIENCE_S = 0.05  # a codec that has used this much CPU on one piece is not run again
_DIGITS = 6  # features are kept with so many, so that a table is the same on any processor


def run(
    path: Path,
    pieces: Iterable[Piece],
    *,
    seconds_max: float = float("inf"),
    least: int = 0,
    report: Callable[[int, int], None] | None = None,
    wall: Callable[[], float] = time.monotonic,
) -> tuple[list[Measurement], bool]:
    """Measures what the file does not hold yet; (rows in the order of the pieces, whether all were reached).

    So many rows as `least` are measured whatever the time. `report` is told (rows so far, newly measured). Features
    are always taken anew, so that a change to them needs no new measurement.
    """
    known = oracle.read_lines(path)
    measure = Oracle()
    rows: list[Measurement] = []
    begun, new = wall(), 0
    for piece in pieces:
        key = oracle.digest(piece.raw)
        if (row := known.get(key)) is None:
            if wall() - begun > seconds_max and len(rows) >= least:
                return rows, False
            row = _measure(measure, piece, key)
            oracle.append_line(path, row)
            known[key] = row
            new += 1
        rows.append(_described(row, piece.raw))
        if report is not None:
            report(len(rows), new)
    return rows, True


def _measure(measure: Oracle, piece: Piece, key: str) -> Measurement:
    packed, pack_us, unpack_us = measure.measure(piece.raw, patience_s=PATIENCE_S)
    return Measurement(
        digest=key,
        kind=piece.kind,
        group=piece.group,
        stream=piece.stream,
        segment=piece.segment,
        size=len(piece.raw),
        packed=packed,
        pack_us=pack_us,
        unpack_us=unpack_us,
    )


def measured_again(measure: Oracle, row: Measurement, raw: bytes) -> Measurement:
    """The same piece with the sizes and times that it has now."""
    packed, pack_us, unpack_us = measure.measure(raw, patience_s=PATIENCE_S)
    return msgspec.structs.replace(row, packed=packed, pack_us=pack_us, unpack_us=unpack_us)


def _described(row: Measurement, raw: bytes) -> Measurement:
    values = tuple(round(float(value), _DIGITS) for value in features.extract(raw))
    return Measurement(
        row.digest, row.kind, row.group, row.stream, row.segment, row.size,
        row.packed, row.pack_us, row.unpack_us, values,
    )  # fmt: skip


def table(rows: list[Measurement]) -> bytes:
    """The rows and where they were measured, as the committed table is: sorted, so that order says nothing."""
    here = calibration.measure(host="")
    speeds = {
        name: (float(round(each.pack_bps)), float(round(each.unpack_bps)))
        for name, each in here.speeds.items()
    }
    ordered = tuple(sorted(rows, key=lambda row: row.digest))
    return oracle.pack_table(
        oracle.Table(
            codecs=oracle.NAMES,
            features=features.NAMES,
            features_version=features.VERSION,
            libraries=oracle.versions(),
            processor=platform.processor() or platform.machine(),
            speeds=speeds,
            rows=ordered,
        )
    )
