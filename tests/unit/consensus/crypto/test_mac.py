"""Authenticators: both ends agree, nobody else does."""

from __future__ import annotations

import pytest

from dwcp.consensus.crypto.mac import (
    TAG_SIZE,
    Authenticator,
    Authenticators,
    UnusableKey,
    shared_secret,
)
from dwcp.consensus.crypto.signatures import SigningKey

CHAIN = b"c" * 32
ONE = SigningKey.from_seed(b"1" * 32)
TWO = SigningKey.from_seed(b"2" * 32)
THREE = SigningKey.from_seed(b"3" * 32)


def test_both_ends_derive_one_secret() -> None:
    """Goal: the client's tag holds at the replica. Method: derive from either end, and across chains."""
    secret = shared_secret(ONE, TWO.public, CHAIN)

    assert secret == shared_secret(TWO, ONE.public, CHAIN)
    assert secret != shared_secret(THREE, ONE.public, CHAIN)
    assert secret != shared_secret(ONE, TWO.public, b"d" * 32)


def test_secret_is_frozen() -> None:
    """Goal: replicas of different releases agree on tags. Method: a known answer."""
    secret = shared_secret(ONE, TWO.public, CHAIN)
    tag = Authenticator(secret).tag(b"message")

    assert secret.hex() == "a991e733dbb43e58451f23771e29ea4b47b236b0431ec1391107b2ad567e5ab5"
    assert tag.hex() == "1c217392207b8fd0758e4a805b1d388d"


def test_tag_binds_message_and_key() -> None:
    """Goal: a changed message, tag or key is refused. Method: flip each."""
    mine = Authenticator(shared_secret(ONE, TWO.public, CHAIN))
    other = Authenticator(shared_secret(ONE, THREE.public, CHAIN))
    tag = mine.tag(b"message")

    assert len(tag) == TAG_SIZE
    assert mine.accepts(b"message", tag)
    assert not mine.accepts(b"messagf", tag)
    assert not mine.accepts(b"message", bytes([tag[0] ^ 1]) + tag[1:])
    assert not mine.accepts(b"message", tag[:-1])
    assert not mine.accepts(b"message", b"")
    assert not other.accepts(b"message", tag)


@pytest.mark.parametrize("peer", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32, b"short", b""])
def test_unusable_keys_end_in_a_sentence(peer: bytes) -> None:
    """Goal: low-order, off-curve and wrong-sized keys never yield a predictable secret. Method: try them."""
    with pytest.raises(UnusableKey, match="no secret"):
        shared_secret(ONE, peer, CHAIN)


def test_cache_is_bounded_and_forgets_the_least_recently_used() -> None:
    """Goal: a flood of keys cannot fill memory, nor push out busy ones. Method: count derivations."""
    derived: list[bytes] = []

    def derive(peer: bytes) -> bytes:
        derived.append(peer)
        return peer * 32

    cache = Authenticators(derive, capacity=2)
    for peer in (b"a", b"b", b"a", b"c", b"a", b"b"):
        cache.of(peer)

    assert derived == [b"a", b"b", b"c", b"b"]
    assert len(cache) == 2
