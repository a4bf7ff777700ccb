"""A manifest said with what its receiver has: chunks that older files at the same paths have are numbers.

    root 32, then packed (`pack`) the entries, each with its own chunks and with copies: stretches of the
    chunks of the file that the receiver has at the path.

The root is that of the whole manifest, so a receiver whose files are others by now notices. Sans-IO.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping, Sequence

from dwcp.compression import codecs
from dwcp.compression import manifest as manifests
from dwcp.compression.codecs import BLOCK_BYTES_MAX
from dwcp.compression.errors import ChunkMissing, ManifestInvalid, RequestInvalid, TransferError
from dwcp.compression.manifest import Chunk, Entry, Limits, Manifest
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Record
from dwcp.consensus.crypto.hashes import SIZE as ROOT_BYTES

_CODEC = codecs.by_name("zstd-3")
_SIZE = struct.Struct(">I")
_CHUNK_BYTES_LEAST = ROOT_BYTES + 2  # of an encoded chunk: bounds how many a manifest may have
_OTHERS = "the files that this manifest builds on are no longer those that are here"

BaseOf = Callable[[str], Sequence[Chunk]]  # the chunks of the file that the receiver has at a path


class _Copy(Record, frozen=True):
    """From number `at` of the entry's chunks on stand `count` of the base, from its number `first` on."""

    at: int
    first: int
    count: int


class _Entry(Record, frozen=True):
    path: str
    kind: int
    mode: int
    size: int
    target: str
    chunks: tuple[Chunk, ...]  # those that are no copies, in order
    copies: tuple[_Copy, ...]


class _Relative(Record, frozen=True):
    version: int
    entries: tuple[_Entry, ...]


_decoder: codec.Codec[_Relative] = codec.Codec(_Relative)


def pack(raw: bytes) -> bytes:
    """Small things with much that repeats, such as paths: their size (u32) and a zstd frame."""
    return _SIZE.pack(len(raw)) + _CODEC.pack(raw)


def unpack(packed: bytes, size_max: int) -> bytes:
    """The opposite, from anybody. Raises `RequestInvalid`."""
    (size,) = _SIZE.unpack_from(packed) if len(packed) >= _SIZE.size else (size_max + 1,)
    if size > size_max:
        raise RequestInvalid(f"{len(packed)} packed bytes that make more than {size_max} were sent")
    try:
        return _CODEC.unpack(packed[_SIZE.size :], raw_size=size)
    except TransferError as exc:
        raise RequestInvalid(f"the packed bytes are damaged: {exc}") from exc


def encode(manifest: Manifest, known: Mapping[str, Sequence[int]]) -> bytes | None:
    """`known`: by path, for each chunk its number in the receiver's file there, -1 where that has it not.
    None where the result is too large for one block of a codec."""
    entries = tuple(_relative(entry, known.get(entry.path, ())) for entry in manifest.entries)
    raw = codec.encode(_Relative(manifest.version, entries))
    return manifests.root(manifest) + pack(raw) if len(raw) <= BLOCK_BYTES_MAX else None


def decode(data: bytes, limits: Limits, base_of: BaseOf) -> Manifest:
    """From anybody. Raises `ManifestInvalid`, `RequestInvalid`, or `ChunkMissing` where the bases are others
    than the sender thought."""
    try:
        relative = _decoder.decode(unpack(data[ROOT_BYTES:], limits.manifest_bytes))
    except (MalformedFrame, UnicodeError) as exc:
        raise ManifestInvalid(f"these bytes are no manifest: {exc}") from exc
    left = limits.manifest_bytes // _CHUNK_BYTES_LEAST
    entries = []
    for entry in relative.entries:
        left -= len(entry.chunks) + sum(max(0, copy.count) for copy in entry.copies)
        if left < 0:
            raise ManifestInvalid("the manifest has more chunks than a manifest may have")
        entries.append(_absolute(entry, base_of))
    manifest = Manifest(relative.version, tuple(entries))
    if manifests.root(manifest) != data[:ROOT_BYTES]:
        raise ChunkMissing(_OTHERS)
    manifests.validate(manifest, limits)
    return manifest


def _relative(entry: Entry, known: Sequence[int]) -> _Entry:
    chunks: list[Chunk] = []
    copies: list[list[int]] = []
    for at, chunk in enumerate(entry.chunks):
        number = known[at] if known else -1
        if number < 0:
            chunks.append(chunk)
        elif copies and (at, number) == (copies[-1][0] + copies[-1][2], copies[-1][1] + copies[-1][2]):
            copies[-1][2] += 1
        else:
            copies.append([at, number, 1])
    stretches = tuple(_Copy(*each) for each in copies)
    return _Entry(entry.path, entry.kind, entry.mode, entry.size, entry.target, tuple(chunks), stretches)


def _absolute(entry: _Entry, base_of: BaseOf) -> Entry:
    chunks: list[Chunk] = []
    own = iter(entry.chunks)
    base = base_of(entry.path) if entry.copies else ()
    for copy in entry.copies:
        if copy.first < 0 or copy.count < 1 or copy.at < len(chunks):
            raise ManifestInvalid(f"{manifests.shown(entry.path)} has a copy that overlaps or is empty")
        chunks += itertools.islice(own, copy.at - len(chunks))
        if len(chunks) != copy.at:
            raise ManifestInvalid(f"{manifests.shown(entry.path)} has a copy beyond its end")
        copied = base[copy.first : copy.first + copy.count]
        if len(copied) != copy.count:
            raise ChunkMissing(_OTHERS)
        chunks += copied
    chunks += own
    return Entry(entry.path, entry.kind, entry.mode, entry.size, tuple(chunks), entry.target)
