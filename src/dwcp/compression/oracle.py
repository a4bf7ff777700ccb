"""The oracle: what each of 19 fixed codecs really does to some bytes, measured, round trip asserted.

Regret is told against the best of this list. It is wider than what travels (`codecs.CODECS`), so that the
price of a short list is part of the figure. Times are CPU seconds of the measuring thread, the least of a
few runs. A measurement holds numbers and a hash, never the bytes.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brotli
import lz4.block
import msgspec
import numpy as np
import zstandard
from blake3 import blake3
from numpy.typing import NDArray

from dwcp.compression import codecs
from dwcp.compression.errors import CodecLied, MeasurementInvalid

REPEATS = 3
SCHEMA = 1
NAMES = (
    "none", "lz4-a8", "lz4", "lz4hc-9", "snappy", "zstd-f5", "zstd-f1", "zstd-1", "zstd-3", "zstd-5",
    "zstd-9", "zstd-12", "zstd-15", "zstd-19", "igzip-1", "brotli-5", "brotli-9", "bz2-9", "xz-6",
)  # fmt: skip
SHIPPED = tuple(NAMES.index(codec.name) for codec in codecs.CODECS)  # places of those that travel

Pair = tuple[Callable[[bytes], bytes], Callable[[bytes, int], bytes]]


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One payload under every codec of `NAMES`; microseconds of CPU for the whole of it.

    `stream` and `segment` say which pieces lie behind one another in one file; `group` keeps apart what
    must not be learned from and tested on (same normalised name).
    """

    digest: str
    kind: str
    group: str
    stream: str
    segment: int
    size: int
    packed: tuple[int, ...]
    pack_us: tuple[float, ...]
    unpack_us: tuple[float, ...]
    features: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """Measurements as arrays `[rows, codecs]`: bytes on the wire without framing, CPU seconds.

    A codec that does not shrink is a stored block: its bytes are the raw ones, unpacking is free.
    """

    size: NDArray[np.float64]  # [rows]
    packed: NDArray[np.float64]
    pack_s: NDArray[np.float64]
    unpack_s: NDArray[np.float64]

    def take(self, places: tuple[int, ...]) -> Grid:
        """The same rows for some codecs only."""
        at = list(places)
        return Grid(self.size, self.packed[:, at], self.pack_s[:, at], self.unpack_s[:, at])


def grid(rows: list[Measurement]) -> Grid:
    size = np.array([row.size for row in rows], np.float64)
    packed = np.array([row.packed for row in rows], np.float64)
    pack_s = np.array([row.pack_us for row in rows], np.float64) * 1e-6
    unpack_s = np.array([row.unpack_us for row in rows], np.float64) * 1e-6
    stored = packed >= size[:, None]
    return Grid(size, np.minimum(packed, size[:, None]), pack_s, np.where(stored, 0.0, unpack_s))


class Oracle:
    """The 19 codecs with their libraries. Raises `MeasurementInvalid` where one is not installed."""

    def __init__(self, *, cpu: Callable[[], float] = time.thread_time) -> None:
        self._cpu = cpu
        self._pairs = _pairs()

    def measure(
        self, raw: bytes, *, repeats: int = REPEATS, patience_s: float = float("inf")
    ) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
        """(packed bytes, packing µs, unpacking µs) per codec: the least of `repeats` runs. A codec that has
        used `patience_s` of CPU on these bytes is not run again. Raises `CodecLied`."""
        found = [self._one(name, raw, repeats=repeats, patience_s=patience_s) for name in NAMES]
        packed, pack, unpack = zip(*found, strict=True)
        return packed, pack, unpack

    def _one(self, name: str, raw: bytes, *, repeats: int, patience_s: float) -> tuple[int, float, float]:
        if name == "none":
            return len(raw), 0.0, 0.0
        pack, unpack = self._pairs[name]
        best_pack = best_unpack = float("inf")
        begun = self._cpu()
        for _ in range(repeats):
            start = self._cpu()
            packed = pack(raw)
            middle = self._cpu()
            back = unpack(packed, len(raw))
            end = self._cpu()
            if back != raw:
                raise CodecLied(f"{name} gave back other bytes than it took ({len(raw)} bytes)")
            best_pack, best_unpack = min(best_pack, middle - start), min(best_unpack, end - middle)
            if end - begun > patience_s:
                break
        return len(packed), round(best_pack * 1e6, 1), round(best_unpack * 1e6, 1)


def digest(raw: bytes) -> str:
    return blake3(raw).hexdigest(length=12)


def versions() -> dict[str, str]:
    """The libraries that were measured."""
    from importlib.metadata import version

    return {name: version(name) for name in ("zstandard", "lz4", "brotli", "cramjam", "isal")}


# ----- a table on disk: one JSON line per measurement, so that an interrupted run goes on -----


def read_lines(path: Path) -> dict[str, Measurement]:
    """What was measured so far, by digest; a torn last line is left out. Raises `MeasurementInvalid`."""
    if not path.exists():
        return {}
    lines = path.read_bytes().split(b"\n")
    rows = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = msgspec.json.decode(line, type=Measurement)
        except msgspec.DecodeError as exc:
            if number == len(lines):
                break
            raise MeasurementInvalid(f"{path}, line {number}: {exc}; remove the line") from exc
        rows[row.digest] = row
    return rows


def append_line(path: Path, row: Measurement) -> None:
    with path.open("ab") as file:
        file.write(msgspec.json.encode(row) + b"\n")


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The committed table: what was measured, where, with which libraries."""

    codecs: tuple[str, ...]
    features: tuple[str, ...]
    features_version: int
    libraries: dict[str, str]
    processor: str
    speeds: dict[str, tuple[float, float]]  # the calibration of the host that measured: bytes/s
    rows: tuple[Measurement, ...]
    schema: int = SCHEMA


def pack_table(table: Table) -> bytes:
    """The table as bytes; equal tables give equal bytes with one version of the library."""
    return zstandard.ZstdCompressor(level=19).compress(msgspec.json.encode(table))


def unpack_table(data: bytes) -> Table:
    """Raises `MeasurementInvalid`."""
    try:
        raw = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(data, max_output_size=1 << 28)
        table = msgspec.json.decode(raw, type=Table)
    except (zstandard.ZstdError, msgspec.DecodeError) as exc:
        raise MeasurementInvalid(f"the measurement table cannot be read: {exc}") from exc
    if table.schema != SCHEMA or table.codecs != NAMES:
        raise MeasurementInvalid("the measurement table is of another release: measure again")
    return table


# ----- the libraries -----


def _pairs() -> dict[str, Pair]:
    pairs: dict[str, Pair] = {
        codec.name: (codec.pack, _unpacker(codec)) for codec in codecs.CODECS if codec.name != "none"
    }
    for level in (-5, 12, 15, 19):
        name = f"zstd-f{-level}" if level < 0 else f"zstd-{level}"
        pairs[name] = (_zstd(level), lambda packed, _size: zstandard.ZstdDecompressor().decompress(packed))
    pairs["lz4hc-9"] = (
        lambda raw: lz4.block.compress(raw, mode="high_compression", compression=9, store_size=False),
        lambda packed, size: lz4.block.decompress(packed, uncompressed_size=size),
    )
    pairs["brotli-9"] = (
        lambda raw: brotli.compress(raw, quality=9),
        lambda packed, _: brotli.decompress(packed),
    )
    pairs["snappy"] = _snappy(_library("cramjam"))
    _library("isal")  # `igzip-1` would else be measured with zlib
    return pairs


def _unpacker(codec: codecs.Codec) -> Callable[[bytes, int], bytes]:
    """A shipped codec's own, with its limits; what it would refuse as a stored block goes to the library."""

    def unpack(packed: bytes, size: int) -> bytes:
        return codec.unpack(packed, raw_size=size)

    return unpack


def _zstd(level: int) -> Callable[[bytes], bytes]:
    return lambda raw: zstandard.ZstdCompressor(level=level, write_checksum=False).compress(raw)


def _snappy(library: Any) -> Pair:  # Any: a module without types
    return (
        lambda raw: bytes(library.snappy.compress_raw(raw)),
        lambda packed, _: bytes(library.snappy.decompress_raw(packed)),
    )


def _library(name: str) -> Any:  # Any: a module that may be missing
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        package = name.partition(".")[0]
        raise MeasurementInvalid(
            f"the oracle's list needs the package {package}: run `make environment-dev`"
        ) from exc
