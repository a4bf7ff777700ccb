"""Payload directories on a real file system: what is refused, what changes underneath, what comes back."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dwcp.compression import manifest as m
from dwcp.compression.errors import ChunkMissing, PayloadChanged, PayloadRefused, StoreFull, TransferError
from dwcp.compression.manifest import Kind, Limits
from dwcp.runtime import trees
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.trees import capture, index, materialise, read_at, read_file, read_tree, reading


def _sample(directory: Path) -> Path:
    directory.mkdir()
    (directory / "bin").mkdir(mode=0o750)
    (directory / "bin" / "run").write_bytes(b"#!/bin/sh\n" * 9000)
    (directory / "bin" / "run").chmod(0o755)
    (directory / "empty").touch()
    (directory / "empty").chmod(0o444)
    (directory / "hollow").mkdir()
    (directory / "ünï code").write_text("text")
    (directory / "latest").symlink_to("bin/run")
    (directory / "bin" / "up").symlink_to("../ünï code")
    return directory


def _seen(directory: Path) -> dict[str, tuple[str, int, bytes]]:
    seen = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            seen[name] = ("link", 0, str(path.readlink()).encode())
        elif path.is_dir():
            seen[name] = ("dir", path.stat().st_mode & 0o7777, b"")
        else:
            seen[name] = ("file", path.stat().st_mode & 0o7777, path.read_bytes())
    return seen


def test_a_payload_comes_back_as_it_was(tmp_path: Path) -> None:
    """Captured into a store and written elsewhere: same names, modes, contents and links."""
    source = _sample(tmp_path / "source")
    store = ChunkStore.open(tmp_path / "store")

    manifest = capture(source, store, owner="w-1")
    materialise(manifest, store, tmp_path / "target")

    assert _seen(tmp_path / "target") == _seen(source)
    assert m.root(index(read_tree(tmp_path / "target"))) == m.root(manifest)


def test_directories_that_nobody_may_write_come_back(tmp_path: Path) -> None:
    """Modes of directories are set after what is in them is written, or nothing could be."""
    source = tmp_path / "source"
    (source / "locked" / "inner").mkdir(parents=True)
    (source / "locked" / "inner" / "file").write_text("x")
    (source / "locked" / "inner").chmod(0o500)
    (source / "locked").chmod(0o500)
    store = ChunkStore.open(tmp_path / "store")

    materialise(capture(source, store, owner="w"), store, tmp_path / "target")

    assert (tmp_path / "target" / "locked" / "inner").stat().st_mode & 0o777 == 0o500


def _fifo(path: Path) -> None:
    os.mkfifo(path / "pipe")


def _socket(path: Path) -> None:
    # A socket's address is short; a relative name from inside the directory is.
    here = Path.cwd()
    os.chdir(path)
    try:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind("sock")
        listening.close()
    finally:
        os.chdir(here)


def _setuid(path: Path) -> None:
    (path / "su").touch()
    (path / "su").chmod(0o4755)


def _sticky(path: Path) -> None:
    (path / "tmp").mkdir()
    (path / "tmp").chmod(0o1777)


def _hard_link(path: Path) -> None:
    (path / "one").write_text("x")
    os.link(path / "one", path / "two")


def _sparse(path: Path) -> None:
    with (path / "hole").open("wb") as file:
        file.truncate(1 << 30)


def _bad_name(path: Path) -> None:
    with open(os.fsencode(path) + b"/caf\xe9", "wb"):  # noqa: PTH123  # a name that is no text
        pass


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (_fifo, "'pipe' is a fifo"),
    (_socket, "'sock' is a socket"),
    (_setuid, "'su' has the setuid bit"),
    (_sticky, "'tmp' has the sticky bit"),
    (_hard_link, "'one' is a hard link"),
    (_sparse, "'hole' is sparse"),
    (_bad_name, "UTF-8"),
    (lambda path: (path / "out").symlink_to("../x"), "'out' → '../x' leaves the payload"),
    (lambda path: (path / "abs").symlink_to("/etc/passwd"), "absolute path '/etc/passwd'"),
    (lambda path: (path / "a").symlink_to("a"), "circles"),
    (lambda path: [(path / name).touch() for name in ("A", "a")] and None, "differ by case"),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSED, ids=[row[1][:20] for row in REFUSED])
def test_what_may_not_travel_is_named(tmp_path: Path, make: Callable[[Path], None], sentence: str) -> None:
    """Each, found by the walk alone, before any file is read."""
    make(tmp_path)

    with pytest.raises(PayloadRefused, match=sentence):
        read_tree(tmp_path)


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a device: run as root")
def test_a_device_is_refused_unopened(tmp_path: Path) -> None:
    """Opening a device can have effects; its kind is enough."""
    os.mknod(tmp_path / "null", 0o20666, os.makedev(1, 3))

    with pytest.raises(PayloadRefused, match="character device"):
        read_tree(tmp_path)


def test_limits_stop_the_walk(tmp_path: Path) -> None:
    """Entries, depth, size of one and of all."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(bytes(100))
    for limits, sentence in (
        (Limits(entries=2), "more than 2 entries"),
        (Limits(depth=2), "3 levels deep"),
        (Limits(file_bytes=99), "has 100 bytes"),
        (Limits(total_bytes=99), "100 bytes, 99"),
    ):
        with pytest.raises(PayloadRefused, match=sentence):
            read_tree(tmp_path, limits)


def test_a_payload_that_is_no_directory(tmp_path: Path) -> None:
    """Missing, or a file: said, not shown as a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(PayloadRefused, match="does not exist"):
        read_tree(tmp_path / "nowhere")
    with pytest.raises(PayloadRefused, match="is a file"):
        read_tree(tmp_path / "file")


CHANGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("vanished", lambda path: (path / "f").unlink(), "'f'"),
    ("grew", lambda path: (path / "f").write_bytes(bytes(2000)), "'f'"),
    ("shrank", lambda path: os.truncate(path / "f", 10), "'f'"),
    ("other content", lambda path: (path / "f").write_bytes(b"y" * 1000), "'f'"),
    (
        "replaced",
        lambda path: [(path / "n").write_bytes(bytes(1000)), (path / "n").rename(path / "f")],
        "'f'",
    ),
    ("became a link", lambda path: [(path / "f").unlink(), (path / "f").symlink_to("/etc/passwd")], "'f'"),
    ("became a fifo", lambda path: [(path / "f").unlink(), os.mkfifo(path / "f")], "'f'"),
    ("new file", lambda path: (path / "d" / "new").touch(), "'d/new'"),
    ("folder became a link", lambda path: [(path / "d").rmdir(), (path / "d").symlink_to("/")], "'d'"),
]


@pytest.mark.parametrize(("change", "named"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_a_change_between_walk_and_read_is_named(
    tmp_path: Path, change: Callable[[Path], object], named: str
) -> None:
    """The tree is walked, something changes, then it is read: the sentence names the path."""
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_bytes(bytes(1000))
    tree = read_tree(tmp_path)
    change(tmp_path)

    with pytest.raises(TransferError, match=named) as caught:
        index(tree)
    assert isinstance(caught.value, PayloadChanged | PayloadRefused)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """After the first piece has been read it grows, or is cut: both are found at its end."""
    path = tmp_path / "f"
    for size in ((3 << 20) + 4, 2_500_000):
        path.write_bytes(bytes(3 << 20))
        tree = read_tree(tmp_path)
        pieces = read_file(tree, tree.nodes[0])
        next(pieces)
        os.truncate(path, size)

        with pytest.raises(PayloadChanged, match="'f'"):
            list(pieces)


def test_a_file_that_changes_while_it_is_put_into_views(tmp_path: Path) -> None:
    """Goal: what `reading` gave is the file that was walked. Method: it grows or shrinks in between, or stays."""
    path = tmp_path / "f"
    for size in (3000, 3001, 1500):
        path.write_bytes(bytes(3000))
        tree = read_tree(tmp_path)
        buffer = memoryview(bytearray(2000))
        with (
            pytest.raises(PayloadChanged, match="'f'") if size != 3000 else contextlib.nullcontext(),
            reading(tree, tree.nodes[0]) as fill,
        ):
            assert fill(buffer) == 2000
            os.truncate(path, size) if size != 3000 else None
            assert fill(buffer) == 1000


def test_a_folder_swapped_for_a_link_is_not_followed(tmp_path: Path) -> None:
    """The classic race: a directory on the way is replaced by a link to somewhere else."""
    payload, outside = tmp_path / "payload", tmp_path / "outside"
    (payload / "d").mkdir(parents=True)
    outside.mkdir()
    for place in (payload / "d", outside):
        (place / "secret").write_bytes(b"same size")
    tree = read_tree(payload)
    (payload / "d").rename(tmp_path / "moved")
    (payload / "d").symlink_to(outside)

    with pytest.raises(PayloadChanged):
        list(read_file(tree, next(node for node in tree.nodes if node.path == "d/secret")))


def test_a_second_look_at_a_replaced_file_is_refused(tmp_path: Path) -> None:
    """A stretch is read only from the very file that was walked, whatever the new one holds."""
    (tmp_path / "f").write_bytes(b"same bytes")
    tree = read_tree(tmp_path)
    (tmp_path / "new").write_bytes(b"same bytes")
    assert read_at(tree, tree.nodes[0], 5, 5) == b"bytes"
    (tmp_path / "new").rename(tmp_path / "f")

    with pytest.raises(PayloadChanged, match="'f'"):
        read_at(tree, tree.nodes[0], 5, 5)


def test_a_target_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    """Nothing that exists is overwritten, and a link in its place is not followed."""
    store = ChunkStore.open(tmp_path / "store")
    manifest = capture(_sample(tmp_path / "source"), store, owner="w")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")

    for target in ("full", "link"):
        with pytest.raises(PayloadRefused, match="not an empty directory"):
            materialise(manifest, store, tmp_path / target)
    assert (tmp_path / "full" / "mine").read_text() == "precious"
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_chunk_leaves_no_half_payload(tmp_path: Path) -> None:
    """When a chunk cannot be read the directory is gone again."""
    store = ChunkStore.open(tmp_path / "store")
    manifest = capture(_sample(tmp_path / "source"), store, owner="w")
    store._discard(next(iter(manifest.chunks())))

    with pytest.raises(ChunkMissing):
        materialise(manifest, store, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk: run as root")
def test_a_full_disk_while_files_are_written(tmp_path: Path) -> None:
    """`StoreFull`, and the space is free again."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(2 << 20))
    store = ChunkStore.open(tmp_path / "store")
    manifest = capture(source, store, owner="w")
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", target], check=True)
    try:
        with pytest.raises(StoreFull, match="full"):
            materialise(manifest, store, target)
        assert list(target.iterdir()) == []
    finally:
        subprocess.run(["umount", target], check=True)


def test_a_payload_larger_than_the_quota_is_refused_on_capture(tmp_path: Path) -> None:
    """The sentence says how much the store may hold; what was kept so far can be swept."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(1 << 20))
    store = ChunkStore.open(tmp_path / "store", quota_bytes=500_000)

    with pytest.raises(StoreFull, match="may hold 500000 bytes"):
        capture(source, store, owner="w")
    store.sweep()
    assert store.bytes_held == 0


def test_the_pieces_of_a_large_file_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is never read whole: each piece is at most a mebibyte."""
    (tmp_path / "f").write_bytes(bytes((3 << 20) + 5))
    tree = read_tree(tmp_path)

    sizes = [len(piece) for piece in read_file(tree, tree.nodes[0])]

    assert sum(sizes) == (3 << 20) + 5
    assert max(sizes) <= trees._PIECE_BYTES


def test_kinds_and_counts(tmp_path: Path) -> None:
    """What the walk says before anything is read, for progress and for the estimate of a submission."""
    tree = read_tree(_sample(tmp_path / "source"))

    assert tree.file_count == 3
    assert tree.total_bytes == 90_004
    assert [node.path for node in tree.nodes if node.kind == Kind.SYMLINK] == ["bin/up", "latest"]
