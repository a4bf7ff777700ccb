"""The manifest: what a payload is, entry by entry, and the rules that keep it inside its directory.

A manifest is canonical bytes (`docs/formats/manifest.md`); its root, BLAKE3-256 under the manifest
domain, names the payload everywhere. Owners, times and extended attributes do not travel. Whoever
receives a manifest calls `decode`, which trusts nobody.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from dwcp.compression.chunking import CHUNK_BYTES_MAX
from dwcp.compression.errors import ManifestInvalid
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Record
from dwcp.consensus.crypto.hashes import SIZE as ADDRESS_SIZE
from dwcp.consensus.crypto.hashes import Domain, digest

VERSION = 1
LINK_MODE = 0o777
_COMPONENT_BYTES_MAX = 255
_LINK_HOPS_MAX = 40  # as Linux has it


class Kind(IntEnum):
    """What an entry is. Devices, fifos, sockets and hard links have no number."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2


class Chunk(Record, frozen=True):
    address: bytes
    size: int


class Entry(Record, frozen=True):
    """One entry. `mode` holds permission bits only; `target` is set for symlinks only."""

    path: str
    kind: int
    mode: int
    size: int = 0
    chunks: tuple[Chunk, ...] = ()
    target: str = ""


class Manifest(Record, frozen=True):
    """Entries in the order of their paths' UTF-8 bytes; a directory comes before what is in it."""

    version: int
    entries: tuple[Entry, ...]

    @property
    def total_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(entry.size for entry in self.entries)

    @property
    def file_count(self) -> int:
        return sum(1 for entry in self.entries if entry.kind == Kind.FILE)

    def chunks(self) -> dict[bytes, int]:
        """Address → size, each once, in the order of first use: the plan of a transfer."""
        return {chunk.address: chunk.size for entry in self.entries for chunk in entry.chunks}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a payload may be. `manifest_bytes` bounds the encoded manifest itself."""

    entries: int = 100_000
    path_bytes: int = 1024
    depth: int = 64
    file_bytes: int = 64 << 30
    total_bytes: int = 64 << 30
    manifest_bytes: int = 64 << 20


_decoder: codec.Codec[Manifest] = codec.Codec(Manifest)


def make(entries: Iterable[Entry], limits: Limits = Limits()) -> Manifest:
    """The manifest of these entries, sorted. Raises `ManifestInvalid`."""
    ordered = tuple(sorted(entries, key=lambda entry: entry.path.encode()))
    manifest = Manifest(VERSION, ordered)
    validate(manifest, limits)
    return manifest


def encode(manifest: Manifest) -> bytes:
    return codec.encode(manifest)


def root(manifest: Manifest) -> bytes:
    """The name of the payload: 32 bytes."""
    return digest(Domain.MANIFEST, encode(manifest))


def decode(data: bytes, limits: Limits = Limits()) -> Manifest:
    """A manifest from anybody. Raises `ManifestInvalid`."""
    if len(data) > limits.manifest_bytes:
        raise ManifestInvalid(f"the manifest has {len(data)} bytes, {limits.manifest_bytes} are allowed")
    try:
        manifest = _decoder.decode(data)
    except (MalformedFrame, UnicodeError) as exc:
        raise ManifestInvalid(f"these bytes are no manifest: {exc}") from exc
    validate(manifest, limits)
    return manifest


def validate(manifest: Manifest, limits: Limits) -> None:
    """Every rule of payloads. Raises `ManifestInvalid`, naming the entry."""
    if manifest.version != VERSION:
        raise ManifestInvalid(f"the manifest has version {manifest.version}, this release reads {VERSION}")
    if len(manifest.entries) > limits.entries:
        raise ManifestInvalid(
            f"the payload has {len(manifest.entries)} entries, {limits.entries} are allowed"
        )
    kinds: dict[str, Entry] = {}
    folded: dict[str, str] = {}
    sizes: dict[bytes, int] = {}
    last = b""
    for entry in manifest.entries:
        check_path(entry.path, limits)
        key = entry.path.encode()
        if key <= last:
            problem = "twice" if key == last else "out of order"
            raise ManifestInvalid(f"{shown(entry.path)} is listed {problem}")
        last = key
        _check_parent(entry, kinds)
        _check_case(entry, folded)
        _check_entry(entry, limits)
        _check_chunks(entry, sizes)
        kinds[entry.path] = entry
    if manifest.total_bytes > limits.total_bytes:
        raise ManifestInvalid(
            f"the payload's files have {manifest.total_bytes} bytes, {limits.total_bytes} allowed"
        )
    for entry in manifest.entries:
        if entry.kind == Kind.SYMLINK:
            _check_link(entry, kinds)


def check_path(path: str, limits: Limits) -> None:
    """The rules of one path by itself. Raises `ManifestInvalid`."""
    if not path:
        raise ManifestInvalid("an entry has an empty path")
    if "\0" in path:
        raise ManifestInvalid(f"{shown(path)} has a NUL in its path")
    if path.startswith("/"):
        raise ManifestInvalid(f"{shown(path)} is an absolute path; paths are relative to the payload")
    encoded = _encoded(path)
    if len(encoded) > limits.path_bytes:
        raise ManifestInvalid(f"{shown(path)} is {len(encoded)} bytes long, {limits.path_bytes} are allowed")
    parts = path.split("/")
    if len(parts) > limits.depth:
        raise ManifestInvalid(f"{shown(path)} is {len(parts)} levels deep, {limits.depth} are allowed")
    for part in parts:
        if part in {"", ".", ".."}:
            raise ManifestInvalid(f"{shown(path)} has the component {part!r}, which could leave the payload")
        if len(part.encode()) > _COMPONENT_BYTES_MAX:
            raise ManifestInvalid(f"{shown(path)} has a component longer than {_COMPONENT_BYTES_MAX} bytes")


def shown(path: str) -> str:
    """A path as it may stand in a sentence: quoted, without control characters, not endless."""
    text = repr(path.encode("utf-8", "backslashreplace").decode())
    return text if len(text) <= 200 else text[:150] + "…" + text[-40:]


def _encoded(path: str) -> bytes:
    try:
        return path.encode()
    except UnicodeEncodeError as exc:
        raise ManifestInvalid(f"{shown(path)} is no UTF-8 name; rename it") from exc


def _check_parent(entry: Entry, kinds: dict[str, Entry]) -> None:
    parent, _, _ = entry.path.rpartition("/")
    if not parent:
        return
    above = kinds.get(parent)
    if above is None:
        raise ManifestInvalid(f"{shown(entry.path)} is in {shown(parent)}, which is not listed before it")
    if above.kind == Kind.SYMLINK:
        raise ManifestInvalid(f"{shown(entry.path)} goes through the symlink {shown(parent)}")
    if above.kind != Kind.DIRECTORY:
        raise ManifestInvalid(f"{shown(entry.path)} is in {shown(parent)}, which is a file")


def _check_case(entry: Entry, folded: dict[str, str]) -> None:
    """Two names that fall together where case or composition is not kept would overwrite each other."""
    key = unicodedata.normalize("NFC", entry.path).casefold()
    other = folded.setdefault(key, entry.path)
    if other != entry.path:
        raise ManifestInvalid(
            f"{shown(entry.path)} and {shown(other)} differ by case or composition only; rename one of them"
        )


def _check_entry(entry: Entry, limits: Limits) -> None:
    if entry.kind not in set(Kind):
        raise ManifestInvalid(
            f"{shown(entry.path)} is of kind {entry.kind}: only files, directories and symlinks"
        )
    check_mode(entry.path, entry.mode)
    if entry.kind == Kind.SYMLINK:
        if entry.mode != LINK_MODE:
            raise ManifestInvalid(f"{shown(entry.path)} is a symlink of mode {entry.mode:o}, expected 777")
        check_target(entry.path, entry.target, limits)
    elif entry.target:
        raise ManifestInvalid(f"{shown(entry.path)} has a link target but is no symlink")
    if entry.kind != Kind.FILE and (entry.size or entry.chunks):
        raise ManifestInvalid(f"{shown(entry.path)} has content but is no file")
    if not 0 <= entry.size <= limits.file_bytes:
        raise ManifestInvalid(f"{shown(entry.path)} has {entry.size} bytes, {limits.file_bytes} are allowed")


def check_mode(path: str, mode: int) -> None:
    """Permission bits only: setuid, setgid and sticky never travel."""
    if 0 <= mode <= 0o7777 and mode & 0o7000:
        names = [
            name for bit, name in ((0o4000, "setuid"), (0o2000, "setgid"), (0o1000, "sticky")) if mode & bit
        ]
        raise ManifestInvalid(f"{shown(path)} has the {' and '.join(names)} bit; remove it with chmod")
    if not 0 <= mode <= 0o777:
        raise ManifestInvalid(f"{shown(path)} has the impossible mode {mode:o}")


def check_target(path: str, target: str, limits: Limits) -> None:
    """The rules of one link target by itself; where it leads is checked with the whole manifest."""
    if not target or "\0" in target:
        raise ManifestInvalid(f"the symlink {shown(path)} has an empty target or one with a NUL")
    if len(_encoded(target)) > limits.path_bytes:
        raise ManifestInvalid(
            f"the symlink {shown(path)} has a target of more than {limits.path_bytes} bytes"
        )
    if target.startswith("/"):
        raise ManifestInvalid(
            f"the symlink {shown(path)} leads to the absolute path {shown(target)}; make it relative"
        )


def _check_chunks(entry: Entry, sizes: dict[bytes, int]) -> None:
    for chunk in entry.chunks:
        if len(chunk.address) != ADDRESS_SIZE:
            raise ManifestInvalid(f"{shown(entry.path)} has a chunk address of {len(chunk.address)} bytes")
        if not 0 < chunk.size <= CHUNK_BYTES_MAX:
            raise ManifestInvalid(f"{shown(entry.path)} has a chunk of {chunk.size} bytes")
        if sizes.setdefault(chunk.address, chunk.size) != chunk.size:
            raise ManifestInvalid(f"{shown(entry.path)} gives two sizes for chunk {chunk.address.hex()[:12]}")
    total = sum(chunk.size for chunk in entry.chunks)
    if total != entry.size:
        raise ManifestInvalid(f"{shown(entry.path)} has {entry.size} bytes but chunks of {total}")


def _check_link(entry: Entry, kinds: dict[str, Entry]) -> None:
    """Follows the link as the kernel would, through other links of the payload.

    Lexical arithmetic is not enough: `a/up -> ..` makes `a/up/..` lead outside. What
    does not exist in the payload is followed by name, and may not leave it either.
    """
    place = entry.path.split("/")[:-1]
    todo = entry.target.split("/")[::-1]
    hops = 1
    while todo:
        part = todo.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            if not place:
                raise ManifestInvalid(
                    f"the symlink {shown(entry.path)} → {shown(entry.target)} leaves the payload"
                )
            place.pop()
            continue
        place.append(part)
        found = kinds.get("/".join(place))
        if found is not None and found.kind == Kind.SYMLINK:
            hops += 1
            if hops > _LINK_HOPS_MAX:
                raise ManifestInvalid(f"the symlink {shown(entry.path)} goes in circles")
            place.pop()
            todo.extend(_parts_reversed(found.target))


def _parts_reversed(target: str) -> Iterator[str]:
    return reversed(target.split("/"))
