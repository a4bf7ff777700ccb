"""The real disk: one flat directory that one process owns, and the thread that waits for it.

`RealDisk` answers `core.logformat.Disk`. Nothing here knows what is written.
A failed write or sync is never retried: what the disk then holds is unknown
(`DiskFailed`), so the process stops.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TypeVar

from dwcp.consensus.core.errors import CoreError, DiskFailed

T = TypeVar("T")

LOCK_NAME = "lock"
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700


class DirectoryInUse(CoreError):
    """Another process owns this data directory: stop it, or give this one a directory of its own."""


class RealDisk:
    """A directory of append-only files, durable after `sync` and `sync_dir`; used by one thread at a time."""

    __slots__ = ("_descriptors", "_directory", "_lock", "_observe_sync")

    def __init__(self, directory: Path, *, observe_sync: Callable[[float], None] | None = None) -> None:
        """Take the directory's lock. `observe_sync` is told the seconds of each file sync.

        Raises `DirectoryInUse` and `DiskFailed`.
        """
        self._directory = directory
        self._observe_sync = observe_sync
        self._descriptors: dict[str, int] = {}
        try:
            directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            self._lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        except OSError as exc:
            raise _failed("cannot open the data directory", directory, exc) from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._lock)
            raise DirectoryInUse(
                f"{directory}: another process owns this data directory; stop it, "
                "or give this one a directory of its own"
            ) from exc

    def list(self) -> list[str]:
        try:
            return sorted(
                entry.name
                for entry in os.scandir(self._directory)
                if entry.is_file() and entry.name != LOCK_NAME
            )
        except OSError as exc:
            raise _failed("cannot list", self._directory, exc) from exc

    def read(self, name: str) -> bytes:
        path = self._directory / name
        try:
            return path.read_bytes()
        except OSError as exc:
            raise _failed("cannot read", path, exc) from exc

    def create(self, name: str) -> None:
        self._forget(name)
        path = self._directory / name
        try:
            self._descriptors[name] = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, _FILE_MODE
            )
        except OSError as exc:
            raise _failed("cannot create", path, exc) from exc

    def append(self, name: str, data: bytes) -> None:
        view = memoryview(data)
        try:
            descriptor = self._descriptor(name)
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError as exc:
            raise _failed("cannot write", self._directory / name, exc) from exc

    def sync(self, name: str) -> None:
        started = perf_counter()
        try:
            os.fdatasync(self._descriptor(name))
        except OSError as exc:
            raise _failed("cannot sync", self._directory / name, exc) from exc
        if self._observe_sync is not None:
            self._observe_sync(perf_counter() - started)

    def rename(self, old: str, new: str) -> None:
        try:
            (self._directory / old).replace(self._directory / new)
        except OSError as exc:
            raise _failed("cannot rename", self._directory / old, exc) from exc
        self._forget(new)
        if old in self._descriptors:
            self._descriptors[new] = self._descriptors.pop(old)

    def remove(self, name: str) -> None:
        self._forget(name)
        try:
            (self._directory / name).unlink()
        except OSError as exc:
            raise _failed("cannot remove", self._directory / name, exc) from exc

    def sync_dir(self) -> None:
        try:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise _failed("cannot sync", self._directory, exc) from exc

    def release(self, name: str) -> None:
        """Close the file's descriptor until it is written again."""
        self._forget(name)

    def close(self) -> None:
        """Give up the files and the lock. The disk is unusable afterwards."""
        for name in list(self._descriptors):
            self._forget(name)
        os.close(self._lock)

    def _descriptor(self, name: str) -> int:
        descriptor = self._descriptors.get(name)
        if descriptor is None:
            descriptor = os.open(self._directory / name, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._descriptors[name] = descriptor
        return descriptor

    def _forget(self, name: str) -> None:
        descriptor = self._descriptors.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)


def _failed(what: str, path: Path, exc: OSError) -> DiskFailed:
    reason = os.strerror(exc.errno) if exc.errno else str(exc)
    advice = {
        errno.ENOSPC: "free space on this file system, then start again",
        errno.EDQUOT: "raise the quota or free space, then start again",
        errno.EACCES: "give this user the directory",
        errno.EROFS: "the file system is read-only: check the disk, then mount it writable",
    }.get(exc.errno or 0, "check the disk before starting again")
    return DiskFailed(f"{path}: {what}: {reason}; {advice}")


class DiskThread:
    """One thread that does blocking work in order, so that the event loop never waits for a disk.

    The first exception ends it: `failed` is called once in the loop, later work
    is never done. What was asked for is bounded by its callers (a replica has one
    group in flight).
    """

    def __init__(self, name: str, *, failed: Callable[[Exception], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._failed = failed
        self._work: queue.SimpleQueue[tuple[Callable[[], object], Callable[[], None]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], object], done: Callable[[], None]) -> None:
        """Do `work` in the thread, then call `done` in the loop."""
        self._work.put((work, done))

    async def close(self) -> None:
        """Finish what was asked for, then end the thread."""
        self._work.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            work, done = item
            try:
                work()
            except Exception as exc:  # noqa: BLE001  the loop decides: every failure here stops the process
                self._notify(lambda exc=exc: self._failed(exc))  # type: ignore[misc]
                return
            self._notify(done)

    def _notify(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return  # the loop has closed; nobody waits for the answer any more
