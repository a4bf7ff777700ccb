"""Receipts: true ones verify with nothing but genesis; every change of one is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.unit.consensus.ledger.scene import REPLICA_KEYS, USER, Scene, genesis_of

from dwcp.api import kv
from dwcp.consensus.core.machine import Commit
from dwcp.consensus.crypto import codec
from dwcp.consensus.ledger import receipts
from dwcp.consensus.ledger.attest import Attestor
from dwcp.consensus.ledger.ledger import Executed
from dwcp.consensus.ledger.receipts import Attestation, Receipt, ReceiptInvalid

GENESIS = genesis_of()
OPS = [kv.Put(b"a", b"1"), kv.Put(b"b", b"2"), kv.Put(b"c", b"3")]


def _executed() -> Executed:
    scene = Scene()
    scene.open()
    return scene.commit(
        scene.payload(OPS, first=1, receipt=True), scene.payload([kv.Put(b"d", b"")], first=4)
    )


def _receipt(executed: Executed, position: int = 1, signers: tuple[int, ...] = (0, 1, 2)) -> Receipt:
    outcome = executed.outcomes[0]
    shares = []
    for signer in signers:
        attestor = Attestor(me=signer, chain_id=GENESIS.chain_id, signer=REPLICA_KEYS[signer])
        share = attestor.attest(epoch=0, index=executed.index, history_digest=executed.history_digest)
        shares.append((signer, share))
    return receipts.assemble(
        genesis=GENESIS,
        client=USER.public,
        session=1,
        operation=outcome.bundle.operations[position],
        result=outcome.answers[position].result,
        material=outcome.materials[position],
        shares=shares,
    )


EXECUTED = _executed()
GOOD = _receipt(EXECUTED)


@pytest.mark.parametrize("position", range(3))
def test_every_operation_of_a_batch_has_its_receipt(position: int) -> None:
    """Goal: proofs for all positions, and the facts they prove. Method: file round trip, then verify."""
    receipt = receipts.decode(_receipt(EXECUTED, position).encode())
    facts = receipts.verify(receipt, GENESIS)

    assert facts.operation == OPS[position]
    assert facts.result == kv.PutDone(2 + position)
    assert (facts.index, facts.epoch, facts.time_ms) == (EXECUTED.index, 0, EXECUTED.time_ms)
    assert facts.signers == ("probft-1", "probft-2", "probft-3")
    assert (facts.client, facts.client_name, facts.chain) == (USER.public, "user", "scene")


OTHER_OPERATION = codec.encode(kv.Put(b"a", b"9")).hex()
OTHER_RESULT = codec.encode(kv.PutDone(99)).hex()


def _swap(receipt: Receipt) -> Receipt:
    first, second, *rest = receipt.attestations
    swapped = (Attestation(0, second.signature), Attestation(1, first.signature), *rest)
    return msgspec.structs.replace(receipt, attestations=swapped)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"operation": OTHER_OPERATION}, "did not sign this"),
        ({"result": OTHER_RESULT}, "did not sign this"),
        ({"client": REPLICA_KEYS[6].public.hex()}, "did not sign this"),
        ({"session": 2}, "did not sign this"),
        ({"sequence": 3}, "did not sign this"),
        ({"index": GOOD.index + 1}, "did not sign this"),
        ({"time_ms": GOOD.time_ms + 1}, "did not sign this"),
        ({"previous_history": "00" * 32}, "did not sign this"),
        ({"position": 0}, "did not sign this"),
        ({"position": 2}, "did not sign this"),
        ({"position": 9}, "operation_path is no path from position 9 in a batch of 4"),
        ({"position": -1}, "operation_path is no path"),
        ({"count": 3}, "did not sign this"),
        ({"count": 2}, "operation_path is no path"),
        ({"operation_path": GOOD.operation_path[:1]}, "operation_path is no path"),
        ({"result_path": (*GOOD.result_path, "00" * 32)}, "result_path is no path"),
        ({"result_path": GOOD.operation_path}, "did not sign this"),
        ({"operation_path": ("00",)}, "operation_path is not 32 bytes"),
        ({"epoch": 1}, "epoch 1 is not certified"),
        ({"epoch_certificates": ("00",)}, "epoch 0 is not certified"),
        ({"version": 2}, "version 2 is unknown"),
        ({"chain_id": "00" * 32}, "another chain"),
        ({"genesis_sha256": "00" * 32}, "genesis_sha256"),
        ({"index": 0}, "out of range"),
        ({"time_ms": -1}, "out of range"),
        ({"session": -1}, "out of range"),
        ({"sequence": 2**64}, "out of range"),
        ({"operation": "xyz"}, "operation is not hexadecimal"),
        ({"operation": GOOD.operation.upper()}, "lowercase hex"),
        ({"client": "00"}, "client is not 32 bytes"),
        ({"attestations": ()}, "0 replicas attest, 3 of 4 are needed"),
        ({"attestations": GOOD.attestations[:2]}, "2 replicas attest, 3 of 4 are needed"),
        ({"attestations": GOOD.attestations[:2] * 2}, r"replica 0 \(probft-1\) is counted twice"),
        ({"attestations": GOOD.attestations * 2}, "6 attestations of 4 replicas"),
        ({"attestations": (Attestation(4, "00" * 64),)}, "replica 4 is not in genesis"),
        ({"attestations": (Attestation(-1, "00" * 64),)}, "replica -1 is not in genesis"),
        ({"attestations": (Attestation(0, "00" * 64),)}, r"replica 0 \(probft-1\) did not sign this"),
        ({"attestations": (Attestation(0, "00"),)}, "did not sign this"),
    ],
)
def test_every_tampering_is_found(change: dict[str, Any], sentence: str) -> None:
    """Goal: a tampered receipt proves nothing and says why. Method: change one field of a good one."""
    with pytest.raises(ReceiptInvalid, match=sentence):
        receipts.verify(msgspec.structs.replace(GOOD, **change), GENESIS)


def test_every_field_is_tampered_with_above() -> None:
    """Goal: no field is forgotten when the format grows. Method: the fields of the parametrisation."""
    marks = test_every_tampering_is_found.pytestmark
    changed = {field for change, _ in marks[0].args[1] for field in change}

    assert changed == set(Receipt.__struct_fields__)


@pytest.mark.parametrize("tamper", [_swap])
def test_signatures_belong_to_their_replicas(tamper: Callable[[Receipt], Receipt]) -> None:
    """Goal: one signature cannot count for another replica. Method: swap two."""
    with pytest.raises(ReceiptInvalid, match="did not sign this"):
        receipts.verify(tamper(GOOD), GENESIS)


def test_one_bad_attestation_among_enough_is_still_named() -> None:
    """Goal: damage is seen even where a quorum would remain. Method: four attestations, one broken."""
    four = _receipt(EXECUTED, signers=(0, 1, 2, 3))
    broken = (*four.attestations[:3], Attestation(3, GOOD.attestations[0].signature))

    receipts.verify(four, GENESIS)
    with pytest.raises(ReceiptInvalid, match="replica 3"):
        receipts.verify(msgspec.structs.replace(four, attestations=broken), GENESIS)


def test_a_changed_genesis_is_found() -> None:
    """Goal: replicas cannot be swapped under a receipt.

    Method: another key for one replica, another nonce.
    """
    for other in (genesis_of(7), genesis_of(window=512)):
        with pytest.raises(ReceiptInvalid, match="another chain, or the genesis file was changed"):
            receipts.verify(GOOD, other)


def test_a_repeated_operation_has_no_receipt_at_its_second_place() -> None:
    """Goal: a receipt means executed here, once.

    Method: forge one where the same bundle was ordered again.
    """
    scene = Scene()
    scene.open()
    payload = scene.payload(OPS[:1], first=1, receipt=True)
    first = scene.commit(payload)
    second = scene.commit(payload)
    material = msgspec.structs.replace(
        first.outcomes[0].materials[0],
        index=second.index,
        time_ms=second.time_ms,
        previous_history=second.previous_history,
    )

    assert second.outcomes[0].materials == first.outcomes[0].materials
    history = receipts.history_of(
        client=USER.public,
        session=1,
        operation=second.outcomes[0].bundle.operations[0],
        result=second.outcomes[0].answers[0].result,
        material=material,
    )
    assert history != second.history_digest


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff\xfe", b"null", b"[" * 10_000, b'{"version": "one"}']
)
def test_junk_is_no_receipt(data: bytes) -> None:
    """Goal: any file ends in a sentence. Method: junk, and a good file with an unknown key."""
    with pytest.raises(ReceiptInvalid, match="this is no receipt"):
        receipts.decode(data)
    extra = {**json.loads(GOOD.encode()), "extra": 1}
    with pytest.raises(ReceiptInvalid, match="extra"):
        receipts.decode(json.dumps(extra).encode())


def test_shelf_forgets_but_never_lies() -> None:
    """Goal: replicas keep a bounded amount for receipts. Method: more batches than the shelf holds."""
    scene = Scene()
    scene.open()
    bundle = scene.commit(scene.payload([kv.Put(b"k", b"")], first=1, receipt=True)).outcomes[0].bundle
    assert len(scene.ledger.materials(bundle)) == 1
    scene.ledger._shelf._leaves += 65_536  # as if that many leaves had been kept since
    scene.ledger._shelf.put(
        Commit(99, 0, 10**6, ()), bytes(32), [bytes(32)], [bytes(32)], {(USER.public, 9, 9): 0}
    )

    assert scene.ledger.materials(bundle) == ()
