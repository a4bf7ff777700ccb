"""The training corpus: pieces of this host's world-readable files, and generated data, by kinds with quotas.

Deterministic for a host and a seed. A fifth of the groups is set aside for development benchmarks and never
trained on; files that share a block with the held-out corpora are refused. A group is a kind and a name
without its digits, so that the same library in four versions is one group.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import re
import sqlite3
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from dwcp.compression import corpus_generated as generated
from dwcp.compression.corpus_heldout import BlockList

ROOTS = (Path("/usr"),)
MIB = 1 << 20
PIECE_SIZES = (MIB, MIB, MIB, 256 << 10, 64 << 10)  # drawn alike: most decisions are about 1 MiB
SEGMENTS_MAX = 2  # pieces of 1 MiB behind one another in one source: shows what neighbours share
SOURCE_BYTES_MAX = 32 * MIB  # of a large file, only the first so many bytes are used
_SMALL_BYTES = 128 << 10  # smaller files travel in tars of their kind and folder
_RESERVED_OF = 5

# Endings of each kind; files without a known ending are looked at (ELF) or are "other".
_ENDINGS = {
    "python": "py pyi", "c": "h c cc hpp cpp", "go": "go", "script": "js pl pm php tcl lua vim sh rb",
    "html": "html xhtml htm", "text": "txt md rst pod", "json": "json", "xml": "xml svg rng", "csv": "csv tsv",
    "translation": "mo", "bytecode": "pyc", "archive": "a", "bitcode": "bc", "jar": "jar whl zip jmod",
    "image": "png jpg gif ico", "font": "ttf otf pcf", "assembly": "s syso", "windows": "exe dll",
    "debug": "debug", "manual": "gz", "keys": "pem crt",
}  # fmt: skip
_KIND_OF = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings.split()}
_PACKED = frozenset({"jar", "image"})  # the smallest quota: already compressed

# Pieces wanted of each kind at scale 1 (about 250 in all).
QUOTAS = {
    "python": 14, "c": 12, "go": 8, "script": 10, "html": 8, "text": 10, "json": 10, "xml": 10, "csv": 8,
    "translation": 10, "bytecode": 10, "archive": 8, "bitcode": 4, "jar": 7, "image": 7, "font": 8,
    "assembly": 4, "windows": 6, "debug": 4, "manual": 12, "keys": 2, "elf": 20, "other": 10,
    "table": 6, "sqlite": 6, **dict.fromkeys(generated.KINDS, 3),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """Files that are read as one stretch of bytes: one large file, or a tar of small ones."""

    kind: str
    group: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes to measure and where they are from."""

    kind: str
    group: str
    stream: str
    segment: int
    raw: bytes


def reserved(group: str) -> bool:
    """Whether a group is kept for development benchmarks."""
    return blake3(group.encode()).digest()[0] % _RESERVED_OF == 0


def sources(roots: Iterable[Path] = ROOTS, *, seed: int = 1) -> dict[str, list[Source]]:
    """What there is, by kind, groups in a seeded order; at most two sources of a group."""
    large: dict[str, list[Source]] = {}
    small: dict[tuple[str, str], list[str]] = {}
    for path, size in _files(roots):
        kind = _kind(path)
        if size >= _SMALL_BYTES:
            large.setdefault(kind, []).append(Source(kind, _group(kind, Path(path).name), (path,)))
        elif size:
            small.setdefault((kind, str(Path(path).parent)), []).append(path)
    for (kind, folder), paths in small.items():
        if len(paths) > 3:
            name = "/".join(Path(folder).parts[-2:])
            large.setdefault(kind, []).append(Source(kind, _group(kind, name), tuple(paths)))
    return {kind: _shuffled(found, seed=seed) for kind, found in sorted(large.items())}


def pieces(
    blocks: BlockList,
    *,
    scale: float = 1.0,
    seed: int = 1,
    roots: Iterable[Path] = ROOTS,
    quotas: Mapping[str, int] = QUOTAS,
) -> Iterator[Piece]:
    """Pieces by quota, kinds in turn, so that an interrupted run has some of each. None twice."""
    found = sources(roots, seed=seed)
    lanes = [
        _lane(kind, found.get(kind, []), round(quota * scale), seed=seed, blocks=blocks)
        for kind, quota in quotas.items()
    ]
    seen: set[bytes] = set()
    while lanes:
        for lane in list(lanes):
            piece = next(lane, None)
            if piece is None:
                lanes.remove(lane)
            elif (key := blake3(piece.raw).digest()) not in seen:
                seen.add(key)
                yield piece


def load(source: Source, *, limit: int = SOURCE_BYTES_MAX) -> bytes:
    """The bytes of a source, at most `limit`. What cannot be read any more is left out."""
    if len(source.paths) == 1 and source.kind != "manual":
        with Path(source.paths[0]).open("rb") as file:
            return file.read(limit)
    return tar(((path, _plain(path)) for path in source.paths), limit=limit)


def tar(files: Iterable[tuple[str, bytes]], *, limit: int) -> bytes:
    """A tar of (name, bytes) without times or owners, cut at `limit`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, raw in files:
            entry = tarfile.TarInfo(name.lstrip("/")[-99:])
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
            if out.tell() > limit:
                break
    return out.getvalue()[:limit]


def _lane(kind: str, found: list[Source], quota: int, *, seed: int, blocks: BlockList) -> Iterator[Piece]:
    """At most `quota` pieces of one kind."""
    if kind in generated.KINDS:
        yield from _made(kind, quota, seed=seed)
        return
    if kind in {"table", "sqlite"}:
        yield from _tables(kind, quota, seed=seed)
        return
    given = 0
    for source in found:
        if given >= quota:
            return
        if reserved(source.group) or _held_out(source, blocks):
            continue
        for piece in _cut(source.kind, source.group, source.paths[0], load(source), seed=seed):
            given += 1
            yield piece


def _cut(kind: str, group: str, stream: str, raw: bytes, *, seed: int) -> Iterator[Piece]:
    """One or two pieces from a place that the seed and the name choose; nothing below 48 KiB."""
    source = random.Random(f"{seed}/{stream}")
    size = min(source.choice(PIECE_SIZES), len(raw))
    if size < 48 << 10:
        return
    start = source.randrange(0, len(raw) - size + 1) & ~0xFFF
    count = SEGMENTS_MAX if size == MIB else 1
    for segment in range(count):
        part = raw[start + segment * size : start + (segment + 1) * size]
        if len(part) == size and part.count(0) < size:
            name = blake3(stream.encode()).hexdigest(length=6)
            yield Piece(kind, group, name, segment, part)


def _made(kind: str, quota: int, *, seed: int) -> Iterator[Piece]:
    for number in range(quota):
        each = seed * 1000 + number
        raw = generated.generate(kind, seed=each, size=2 * MIB)
        yield from list(_cut(kind, f"{kind}/{number}", f"{kind}/{each}", raw, seed=seed))[:1]


def _tables(kind: str, quota: int, *, seed: int) -> Iterator[Piece]:
    """The package database of the host, as text in columns and as a database file."""
    rows = _packages()
    raw = _database(rows) if kind == "sqlite" else "\n".join("\t".join(row) for row in rows).encode()
    for number in range(quota):
        yield from _cut(kind, f"{kind}/packages", f"{kind}/{number}", raw, seed=seed)


def _packages() -> list[tuple[str, str]]:
    """(path, package) of every installed file that Debian knows."""
    rows = []
    for path in sorted(Path("/var/lib/dpkg/info").glob("*.list")):
        name = path.stem
        rows += [(line, name) for line in path.read_text(errors="replace").splitlines()]
    return rows


def _database(rows: list[tuple[str, str]]) -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute(
            "create table files (id integer primary key, path text, package text, size integer)"
        )
        filled = ((path, package, len(path) * 37 % 9973) for path, package in rows)
        connection.executemany("insert into files (path, package, size) values (?, ?, ?)", filled)
        connection.execute("create index by_package on files (package, size)")
        connection.commit()
        return connection.serialize()


def _files(roots: Iterable[Path]) -> Iterator[tuple[str, int]]:
    """(path, size) of regular files that everybody may read, sorted."""
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)  # noqa: PTH118 - a hundred thousand of them
                try:
                    facts = os.lstat(path)
                except OSError:
                    continue
                if stat.S_ISREG(facts.st_mode) and facts.st_mode & 0o004:
                    yield path, facts.st_size


def _kind(path: str) -> str:
    ending = path.rpartition(".")[2] if "." in path.rpartition("/")[2] else ""
    kind = _KIND_OF.get(ending.lower())
    if kind is not None:
        return kind
    with Path(path).open("rb") as file:
        return "elf" if file.read(4) == b"\x7fELF" else "other"


def _group(kind: str, name: str) -> str:
    plain = re.sub(r"[\d._+~-]+", "", name.lower())
    return f"{kind}/{plain}"


def _shuffled(found: list[Source], *, seed: int) -> list[Source]:
    """Groups in a seeded order, two sources of each at most."""
    groups: dict[str, list[Source]] = {}
    for source in found:
        groups.setdefault(source.group, []).append(source)
    names = sorted(groups)
    order = random.Random(seed)
    order.shuffle(names)
    return [source for name in names for source in order.sample(groups[name], min(2, len(groups[name])))]


def _plain(path: str) -> bytes:
    """A small file's bytes, unpacked where it is a packed page; empty where it cannot be read."""
    try:
        raw = Path(path).read_bytes()
        return gzip.decompress(raw) if path.endswith(".gz") else raw
    except (OSError, EOFError, ValueError):
        return b""


def _held_out(source: Source, blocks: BlockList) -> bool:
    return any(blocks.shares(_plain(path)[:SOURCE_BYTES_MAX]) for path in source.paths[:400])
