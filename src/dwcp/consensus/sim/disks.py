"""A disk that loses power: what was not synced may be lost, torn or reordered by sector.

It implements `core.logformat.Disk`. Appended bytes are durable after `sync`,
names after `sync_dir`. `lose_power` decides, by the seed, what the rest became.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from dwcp.consensus.core.errors import DiskFailed

SECTOR = 512  # bytes that a disk writes as a whole


class PowerLost(Exception):
    """The machine went down in the middle of a disk operation (scheduled by `fail_after`)."""


@dataclass(slots=True)
class Inode:
    """A file's bytes, of which the first `synced` are durable."""

    data: bytearray = field(default_factory=bytearray)
    synced: int = 0


class SimDisk:
    """`torn` counts crashes that left neither all nor nothing of an unsynced tail."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._names: dict[str, Inode] = {}
        self._durable: dict[str, Inode] = {}  # the names as of the last sync_dir
        self._countdown: int | None = None
        self.operations = 0
        self.refuse_sync = False  # every sync from now on answers EIO
        self.full = False  # every append from now on answers ENOSPC
        self.torn = 0
        self.crashed_in_sync = 0

    # ------------------------------------------------------------------ the Disk protocol

    def list(self) -> list[str]:
        return sorted(self._names)

    def read(self, name: str) -> bytes:
        return bytes(self._inode(name).data)

    def create(self, name: str) -> None:
        self._tick()
        self._names[name] = Inode()

    def append(self, name: str, data: bytes) -> None:
        self._tick()
        if self.full:
            raise DiskFailed(f"{name}: no space left on the device")
        self._inode(name).data += data

    def sync(self, name: str) -> None:
        inode = self._inode(name)
        if self._ticks_out():
            self.crashed_in_sync += 1
            self._settle(inode)
            raise PowerLost(name)
        if self.refuse_sync:
            raise DiskFailed(f"{name}: input/output error on sync")
        inode.synced = len(inode.data)

    def rename(self, old: str, new: str) -> None:
        self._tick()
        self._names[new] = self._inode(old)
        del self._names[old]

    def remove(self, name: str) -> None:
        self._tick()
        self._inode(name)
        del self._names[name]

    def sync_dir(self) -> None:
        self._tick()
        if self.refuse_sync:
            raise DiskFailed("input/output error on sync of the directory")
        self._durable = dict(self._names)

    # ------------------------------------------------------------------ faults

    def fail_after(self, operations: int | None) -> None:
        """Raise `PowerLost` at the operation after that many; None cancels."""
        self._countdown = operations

    def lose_power(self) -> None:
        """What a restart will find."""
        self._countdown = None
        self.refuse_sync = self.full = False
        if self._rng.random() < 0.5:  # the names not synced yet made it to the disk, or did not
            self._durable = dict(self._names)
        self._names = dict(self._durable)
        for name in sorted(self._names):
            self._settle(self._names[name])

    def image(self) -> dict[str, bytes]:
        """The durable bytes by name; `restore` puts them back (a disk that went back in time)."""
        return {name: bytes(inode.data[: inode.synced]) for name, inode in self._durable.items()}

    def restore(self, image: dict[str, bytes]) -> None:
        self._names = {name: Inode(bytearray(data), len(data)) for name, data in image.items()}
        self._durable = dict(self._names)

    # ------------------------------------------------------------------ inside

    def _inode(self, name: str) -> Inode:
        if name not in self._names:
            raise DiskFailed(f"{name}: no such file")
        return self._names[name]

    def _ticks_out(self) -> bool:
        self.operations += 1
        if self._countdown is None:
            return False
        self._countdown -= 1
        return self._countdown < 0

    def _tick(self) -> None:
        if self._ticks_out():
            raise PowerLost

    def _settle(self, inode: Inode) -> None:
        """Decide the fate of the unsynced tail: kept, lost, cut short, or sectors of it missing."""
        tail = len(inode.data) - inode.synced
        if not tail:
            return
        fate = self._rng.random()
        if fate < 0.25:
            del inode.data[inode.synced :]
        elif fate < 0.5:
            self.torn += 1
            del inode.data[inode.synced + self._rng.randrange(tail) :]
        elif fate < 0.75:
            self.torn += drop_sectors(inode.data, inode.synced, self._rng)
        inode.synced = len(inode.data)


def drop_sectors(data: bytearray, synced: int, rng: Random) -> bool:
    """Zero a random choice of the tail's 512-byte sectors, as if written out of order; True if any was."""
    dropped = False
    for start in range(synced - synced % SECTOR, len(data), SECTOR):
        if rng.random() < 0.5:
            first, last = max(start, synced), min(start + SECTOR, len(data))
            data[first:last] = bytes(last - first)
            dropped = True
    return dropped
