"""Directories as archives, and what is unpacked as files: what is incomplete never has its final name.

Reading obeys the rules of payloads (`runtime.trees`). Writing goes to a sibling, `NAME.part`, which is
renamed when everything is verified; a single file is on disk before. A sibling that a broken run left is
taken up on request: bytes that are there already are compared, not written again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from dwcp.compression import archive
from dwcp.compression.errors import ContainerInvalid, PayloadRefused
from dwcp.compression.manifest import Entry, Kind
from dwcp.runtime.chunkstore import disk_error
from dwcp.runtime.trees import Tree, read_file, require_unchanged

_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def read(tree: Tree) -> Iterator[bytes]:
    """The archive of a directory. Raises `PayloadChanged` where it does not stay what it was."""
    entries = [Entry(node.path, node.kind, node.mode, node.size, (), node.target) for node in tree.nodes]
    yield archive.opening(entries, tree.limits)
    for node in tree.nodes:
        if node.kind == Kind.FILE:
            yield from read_file(tree, node)
    require_unchanged(tree)


def part_of(target: Path) -> Path:
    """Where a result is until it is complete."""
    return target.with_name(target.name + ".part")


def require_absent(target: Path, *, force: bool = False) -> None:
    """Raises `PayloadRefused`; with `force` a file may be replaced, a directory never."""
    if target.is_symlink() or target.exists():
        if force and target.is_file() and not target.is_symlink():
            return
        hint = "choose another name" if force else "choose another name, or --force to replace a file"
        raise PayloadRefused(f"{target} exists: {hint}")


class Target(Protocol):
    """Where unpacked bytes go, in order; `complete` gives it its name, `close` is always called."""

    def write(self, raw: bytes) -> None: ...

    def complete(self) -> None: ...

    def close(self) -> None: ...


class FileTarget:
    """One file."""

    def __init__(self, target: Path, *, resume: bool = False, mode: int = 0o666) -> None:
        self._target = target
        self._part = part_of(target)
        if not resume:
            _remove(self._part)
        try:
            self._file = os.open(self._part, _OPEN, mode)
        except OSError as exc:
            raise disk_error(exc, self._part) from exc
        self._at = 0

    def write(self, raw: bytes) -> None:
        try:
            _put(self._file, self._at, raw)
        except OSError as exc:
            raise disk_error(exc, self._part) from exc
        self._at += len(raw)

    def complete(self) -> None:
        try:
            os.ftruncate(self._file, self._at)
            os.fsync(self._file)
            self._part.replace(self._target)
            _sync(self._target.parent)
        except OSError as exc:
            raise disk_error(exc, self._target) from exc

    def close(self) -> None:
        os.close(self._file)


class TreeTarget:
    """A directory, from the bytes of its archive.

    Files are opened one at a time; links are made after all files, so that nothing is written through one.
    """

    def __init__(self, target: Path, *, resume: bool = False) -> None:
        self._target = target
        self._part = part_of(target)
        if not resume:
            _remove(self._part)
        self._part.mkdir(mode=0o700, exist_ok=True)
        for path in self._part.rglob("*"):  # links come last, so none may be there before
            if path.is_symlink():
                path.unlink()
        self._top = os.open(self._part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._opening = archive.Opening()
        self._entries: tuple[Entry, ...] | None = None
        self._files: Iterator[Entry] = iter(())
        self._entry: Entry | None = None
        self._file = -1
        self._at = 0

    def write(self, raw: bytes) -> None:
        try:
            if self._entries is None:
                opened = self._opening.feed(raw)
                if opened is None:
                    return
                self._entries, raw = opened
                self._begin(self._entries)
            self._content(memoryview(raw))
        except OSError as exc:
            raise disk_error(exc, self._part) from exc

    def complete(self) -> None:
        if self._entries is None or self._entry is not None:
            raise ContainerInvalid("the archive ends before its last file; ask its sender again")
        try:
            self._finish(self._entries)
            self._part.rename(self._target)
            _sync(self._target.parent)
        except OSError as exc:
            raise disk_error(exc, self._target) from exc

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        os.close(self._top)

    # inside

    def _begin(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            if entry.kind == Kind.DIRECTORY:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(entry.path, 0o700, dir_fd=self._top)  # pathlib has no dir_fd
                os.chmod(entry.path, 0o700, dir_fd=self._top)
        self._files = (entry for entry in entries if entry.kind == Kind.FILE)
        self._next_file()

    def _next_file(self) -> None:
        """Opens the next file that has content; makes the empty ones before it."""
        while True:
            self._entry = next(self._files, None)
            if self._entry is None:
                return
            self._file = os.open(self._entry.path, _OPEN, 0o600, dir_fd=self._top)
            self._at = 0
            if self._entry.size:
                return
            self._end_file(self._entry)

    def _content(self, raw: memoryview) -> None:
        while raw:
            if self._entry is None:
                raise ContainerInvalid(f"{len(raw)} bytes follow the archive's last file")
            piece = raw[: self._entry.size - self._at]
            _put(self._file, self._at, piece)
            self._at += len(piece)
            raw = raw[len(piece) :]
            if self._at == self._entry.size:
                self._end_file(self._entry)
                self._next_file()

    def _end_file(self, entry: Entry) -> None:
        os.ftruncate(self._file, entry.size)
        os.fchmod(self._file, entry.mode)
        os.close(self._file)
        self._file = -1

    def _finish(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            if entry.kind == Kind.SYMLINK:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path, dir_fd=self._top)  # of a run that broke off here
                os.symlink(entry.target, entry.path, dir_fd=self._top)  # pathlib has no dir_fd
        for entry in reversed(entries):
            if entry.kind == Kind.DIRECTORY:
                os.chmod(entry.path, entry.mode, dir_fd=self._top)  # pathlib has no dir_fd
        os.fchmod(self._top, 0o755)


def _put(file: int, offset: int, data: bytes | memoryview) -> None:
    """Writes what is not there already."""
    if os.fstat(file).st_size > offset and os.pread(file, len(data), offset) == data:
        return
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, offset)
        offset += written
        left = left[written:]


def _remove(part: Path) -> None:
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
