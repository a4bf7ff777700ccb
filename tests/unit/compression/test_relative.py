"""Manifests said with what the receiver has: the same manifest, or a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression import intake, relative
from dwcp.compression import manifest as m
from dwcp.compression.chunking import address
from dwcp.compression.errors import ChunkMissing, ManifestInvalid, RequestInvalid, TransferError
from dwcp.compression.manifest import Chunk, Entry, Kind, Limits, Manifest
from dwcp.consensus.crypto import codec

BASE = tuple(Chunk(address(b"old %d" % n), 6 + n) for n in range(8))


def _manifest(chunks: list[Chunk]) -> Manifest:
    size = sum(chunk.size for chunk in chunks)
    return m.make(
        [Entry("dir", Kind.DIRECTORY, 0o755), Entry("dir/file", Kind.FILE, 0o644, size, tuple(chunks))]
    )


@settings(deadline=None)
@given(numbers=st.lists(st.integers(-1, len(BASE) - 1), max_size=40))
def test_what_was_said_is_understood(numbers: list[int]) -> None:
    """Goal: any mixture of old and new chunks. Method: there and back, through the prelude's reader."""
    chunks = [BASE[n] if n >= 0 else Chunk(address(b"new %d" % at), 99) for at, n in enumerate(numbers)]
    manifest = _manifest(chunks)
    data = intake.prelude_relative(manifest, {"dir/file": numbers})

    opened = intake.PreludeReader(Limits(), {"dir/file": BASE}.__getitem__).feed(data + b"tail")

    assert opened == (manifest, (), b"tail")


def test_what_is_there_costs_little() -> None:
    """Goal: no addresses travel for chunks that are there. Method: 2,000 of them."""
    base = [Chunk(address(b"%d" % n), 99) for n in range(2000)]
    encoded = relative.encode(_manifest(base), {"dir/file": range(2000)})

    assert encoded is not None
    assert len(encoded) < 200


@pytest.mark.parametrize("there", [BASE[:3], BASE[::-1], ()])
def test_another_base_is_noticed(there: tuple[Chunk, ...]) -> None:
    """Goal: what the receiver has may have changed since. Method: a shorter, another and no file."""
    encoded = relative.encode(_manifest(list(BASE)), {"dir/file": range(len(BASE))})

    assert encoded is not None
    with pytest.raises(ChunkMissing, match="no longer"):
        relative.decode(encoded, Limits(), lambda _path: there)


@pytest.mark.parametrize(
    "copy",
    [[0, -1, 1], [0, 0, 0], [5, 0, 1, 2, 0, 1], [0, 0, 1 << 40]],
    ids=["before", "none", "back", "bomb"],
)
def test_forged_copies_are_refused(copy: list[int]) -> None:
    """Goal: a manifest from anybody. Method: numbers that point before the base, overlap, or never end."""
    copies = [copy[at : at + 3] for at in range(0, len(copy), 3)]
    raw = codec.encode([1, [["f", 0, 0o644, 6, "", [], copies]]])

    with pytest.raises(ManifestInvalid):
        relative.decode(bytes(32) + relative.pack(raw), Limits(), lambda _path: BASE)


@settings(deadline=None)
@given(junk=st.binary(max_size=200))
def test_junk_ends_in_a_sentence(junk: bytes) -> None:
    """Goal: nothing foreign is raised. Method: arbitrary bytes, bare and well packed."""
    for data in (junk, bytes(32) + relative.pack(junk)):
        with pytest.raises(TransferError):
            relative.decode(data, Limits(), lambda _path: BASE)


def test_packed_bytes_have_a_limit() -> None:
    """Goal: no bomb. Method: a frame of more than is allowed, and one whose size is a lie."""
    packed = relative.pack(bytes(10_000))

    assert relative.unpack(packed, 10_000) == bytes(10_000)
    with pytest.raises(RequestInvalid, match="more than 9999"):
        relative.unpack(packed, 9999)
    with pytest.raises(RequestInvalid, match="damaged"):
        relative.unpack(bytes(4) + packed[4:], 9999)
