"""Checkpoints: the state as parts under one root, of which only the changed ones are encoded anew.

Keys and sessions are spread over buckets by hash. A bucket's encoding is a
part, or several where it is large, so that every part fits a frame; parts[0]
is the manifest: version, bucket counts, the head, and every other part's
digest. The state root is the digest of the manifest, so whoever holds a
certified root can check the manifest, and by it every other part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

from blake3 import blake3

from dwcp.consensus.core.errors import CoreError, MalformedFrame
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Codec, Record
from dwcp.consensus.crypto.hashes import SIZE, Domain, digest
from dwcp.consensus.ledger.clients import CLIENTS, Client
from dwcp.consensus.ledger.kv import Version
from dwcp.consensus.ledger.sessions import SESSIONS, Key, SessionRecord

VERSION = 1
BUCKETS_MIN = 64
ITEMS_PER_SESSION = 4  # a session with its answers weighs as much as this many keys
ITEMS_PER_BUCKET = 16  # more on average double the number of buckets, so that a part stays small
BYTES_PER_BUCKET = 262_144
BUCKETS_MAX = 2**17  # beyond, buckets grow instead: the manifest, too, must fit a frame
PART_BYTES_MAX = 1_048_576
_BUCKET = b"dwcp/v1/bucket\0"

T = TypeVar("T")


class SnapshotInvalid(CoreError):
    """The snapshot does not match its certified root, or is damaged: fetch it again from another replica."""


class Head(Record, frozen=True):
    """What is neither key nor session."""

    index: int
    epoch: int
    time_ms: int
    revision: int
    compacted: int
    trimmed: int
    history_digest: bytes


class Manifest(Record, frozen=True):
    """`digests` are the digests of parts 1…, 32 bytes each: clients, key buckets, session buckets.

    `cuts` are (number, parts), ascending, of those of them that take more than one part.
    """

    version: int
    head: Head
    key_buckets: int
    session_buckets: int
    cuts: tuple[tuple[int, int], ...]
    digests: bytes


_MANIFEST: Codec[Manifest] = Codec(Manifest)
KeyItem = tuple[bytes, tuple[tuple[int, int, int, bytes | None], ...]]
_KEYS: Codec[tuple[KeyItem, ...]] = Codec(tuple[KeyItem, ...])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after `index`. `parts[0]` lists the digests of the others, under `root`."""

    index: int
    root: bytes
    parts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """A snapshot's parts, decoded."""

    head: Head
    key_buckets: int
    session_buckets: int
    clients: tuple[Client, ...]
    keys: tuple[tuple[bytes, tuple[Version, ...]], ...]
    sessions: tuple[SessionRecord, ...]


def state_root(manifest: bytes) -> bytes:
    return digest(Domain.STATE, manifest)


def part_digest(part: bytes) -> bytes:
    return digest(Domain.LEAF, part)


def list_parts(manifest: bytes, root: bytes) -> tuple[bytes, ...]:
    """The digests that parts 1… must have; raises `SnapshotInvalid` unless `root` vouches for them.

    So that a replica can check each part as it arrives, before it asks for more.
    """
    found = _manifest(manifest, root)
    return tuple(found.digests[i : i + SIZE] for i in range(0, len(found.digests), SIZE))


def open_parts(parts: Sequence[bytes], root: bytes) -> Contents:
    """Check every part against `root`, then decode; raises `SnapshotInvalid`."""
    if not parts:
        raise SnapshotInvalid("the snapshot has no parts")
    manifest = _manifest(parts[0], root)
    digests = list_parts(parts[0], root)
    if len(parts) != len(digests) + 1:
        raise SnapshotInvalid(f"the manifest lists {len(digests)} parts, got {len(parts) - 1}")
    for position, (part, expected) in enumerate(zip(parts[1:], digests, strict=True), start=1):
        if part_digest(part) != expected:
            raise SnapshotInvalid(f"part {position} does not match the manifest")
    whole = _joined(parts, dict(manifest.cuts))
    first_session = 1 + manifest.key_buckets
    try:
        clients = CLIENTS.decode(whole[0])
        keys = [item for data in whole[1:first_session] for item in _KEYS.decode(data)]
        sessions = [record for data in whole[first_session:] for record in SESSIONS.decode(data)]
    except MalformedFrame as exc:
        raise SnapshotInvalid(f"a part cannot be decoded: {exc}") from exc
    return Contents(
        manifest.head,
        manifest.key_buckets,
        manifest.session_buckets,
        clients,
        tuple(keys),
        tuple(sessions),
    )


def _manifest(data: bytes, root: bytes) -> Manifest:
    if state_root(data) != root:
        raise SnapshotInvalid("the manifest does not match the certified state root")
    try:
        manifest = _MANIFEST.decode(data)
    except MalformedFrame as exc:
        raise SnapshotInvalid(f"the manifest cannot be decoded: {exc}") from exc
    if manifest.version != VERSION:
        raise SnapshotInvalid(f"this program reads snapshot version {VERSION}, not {manifest.version}")
    if not _consistent(manifest):
        raise SnapshotInvalid("the manifest contradicts itself")
    return manifest


def _consistent(manifest: Manifest) -> bool:
    for count in (manifest.key_buckets, manifest.session_buckets):
        if not BUCKETS_MIN <= count <= BUCKETS_MAX or count & (count - 1):
            return False
    entries = 1 + manifest.key_buckets + manifest.session_buckets
    parts = entries + sum(pieces - 1 for _, pieces in manifest.cuts)
    return (
        all(0 <= number < entries and pieces > 1 for number, pieces in manifest.cuts)
        and len(dict(manifest.cuts)) == len(manifest.cuts)
        and len(manifest.digests) == SIZE * parts
    )


def _cut(data: bytes) -> tuple[bytes, ...]:
    """The parts that hold `data`: one, unless it is large."""
    if len(data) <= PART_BYTES_MAX:
        return (data,)
    return tuple(data[i : i + PART_BYTES_MAX] for i in range(0, len(data), PART_BYTES_MAX))


def _joined(parts: Sequence[bytes], cuts: dict[int, int]) -> list[bytes]:
    """The encodings of clients and buckets; `parts[0]` is the manifest."""
    whole: list[bytes] = []
    at = 1
    while at < len(parts):
        count = cuts.get(len(whole), 1)
        whole.append(parts[at] if count == 1 else b"".join(parts[at : at + count]))
        at += count
    return whole


class Buckets(Generic[T]):
    """Encoded buckets of items, brought up to date by naming the items that changed.

    `place` hashes an item; `encode` gives its bytes, or None where it is gone. A bucket is
    the encoded tuple of its items, ascending: only changed items are encoded, the others'
    bytes are taken from the bucket as it was. Counts are powers of two.
    """

    __slots__ = ("_count", "_encode", "_members", "_place", "digests", "parts")

    parts: list[tuple[bytes, ...]]  # by bucket
    digests: list[bytes]  # by bucket: its parts' digests, joined

    def __init__(self, *, count: int, place: Callable[[T], int], encode: Callable[[T], bytes | None]) -> None:
        self._place = place
        self._encode = encode
        self._reset(count)

    def _reset(self, count: int) -> None:
        self._count = count
        self._members: list[dict[T, int]] = [{} for _ in range(count)]  # item: its bytes; ascending
        empty = codec.sequence_head(0)
        self.parts = [(empty,)] * count
        self.digests = [part_digest(empty)] * count

    @property
    def count(self) -> int:
        return self._count

    def update(self, touched: Iterable[T]) -> int:
        """Encode again the buckets of `touched` items; how many there were."""
        mask = self._count - 1
        dirty: dict[int, list[T]] = {}
        for item in touched:
            dirty.setdefault(self._place(item) & mask, []).append(item)
        for bucket, items in dirty.items():
            parts = _cut(self._rewritten(bucket, items))
            self.parts[bucket] = parts
            self.digests[bucket] = b"".join(map(part_digest, parts))
        return len(dirty)

    def _rewritten(self, bucket: int, touched: list[T]) -> bytes:
        """The bucket's bytes, with those of `touched` items replaced."""
        members, parts = self._members[bucket], self.parts[bucket]
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        at = len(codec.sequence_head(len(members)))
        pieces: dict[T, bytes] = {}
        for item, length in members.items():
            pieces[item] = whole[at : at + length]
            at += length
        for item in touched:
            data = self._encode(item)
            if data is None:
                pieces.pop(item, None)
            else:
                pieces[item] = data
        ordered = sorted(pieces)  # type: ignore[type-var]
        found = [pieces[item] for item in ordered]
        self._members[bucket] = dict(zip(ordered, map(len, found), strict=True))
        return codec.sequence_head(len(found)) + b"".join(found)

    def renew(self, count: int, *, touched: set[T], items: Callable[[], Iterable[T]]) -> None:
        """Bring up to date what was `touched`, or spread all `items` anew where `count` has changed."""
        if count == self._count:
            self.update(touched)
        else:
            self._reset(count)
            self.update(items())
        touched.clear()


def place_key(key: bytes) -> int:
    return int.from_bytes(blake3(_BUCKET + key).digest(4), "big")


def place_session(key: Key) -> int:
    return int.from_bytes(blake3(_BUCKET + key[0] + key[1].to_bytes(8, "big")).digest(4), "big")


def buckets_for(count: int, *, items: int, size: int) -> int:
    """How many buckets hold `items` of `size` bytes in all, where there were `count` so far.

    Never fewer than before: which number it is depends on history, and so is in the manifest.
    """
    while (items > count * ITEMS_PER_BUCKET or size > count * BYTES_PER_BUCKET) and count < BUCKETS_MAX:
        count *= 2
    return count


def assemble(head: Head, clients: bytes, keys: Buckets[bytes], sessions: Buckets[Key]) -> Snapshot:
    """The snapshot of up-to-date buckets."""
    entries = [_cut(clients), *keys.parts, *sessions.parts]
    cuts = tuple((number, len(parts)) for number, parts in enumerate(entries) if len(parts) > 1)
    digests = b"".join([*map(part_digest, entries[0]), *keys.digests, *sessions.digests])
    manifest = codec.encode(Manifest(VERSION, head, keys.count, sessions.count, cuts, digests))
    return Snapshot(head.index, state_root(manifest), (manifest, *chain.from_iterable(entries)))
