"""A fixed mix of files by quota and seed: text, source, programs, records, numbers, and a tenth that is
compressed already. The same seed and size on the same host give the same bytes; `digest` says which.

Beyond what the host has, copies under another alphabet follow: a permutation of byte values keeps what a
codec can find and leaves nothing that deduplication could.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

QUOTAS = {"source": 0.25, "text": 0.15, "programs": 0.20, "records": 0.20, "numbers": 0.10, "packed": 0.10}
_FILE_BYTES = (4 << 10, 8 << 20)
_KEPT_BYTES = 24 << 20
_FOLDERS = {
    "source": (("/usr/lib/python3", "/usr/lib/python3.11"), ("*.py",)),
    "text": (("/usr/share/doc", "/usr/share/perl", "/usr/share/common-licenses"), ("*",)),
    "programs": (("/usr/bin", "/usr/lib/x86_64-linux-gnu"), ("*",)),
}


def write(folder: Path, size: int, *, seed: int) -> str:
    """Writes the mix; returns its digest."""
    hasher = blake3()
    for kind, share in QUOTAS.items():
        source = random.Random(f"{seed} {kind}")
        stream = _Bytes(kind, source)
        left = int(size * share)
        number = 0
        while left > 0:
            want = min(left, int(_FILE_BYTES[0] * (_FILE_BYTES[1] / _FILE_BYTES[0]) ** source.random()))
            data = stream.take(want)
            path = folder / kind / f"{number // 100:03}" / f"{number:05}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            hasher.update(data)
            left -= want
            number += 1
    return hasher.hexdigest(length=16)


def replace_tenth(folder: Path, *, seed: int) -> None:
    """Every tenth file by bytes gets new content of the same kind and size."""
    source = random.Random(f"{seed} replace")
    fresh = {kind: _Bytes(kind, random.Random(f"{seed} fresh {kind}")) for kind in QUOTAS}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    left = sum(path.stat().st_size for path in files) // 10
    for path in source.sample(files, len(files)):
        size = path.stat().st_size
        if size > left:
            continue
        path.write_bytes(fresh[path.relative_to(folder).parts[0]].take(size))
        left -= size


def edit(folder: Path, *, seed: int, every_bytes: int = 1 << 20) -> None:
    """4 KiB overwritten in place, one such edit for so many bytes on average."""
    source = random.Random(f"{seed} edit")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        edits = size // every_bytes + (source.random() < (size % every_bytes) / every_bytes)
        with path.open("r+b") as file:
            for _ in range(edits):
                file.seek(source.randrange(max(1, size - 4096)))
                file.write(source.randbytes(min(4096, size)))


class _Bytes:
    """An endless supply of one kind."""

    def __init__(self, kind: str, source: random.Random) -> None:
        made = _PIECES[kind](source) if kind in _PIECES else _host(kind, source)
        self._pieces = _again(made, source)
        self._buffer = bytearray()

    def take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._buffer += next(self._pieces)
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _again(pieces: Iterator[bytes], source: random.Random) -> Iterator[bytes]:
    """The pieces, then the same under one new alphabet after another."""
    kept: list[bytes] = []
    size = 0
    for piece in pieces:
        yield piece
        kept.append(piece)
        size += len(piece)
        if size >= _KEPT_BYTES:
            break
    while True:
        alphabet = bytes(source.sample(range(256), 256))
        for piece in kept:
            yield piece.translate(alphabet)


def _host(kind: str, source: random.Random) -> Iterator[bytes]:
    folders, patterns = _FOLDERS[kind]
    paths = sorted(
        path
        for folder in folders
        for pattern in patterns
        for path in Path(folder).rglob(pattern)
        if path.is_file()
        and not path.is_symlink()
        and 1000 < path.stat().st_size < 16 << 20
        and path.suffix not in {".gz", ".pyc", ".xz", ".png"}
    )
    if not paths:
        raise OSError(f"{', '.join(folders)}: no files of kind {kind!r} on this host")
    source.shuffle(paths)
    for path in paths:
        yield path.read_bytes()


def _records(source: random.Random) -> Iterator[bytes]:
    words = [f"{source.getrandbits(40):x}" for _ in range(500)]
    number = 0
    while True:
        lines = []
        for _ in range(2000):
            number += 1
            record = {
                "id": number,
                "at": 1_700_000_000_000 + number * 137 + source.randrange(100),
                "host": f"node-{source.randrange(40):02}",
                "level": source.choice(["info", "info", "info", "warn", "error"]),
                "event": source.choice(words[:60]),
                "took_ms": round(source.lognormvariate(2, 1), 2),
                "trace": f"{source.getrandbits(64):016x}",
            }
            lines.append(json.dumps(record))
        yield ("\n".join(lines) + "\n").encode()


def _numbers(source: random.Random) -> Iterator[bytes]:
    value = 0.0
    while True:
        values = []
        for _ in range(20_000):
            value += source.gauss(0, 1)
            values.append(value)
        yield struct.pack(f"<{len(values)}f", *values)


def _packed(source: random.Random) -> Iterator[bytes]:
    text = _records(source)
    while True:
        yield zlib.compress(next(text), 6)


_PIECES = {"records": _records, "numbers": _numbers, "packed": _packed}
