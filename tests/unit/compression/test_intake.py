"""The prelude of an upload: whatever pieces it comes in, and whatever a stranger sends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp.compression import intake
from dwcp.compression import manifest as m
from dwcp.compression.chunking import address
from dwcp.compression.errors import RequestInvalid, TransferError
from dwcp.compression.manifest import Chunk, Entry, Kind, Limits


def _manifest(count: int) -> m.Manifest:
    contents = [b"content %d" % n for n in range(count)]
    return m.make(
        Entry(f"f{n:03}", Kind.FILE, 0o644, len(c), (Chunk(address(c), len(c)),))
        for n, c in enumerate(contents)
    )


@settings(deadline=None)
@given(chosen=st.lists(st.booleans(), max_size=30), piece=st.integers(1, 200), tail=st.binary(max_size=50))
def test_what_was_said_is_understood(chosen: list[bool], piece: int, tail: bytes) -> None:
    """Any choice of chunks, any pieces, and the container's bytes are left over untouched."""
    manifest = _manifest(len(chosen))
    plan = intake.plan(manifest)
    sent = {chunk.address for chunk, wanted in zip(plan, chosen, strict=True) if wanted}
    data = intake.prelude(manifest, sent) + tail
    reader = intake.PreludeReader(Limits())

    for at in range(0, len(data), piece):
        opened = reader.feed(data[at : at + piece])
        if opened is not None:
            break

    assert opened is not None
    assert opened[0] == manifest
    assert {chunk.address for chunk in opened[1]} == sent
    assert opened[2] + data[at + piece :] == tail


@settings(deadline=None)
@given(junk=st.binary(max_size=200), valid=st.integers(0, 60))
def test_junk_ends_in_a_sentence(junk: bytes, valid: int) -> None:
    """Arbitrary bytes, alone or after part of a valid prelude, never raise anything foreign."""
    reader = intake.PreludeReader(Limits())
    try:
        reader.feed(intake.prelude(_manifest(2), [])[:valid] + junk)
    except TransferError:
        return


def test_a_manifest_beyond_the_limit_is_refused_before_it_comes() -> None:
    """The declared size alone is enough."""
    head = intake.MAGIC + b"\x01" + (1 << 31).to_bytes(4, "big")

    with pytest.raises(RequestInvalid, match="2147483648 bytes"):
        intake.PreludeReader(Limits()).feed(head)


def test_other_uploads_are_named() -> None:
    """A browser's form or a newer client."""
    with pytest.raises(RequestInvalid, match="dwcp submit"):
        intake.PreludeReader(Limits()).feed(b"--boundary")
    with pytest.raises(RequestInvalid, match="version 9"):
        intake.PreludeReader(Limits()).feed(intake.MAGIC + b"\x09" + bytes(4))


@settings(deadline=None)
@given(chosen=st.lists(st.booleans(), max_size=70))
def test_bitmaps(chosen: list[bool]) -> None:
    """There and back; another length or set padding is refused."""
    bits = intake.bitmap(chosen)

    assert intake.flags(bits, len(chosen)) == chosen
    with pytest.raises(RequestInvalid):
        intake.flags(bits + b"\0", len(chosen))
    if len(chosen) % 8:
        with pytest.raises(RequestInvalid):
            intake.flags(bits[:-1] + bytes([bits[-1] | 1]), len(chosen))
