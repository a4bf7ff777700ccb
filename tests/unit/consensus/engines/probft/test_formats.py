"""Frames and journal records stay readable from release to release, and junk is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.consensus.engines.probft import golden

from dwcp.consensus.core import evidence
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.crypto.codec import encode
from dwcp.consensus.crypto.envelope import Envelope
from dwcp.consensus.engines.probft import messages as wire
from dwcp.consensus.engines.probft import records as journal
from dwcp.consensus.engines.probft.messages import Kind


def test_every_frame_is_what_it_was() -> None:
    """Goal: replicas of two releases understand each other. Method: compare with the golden file, both ways."""
    stored = golden.read(golden.WIRE)
    assert stored == golden.frames()
    for frame in stored.values():
        message = wire.decode(frame)
        again = Envelope(message.kind, message.epoch, message.sender, encode(message.body), message.signature)
        assert again.encode() == frame


def test_every_kind_has_a_golden_frame() -> None:
    """Goal: no kind without a golden file. Method: compare kinds."""
    assert {wire.decode(frame).kind for frame in golden.frames().values()} == set(Kind)


def test_every_record_is_what_it_was() -> None:
    """Goal: an upgrade reads its journal. Method: compare with the golden file, both ways."""
    stored = golden.read(golden.LOG)
    assert {name: journal.CODEC.decode(record) for name, record in stored.items()} == golden.entries()
    assert {type(entry) for entry in golden.entries().values()} == set(journal.Entry.__args__)


def test_evidence_is_what_it_was() -> None:
    """Goal: old proofs still convict. Method: decode the golden proof."""
    assert evidence.decode(golden.read(golden.PROOF)["conflict"]) == golden.CONFLICT


def test_one_statement_signs_three_things_apart() -> None:
    """Goal: a PREPARE cannot pass for a COMMIT or header. Method: compare the signed bytes per kind."""
    part = golden.PART
    kinds = (Kind.PROPOSE, Kind.PREPARE, Kind.COMMIT)
    assert len({golden.CONTEXT.signed(kind=k, epoch=0, sender=1, body=part) for k in kinds}) == 3


@given(st.binary(max_size=300))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_junk_is_malformed_and_nothing_worse(junk: bytes) -> None:
    """Goal: no traceback from peers. Method: random bytes behind every kind of envelope."""
    with pytest.raises(MalformedFrame):
        wire.decode(b"\x7f" + junk)
    for kind in Kind:
        try:
            wire.decode(Envelope(kind, 0, 1, junk, wire.UNSIGNED).encode())
        except MalformedFrame:
            continue


@given(st.data())
@settings(max_examples=200, derandomize=True, deadline=None)
def test_a_changed_byte_is_refused_or_another_message(data: st.DataObject) -> None:
    """Goal: canonical encoding. Method: flip one byte of a golden frame; it never decodes to the same."""
    name = data.draw(st.sampled_from(sorted(golden.frames())))
    frame = bytearray(golden.frames()[name])
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    try:
        changed = wire.decode(bytes(frame))
    except MalformedFrame:
        return
    assert changed != wire.decode(golden.frames()[name])


@pytest.mark.parametrize(
    ("batch", "fits"),
    [
        (golden.BATCH, True),
        (wire.Batch(1, golden.BATCH.digests, golden.BATCH.bodies, ()), False),
        (wire.Batch(1, golden.BATCH.digests[:-1], golden.BATCH.bodies, golden.BATCH.tags), False),
        (wire.Batch(1, bytes(96), (b"", b"", b""), (b"", b"", b"")), False),
        (wire.Batch(1, bytes(64), (b"x" * 60, b"x" * 60), (b"", b"")), False),
        (wire.Batch(1, bytes(32), (b"x" * 120,), (b"",)), True),
    ],
)
def test_a_batch_is_well_formed_within_limits(batch: wire.Batch, fits: bool) -> None:
    """Goal: lengths agree and limits hold; one large payload is a batch. Method: table."""
    assert wire.well_formed(batch, count_max=2, bytes_max=100) is fits


def test_a_digest_covers_time_and_order() -> None:
    """Goal: one digest, one content. Method: change the time, swap two payloads."""
    one = golden.BATCH
    later = wire.Batch(one.time_ms + 1, one.digests, one.bodies, one.tags)
    swapped = wire.Batch(one.time_ms, one.digests[32:] + one.digests[:32], one.bodies, one.tags)
    assert len({wire.batch_digest(b) for b in (one, later, swapped)}) == 3


def test_tags_are_outside_the_digest() -> None:
    """Goal: authenticators may differ per copy. Method: drop the tags; the digest stays."""
    one = golden.BATCH
    bare = wire.Batch(one.time_ms, one.digests, one.bodies, (b"", b""))
    assert wire.batch_digest(bare) == golden.DIGEST
    assert wire.bodies_match(wire.unpack(bare))
