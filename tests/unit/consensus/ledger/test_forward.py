"""Bundles on their way to the leader: nothing lost, no frame larger than it must be."""

from __future__ import annotations

from dwcp.consensus.core.machine import Payload
from dwcp.consensus.ledger.forward import FRAME_BYTES_MAX, decode_forward, forward_frames
from dwcp.consensus.ledger.operations import payload_digest


def payload(body: bytes) -> Payload:
    return Payload(payload_digest(body), body, b"t" * 64)


def test_bundles_arrive_in_order_over_frames_of_bounded_size() -> None:
    """Goal: a burst fits the link. Method: 3 MiB of bundles, one of them alone over the bound."""
    bodies = [bytes([i]) * 300_000 for i in range(8)] + [b"large" * 300_000, b"last"]
    payloads = [payload(body) for body in bodies]

    frames = forward_frames(payloads)
    arrived = [p for frame in frames for p in decode_forward(frame[1:])]

    assert arrived == payloads
    assert all(len(frame) < FRAME_BYTES_MAX + 1024 or len(decode_forward(frame[1:])) == 1 for frame in frames)


def test_bodies_known_by_digest_only_are_left_out() -> None:
    """Goal: nothing without a body travels. Method: one such payload among others."""
    whole = payload(b"whole")
    frames = forward_frames([Payload(b"d" * 32, None), whole])

    assert [decode_forward(frame[1:]) for frame in frames] == [(whole,)]
