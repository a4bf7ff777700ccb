"""A replica's data directory: its journal, its snapshots, and the lock that keeps others out.

    data/NAME/journal/    journal, lock           data/NAME/snapshots/    snapshot-INDEX

A snapshot file, big-endian: magic 8 "DWCPSNAP", version u16, chain id 32, index u64,
root 32, parts u32, crc u32 of all that; then for each part length u32, crc u32, bytes.
The checks find a damaged disk; whether a state is *right* is the ledger's to verify.
"""

from __future__ import annotations

import secrets
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dwcp.consensus.core.errors import CoreError, LogCorrupt
from dwcp.consensus.core.logformat import NONCE_SIZE, Identity, Journal, NoJournal
from dwcp.consensus.ledger.ledger import Snapshot
from dwcp.runtime.disk import RealDisk
from dwcp.runtime.failpoints import failpoint

SNAPSHOTS_KEPT = 2  # at least: an older one stands in for a damaged one
_MAGIC = b"DWCPSNAP"
_VERSION = 1
_HEAD = struct.Struct(">8sH32sQ32sI")
_PART = struct.Struct(">II")
_CRC = struct.Struct(">I")
_PREFIX = "snapshot-"
_TEMPORARY = "snapshot.new"


class SnapshotDamaged(CoreError):
    """A snapshot file is damaged: an older one, or the peers, replace it."""


class GroupLog(Protocol):
    """What the driver writes groups to: a `Journal`, or a learner's `Forgetful` one."""

    def append(self, records: Sequence[bytes]) -> None: ...
    def sync(self) -> None: ...
    def rewrite(self, records: Sequence[bytes]) -> None: ...


class Forgetful:
    """A learner's journal: it promises nothing, so nothing need survive.

    It never makes a file: a journal found later would pass for a memory of votes.
    """

    def append(self, records: Sequence[bytes]) -> None:
        del records

    def sync(self) -> None:
        return

    def rewrite(self, records: Sequence[bytes]) -> None:
        del records


@dataclass(frozen=True, slots=True)
class Opened:
    """A data directory in use. `learner` says why this replica may not vote; "" where it may."""

    journal: GroupLog
    records: tuple[bytes, ...]
    snapshots: SnapshotStore
    learner: str
    close: Callable[[], None]


def initialise(data_dir: Path, *, chain_id: bytes, replica: int) -> None:
    """Write the header of a new journal, once. Raises `JournalExists`, `DiskFailed`, `DirectoryInUse`."""
    disk = RealDisk(data_dir / "journal")
    try:
        Journal.create(disk, Identity(chain_id, replica, secrets.token_bytes(NONCE_SIZE)))
    finally:
        disk.close()


def open_storage(
    data_dir: Path,
    *,
    chain_id: bytes,
    replica: int,
    observe_sync: Callable[[float], None] | None = None,
) -> Opened:
    """Take the directory and recover. A journal that is missing or damaged makes a learner.

    Raises `DirectoryInUse`, `ForeignJournal`, `UnknownFormat`, `DiskFailed`.
    """
    disk = RealDisk(data_dir / "journal", observe_sync=observe_sync)
    snapshot_disk = None
    try:
        snapshot_disk = RealDisk(data_dir / "snapshots")
        snapshots = SnapshotStore(snapshot_disk, chain_id=chain_id)

        def close() -> None:
            disk.close()
            snapshots.close()

        try:
            records, journal = Journal.open(disk, chain_id=chain_id, replica=replica)
        except (NoJournal, LogCorrupt) as exc:
            return Opened(Forgetful(), (), snapshots, str(exc), close)
        return Opened(journal, records, snapshots, "", close)
    except BaseException:
        disk.close()
        if snapshot_disk is not None:
            snapshot_disk.close()
        raise


class SnapshotStore:
    """The newest snapshots, each whole or absent. Used by one thread at a time."""

    def __init__(self, disk: RealDisk, *, chain_id: bytes) -> None:
        self._disk = disk
        self._chain_id = chain_id

    def save(self, snapshot: Snapshot, *, keep_from: int) -> None:
        """Durable when this returns; older ones below `keep_from` go. Raises `DiskFailed`."""
        disk = self._disk
        failpoint("node.snapshot.before_write")
        disk.create(_TEMPORARY)
        for data in _encode(snapshot, self._chain_id):
            disk.append(_TEMPORARY, data)
        disk.sync(_TEMPORARY)
        failpoint("node.snapshot.after_write")
        disk.rename(_TEMPORARY, _name(snapshot.index))
        disk.sync_dir()
        disk.release(_name(snapshot.index))
        failpoint("node.snapshot.after_rename")
        for index in self.indexes()[:-SNAPSHOTS_KEPT]:
            if index < keep_from:
                disk.remove(_name(index))

    def indexes(self) -> list[int]:
        """Positions of the saved snapshots, oldest first."""
        names = [name.removeprefix(_PREFIX) for name in self._disk.list() if name.startswith(_PREFIX)]
        return sorted(int(name) for name in names if name.isdigit())

    def load(self, index: int) -> Snapshot:
        """Raises `SnapshotDamaged`, `DiskFailed`."""
        return _decode(self._disk.read(_name(index)), _name(index), self._chain_id)

    def close(self) -> None:
        self._disk.close()


def _name(index: int) -> str:
    return f"{_PREFIX}{index:016d}"


def _encode(snapshot: Snapshot, chain_id: bytes) -> list[bytes]:
    """The file in pieces of about a mebibyte."""
    head = _HEAD.pack(_MAGIC, _VERSION, chain_id, snapshot.index, snapshot.root, len(snapshot.parts))
    pieces, waiting, size = [], [head, _CRC.pack(zlib.crc32(head))], 0
    for part in snapshot.parts:
        waiting += (_PART.pack(len(part), zlib.crc32(part)), part)
        size += len(part)
        if size > 1_048_576:
            pieces.append(b"".join(waiting))
            waiting, size = [], 0
    pieces.append(b"".join(waiting))
    return pieces


def _decode(data: bytes, name: str, chain_id: bytes) -> Snapshot:
    body = _HEAD.size + _CRC.size
    if len(data) < body or _CRC.unpack_from(data, _HEAD.size)[0] != zlib.crc32(data[: _HEAD.size]):
        raise SnapshotDamaged(f"{name}: its header is damaged")
    magic, version, chain, index, root, count = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise SnapshotDamaged(f"{name}: format {version} is not one this program reads")
    if chain != chain_id:
        raise SnapshotDamaged(f"{name}: it belongs to chain {chain.hex()[:16]}…")
    parts = []
    for number in range(count):
        if len(data) - body < _PART.size:
            raise SnapshotDamaged(f"{name}: it ends before part {number} of {count}")
        length, crc = _PART.unpack_from(data, body)
        body += _PART.size
        part = data[body : body + length]
        if len(part) != length or zlib.crc32(part) != crc:
            raise SnapshotDamaged(f"{name}: part {number} of {count} is damaged")
        parts.append(part)
        body += length
    return Snapshot(index, root, tuple(parts))
