"""Bundles: what clients sign, engines order as opaque payloads, and the ledger executes.

Layout of a body: version u8, signature 64, then the canonical encoding of the
signed part: [client, session, first sequence, floor, flags, repliers, operations].
The signature covers context ‖ 0x00 ‖ chain id ‖ signed part. Tags (16 bytes
for each replica) travel beside the body, outside the digest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntFlag

import msgspec

from dwcp.api import kv
from dwcp.consensus.core.errors import CoreError, MalformedFrame
from dwcp.consensus.core.machine import Payload, Signer
from dwcp.consensus.crypto import codec, signatures
from dwcp.consensus.crypto.codec import Codec, Record
from dwcp.consensus.crypto.hashes import Domain, digest
from dwcp.consensus.crypto.mac import TAG_SIZE, Authenticator, Authenticators, UnusableKey
from dwcp.consensus.ledger.genesis import Params

VERSION = 1
TAGGED_REPLICAS_MAX = 16  # above this a bundle carries no tags; everyone checks the signature
SEQUENCE_MAX = 2**63 - 1

_CONTEXT = b"dwcp/bundle/v1\0"
_SIGNED_AT = 1 + signatures.SIGNATURE_SIZE


class Flags(IntFlag):
    NONE = 0
    RECEIPT = 1  # every replica replies, with what a receipt needs


class BundleRefused(CoreError):
    """The bundle cannot be ordered: build it with the client library of this release."""


class Signed(Record, frozen=True):
    """What the client signs. Sequences are contiguous from `first_sequence`.

    Below `floor` the client has its answers or has given up: once this bundle is executed,
    none of those is executed any more, so an operation given up never follows a later one.
    `repliers` is a bit mask of replica ids asked to reply; 0 asks all.
    """

    client: bytes
    session: int
    first_sequence: int
    floor: int
    flags: int
    repliers: int
    operations: tuple[bytes, ...]


_SIGNED: Codec[Signed] = Codec(Signed)
_OPERATION: Codec[kv.Operation] = Codec(kv.Operation)

Verify = Callable[[bytes, bytes, bytes], bool]


class Bundle(msgspec.Struct, frozen=True, gc=False):
    """A decoded body. Decoding checks form and limits, never the signature.

    A msgspec struct, because building a frozen dataclass takes five times as long.
    """

    body: bytes
    client: bytes
    session: int
    first_sequence: int
    floor: int
    flags: int
    repliers: int
    operations: tuple[bytes, ...]

    @property
    def receipt(self) -> bool:
        return bool(self.flags & 1)  # plain integers: enum arithmetic costs 2 µs for each bundle

    def asks(self, replica: int) -> bool:
        """Whether `replica` is one of those asked to reply."""
        return not self.repliers or self.receipt or bool(self.repliers >> replica & 1)

    def signature_holds(self, chain_id: bytes, verify: Verify = signatures.verify) -> bool:
        signed = _CONTEXT + chain_id + self.body[_SIGNED_AT:]
        return verify(self.client, signed, self.body[1:_SIGNED_AT])


def build(signed: Signed, *, chain_id: bytes, signer: Signer) -> bytes:
    """The body of a bundle signed by its client."""
    packed = codec.encode(signed)
    return bytes((VERSION,)) + signer.sign(_CONTEXT + chain_id + packed) + packed


def decode(body: bytes, params: Params) -> Bundle:
    """Raises `BundleRefused` unless the body is well formed and within the limits."""
    if len(body) <= _SIGNED_AT or body[0] != VERSION:
        raise BundleRefused(f"a bundle begins with version {VERSION} and a signature")
    try:
        signed = _SIGNED.decode(body[_SIGNED_AT:])
    except MalformedFrame as exc:
        raise BundleRefused(f"the bundle could not be decoded: {exc}") from exc
    client, first, operations = signed.client, signed.first_sequence, signed.operations
    if len(client) != signatures.PUBLIC_SIZE:
        raise BundleRefused("a client is an Ed25519 public key of 32 bytes")
    if not 1 <= len(operations) <= params.bundle_count_max:
        raise BundleRefused(f"a bundle holds 1 to {params.bundle_count_max} operations")
    if not 0 <= first <= SEQUENCE_MAX or not 0 <= signed.session <= SEQUENCE_MAX:
        raise BundleRefused("session and sequence are 63-bit numbers")
    if not 0 <= signed.floor <= first:
        raise BundleRefused("a bundle's floor is at most its first sequence")
    if not 0 <= signed.flags <= Flags.RECEIPT or signed.repliers < 0:
        raise BundleRefused("the bundle's flags are not known to this release")
    if len(body) > params.request_bytes_max + 1024:
        raise BundleRefused(f"a bundle holds at most {params.request_bytes_max} bytes of operations")
    return Bundle(
        body, client, signed.session, first, signed.floor, signed.flags, signed.repliers, operations
    )


def decode_operation(data: bytes) -> kv.Operation:
    """Raises `MalformedFrame`."""
    return _OPERATION.decode(data)


def payload_digest(body: bytes) -> bytes:
    return digest(Domain.BUNDLE, body)


def make_payload(body: bytes, replicas: Sequence[Authenticator]) -> Payload:
    """The payload with one tag for each replica, in id order; none where there are too many."""
    address = payload_digest(body)
    tagged = replicas if len(replicas) <= TAGGED_REPLICAS_MAX else ()
    tags = b"".join([replica.tag(address) for replica in tagged])
    return Payload(address, body, tags)


def tag_of(payload: Payload, replica: int) -> bytes:
    """The tag for `replica`; b"" where the payload carries none."""
    return payload.tags[replica * TAG_SIZE : (replica + 1) * TAG_SIZE]


class PayloadChecker:
    """Whether a payload may be ordered. Its answer does not depend on what has been executed.

    `verify` and `authenticators` are injected: the simulator's are keyed hashes.
    """

    def __init__(
        self,
        *,
        me: int,
        n: int,
        chain_id: bytes,
        params: Params,
        authenticators: Authenticators,
        verify: Verify = signatures.verify,
    ) -> None:
        self._me = me
        self._tags_size = n * TAG_SIZE if n <= TAGGED_REPLICAS_MAX else 0
        self._chain_id = chain_id
        self._params = params
        self._authenticators = authenticators
        self._verify = verify

    def admit(self, payload: Payload) -> Bundle:
        """The leader's check, before it proposes: form, digest and signature.

        Raises `BundleRefused`. Whether the client is known is the caller's to ask first.
        """
        bundle = self._formed(payload)
        if not bundle.signature_holds(self._chain_id, self._verify):
            raise BundleRefused("the client's signature does not match the bundle")
        return bundle

    def vouched(self, payload: Payload) -> bool:
        """A backup's check: form, digest, and its own tag or else the signature."""
        try:
            bundle = self._formed(payload)
        except BundleRefused:
            return False
        return self._tag_holds(bundle, payload) or bundle.signature_holds(self._chain_id, self._verify)

    def _formed(self, payload: Payload) -> Bundle:
        body = payload.body
        if body is None or payload_digest(body) != payload.digest:
            raise BundleRefused("the payload's body does not match its digest")
        if len(payload.tags) not in (0, self._tags_size):
            raise BundleRefused(f"a payload carries {self._tags_size} bytes of tags, or none")
        return decode(body, self._params)

    def _tag_holds(self, bundle: Bundle, payload: Payload) -> bool:
        if not payload.tags:
            return False
        try:
            authenticator = self._authenticators.of(bundle.client)
        except UnusableKey:
            return False
        return authenticator.accepts(payload.digest, tag_of(payload, self._me))
