"""Ed25519 by libsodium. Verification answers True or False and never raises."""

from __future__ import annotations

from dataclasses import dataclass

from nacl.bindings import (
    crypto_core_ed25519_is_valid_point,
    crypto_sign,
    crypto_sign_ed25519_sk_to_curve25519,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import CryptoError

PUBLIC_SIZE = 32
SEED_SIZE = 32
SIGNATURE_SIZE = 64


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """A private key; its representation never shows it."""

    public: bytes
    _secret: bytes

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        public, secret = crypto_sign_seed_keypair(seed)
        return cls(public, secret)

    def sign(self, signed: bytes) -> bytes:
        return crypto_sign(signed, self._secret)[:SIGNATURE_SIZE]

    def exchange_secret(self) -> bytes:
        """The X25519 secret of the same key (RFC 7748), for authenticators between two static keys."""
        return crypto_sign_ed25519_sk_to_curve25519(self._secret)

    def __repr__(self) -> str:
        return f"SigningKey({self.public.hex()[:8]}…)"


def verify(public: bytes, signed: bytes, signature: bytes) -> bool:
    """Whether `signature` is `public`'s over `signed`."""
    if len(signature) != SIGNATURE_SIZE or len(public) != PUBLIC_SIZE:
        return False
    try:
        crypto_sign_open(signature + signed, public)
    except (CryptoError, ValueError):
        return False
    return True


def valid_public_key(public: bytes) -> bool:
    """Whether the key is a point of the prime-order group; checked once, when it is registered."""
    return len(public) == PUBLIC_SIZE and bool(crypto_core_ed25519_is_valid_point(public))
