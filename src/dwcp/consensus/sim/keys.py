"""Keys of the simulated world: real Ed25519 key pairs, used with real or with stand-in signatures.

A stand-in is a hash keyed by the public key: 64 bytes, deterministic, twenty times
faster. Anybody could make one, but no simulated liar signs as somebody else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from dwcp.consensus.crypto import signatures
from dwcp.consensus.crypto.mac import Authenticators, shared_secret
from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.consensus.ledger.operations import Verify


@dataclass(frozen=True, slots=True)
class StandInSigner:
    """Signs by the keyed hash."""

    public: bytes

    def sign(self, signed: bytes) -> bytes:
        return blake2b(signed, digest_size=64, key=self.public).digest()


def stand_in_verify(public: bytes, signed: bytes, signature: bytes) -> bool:
    return blake2b(signed, digest_size=64, key=public).digest() == signature


@lru_cache(maxsize=1024)
def key_of(name: str) -> SigningKey:
    """The key pair of a replica or client; the same in every seed, as making one is slow."""
    return SigningKey.from_seed(blake2b(name.encode(), digest_size=32).digest())


@dataclass(frozen=True, slots=True)
class Crypto:
    """How this history signs."""

    real: bool

    def signer(self, key: SigningKey) -> SigningKey | StandInSigner:
        return key if self.real else StandInSigner(key.public)

    @property
    def verify(self) -> Verify:
        return signatures.verify if self.real else stand_in_verify

    def authenticators(self, key: SigningKey, chain_id: bytes) -> Authenticators:
        if self.real:
            return Authenticators(lambda peer: shared_secret(key, peer, chain_id))
        return Authenticators(lambda peer: _stand_in_secret(key.public, peer, chain_id))


def _stand_in_secret(one: bytes, other: bytes, chain_id: bytes) -> bytes:
    first, second = sorted((one, other))
    return blake2b(first + second + chain_id, digest_size=32).digest()
