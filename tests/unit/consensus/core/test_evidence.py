"""Proofs of conflict."""

from __future__ import annotations

import pytest

from dwcp.consensus.core import evidence
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.core.evidence import Conflict, statement

ONE, TWO = bytes([1]) * 32, bytes([2]) * 32
PROOF = Conflict(2, 5, 3, 9, 4, (ONE, b"a" * 64), (TWO, b"b" * 64))


def check(part: bytes, signature: bytes) -> bool:
    return (part, signature) in ((statement(9, 4, ONE), b"a" * 64), (statement(9, 4, TWO), b"b" * 64))


def test_a_proof_survives_its_encoding() -> None:
    """Goal: evidence travels. Method: round trip."""
    assert evidence.decode(PROOF.encode()) == PROOF


def test_it_convinces_only_with_two_signatures_over_two_digests() -> None:
    """Goal: nobody is framed. Method: swap signatures, repeat one statement."""
    assert PROOF.holds(check)
    assert not Conflict(2, 5, 3, 9, 4, PROOF.first, PROOF.first).holds(check)
    assert not Conflict(2, 5, 3, 9, 4, (ONE, b"b" * 64), PROOF.second).holds(check)
    assert not Conflict(2, 5, 3, 8, 4, PROOF.first, PROOF.second).holds(check)


@pytest.mark.parametrize("junk", [b"", b"\x01", PROOF.encode() + b"\0", b"\x02" + PROOF.encode()[1:]])
def test_junk_is_malformed(junk: bytes) -> None:
    """Goal: no traceback. Method: short, long, another version."""
    with pytest.raises(MalformedFrame):
        evidence.decode(junk)
