"""The archive's opening: what is written is read, and nothing that leads outside is."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp.compression import archive
from dwcp.compression.errors import ContainerInvalid, ManifestInvalid, TransferError
from dwcp.compression.manifest import LINK_MODE, VERSION, Entry, Kind, Manifest
from dwcp.consensus.crypto import codec

ENTRIES = (
    Entry("d", Kind.DIRECTORY, 0o755),
    Entry("d/f", Kind.FILE, 0o640, 5),
    Entry("link", Kind.SYMLINK, LINK_MODE, target="d/f"),
)


def _forged(*entries: Entry) -> bytes:
    """An opening that `archive.opening` would refuse to write."""
    encoded = codec.encode(Manifest(VERSION, entries))
    return archive._HEAD.pack(archive.MAGIC, archive.VERSION, len(encoded)) + encoded


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_an_opening_is_read_as_it_was_written(piece: int) -> None:
    """Goal: entries and the first content come back. Method: feed it in pieces."""
    data = archive.opening(ENTRIES) + b"hello"
    reader = archive.Opening()
    found, rest = None, b""
    for at in range(0, len(data), piece):
        part = data[at : at + piece]
        if found is not None:
            rest += part
        elif (opened := reader.feed(part)) is not None:
            found, rest = opened

    assert found == ENTRIES
    assert rest == b"hello"


@pytest.mark.parametrize(
    "entry",
    [
        Entry("../up", Kind.FILE, 0o644, 1),
        Entry("/etc/passwd", Kind.FILE, 0o644, 1),
        Entry("a", Kind.FILE, 0o4755, 1),
        Entry("a", 7, 0o644, 0),
        Entry("a", Kind.SYMLINK, LINK_MODE, target="../../etc"),
        Entry("a", Kind.DIRECTORY, 0o755, 9),
        Entry("a", Kind.FILE, 0o644, -1),
        Entry("a", Kind.FILE, 0o644, 1 << 60),
    ],
    ids=["parent", "absolute", "setuid", "device", "link out", "sized folder", "negative", "huge"],
)
def test_forged_listings_are_refused(entry: Entry) -> None:
    """Goal: an archive cannot reach outside. Method: one broken rule each, encoded by hand."""
    with pytest.raises(ManifestInvalid):
        archive.Opening().feed(_forged(entry))


def test_a_listing_beyond_the_limit_is_refused_unread() -> None:
    """Goal: memory is bounded by what is declared. Method: a head that asks for 4 GiB."""
    with pytest.raises(ContainerInvalid, match="are allowed"):
        archive.Opening().feed(archive._HEAD.pack(archive.MAGIC, archive.VERSION, 2**32 - 1))


@given(junk=st.binary(max_size=300), keep=st.integers(0, 80))
def test_junk_ends_in_a_sentence(junk: bytes, keep: int) -> None:
    """Goal: no foreign error. Method: a valid opening, cut anywhere and continued with junk."""
    with contextlib.suppress(TransferError):
        archive.Opening().feed(archive.opening(ENTRIES)[:keep] + junk)
