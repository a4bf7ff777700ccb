"""What a sample of bytes tells about how they will compress: 17 numbers in about 100 µs, without a clock.

Pieces come from strides over the whole, never from the prefix (archives, executables and documents begin
with headers), at offsets that depend on the length alone: the same bytes always give the same numbers.
Set B of the selector's spec, §1.4, and the entropies of differences and planes that structured numbers need.
"""

from __future__ import annotations

import math

import lz4.block
import numpy as np
import zstandard
from numpy.typing import NDArray

NAMES = (
    "zstd1_scattered",  # log of raw/packed over 8 × 1.5 KiB
    "lz4_run",  # the same over 8 KiB in one piece
    "entropy",  # of bytes, bits
    "zeros",  # shares of six classes of bytes
    "controls",
    "digits",
    "letters",
    "marks",
    "high",
    "distinct",  # of 256
    "top",  # share of the commonest byte
    "log2_size",
    "delta1",  # entropy of byte differences at distances 1, 2 and 4, bits
    "delta2",
    "delta4",
    "plane_first",  # entropy of every fourth byte from the first and from the fourth, bits
    "plane_last",
)
VERSION = 1
COUNT = len(NAMES)
PIECES = 8
PIECE_BYTES = 1536
RUN_BYTES = 8 << 10
_SCATTERED_BYTES = PIECES * PIECE_BYTES
_COUNTED_BYTES = _SCATTERED_BYTES // 2  # every second byte of the pieces is counted
_ROW_BYTES = 1024  # of each of the five rows about numbers
_ROWS = 5
_GOLDEN = 0x9E3779B1

Vector = NDArray[np.float64]


def _classes() -> NDArray[np.int64]:
    """[256, 6]: which class a byte belongs to."""
    matrix = np.zeros((256, 6), np.int64)
    for byte in range(256):
        letter = 65 <= byte <= 90 or 97 <= byte <= 122
        checks = (byte == 0, byte < 32, 48 <= byte <= 57, letter, byte < 128, True)
        matrix[byte, checks.index(True)] = 1
    return matrix


def _plogp() -> Vector:
    counts = np.arange(_COUNTED_BYTES + 1, dtype=np.float64)
    counts[0] = 1.0
    return counts * np.log2(counts)


_CLASSES = _classes()
_PLOGP = _plogp()
_BINS = (np.arange(1 + _ROWS) * 256)[:, None]
_ZSTD = zstandard.ZstdCompressor(level=1, write_checksum=False, write_content_size=False)


def extract(raw: bytes | memoryview, *, total_bytes: int | None = None) -> Vector:
    """`[COUNT]` float64. `total_bytes`: the size of what the decision is for, where `raw` is a sample of it.

    Empty bytes give zeros. Not safe for use by several threads at once (one zstd context is shared).
    """
    size = len(raw)
    vector = np.zeros(COUNT)
    if not size:
        return vector
    scattered = sample(raw)
    at = (size - RUN_BYTES) // 2 if size > RUN_BYTES else 0
    run = bytes(raw[at : at + RUN_BYTES])
    vector[0] = math.log(len(scattered) / len(_ZSTD.compress(scattered)))
    vector[1] = math.log(len(run) / len(lz4.block.compress(run, store_size=False)))
    vector[11] = math.log2(total_bytes or size)
    _describe_bytes(vector, scattered, run)
    return vector


def sample(raw: bytes | memoryview) -> bytes:
    """8 pieces of 1.5 KiB spread over all of it, each at an offset of its own within its stretch."""
    size = len(raw)
    if size <= _SCATTERED_BYTES:
        return bytes(raw)
    stretch = size // PIECES
    slack = stretch - PIECE_BYTES + 1
    starts = (each * stretch + ((each + 1) * _GOLDEN + size) % slack for each in range(PIECES))
    return b"".join([raw[at : at + PIECE_BYTES] for at in starts])


def _describe_bytes(vector: Vector, scattered: bytes, run: bytes) -> None:
    """Counts of bytes, of their differences and of their planes, all by one `bincount`: the calls are what costs."""
    counted = np.frombuffer(scattered, np.uint8)[::2]
    data = np.frombuffer(run, np.uint8)
    width = min(_ROW_BYTES, (data.size - 4) // 4)
    if width < 1:
        counts = np.bincount(counted, minlength=256)
    else:
        rows = np.empty((_ROWS, width), np.uint8)
        for row, distance in enumerate((1, 2, 4)):
            np.subtract(data[distance : distance + width], data[:width], out=rows[row])
        rows[3], rows[4] = data[0 : 4 * width : 4], data[3 : 4 * width : 4]
        together = np.concatenate((counted, (rows + _BINS[1:]).ravel()))
        table = np.bincount(together, minlength=256 * (1 + _ROWS)).reshape(1 + _ROWS, 256)
        vector[12:17] = math.log2(width) - _PLOGP[table[1:]].sum(axis=1) / width
        counts = table[0]
    size = counted.size
    vector[2] = math.log2(size) - _PLOGP[counts].sum() / size
    vector[3:9] = counts @ _CLASSES / size
    vector[9] = np.count_nonzero(counts) / 256
    vector[10] = counts.max() / size
    np.maximum(vector[2:11], 0.0, out=vector[2:11])
