"""The vote journal's format and recovery, over whatever disk it is given.

A journal is one file: a header that says whose it is, then *groups*. A group is
one atomic record: it is read back whole or not at all, so no promise in it
survives without the ones before it. Big-endian throughout:

    header  magic 8 "DWCPJRNL", version u16, replica u16, chain id 32, nonce 16,
            first u64, sealed u64, crc u32
    group   magic 4 "DWG1", version u8, sequence u64, length u32, crc u32, body of `length` bytes
    body    for each record: length u32, bytes

`crc` is `zlib.crc32` over everything else of the header or group; a group's is
seeded with the nonce, so that nobody who can choose a record's bytes (a client
can) forges a group inside it. `first` is the sequence of the first group;
sequences are contiguous, so a group that vanished whole is noticed too. `sealed`
is how many bytes the file had when it got its name: they were durable by then,
so damage among them is never a torn write.

Recovery cuts what a crash may leave at the end (a torn, partial or reordered
last group) and refuses (`LogCorrupt`) a bad group that any valid one follows.
What it read may have been only in a page cache, so `open` writes it to a fresh
file before anybody acts on it. One limit is inherent: damage to the last
appended group looks like a torn write.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dwcp.consensus.core.errors import CoreError, DiskFailed, LogCorrupt, invariant

VERSION = 1
NAME = "journal"
NONCE_SIZE = 16
CHAIN_SIZE = 32
_TEMPORARY = "journal.new"

_HEADER_MAGIC = b"DWCPJRNL"
_HEADER = struct.Struct(">8sHH32s16sQQ")
_GROUP_MAGIC = b"DWG1"
_GROUP = struct.Struct(">4sBQI")
_CRC = struct.Struct(">I")
_LENGTH = struct.Struct(">I")

HEADER_SIZE = _HEADER.size + _CRC.size
GROUP_OVERHEAD = _GROUP.size + _CRC.size
BODY_SIZE_MAX = 0xFFFF_FFFF
_LOST = "votes are lost, so this replica may not vote: restore the file from a copy, or replace its key"


class NoJournal(CoreError):
    """There is no journal here. `init` writes its header once; without it this replica may have
    voted and forgotten, so it runs as a learner: restore the data directory, or replace its key."""


class JournalExists(CoreError):
    """A journal is already here; creating a new one would forget its votes. Choose an empty directory."""


class ForeignJournal(CoreError):
    """The journal belongs to another chain or replica: check the data directory of this replica's config."""


class UnknownFormat(CoreError):
    """The journal was written by a newer version: run that version, or restore the older data."""


class Disk(Protocol):
    """A flat directory of append-only files. Every method raises `DiskFailed` where the disk refuses.

    Data is durable after `sync(name)`; names (create, rename, remove) after `sync_dir()`.
    """

    def list(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...

    def create(self, name: str) -> None:
        """An empty file `name`, in place of any older one."""
        ...

    def append(self, name: str, data: bytes) -> None: ...

    def sync(self, name: str) -> None: ...

    def rename(self, old: str, new: str) -> None:
        """Atomically; replaces `new`."""
        ...

    def remove(self, name: str) -> None: ...

    def sync_dir(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose journal it is. `nonce`: 16 random bytes drawn when the journal is created."""

    chain_id: bytes
    replica: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a journal's bytes say. `cut` counts bytes of a torn tail that were dropped."""

    identity: Identity
    records: tuple[bytes, ...]
    next_sequence: int
    cut: int


# --------------------------------------------------------------------------- encoding


def encode_header(identity: Identity, *, first: int, sealed: int) -> bytes:
    invariant(len(identity.chain_id) == CHAIN_SIZE, "a chain id has 32 bytes")
    invariant(len(identity.nonce) == NONCE_SIZE, "a journal's nonce has 16 bytes")
    head = _HEADER.pack(
        _HEADER_MAGIC, VERSION, identity.replica, identity.chain_id, identity.nonce, first, sealed
    )
    return head + _CRC.pack(zlib.crc32(head))


def encode_group(sequence: int, records: Sequence[bytes], *, nonce: bytes) -> bytes:
    """One atomic record of the log."""
    body = b"".join(_LENGTH.pack(len(record)) + record for record in records)
    invariant(len(body) <= BODY_SIZE_MAX, "a group holds less than 4 GiB")
    head = _GROUP.pack(_GROUP_MAGIC, VERSION, sequence, len(body))
    return b"".join((head, _CRC.pack(_group_crc(head, body, nonce)), body))


def _group_crc(head: bytes, body: bytes | memoryview, nonce: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(head, zlib.crc32(nonce)))


# --------------------------------------------------------------------------- decoding


def recover(data: bytes) -> Recovered:
    """Read a journal's bytes. Raises `LogCorrupt` or `UnknownFormat`."""
    identity, first, sealed = _decode_header(data)
    records: list[bytes] = []
    sequence, offset = first, HEADER_SIZE
    while (end := _group_end(data, offset, identity.nonce, sequence)) is not None:
        records.extend(_decode_body(data, offset + GROUP_OVERHEAD, end))
        sequence, offset = sequence + 1, end
    if offset < sealed:
        raise LogCorrupt(f"{NAME}: damaged at byte {offset} of the {sealed} it was made with; {_LOST}")
    _refuse_later_groups(data, offset, identity.nonce)
    return Recovered(identity, tuple(records), sequence, len(data) - offset)


def _decode_header(data: bytes) -> tuple[Identity, int, int]:
    if len(data) < HEADER_SIZE:
        raise LogCorrupt(f"{NAME}: {len(data)} bytes are less than a header ({HEADER_SIZE})")
    magic, version, replica, chain_id, nonce, first, sealed = _HEADER.unpack_from(data)
    if magic != _HEADER_MAGIC or _CRC.unpack_from(data, _HEADER.size)[0] != zlib.crc32(data[: _HEADER.size]):
        raise LogCorrupt(f"{NAME}: its header is damaged; restore the file from a copy made while stopped")
    if version != VERSION:
        raise UnknownFormat(f"{NAME}: format {version}, this program reads {VERSION}: run the newer one")
    return Identity(chain_id, replica, nonce), first, sealed


def _group_end(data: bytes, offset: int, nonce: bytes, sequence: int | None) -> int | None:
    """Where the valid group at `offset` ends; None where there is none (or not that sequence)."""
    if len(data) - offset < GROUP_OVERHEAD:
        return None
    magic, version, found, length = _GROUP.unpack_from(data, offset)
    body = offset + GROUP_OVERHEAD
    if magic != _GROUP_MAGIC or version != VERSION or length > len(data) - body:
        return None
    if sequence is not None and found != sequence:
        return None
    head = data[offset : offset + _GROUP.size]
    crc = _CRC.unpack_from(data, offset + _GROUP.size)[0]
    if crc != _group_crc(head, memoryview(data)[body : body + length], nonce):
        return None
    return body + int(length)


def _decode_body(data: bytes, offset: int, end: int) -> list[bytes]:
    """The records of a body whose check sum was right: any misfit is our own bug."""
    records = []
    while offset < end:
        invariant(end - offset >= _LENGTH.size, "a group's body ends inside a length")
        length = _LENGTH.unpack_from(data, offset)[0]
        offset += _LENGTH.size
        invariant(length <= end - offset, "a group's body ends inside a record")
        records.append(data[offset : offset + length])
        offset += length
    return records


def _refuse_later_groups(data: bytes, offset: int, nonce: bytes) -> None:
    """A valid group after a bad one: the bad one was durable once, and its votes are lost."""
    found = data.find(_GROUP_MAGIC, offset)
    while found >= 0:
        if _group_end(data, found, nonce, None) is not None:
            raise LogCorrupt(
                f"{NAME}: damaged at byte {offset}, yet a valid group follows at byte {found}; {_LOST}"
            )
        found = data.find(_GROUP_MAGIC, found + 1)


# --------------------------------------------------------------------------- journal


class Journal:
    """An open journal. After any `DiskFailed` it is unusable and says so: a failed sync is never retried."""

    __slots__ = ("_broken", "_disk", "cut", "identity", "next_sequence", "size")

    def __init__(self, disk: Disk, identity: Identity, *, next_sequence: int) -> None:
        """Use `create` or `open`."""
        self._disk = disk
        self._broken = False
        self.identity = identity
        self.next_sequence = next_sequence
        self.size = 0  # bytes of the file
        self.cut = 0  # bytes of a torn tail that `open` dropped

    @classmethod
    def create(cls, disk: Disk, identity: Identity) -> Journal:
        """Write the header of a new journal, durably. Raises `JournalExists`."""
        if NAME in disk.list():
            raise JournalExists(f"{NAME} is already here: a second one would forget this replica's votes")
        journal = cls(disk, identity, next_sequence=1)
        journal._guarded(lambda: journal._replace(()))
        return journal

    @classmethod
    def open(cls, disk: Disk, *, chain_id: bytes, replica: int) -> tuple[tuple[bytes, ...], Journal]:
        """Recover the records, oldest first.

        Raises `NoJournal`, `LogCorrupt`, `ForeignJournal`, `UnknownFormat`, `DiskFailed`.
        """
        if NAME not in disk.list():
            raise NoJournal(f"no {NAME}: this replica cannot know its votes and runs as a learner")
        recovered = recover(disk.read(NAME))
        _check_owner(recovered.identity, chain_id=chain_id, replica=replica)
        journal = cls(disk, recovered.identity, next_sequence=recovered.next_sequence)
        journal.cut = recovered.cut
        journal._guarded(lambda: journal._replace(recovered.records))
        return recovered.records, journal

    def append(self, records: Sequence[bytes]) -> None:
        """Write one group; it is durable after `sync`."""
        group = encode_group(self.next_sequence, records, nonce=self.identity.nonce)
        self._guarded(lambda: self._disk.append(NAME, group))
        self.next_sequence += 1
        self.size += len(group)

    def sync(self) -> None:
        self._guarded(lambda: self._disk.sync(NAME))

    def rewrite(self, records: Sequence[bytes]) -> None:
        """Replace everything by `records`, atomically and durably."""
        self._guarded(lambda: self._replace(records))

    def _replace(self, records: Sequence[bytes]) -> None:
        disk = self._disk
        first = self.next_sequence
        group = encode_group(first, records, nonce=self.identity.nonce) if records else b""
        data = encode_header(self.identity, first=first, sealed=HEADER_SIZE + len(group)) + group
        disk.create(_TEMPORARY)
        disk.append(_TEMPORARY, data)
        disk.sync(_TEMPORARY)
        disk.rename(_TEMPORARY, NAME)
        disk.sync_dir()
        self.next_sequence += bool(records)
        self.size = len(data)

    def _guarded(self, action: _Action) -> None:
        if self._broken:
            raise DiskFailed(f"{NAME}: an earlier write or sync failed; stop the process and check the disk")
        self._broken = True
        action()
        self._broken = False


class _Action(Protocol):
    def __call__(self) -> None: ...


def _check_owner(identity: Identity, *, chain_id: bytes, replica: int) -> None:
    if identity.chain_id != chain_id:
        raise ForeignJournal(
            f"{NAME}: it is of chain {identity.chain_id.hex()[:16]}…, genesis says {chain_id.hex()[:16]}…: "
            "the data directory belongs to another installation"
        )
    if identity.replica != replica:
        raise ForeignJournal(
            f"{NAME}: it is of replica {identity.replica}, the configuration says {replica}: "
            "point the data directory of each replica to its own"
        )
