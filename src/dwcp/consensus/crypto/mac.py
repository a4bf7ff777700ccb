"""Authenticators between a client and one replica: 16 bytes that only those two can make.

The secret is static X25519 over the two Ed25519 keys (RFC 7748), so it needs no
handshake and survives restarts. An authenticator convinces its receiver alone;
whoever has to convince others uses a signature.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from nacl.bindings import crypto_scalarmult, crypto_sign_ed25519_pk_to_curve25519
from nacl.exceptions import CryptoError

from dwcp.consensus.core.errors import CoreError
from dwcp.consensus.crypto.signatures import SigningKey

TAG_SIZE = 16
SECRET_SIZE = 32
_PERSON = b"dwcp/mac/v1"


class UnusableKey(CoreError):
    """This public key is no point that a secret can be agreed with: register another key."""


def shared_secret(key: SigningKey, peer: bytes, chain_id: bytes) -> bytes:
    """The secret of `key` and `peer` on this chain; the same from both ends.

    Raises `UnusableKey` for a peer key of low order or off the curve.
    """
    try:
        point = crypto_scalarmult(key.exchange_secret(), crypto_sign_ed25519_pk_to_curve25519(peer))
    except (CryptoError, ValueError, TypeError) as exc:
        raise UnusableKey(f"no secret can be agreed with the key {peer.hex()}") from exc
    first, second = sorted((key.public, peer))
    return blake2b(
        point + first + second + chain_id, digest_size=SECRET_SIZE, key=b"", person=_PERSON
    ).digest()


class Authenticator:
    """Makes and checks the tags of one secret. The keyed state is prepared once and copied."""

    __slots__ = ("_keyed",)

    def __init__(self, secret: bytes) -> None:
        self._keyed = blake2b(digest_size=TAG_SIZE, key=secret)

    def tag(self, message: bytes) -> bytes:
        state = self._keyed.copy()
        state.update(message)
        return state.digest()

    def accepts(self, message: bytes, tag: bytes) -> bool:
        """Compared in constant time by comparing digests of both under the same key."""
        return self.tag(self.tag(message)) == self.tag(tag) if len(tag) == TAG_SIZE else False


class Authenticators:
    """One `Authenticator` per peer key, derived on first use; the least recently used is forgotten.

    A derivation costs about 60 µs, so a flood of unknown keys must not push it
    onto the hot path: callers admit known keys only.
    """

    __slots__ = ("_capacity", "_derive", "_held")

    def __init__(self, derive: Callable[[bytes], bytes], *, capacity: int = 4096) -> None:
        self._derive = derive
        self._capacity = capacity
        self._held: dict[bytes, Authenticator] = {}

    def of(self, peer: bytes) -> Authenticator:
        """Raises `UnusableKey` where no secret exists."""
        found = self._held.pop(peer, None)
        if found is None:
            found = Authenticator(self._derive(peer))
            if len(self._held) >= self._capacity:
                del self._held[next(iter(self._held))]
        self._held[peer] = found
        return found

    def __len__(self) -> int:
        return len(self._held)
