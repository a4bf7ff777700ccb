"""Held-out corpora: how they are unpacked, and the list of their 4 KiB blocks that training data may not share.

The list is the only thing that training knows of them: sorted truncated hashes, from which nothing can be
read back.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from dwcp.compression.errors import MeasurementInvalid

BLOCK_BYTES = 4096
SHORT_BYTES_MIN = 512  # a shorter tail says nothing about where it comes from
FILE_BYTES_MAX = 1 << 30
_HASH_BYTES = 8
_OPENERS: dict[str, Callable[..., Any]] = {
    ".bz2": bz2.open,
    ".gz": gzip.open,
    ".xz": lzma.open,
}  # Any: overloads


def unpacked(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every file below `folder` in sorted order; packed files and archives are opened.

    Raises `MeasurementInvalid` for an archive that cannot be read.
    """
    if not folder.is_dir():
        raise MeasurementInvalid(f"{folder} is no folder")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            name = str(path.relative_to(folder))
            try:
                yield from _opened(name, path.read_bytes())
            except (OSError, EOFError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile) as exc:
                raise MeasurementInvalid(f"{path} cannot be unpacked: {exc}") from exc


def _opened(name: str, raw: bytes) -> Iterator[tuple[str, bytes]]:
    for ending, opener in _OPENERS.items():
        if name.endswith(ending):
            with opener(io.BytesIO(raw)) as file:
                inner = file.read(FILE_BYTES_MAX)
            yield from _opened(name.removesuffix(ending), inner)
            return
    if name.endswith((".tar", ".tgz")):
        yield from _tar(name, raw)
    elif name.endswith(".zip"):
        yield from _zip(name, raw)
    else:
        yield name, raw


def _tar(name: str, raw: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() and member.size < FILE_BYTES_MAX else None
            if file is not None:
                yield f"{name}/{member.name}", file.read()


def _zip(name: str, raw: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        for member in archive.infolist():
            if not member.is_dir() and member.file_size < FILE_BYTES_MAX:
                yield f"{name}/{member.filename}", archive.read(member)


def block_hashes(raw: bytes) -> NDArray[np.uint64]:
    """One truncated BLAKE3 per aligned block; blocks of one repeated byte are everywhere and left out."""
    hashes = []
    for at in range(0, len(raw), BLOCK_BYTES):
        block = raw[at : at + BLOCK_BYTES]
        if len(block) >= SHORT_BYTES_MIN and block.count(block[0]) != len(block):
            hashes.append(int.from_bytes(blake3(block).digest(length=_HASH_BYTES), "big"))
    return np.array(hashes, np.uint64)


class BlockList:
    """The blocks that are held out. Files are compared block by block at aligned offsets."""

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        self._hashes = np.unique(hashes)

    @classmethod
    def decode(cls, data: bytes) -> BlockList:
        if len(data) % _HASH_BYTES:
            raise MeasurementInvalid("the list of held-out blocks is cut: restore it")
        return cls(np.frombuffer(data, ">u8").astype(np.uint64))

    @classmethod
    def of(cls, folder: Path) -> BlockList:
        parts = [block_hashes(raw) for _, raw in unpacked(folder)]
        return cls(np.concatenate(parts) if parts else np.zeros(0, np.uint64))

    def encode(self) -> bytes:
        return self._hashes.astype(">u8").tobytes()

    def __len__(self) -> int:
        return len(self._hashes)

    def shares(self, raw: bytes) -> bool:
        """Whether a block of `raw` is one of them."""
        return bool(np.isin(block_hashes(raw), self._hashes).any())
