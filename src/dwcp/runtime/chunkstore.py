"""Chunks and manifests on disk, by address, one store per tenant.

    DIRECTORY/TENANT/chunks/ab/CD…        a chunk, named by its address
                     manifests/ROOT       a committed manifest: all its chunks are durable
                     owners/ROOT/OWNER    who needs it; the last owner's release removes it
                     tmp/                 emptied at each opening

A file appears under its name by rename only. Chunks become durable when a manifest that names them
is committed; those that no manifest names are leftovers of a broken transfer, kept so that it can
go on, but trusted only after their hash has been checked. Every read checks the hash. Methods are
blocking and safe to call from several threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import re
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import cast

from dwcp.compression import manifest as manifests
from dwcp.compression.chunking import CHUNK_BYTES_MAX, address
from dwcp.compression.errors import (
    ChunkDamaged,
    ChunkMissing,
    ManifestInvalid,
    ManifestMissing,
    QuotaExceeded,
    RequestInvalid,
    StoreFull,
    StoreUnusable,
    TransferError,
)
from dwcp.compression.manifest import Chunk, Entry, Limits, Manifest
from dwcp.runtime.durable import sync_path

QUOTA_BYTES = 64 << 30
RESERVE_BYTES = 64 << 20  # left free on the disk: journals may lie on it too
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_UNASKED_BYTES_MAX = 16 << 20  # may be written before the disk's room is asked for again,
_SPARE_BYTES = 1 << 30  # where it had so much more than the reserve
_TEMPORARY = "tmp"
_SYNC_THREADS = 8
_SYNC_SINGLY_MAX = 256  # more files than this are synced with their file system


@dataclass(slots=True)
class _Held:
    """One chunk on disk. `trusted` means that its hash has been checked, or a committed manifest names it."""

    size: int
    durable: bool = False
    trusted: bool = False


@dataclass(slots=True)
class _Kept:
    manifest: Manifest
    owners: set[str] = field(default_factory=set)


class ChunkStore:
    """One tenant's chunks. Made by `open`."""

    def __init__(self, directory: Path, *, quota_bytes: int, reserve_bytes: int, limits: Limits) -> None:
        self.directory = directory
        self.problems: tuple[str, ...] = ()  # what `open` found damaged and set aside, as sentences
        self._quota_bytes = quota_bytes
        self._reserve_bytes = reserve_bytes
        self.limits = limits
        self._lock = threading.RLock()
        self._chunks: dict[bytes, _Held] = {}
        self._kept: dict[bytes, _Kept] = {}
        self._refs: Counter[bytes] = Counter()  # committed manifests by chunk, whether it is here or lost
        self._holds: Counter[bytes] = Counter()
        self._bytes = 0
        self._spare_bytes = self._unasked_bytes = 0  # beyond the reserve when it was asked for; written since
        self._folder = str(directory)
        self._folders: set[str] = set()  # of chunks, that are known to exist
        self._own = f"/{_TEMPORARY}/{secrets.token_hex(8)}-"  # with a number: a temporary file
        self._numbers = itertools.count()
        self._paths: dict[str, list[tuple[bytes, Entry]]] | None = None  # made when it is asked for

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        tenant: str = "default",
        quota_bytes: int = QUOTA_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
        limits: Limits = Limits(),
    ) -> ChunkStore:
        """Reads what is there. Raises `StoreUnusable`."""
        store = cls(
            directory / _checked(tenant, "tenant"),
            quota_bytes=quota_bytes,
            reserve_bytes=reserve_bytes,
            limits=limits,
        )
        with _sentences(store.directory):
            store._prepare()
            store._find_chunks()
            store._find_manifests()
        return store

    @property
    def bytes_held(self) -> int:
        return self._bytes

    def roots(self) -> dict[bytes, frozenset[str]]:
        """Committed manifests and their owners."""
        with self._lock:
            return {root: frozenset(kept.owners) for root, kept in self._kept.items()}

    # chunks

    def has(self, name: bytes) -> bool:
        """Whether the chunk is here and sound."""
        with self._lock:
            held = self._chunks.get(name)
        if held is None:
            return False
        if held.trusted:
            return True
        try:
            self.get(name)
        except ChunkMissing:
            return False
        return True

    def missing(self, plan: Iterable[Chunk]) -> list[Chunk]:
        """Those of the plan that are not here, in order."""
        with self._lock:
            held = self._chunks
            unsure = [
                chunk
                for chunk in plan
                if not ((found := held.get(chunk.address)) is not None and found.trusted)
            ]
        return [chunk for chunk in unsure if not self.has(chunk.address)]

    def get(self, name: bytes) -> bytes:
        """A chunk, its hash checked. Raises `ChunkMissing` or `ChunkDamaged`."""
        data = self.peek(name)
        if address(data) != name:
            self._discard(name)
            raise ChunkDamaged(
                f"chunk {name.hex()[:12]} in {self.directory} was damaged on disk and is removed"
            )
        with self._lock:
            if held := self._chunks.get(name):
                held.trusted = True
        return data

    def peek(self, name: bytes) -> bytes:
        """What lies there as this chunk, its hash not checked: for guesses. Raises `ChunkMissing`."""
        path = f"{self._folder}/chunks/{name[:1].hex()}/{name[1:].hex()}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(descriptor, CHUNK_BYTES_MAX + 1)
            finally:
                os.close(descriptor)
        except FileNotFoundError as exc:
            self._forget(name)
            raise ChunkMissing(f"chunk {name.hex()[:12]} is not in {self.directory}") from exc
        except OSError as exc:
            raise StoreUnusable(f"{path}: cannot be read: {exc.strerror}") from exc

    def recheck(self, names: Iterable[bytes]) -> None:
        """Removes every one of these that is damaged: where one is, more may be, and `has` must not vouch
        for what a new upload could mend."""
        for name in names:
            with contextlib.suppress(ChunkMissing):
                self.get(name)

    def put(self, name: bytes, data: bytes) -> None:
        """Keeps a chunk. Raises `StoreFull`, or `ChunkDamaged` where the bytes are not that chunk."""
        if address(data) != name:
            raise ChunkDamaged(f"these bytes are not chunk {name.hex()[:12]}")
        self.keep(name, data)

    def keep(self, name: bytes, data: bytes | memoryview) -> None:
        """`put` for a caller who has just computed `name` from these bytes. Raises `StoreFull`."""
        if self.has(name):
            return
        self._make_room(len(data))
        with _sentences(self.directory):
            self._write_chunk(name.hex(), data)
        with self._lock:
            if name not in self._chunks:
                self._bytes += len(data)
                self._chunks[name] = _Held(len(data), trusted=True)

    @contextlib.contextmanager
    def hold(self, names: Iterable[bytes]) -> Iterator[None]:
        """While it lasts none of these chunks is swept, whether it is here already or comes later."""
        held = tuple(names)
        self.pin(held)
        try:
            yield
        finally:
            self.unpin(held)

    def pin(self, names: Collection[bytes]) -> None:
        """`hold` until `unpin`, as often as it was pinned."""
        with self._lock:
            self._holds.update(names)

    def unpin(self, names: Collection[bytes]) -> None:
        with self._lock:
            for name in names:  # one by one: there may be many holds beside this one
                self._holds[name] -= 1
                if self._holds[name] <= 0:
                    del self._holds[name]

    # manifests

    def commit(self, manifest: Manifest, *, owner: str) -> bytes:
        """Makes a payload durable and the owner's; returns its root. All its chunks must be here."""
        _checked(owner, "owner")
        manifests.validate(manifest, self.limits)
        root = manifests.root(manifest)
        plan = manifest.chunks()
        with self.hold(plan):
            absent = self.missing(Chunk(name, size) for name, size in plan.items())
            if absent:
                raise ChunkMissing(
                    f"{len(absent)} of {len(plan)} chunks of {root.hex()[:12]} are not here yet"
                )
            with _sentences(self.directory):
                self._sync_chunks(plan)
                self._keep_owner(root, owner)
                if root not in self._kept:
                    self._write_manifest(self._manifest_path(root), manifests.encode(manifest))
            self._register(root, manifest, owner)
        return root

    def manifest(self, root: bytes) -> Manifest:
        """Raises `ManifestMissing`."""
        with self._lock:
            kept = self._kept.get(root)
        if kept is None:
            raise ManifestMissing(f"no payload {root.hex()[:12]} is in this store; ask another source")
        return kept.manifest

    def entries_at(self, path: str) -> list[Entry]:
        """The files that committed payloads have at this path, newest payload first."""
        with self._lock:
            if self._paths is None:
                self._paths = {}
                for root, kept in self._kept.items():
                    for entry in kept.manifest.entries:
                        if entry.chunks:
                            self._paths.setdefault(entry.path, []).append((root, entry))
            return [entry for root, entry in reversed(self._paths.get(path, [])) if root in self._kept]

    def complete(self, root: bytes) -> bool:
        """Whether the payload is committed and none of its chunks has been lost since."""
        with self._lock:
            kept = self._kept.get(root)
            return kept is not None and all(name in self._chunks for name in kept.manifest.chunks())

    def adopt(self, root: bytes, *, owner: str) -> bool:
        """Another owner for a payload that is complete here; False where it is not."""
        _checked(owner, "owner")
        with self._lock:
            if not self.complete(root):
                return False
            with _sentences(self.directory):
                self._keep_owner(root, owner)
            self._kept[root].owners.add(owner)
            return True

    def release(self, root: bytes, *, owner: str) -> None:
        """The owner needs the payload no longer; the last one's release removes it and what it alone used."""
        _checked(owner, "owner")
        with self._lock, _sentences(self.directory):
            kept = self._kept.get(root)
            if kept is None:
                return
            (self._owners_path(root) / owner).unlink(missing_ok=True)
            kept.owners.discard(owner)
            if not kept.owners:
                self._drop(root, kept.manifest)

    def release_owner(self, owner: str) -> None:
        """The owner needs nothing any longer."""
        with self._lock:
            roots = [root for root, kept in self._kept.items() if owner in kept.owners]
            for root in roots:
                self.release(root, owner=owner)

    def sweep(self) -> int:
        """Removes chunks that no manifest names and no transfer holds; returns the bytes freed."""
        with self._lock, _sentences(self.directory):
            loose = [name for name in self._chunks if not self._refs[name] and not self._holds[name]]
            before = self._bytes
            for name in loose:
                self._discard(name)
            return before - self._bytes

    # inside

    def _prepare(self) -> None:
        for name in ("chunks", "manifests", "owners", _TEMPORARY):
            (self.directory / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in (self.directory / _TEMPORARY).iterdir():
            leftover.unlink()

    def _find_chunks(self) -> None:
        for folder in os.scandir(self.directory / "chunks"):
            for file in os.scandir(folder.path):
                with contextlib.suppress(ValueError):  # a foreign file is no chunk; it is left alone
                    size = file.stat(follow_symlinks=False).st_size
                    self._chunks[bytes.fromhex(folder.name + file.name)] = _Held(size)
                    self._bytes += size

    def _find_manifests(self) -> None:
        problems = []
        for path in sorted((self.directory / "manifests").iterdir()):
            try:
                manifest = manifests.decode(path.read_bytes(), self.limits)
                if manifests.root(manifest).hex() != path.name:
                    raise ManifestInvalid("its bytes are not those of its name")
            except ManifestInvalid as exc:
                problems.append(f"{path}: removed: {exc}")
                path.unlink()
                continue
            root = bytes.fromhex(path.name)
            folder = self._owners_path(root)
            owners = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
            self._register(root, manifest, *owners)
            self._trust(manifest)
        for folder in (self.directory / "owners").iterdir():
            if not self._kept_by_name(folder.name):
                shutil.rmtree(folder)  # of a commit that was cut before its manifest was there
        self.problems = tuple(problems)

    def _trust(self, manifest: Manifest) -> None:
        """A committed manifest vouches for its chunks, unless the disk has lost part of one."""
        for name, size in manifest.chunks().items():
            held = self._chunks.get(name)
            if held is not None and held.size != size:
                self._discard(name)
            elif held is not None:
                held.durable = held.trusted = True

    def _kept_by_name(self, name: str) -> bool:
        with contextlib.suppress(ValueError):
            return bytes.fromhex(name) in self._kept
        return False

    def _register(self, root: bytes, manifest: Manifest, *owners: str) -> None:
        with self._lock:
            kept = self._kept.get(root)
            if kept is None:
                kept = self._kept[root] = _Kept(manifest)
                self._paths = None
                self._refs.update(manifest.chunks().keys())
            kept.owners.update(owners)

    def _drop(self, root: bytes, manifest: Manifest) -> None:
        self._manifest_path(root).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._owners_path(root).rmdir()
        del self._kept[root]
        for name in manifest.chunks():
            self._refs[name] -= 1
            if self._refs[name] <= 0:
                del self._refs[name]
                if not self._holds[name]:
                    self._discard(name)

    def _make_room(self, size: int) -> None:
        if self._bytes + size > self._quota_bytes:
            self.sweep()
        if self._bytes + size > self._quota_bytes:
            raise QuotaExceeded(
                f"the store {self.directory} may hold {self._quota_bytes} bytes and holds {self._bytes}"
            )
        with self._lock:
            self._unasked_bytes += size
            if self._unasked_bytes <= min(_UNASKED_BYTES_MAX, self._spare_bytes - _SPARE_BYTES):
                return
            self._unasked_bytes = 0
        free = self._free()
        if free < self._reserve_bytes + size:
            self.sweep()
            free = self._free()
        self._spare_bytes = free - self._reserve_bytes
        if free < self._reserve_bytes + size:
            raise StoreFull(
                f"the disk of {self.directory} has {free} bytes free, {self._reserve_bytes} are kept: "
                "free space there and try again"
            )

    def _free(self) -> int:
        with _sentences(self.directory):
            status = os.statvfs(self._folder)
        return status.f_bavail * status.f_frsize

    def _write_chunk(self, name: str, data: bytes | memoryview) -> None:
        """Strings and system calls: paths as objects would take longer here than the disk."""
        temporary = f"{self._folder}{self._own}{next(self._numbers)}"
        folder = f"{self._folder}/chunks/{name[:2]}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
            finally:
                os.close(descriptor)
            if folder not in self._folders:
                Path(folder).mkdir(exist_ok=True, mode=0o700)
                self._folders.add(folder)
            os.rename(temporary, f"{folder}/{name[2:]}")  # noqa: PTH104
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _write_manifest(self, path: Path, data: bytes) -> None:
        temporary = self.directory / _TEMPORARY / secrets.token_hex(8)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_path(path.parent)

    def _sync_chunks(self, names: Iterable[bytes]) -> None:
        """Chunks first, then the folders that name them, before any manifest says that they are here."""
        with self._lock:
            fresh = [name for name in names if not self._chunks[name].durable]
        if len(fresh) > _SYNC_SINGLY_MAX and _sync_filesystem(self.directory):
            self._made_durable(fresh)
            return
        paths = [self._chunk_path(name) for name in fresh]
        folders = sorted({path.parent for path in paths})
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:
            list(pool.map(sync_path, paths))
            list(pool.map(sync_path, folders))
        if fresh:
            sync_path(self.directory / "chunks")
        self._made_durable(fresh)

    def _made_durable(self, fresh: list[bytes]) -> None:
        with self._lock:
            for name in fresh:
                if held := self._chunks.get(name):
                    held.durable = True

    def _keep_owner(self, root: bytes, owner: str) -> None:
        folder = self._owners_path(root)
        folder.mkdir(exist_ok=True, mode=0o700)
        (folder / owner).touch(mode=0o600)
        sync_path(folder)
        sync_path(folder.parent)

    def _discard(self, name: bytes) -> None:
        self._chunk_path(name).unlink(missing_ok=True)
        self._forget(name)

    def _forget(self, name: bytes) -> None:
        with self._lock:
            held = self._chunks.pop(name, None)
            if held is not None:
                self._bytes -= held.size

    def _chunk_path(self, name: bytes) -> Path:
        text = name.hex()
        return self.directory / "chunks" / text[:2] / text[2:]

    def _manifest_path(self, root: bytes) -> Path:
        return self.directory / "manifests" / root.hex()

    def _owners_path(self, root: bytes) -> Path:
        return self.directory / "owners" / root.hex()


@contextlib.contextmanager
def _sentences(place: Path) -> Iterator[None]:
    """Foreign errors of the disk as ours."""
    try:
        yield
    except OSError as exc:
        raise disk_error(exc, place) from exc


def disk_error(exc: OSError, place: Path) -> TransferError:
    """The sentence for a failed disk operation below `place`."""
    if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFull(f"the disk of {place} is full: free space there and try again")
    return StoreUnusable(f"{exc.filename or place}: {exc.strerror}; check its disk and permissions")


def _checked(name: str, what: str) -> str:
    """Names become file names, so they are few and plain."""
    if not _NAME.fullmatch(name):
        raise RequestInvalid(f"{name[:100]!r} is no {what} name: letters, digits, '.', '_', '-', at most 100")
    return name


@cache
def _syncfs() -> Callable[[int], int] | None:
    """The C library's `syncfs`; None where there is none. Python has only `sync`, which spans all disks."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    return cast("Callable[[int], int] | None", function)


def _sync_filesystem(directory: Path) -> bool:
    """Everything on the directory's file system in one go; False where that cannot be. Raises `OSError`."""
    function = _syncfs()
    if function is None:
        return False
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        if function(descriptor) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))
    finally:
        os.close(descriptor)
    return True
