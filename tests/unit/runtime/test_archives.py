"""Directories as archives: they come back with their metadata, from any cut, and never outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dwcp.compression.errors import ContainerInvalid, PayloadRefused
from dwcp.runtime import archives
from dwcp.runtime.archives import FileTarget, TreeTarget, part_of, require_absent
from dwcp.runtime.trees import read_tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    (made / "d" / "e").mkdir(parents=True)
    (made / "d" / "run").write_bytes(b"#!/bin/sh\n")
    (made / "d" / "run").chmod(0o750)
    (made / "empty").touch(0o600)
    (made / "big").write_bytes(os.urandom(300_000))
    (made / "link").symlink_to("d/run")
    (made / "d" / "e").chmod(0o500)
    return made


def _nodes(folder: Path) -> list[tuple[str, int, int, str]]:
    return [(node.path, node.mode, node.size, node.target) for node in read_tree(folder).nodes]


def _write(target: TreeTarget, data: bytes, piece: int = 1000) -> None:
    for at in range(0, len(data), piece):
        target.write(data[at : at + piece])


def test_a_directory_comes_back_with_its_metadata(folder: Path, tmp_path: Path) -> None:
    """Goal: files, modes, links and empty files. Method: compare both trees and every byte."""
    data = b"".join(archives.read(read_tree(folder)))
    target = TreeTarget(tmp_path / "out")
    _write(target, data)
    target.complete()
    target.close()

    assert _nodes(tmp_path / "out") == _nodes(folder)
    assert (tmp_path / "out/big").read_bytes() == (folder / "big").read_bytes()
    assert not part_of(tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [0, 3, 200, 100_000, 300_000])
def test_a_broken_extraction_goes_on(folder: Path, tmp_path: Path, cut: int) -> None:
    """Goal: the same bytes again complete it. Method: stop after `cut` bytes, then resume."""
    data = b"".join(archives.read(read_tree(folder)))
    first = TreeTarget(tmp_path / "out")
    _write(first, data[:cut])
    first.close()
    assert not (tmp_path / "out").exists()

    again = TreeTarget(tmp_path / "out", resume=True)
    _write(again, data)
    again.complete()
    again.close()

    assert _nodes(tmp_path / "out") == _nodes(folder)
    assert (tmp_path / "out/big").read_bytes() == (folder / "big").read_bytes()


def test_links_of_a_broken_run_are_not_written_through(folder: Path, tmp_path: Path) -> None:
    """Goal: nothing outside is touched. Method: a part whose folder is a link to another place."""
    outside = tmp_path / "outside"
    outside.mkdir()
    part = part_of(tmp_path / "out")
    part.mkdir()
    (part / "d").symlink_to(outside)
    target = TreeTarget(tmp_path / "out", resume=True)
    _write(target, b"".join(archives.read(read_tree(folder))))
    target.complete()
    target.close()

    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("change", [-1, 1])
def test_too_few_and_too_many_bytes_are_refused(folder: Path, tmp_path: Path, change: int) -> None:
    """Goal: an archive has exactly its content. Method: one byte less, one more."""
    data = b"".join(archives.read(read_tree(folder)))
    target = TreeTarget(tmp_path / "out")

    def extract() -> None:
        _write(target, data[:change] if change < 0 else data + b"x")
        target.complete()

    with pytest.raises(ContainerInvalid, match=r"ends before|follow"):
        extract()
    target.close()

    assert not (tmp_path / "out").exists()


def test_a_file_has_its_name_when_it_is_complete(tmp_path: Path) -> None:
    """Goal: no half file under the final name. Method: look before and after; a longer part shrinks."""
    part_of(tmp_path / "f").write_bytes(b"abcdefXYZ")
    target = FileTarget(tmp_path / "f", resume=True)
    target.write(b"abc")
    target.write(b"deF")
    assert not (tmp_path / "f").exists()
    target.complete()
    target.close()

    assert (tmp_path / "f").read_bytes() == b"abcdeF"


def test_what_exists_is_not_replaced(tmp_path: Path) -> None:
    """Goal: no loss by a wrong name. Method: a file, a forced file, a directory, a link."""
    (tmp_path / "f").touch()
    with pytest.raises(PayloadRefused, match="--force"):
        require_absent(tmp_path / "f")
    require_absent(tmp_path / "f", force=True)
    with pytest.raises(PayloadRefused, match="choose another"):
        require_absent(tmp_path, force=True)
    (tmp_path / "l").symlink_to("nowhere")
    with pytest.raises(PayloadRefused):
        require_absent(tmp_path / "l", force=True)
