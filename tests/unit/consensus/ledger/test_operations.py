"""Bundles: what is built holds, what was changed does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.consensus.ledger.scene import REPLICA_KEYS, USER, authenticators, genesis_of

from dwcp.api import kv
from dwcp.consensus.core.machine import Payload
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.mac import Authenticators, shared_secret
from dwcp.consensus.ledger import operations
from dwcp.consensus.ledger.operations import BundleRefused, Flags, PayloadChecker, Signed

GENESIS = genesis_of()
PUT = codec.encode(kv.Put(b"key", b"value"))
N = GENESIS.n


def _signed(**changes: object) -> Signed:
    fields: dict[str, object] = {
        "client": USER.public,
        "session": 7,
        "first_sequence": 1,
        "floor": 1,
        "flags": 0,
        "repliers": 0b0011,
        "operations": (PUT, PUT),
    }
    return Signed(**{**fields, **changes})  # type: ignore[arg-type]


def _payload(**changes: object) -> Payload:
    body = operations.build(_signed(**changes), chain_id=GENESIS.chain_id, signer=USER)
    return operations.make_payload(body, authenticators(N, USER, GENESIS.chain_id))


def _checker(me: int, chain_id: bytes = GENESIS.chain_id) -> PayloadChecker:
    secrets = Authenticators(lambda peer: shared_secret(REPLICA_KEYS[me], peer, chain_id))
    return PayloadChecker(me=me, n=N, chain_id=chain_id, params=GENESIS.params, authenticators=secrets)


def test_every_replica_accepts_what_the_client_built() -> None:
    """Goal: leader and backups take an honest bundle. Method: each replica's own checker."""
    payload = _payload()

    for me in range(N):
        bundle = _checker(me).admit(payload)
        assert bundle.operations == (PUT, PUT)
        assert (bundle.session, bundle.first_sequence) == (7, 1)
        assert _checker(me).vouched(payload)


def test_replies_are_asked_of_the_mask_or_of_all() -> None:
    """Goal: f+1 reply by default, everyone for a receipt. Method: ask each replica."""
    checker = _checker(0)

    assert [checker.admit(_payload()).asks(i) for i in range(N)] == [True, True, False, False]
    assert all(checker.admit(_payload(repliers=0)).asks(i) for i in range(N))
    assert all(checker.admit(_payload(flags=Flags.RECEIPT)).asks(i) for i in range(N))


def test_backup_falls_back_to_the_signature() -> None:
    """Goal: a wrong tag at one replica cannot make it reject what others accept.

    Method: drop and break tags.
    """
    good = _payload()
    broken = Payload(good.digest, good.body, bytes(len(good.tags)))
    bare = Payload(good.digest, good.body)

    assert _checker(2).vouched(broken)
    assert _checker(2).vouched(bare)


def test_a_tag_alone_convinces_its_backup_but_not_the_leader() -> None:
    """Goal: the two checks of D1 differ as they should. Method: a forged signature under valid tags."""
    body = _payload().body
    assert body is not None
    forged = body[:1] + bytes(64) + body[65:]
    payload = operations.make_payload(forged, authenticators(N, USER, GENESIS.chain_id))

    assert _checker(1).vouched(payload)
    with pytest.raises(BundleRefused, match="signature does not match"):
        _checker(0).admit(payload)
    assert not _checker(1).vouched(Payload(payload.digest, forged, bytes(16 * N)))


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_refused(position: int, bit: int) -> None:
    """Goal: nothing of a body can change unseen.

    Method: flip a bit and give it a matching digest, no tags.
    """
    body = bytearray(_payload().body or b"")
    body[position % len(body)] ^= 1 << bit
    changed = Payload(operations.payload_digest(bytes(body)), bytes(body))

    assert not _checker(1).vouched(changed)


def test_bundle_of_another_chain_is_refused() -> None:
    """Goal: no replay across chains. Method: the same key and bytes, another chain."""
    other = genesis_of(window=512)

    assert not _checker(1, other.chain_id).vouched(Payload(_payload().digest, _payload().body))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"client": b"short"}, "public key of 32 bytes"),
        ({"operations": ()}, "1 to 64 operations"),
        ({"operations": (PUT,) * 65}, "1 to 64 operations"),
        ({"session": -1}, "63-bit"),
        ({"first_sequence": -1}, "63-bit"),
        ({"first_sequence": 2**63}, "63-bit"),
        ({"floor": 2}, "floor"),
        ({"floor": -1}, "floor"),
        ({"flags": 2}, "flags"),
        ({"repliers": -1}, "flags"),
        ({"operations": (bytes(1_600_000),)}, "at most 1572864 bytes"),
    ],
)
def test_limits_of_a_bundle(changes: dict[str, object], sentence: str) -> None:
    """Goal: form and limits are checked before any cryptography. Method: sign bundles that break one each."""
    with pytest.raises(BundleRefused, match=sentence):
        _checker(0).admit(_payload(**changes))


@given(data=st.binary(max_size=200))
def test_junk_is_refused(data: bytes) -> None:
    """Goal: no bytes end in a traceback. Method: random bodies, also behind a valid head."""
    checker = _checker(1)
    for body in (data, b"\x01" + bytes(64) + data):
        assert not checker.vouched(Payload(operations.payload_digest(body), body, data))
    assert not checker.vouched(Payload(bytes(32), None))


def test_body_must_match_its_digest() -> None:
    """Goal: a digest that votes agreed on names one body. Method: another body's digest."""
    payload = _payload()

    with pytest.raises(BundleRefused, match="does not match its digest"):
        _checker(0).admit(Payload(bytes(32), payload.body, payload.tags))
    with pytest.raises(BundleRefused, match="tags, or none"):
        _checker(0).admit(Payload(payload.digest, payload.body, payload.tags[:-1]))
