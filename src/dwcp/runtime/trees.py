"""Payloads as directories: read without following a link, written without leaving the directory.

A tree may change while it is read, by accident or by malice. It is walked from one open directory
downwards, every open names one component and follows nothing, and every file must be the same
before and after it was read. Functions here block; call them in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dwcp.compression import manifest as manifests
from dwcp.compression.chunking import address, cut_stream
from dwcp.compression.errors import ManifestInvalid, PayloadChanged, PayloadRefused, TransferError
from dwcp.compression.manifest import LINK_MODE, VERSION, Chunk, Entry, Kind, Limits, Manifest, shown
from dwcp.runtime.chunkstore import ChunkStore, disk_error

Keep = Callable[[bytes, bytes], None]  # takes (address, bytes) of each chunk
Advance = Callable[[int], None]  # takes the bytes read since the last call

_PIECE_BYTES = 1 << 20
_SPARSE_BYTES_MIN = 256 << 20  # smaller holes cost little
_SPARSE_RATIO_MAX = 100  # declared bytes for one byte on disk
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SPECIAL = {
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True, slots=True)
class Node:
    """One entry as it was seen. `stamp` changes when anything about it does."""

    path: str
    kind: Kind
    mode: int
    size: int
    target: str
    stamp: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory as it was when it was walked; nothing of its files has been read yet.

    `only`: of all that is in the directory, this one file was meant.
    """

    directory: Path
    limits: Limits
    nodes: tuple[Node, ...]
    only: str = ""

    @property
    def total_bytes(self) -> int:
        return sum(node.size for node in self.nodes)

    @property
    def file_count(self) -> int:
        return sum(1 for node in self.nodes if node.kind == Kind.FILE)


def read_tree(directory: Path, limits: Limits = Limits(), *, only: str = "") -> Tree:
    """Walks a payload under every rule that needs no content. Raises `PayloadRefused`, `PayloadChanged`."""
    top = _open_top(directory)
    try:
        found = (_node(top, only, only, limits),) if only else _walk(top, "", limits)
        nodes = tuple(sorted(found, key=lambda node: node.path.encode()))
    finally:
        os.close(top)
    if len(nodes) > limits.entries:
        raise PayloadRefused(f"the payload has more than {limits.entries} entries")
    tree = Tree(directory, limits, nodes, only)
    if tree.total_bytes > limits.total_bytes:
        raise PayloadRefused(
            f"the payload's files have {tree.total_bytes} bytes, {limits.total_bytes} are allowed"
        )
    bare = tuple(Entry(node.path, node.kind, node.mode, 0, (), node.target) for node in nodes)
    _refusing(lambda: manifests.validate(Manifest(VERSION, bare), limits))
    return tree


def index(tree: Tree, *, keep: Keep | None = None, advance: Advance | None = None) -> Manifest:
    """Reads every file once, cuts and names its chunks. Raises `PayloadChanged`."""
    entries = [_index_node(tree, node, keep, advance) for node in tree.nodes]
    require_unchanged(tree)
    return manifests.make(entries, tree.limits)


def require_unchanged(tree: Tree) -> None:
    """Walks again. Raises `PayloadChanged`, naming the first entry that came, went or changed."""
    again = read_tree(tree.directory, tree.limits, only=tree.only)
    if again.nodes != tree.nodes:
        raise _changed(_first_difference(tree.nodes, again.nodes))


def read_file(tree: Tree, node: Node) -> Iterator[bytes]:
    """The bytes of one file in pieces. Raises `PayloadChanged` unless it stays what it was."""
    with reading(tree, node) as fill:
        left = node.size
        buffer = memoryview(bytearray(min(left, _PIECE_BYTES)))
        while left:
            got = fill(buffer)
            left -= got
            yield bytes(buffer[:got])


@contextlib.contextmanager
def reading(tree: Tree, node: Node) -> Iterator[Callable[[memoryview], int]]:
    """A function that puts the file's next bytes into a view and says how many; it is there for `node.size`
    bytes. Raises `PayloadChanged` unless the file stays what it was."""
    descriptor = _open_node(tree, node)
    left = node.size

    def fill(view: memoryview) -> int:
        nonlocal left
        try:
            got = os.readv(descriptor, [view[:left]])
        except OSError as exc:
            raise PayloadRefused(f"{shown(node.path)} cannot be read: {exc.strerror}") from exc
        if not got:
            raise _changed(node.path)
        left -= got
        return got

    try:
        yield fill
        if _read(descriptor, 1, node.path) or _stamp(os.fstat(descriptor)) != node.stamp:
            raise _changed(node.path)
    finally:
        os.close(descriptor)


def read_at(tree: Tree, node: Node, offset: int, size: int) -> bytes:
    """A stretch of one file. Raises `PayloadChanged` where it is no longer there."""
    descriptor = _open_node(tree, node)
    try:
        data = os.pread(descriptor, size, offset)
    except OSError as exc:
        raise PayloadRefused(f"{shown(node.path)} cannot be read: {exc.strerror}") from exc
    finally:
        os.close(descriptor)
    if len(data) != size:
        raise _changed(node.path)
    return data


def capture(directory: Path, store: ChunkStore, *, owner: str, limits: Limits = Limits()) -> Manifest:
    """Reads a directory into the store and commits it; the same rules as for payloads."""
    tree = read_tree(directory, limits)
    with contextlib.ExitStack() as holds:

        def keep(name: bytes, data: bytes) -> None:
            holds.enter_context(store.hold([name]))
            store.put(name, data)

        manifest = index(tree, keep=keep)
        store.commit(manifest, owner=owner)
    return manifest


def materialise(manifest: Manifest, store: ChunkStore, directory: Path) -> None:
    """Writes a payload as files into `directory`, which must be new or empty.

    Links come last, so that nothing is ever written through one, and the modes of
    directories after all that is in them. On an error the directory is empty or gone.
    """
    manifests.validate(manifest, Limits())
    made = _make_empty(directory)
    top = os.open(directory, _OPEN_DIRECTORY)
    try:
        _fill(manifest, store, top)
    except BaseException as exc:
        _empty(directory, remove=made)
        if isinstance(exc, OSError):
            raise disk_error(exc, directory) from exc
        raise
    finally:
        os.close(top)


def _fill(manifest: Manifest, store: ChunkStore, top: int) -> None:
    for entry in manifest.entries:
        if entry.kind == Kind.DIRECTORY:
            os.mkdir(entry.path, 0o700, dir_fd=top)  # pathlib has no dir_fd
        elif entry.kind == Kind.FILE:
            _write_file(entry, store, top)
    for entry in manifest.entries:
        if entry.kind == Kind.SYMLINK:
            os.symlink(entry.target, entry.path, dir_fd=top)  # pathlib has no dir_fd
    for entry in reversed(manifest.entries):
        if entry.kind == Kind.DIRECTORY:
            os.chmod(entry.path, entry.mode, dir_fd=top)  # pathlib has no dir_fd


def _write_file(entry: Entry, store: ChunkStore, top: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(entry.path, flags, 0o600, dir_fd=top), "wb", buffering=0) as file:
        for chunk in entry.chunks:
            data = memoryview(store.get(chunk.address))
            while data:
                data = data[file.write(data) or 0 :]
        os.fchmod(file.fileno(), entry.mode)


def _make_empty(directory: Path) -> bool:
    """Whether it had to be made."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        if directory.is_symlink() or not directory.is_dir() or any(directory.iterdir()):
            raise PayloadRefused(
                f"{directory} exists and is not an empty directory; choose another"
            ) from None
        return False
    except OSError as exc:
        raise PayloadRefused(f"{directory} cannot be made: {exc.strerror}") from exc
    return True


def _empty(directory: Path, *, remove: bool) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if remove:
        directory.rmdir()


def _open_top(directory: Path) -> int:
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise PayloadRefused(f"{directory} does not exist; a payload is a directory") from exc
    except NotADirectoryError as exc:
        raise PayloadRefused(f"{directory} is a file; a payload is a directory") from exc
    except OSError as exc:
        raise PayloadRefused(f"{directory} cannot be read: {exc.strerror}") from exc


def _walk(folder: int, prefix: str, limits: Limits, seen: list[int] | None = None) -> Iterator[Node]:
    """All nodes below an open directory; `seen` counts them, so that the walk itself is bounded."""
    seen = [0] if seen is None else seen
    for name in sorted(_names(folder, prefix)):
        path = prefix + name
        seen[0] += 1
        if seen[0] > limits.entries:
            raise PayloadRefused(f"the payload has more than {limits.entries} entries")
        _refusing(lambda path=path: manifests.check_path(path, limits))  # type: ignore[misc]  # bound early
        node = _node(folder, name, path, limits)
        yield node
        if node.kind == Kind.DIRECTORY:
            inner = _open_below(folder, name, path, _OPEN_DIRECTORY)
            try:
                yield from _walk(inner, path + "/", limits, seen)
            finally:
                os.close(inner)


def _names(folder: int, prefix: str) -> list[str]:
    try:
        return os.listdir(folder)  # pathlib cannot list an open directory
    except OSError as exc:
        raise _unreadable(prefix.rstrip("/") or ".", exc) from exc


def _node(folder: int, name: str, path: str, limits: Limits) -> Node:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)  # pathlib has no dir_fd
        target = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(status.st_mode) else ""
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    kind = _kind(path, status)
    mode = LINK_MODE if kind == Kind.SYMLINK else stat.S_IMODE(status.st_mode)
    if kind == Kind.FILE:
        _check_file(path, status, limits)
    size = status.st_size if kind == Kind.FILE else 0
    return Node(path, kind, mode, size, target, _stamp(status))


def _kind(path: str, status: os.stat_result) -> Kind:
    if stat.S_ISREG(status.st_mode):
        return Kind.FILE
    if stat.S_ISDIR(status.st_mode):
        return Kind.DIRECTORY
    if stat.S_ISLNK(status.st_mode):
        return Kind.SYMLINK
    what = _SPECIAL.get(stat.S_IFMT(status.st_mode), "of an unknown kind")
    raise PayloadRefused(f"{shown(path)} is {what}; only files, directories and symlinks may travel")


def _check_file(path: str, status: os.stat_result, limits: Limits) -> None:
    if status.st_nlink > 1:
        raise PayloadRefused(
            f"{shown(path)} is a hard link ({status.st_nlink} names for one file); "
            "put a copy in its place: cp --remove-destination"
        )
    if status.st_size > limits.file_bytes:
        raise PayloadRefused(f"{shown(path)} has {status.st_size} bytes, {limits.file_bytes} are allowed")
    on_disk = status.st_blocks * 512
    if status.st_size > _SPARSE_BYTES_MIN and status.st_size > _SPARSE_RATIO_MAX * on_disk:
        raise PayloadRefused(
            f"{shown(path)} is sparse: {status.st_size} bytes, {on_disk} of them on disk; "
            "its holes would be written out"
        )


def _open_node(tree: Tree, node: Node) -> int:
    """The file behind a node, reached component by component, following nothing."""
    *folders, name = node.path.split("/")
    at = _open_top(tree.directory)
    try:
        for folder in folders:
            inner = _open_below(at, folder, node.path, _OPEN_DIRECTORY)
            os.close(at)
            at = inner
        descriptor = _open_below(at, name, node.path, _OPEN_FILE)
    finally:
        os.close(at)
    if _stamp(os.fstat(descriptor)) != node.stamp:
        os.close(descriptor)
        raise _changed(node.path)
    return descriptor


def _open_below(folder: int, name: str, path: str, flags: int) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _read(descriptor: int, size: int, path: str) -> bytes:
    try:
        return os.read(descriptor, size)
    except OSError as exc:
        raise PayloadRefused(f"{shown(path)} cannot be read: {exc.strerror}") from exc


def _index_node(tree: Tree, node: Node, keep: Keep | None, advance: Advance | None) -> Entry:
    if node.kind != Kind.FILE:
        return Entry(node.path, node.kind, node.mode, 0, (), node.target)
    chunks = []
    for data in cut_stream(read_file(tree, node)):
        chunks.append(Chunk(address(data), len(data)))
        if keep is not None:
            keep(chunks[-1].address, data)
        if advance is not None:
            advance(len(data))
    return Entry(node.path, Kind.FILE, node.mode, node.size, tuple(chunks))


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    facts = (status.st_dev, status.st_ino, status.st_mode, status.st_mtime_ns, status.st_ctime_ns)
    return facts if stat.S_ISDIR(status.st_mode) else (*facts, status.st_size, status.st_nlink)


def _first_difference(before: tuple[Node, ...], after: tuple[Node, ...]) -> str:
    """The first path that came, went or changed; files before the directories that they change."""
    old, new = ({node.path: node for node in nodes} for nodes in (before, after))
    paths = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
    files = [path for path in paths if (new.get(path) or old[path]).kind != Kind.DIRECTORY]
    return (files or paths)[0]


def _unreadable(path: str, exc: OSError) -> TransferError:
    if exc.errno in {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ESTALE, errno.ENXIO}:
        return _changed(path)
    return PayloadRefused(f"{shown(path)} cannot be read: {exc.strerror}")


def _changed(path: str) -> PayloadChanged:
    return PayloadChanged(
        f"payload changed while it was read: {shown(path)}; submit again when nothing writes to it"
    )


def _refusing(check: Callable[[], None]) -> None:
    """The manifest's rules, said about a directory."""
    try:
        check()
    except ManifestInvalid as exc:
        raise PayloadRefused(str(exc)) from exc
