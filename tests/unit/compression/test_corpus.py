"""The training corpus: deterministic, by quotas, without what is held out; and how packed folders are read."""

from __future__ import annotations

import bz2
import gzip
import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from dwcp.compression import corpus
from dwcp.compression.corpus_heldout import BlockList, block_hashes, unpacked
from dwcp.compression.errors import MeasurementInvalid

KIB = 1 << 10


def _text(seed: int, size: int) -> bytes:
    source = random.Random(seed)
    return " ".join(str(source.randrange(10_000)) for _ in range(size // 4))[:size].encode()


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A small host: large and small files of three kinds, a link, a private file."""
    for number in range(12):
        (tmp_path / f"lib{'abcdefghijkl'[number]}.py").write_bytes(_text(number, 200 * KIB))
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(40):
        (docs / f"page{number}.html").write_bytes(_text(100 + number, 9 * KIB))
    (tmp_path / "link.py").symlink_to(tmp_path / "liba.py")
    secret = tmp_path / "secret.py"
    secret.write_bytes(_text(999, 300 * KIB))
    secret.chmod(0o600)
    return tmp_path


def _files(host: Path, blocks: BlockList) -> list[corpus.Piece]:
    return list(corpus.pieces(blocks, roots=(host,), quotas={"python": 8, "html": 4, "gen-walk32": 1}))


def test_pieces_are_the_same_again_and_none_is_there_twice(host: Path) -> None:
    """Two walks over one host give equal bytes in equal order."""
    empty = BlockList(block_hashes(b""))
    first, second = _files(host, empty), _files(host, empty)

    assert first == second
    assert len({piece.raw for piece in first}) == len(first) > 3


def test_private_files_links_and_reserved_groups_are_left_out(host: Path) -> None:
    """What not everybody may read is not read, even by root; what benchmarks use is not trained on."""
    found = corpus.sources((host,))
    paths = {Path(path).stem for each in found.values() for source in each for path in source.paths}

    assert "liba" in paths
    assert not paths & {"secret", "link"}
    assert not any(
        corpus.reserved(piece.group)
        for piece in _files(host, BlockList(block_hashes(b"")))
        if piece.kind != "gen-walk32"
    )


def test_files_that_share_a_block_are_refused(host: Path) -> None:
    """One block of 4 KiB in common condemns the file."""
    victim = next(p for p in _files(host, BlockList(block_hashes(b""))) if p.kind == "python")
    shared = (host / f"{victim.group.removeprefix('python/').removesuffix('py')}.py").read_bytes()[8192:12288]
    blocks = BlockList.decode(BlockList(block_hashes(shared)).encode())

    assert victim.group not in {piece.group for piece in _files(host, blocks)}


def test_a_block_list_knows_its_blocks_and_no_others() -> None:
    """Aligned blocks and long tails are found; constant blocks and short tails say nothing."""
    blocks = BlockList(block_hashes(_text(1, 9000)))

    assert len(blocks) == 3
    assert blocks.shares(b"x" * 4096 + _text(1, 9000)[4096:8192])
    assert not blocks.shares(_text(2, 9000))
    assert not blocks.shares(_text(1, 9000)[:100])
    assert not BlockList(block_hashes(bytes(8192))).shares(bytes(8192))
    with pytest.raises(MeasurementInvalid, match="cut"):
        BlockList.decode(b"12345")


def test_packed_folders_are_opened(tmp_path: Path) -> None:
    """bz2, gz, tar in gz and zip give the files inside, in a fixed order."""
    (tmp_path / "a.bz2").write_bytes(bz2.compress(b"one"))
    tar = corpus.tar([("in/two", b"two"), ("three", b"three")], limit=1 << 20)
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tar))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("four", b"four")
    (tmp_path / "plain").write_bytes(b"five")

    assert dict(unpacked(tmp_path)) == {
        "a": b"one", "b.tar/in/two": b"two", "b.tar/three": b"three", "c.zip/four": b"four", "plain": b"five",
    }  # fmt: skip


def test_a_damaged_archive_and_a_missing_folder_are_sentences(tmp_path: Path) -> None:
    """Neither ends in a traceback."""
    (tmp_path / "a.bz2").write_bytes(b"no bzip2")
    with pytest.raises(MeasurementInvalid, match=r"a\.bz2 cannot be unpacked"):
        list(unpacked(tmp_path))
    with pytest.raises(MeasurementInvalid, match="no folder"):
        list(unpacked(tmp_path / "missing"))


def test_groups_join_versions_of_a_name() -> None:
    """Digits and separators do not make another group; the kind does."""
    assert corpus._group("elf", "libpython3.11.so.1.0") == corpus._group("elf", "libpython3.12.so")
    assert corpus._group("elf", "liba.so") != corpus._group("debug", "liba.so")


def test_tars_hold_what_they_should() -> None:
    """Names, bytes, no time or owner, cut at the limit."""
    raw = corpus.tar([("a", b"1"), ("b", b"22")], limit=1 << 20)
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        members = {member.name: (member.size, member.mtime, member.uid) for member in archive}

    assert members == {"a": (1, 0, 0), "b": (2, 0, 0)}
    assert len(corpus.tar([("a", bytes(10_000))], limit=4096)) == 4096
