"""The work behind `dwcp compress` and `dwcp decompress`: files, directories and pipes into containers and back."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from dwcp.cli.environment import current
from dwcp.compression import codecs
from dwcp.compression.archive import FLAG_TREE
from dwcp.compression.container import STREAM_ID_SIZE, Header, Writer
from dwcp.compression.errors import ContainerInvalid, PayloadRefused, UnknownCodec
from dwcp.compression.pacing import MBIT, Goodput
from dwcp.runtime import archives, blockstreams
from dwcp.runtime.archives import FileTarget, Target, TreeTarget, part_of, require_absent
from dwcp.runtime.blockstreams import BLOCK_BYTES, RAW_BYTES_MAX, Packer, Passed, Tell
from dwcp.runtime.chunkstore import disk_error
from dwcp.runtime.errors import Exit, RuntimeFault
from dwcp.runtime.trees import read_tree

STREAM = Path("-")
_MEDIUM_BPS = 100 * MBIT  # what a file is packed for where no link is named
_TOTAL_BYTES = 1 << 30  # a pipe's length, as far as a choice is concerned


class CodecNamedWrong(RuntimeFault):
    """`--codec` names none of this release's; the message lists them."""

    exit_code = Exit.USAGE


@dataclass(frozen=True, slots=True)
class Packing:
    """What to pack, where to, and how. `codec` is "auto" or a codec's name."""

    source: Path
    target: Path
    codec: str = "auto"
    link_mbps: float | None = None
    resume: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class Unpacking:
    source: Path
    target: Path
    resume: bool = False
    force: bool = False
    raw_bytes_max: int | None = None


def require_codec(name: str) -> None:
    """Before anything is read or written. Raises `CodecNamedWrong`."""
    if name != "auto":
        try:
            codecs.by_name(name)
        except UnknownCodec as exc:
            raise CodecNamedWrong(str(exc)) from exc


def size_of(source: Path) -> int | None:
    """Bytes that will be read, None where only reading tells."""
    if source.is_dir():
        return read_tree(source).total_bytes
    return source.stat().st_size if source.is_file() else None


def to_stream(packing: Packing, out: BinaryIO, *, tell: Tell | None = None) -> Passed:
    """The container onto a pipe, each block at once; what the pipe takes per second steers the codec."""
    link = Goodput(first_bps=_MEDIUM_BPS)

    def send(data: bytes) -> None:
        began = time.monotonic()
        out.write(data)
        out.flush()
        link.add(len(data), waited_s=time.monotonic() - began)

    with _reading(packing.source) as (raws, flags):
        writer = Writer(_header(flags))
        send(writer.header.encode())
        return blockstreams.pack(raws, send, writer, packer=_packer(packing, link), tell=tell)


def to_file(packing: Packing, *, tell: Tell | None = None) -> Passed:
    """The container as a file, durable before it has its name."""
    require_absent(packing.target, force=packing.force)
    part = part_of(packing.target)
    try:
        mode = "r+b" if packing.resume and part.is_file() else "w+b"
        with _reading(packing.source) as (raws, flags), _open(part, mode) as file:
            resumed = blockstreams.resume(file, raws) if mode == "r+b" else None
            if resumed is None:
                file.seek(0)
                file.truncate()
                resumed = Writer(_header(flags)), blockstreams.BEGUN
                file.write(resumed[0].header.encode())
            writer, passed = resumed
            packer = _packer(packing, None)
            passed = blockstreams.pack(raws, file.write, writer, packer=packer, tell=tell, passed=passed)
            file.flush()
            os.fsync(file.fileno())
        part.replace(packing.target)
    except OSError as exc:
        raise disk_error(exc, part) from exc
    return passed


def unpacked(unpacking: Unpacking, out: BinaryIO | None, *, tell: Tell | None = None) -> Passed:
    """What the container holds, to `out` or as `unpacking.target`; the header says whether it is a tree."""
    if out is None:
        require_absent(unpacking.target, force=unpacking.force)
    target: list[Target] = []

    def opened(header: Header) -> None:
        if out is not None:
            if header.flags & FLAG_TREE:
                raise ContainerInvalid("the stream holds a directory: name one with --output")
            target.append(_PipeTarget(out))
        elif header.flags & FLAG_TREE:
            target.append(TreeTarget(unpacking.target, resume=unpacking.resume))
        else:
            target.append(FileTarget(unpacking.target, resume=unpacking.resume))

    limit = unpacking.raw_bytes_max if unpacking.raw_bytes_max is not None else RAW_BYTES_MAX
    try:
        with _opened(unpacking.source) as file:
            passed = blockstreams.unpack(
                blockstreams.pieces(file),
                lambda raw: target[0].write(raw),
                opened=opened,
                raw_bytes_max=limit,
                tell=tell,
            )
        target[0].complete()
    finally:
        for each in target:
            each.close()
    return passed


class _PipeTarget:
    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def write(self, raw: bytes) -> None:
        self._out.write(raw)

    def complete(self) -> None:
        self._out.flush()

    def close(self) -> None:
        pass


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[tuple[Iterator[bytes], int]]:
    """Blocks of the source, and the flags that say what they are."""
    if source != STREAM and source.is_dir():
        yield blockstreams.blocks(archives.read(read_tree(source))), FLAG_TREE
        return
    with _opened(source) as file:
        yield blockstreams.blocks(blockstreams.pieces(file)), 0


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[BinaryIO]:
    if source == STREAM:
        yield sys.stdin.buffer
        return
    try:
        file = source.open("rb")
    except OSError as exc:
        raise PayloadRefused(f"{source} cannot be read: {exc.strerror}") from exc
    with file:
        yield file


def _open(path: Path, mode: str) -> BinaryIO:
    return cast(BinaryIO, path.open(mode))  # both modes are binary


def _header(flags: int) -> Header:
    return Header(secrets.token_bytes(STREAM_ID_SIZE), BLOCK_BYTES, flags=flags)


def _packer(packing: Packing, link: Goodput | None) -> Packer:
    """One codec for all, or a choice for each block at the link's rate of that moment.

    Only a pipe that is waited for leaves a processor idle, so only there is anything tried besides.
    """
    if packing.codec != "auto":
        return blockstreams.fixed(codecs.by_name(packing.codec))
    from dwcp.runtime import choosing

    choice = choosing.of_this_host(current().layout().root, races=link is not None).begin()
    named = packing.link_mbps * MBIT if packing.link_mbps else None
    total = packing.source.stat().st_size if packing.source.is_file() else None

    def pack(raw: bytes, stream_id: bytes, index: int) -> bytes:
        return choice.pack_now(
            raw,
            stream_id=stream_id,
            index=index,
            left_bytes=_TOTAL_BYTES if total is None else max(len(raw), total - index * BLOCK_BYTES),
            rate_bps=named or (link.rate_bps if link else _MEDIUM_BPS),
        )

    return pack
