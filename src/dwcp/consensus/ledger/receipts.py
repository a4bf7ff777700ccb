"""Receipts: proof for anyone who holds genesis that an operation was committed with this result.

A receipt holds the operation, its result, their places in the batch, and a
quorum of replicas' ATTESTs of the history up to it. It is checked offline,
trusting nothing but the genesis file. What it proves and what not: docs/receipts.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from dwcp.api import kv
from dwcp.consensus.core.errors import CoreError, MalformedFrame
from dwcp.consensus.crypto import merkle, signatures
from dwcp.consensus.crypto.codec import Codec
from dwcp.consensus.crypto.hashes import SIZE, Domain
from dwcp.consensus.ledger import attest
from dwcp.consensus.ledger.genesis import Genesis
from dwcp.consensus.ledger.ledger import operation_leaf, result_leaf
from dwcp.consensus.ledger.messages import Material, Share
from dwcp.consensus.ledger.operations import decode_operation

VERSION = 1
RECEIPT_BYTES_MAX = 32 * 1024 * 1024
_U64 = 2**64

Verify = Callable[[bytes, bytes, bytes], bool]
_RESULT: Codec[kv.Result] = Codec(kv.Result)


class ReceiptInvalid(CoreError):
    """The receipt does not prove what it says: treat it as forged or damaged, and ask for it again."""


class _Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Attestation(_Shape, frozen=True):
    replica: int
    signature: str


class Receipt(_Shape, frozen=True):
    """The content of a receipt file. Bytes are lowercase hex."""

    version: int
    chain_id: str
    genesis_sha256: str
    epoch: int
    index: int
    time_ms: int
    client: str
    session: int
    sequence: int
    operation: str
    position: int
    count: int
    result: str
    operation_path: tuple[str, ...]
    result_path: tuple[str, ...]
    previous_history: str
    attestations: tuple[Attestation, ...]
    epoch_certificates: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The receipt file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


@dataclass(frozen=True, slots=True)
class Verified:
    """What a valid receipt proves. `signers` are replica names, `client_name` "" if not in genesis."""

    chain: str
    chain_id: bytes
    epoch: int
    index: int
    time_ms: int
    client: bytes
    client_name: str
    operation: kv.Operation
    result: kv.Result
    signers: tuple[str, ...]


def decode(data: bytes) -> Receipt:
    """A receipt file's content, unverified; raises `ReceiptInvalid`."""
    if len(data) > RECEIPT_BYTES_MAX:
        raise ReceiptInvalid(f"a receipt has at most {RECEIPT_BYTES_MAX} bytes, got {len(data)}")
    try:
        return msgspec.json.decode(data, type=Receipt)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ReceiptInvalid(f"this is no receipt: {exc}") from exc


def genesis_sha256(genesis: Genesis) -> str:
    """SHA-256 of the canonical genesis file: what `sha256sum genesis.json` prints."""
    return hashlib.sha256(genesis.encode()).hexdigest()


def verify(receipt: Receipt, genesis: Genesis, *, check: Verify = signatures.verify) -> Verified:
    """The proven facts; raises `ReceiptInvalid` with a sentence about the first thing that does not hold."""
    _check_origin(receipt, genesis)
    history = _history(receipt)
    signers = _signers(receipt, genesis, history, check)
    client = _unhex(receipt.client, "client", SIZE)
    try:
        operation = decode_operation(_unhex(receipt.operation, "operation"))
        result = _RESULT.decode(_unhex(receipt.result, "result"))
    except MalformedFrame as exc:
        raise ReceiptInvalid(f"the operation or its result is of a kind unknown here: {exc}") from exc
    names = {entry.public_key: entry.name for entry in genesis.clients}
    return Verified(
        genesis.name,
        genesis.chain_id,
        receipt.epoch,
        receipt.index,
        receipt.time_ms,
        client,
        names.get(receipt.client, ""),
        operation,
        result,
        tuple(genesis.replicas[signer].name for signer in signers),
    )


def _check_origin(receipt: Receipt, genesis: Genesis) -> None:
    if receipt.version != VERSION:
        raise ReceiptInvalid(f"version {receipt.version} is unknown: this program reads version {VERSION}")
    if receipt.chain_id != genesis.chain_id.hex():
        raise ReceiptInvalid(
            "the receipt is of another chain, or the genesis file was changed: "
            f"it says {receipt.chain_id[:16]}…, the genesis file makes {genesis.chain_id.hex()[:16]}…"
        )
    if receipt.genesis_sha256 != genesis_sha256(genesis):
        raise ReceiptInvalid("genesis_sha256 is not that of the genesis file")
    if receipt.epoch != genesis.epoch or receipt.epoch_certificates:
        raise ReceiptInvalid(f"epoch {receipt.epoch} is not certified from genesis")
    if not 1 <= receipt.index < _U64 or not 0 <= receipt.time_ms < _U64:
        raise ReceiptInvalid("index and time_ms are out of range")


def _history(receipt: Receipt) -> bytes:
    """The history digest that the receipt's contents lead to."""
    if not (0 <= receipt.session < _U64 and 0 <= receipt.sequence < _U64):
        raise ReceiptInvalid("session and sequence are out of range")
    asked = operation_leaf(
        client=_unhex(receipt.client, "client", SIZE),
        session=receipt.session,
        sequence=receipt.sequence,
        operation=_unhex(receipt.operation, "operation"),
    )
    answered = result_leaf(_unhex(receipt.result, "result"))
    return attest.extend_history(
        _unhex(receipt.previous_history, "previous_history", SIZE),
        batch_digest=_root(receipt, Domain.BATCH, asked, "operation_path"),
        results_root=_root(receipt, Domain.RESULT, answered, "result_path"),
        time_ms=receipt.time_ms,
    )


def _root(receipt: Receipt, domain: Domain, leaf: bytes, name: str) -> bytes:
    siblings = [_unhex(sibling, name, SIZE) for sibling in getattr(receipt, name)]
    found = merkle.root_from(leaf, position=receipt.position, count=receipt.count, siblings=siblings)
    if found is None:
        raise ReceiptInvalid(
            f"{name} is no path from position {receipt.position} in a batch of {receipt.count}"
        )
    return merkle.bind(domain, receipt.count, found)


def _signers(receipt: Receipt, genesis: Genesis, history: bytes, check: Verify) -> list[int]:
    """The replicas that attested; every attestation must hold, so that a damaged one is seen."""
    if len(receipt.attestations) > genesis.n:
        raise ReceiptInvalid(f"{len(receipt.attestations)} attestations of {genesis.n} replicas")
    signers: list[int] = []
    for attestation in receipt.attestations:
        replica = attestation.replica
        if not 0 <= replica < genesis.n:
            raise ReceiptInvalid(f"replica {replica} is not in genesis")
        if replica in signers:
            raise ReceiptInvalid(f"replica {replica} ({genesis.replicas[replica].name}) is counted twice")
        signature = _unhex(attestation.signature, f"signature of replica {replica}")
        share = Share(receipt.epoch, receipt.index, history, signature)
        if not attest.share_holds(
            share, replica=replica, chain_id=genesis.chain_id, committee=genesis.committee(), verify=check
        ):
            raise ReceiptInvalid(
                f"replica {replica} ({genesis.replicas[replica].name}) did not sign this: "
                "the operation, its result, its place or the signature was changed"
            )
        signers.append(replica)
    if len(signers) < genesis.quorum:
        raise ReceiptInvalid(f"{len(signers)} replicas attest, {genesis.quorum} of {genesis.n} are needed")
    return signers


def _unhex(value: str, name: str, size: int | None = None) -> bytes:
    try:
        data = bytes.fromhex(value)
    except ValueError:
        raise ReceiptInvalid(f"{name} is not hexadecimal") from None
    if data.hex() != value or (size is not None and len(data) != size):
        raise ReceiptInvalid(f"{name} is not {size or 'a number of'} bytes in lowercase hex")
    return data


def assemble(
    *,
    genesis: Genesis,
    client: bytes,
    session: int,
    operation: bytes,
    result: bytes,
    material: Material,
    shares: Sequence[tuple[int, Share]],
) -> Receipt:
    """A receipt of these pieces, attestations by replica id. It proves nothing until `verify` says so."""
    return Receipt(
        version=VERSION,
        chain_id=genesis.chain_id.hex(),
        genesis_sha256=genesis_sha256(genesis),
        epoch=material.epoch,
        index=material.index,
        time_ms=material.time_ms,
        client=client.hex(),
        session=session,
        sequence=material.sequence,
        operation=operation.hex(),
        position=material.position,
        count=material.count,
        result=result.hex(),
        operation_path=tuple(sibling.hex() for sibling in material.operation_path),
        result_path=tuple(sibling.hex() for sibling in material.result_path),
        previous_history=material.previous_history.hex(),
        attestations=tuple(
            Attestation(replica, share.signature.hex()) for replica, share in sorted(shares, key=_replica)
        ),
    )


def _replica(signed: tuple[int, Share]) -> int:
    return signed[0]


def history_of(
    *, client: bytes, session: int, operation: bytes, result: bytes, material: Material
) -> bytes | None:
    """The history digest that a replica's material leads to; None where it cannot lead to any."""
    if not (0 <= material.time_ms < _U64 and 0 <= material.sequence < _U64):
        return None
    if len(material.previous_history) != SIZE:
        return None
    asked = operation_leaf(client=client, session=session, sequence=material.sequence, operation=operation)
    place = {"position": material.position, "count": material.count}
    asked_root = merkle.root_from(asked, siblings=material.operation_path, **place)
    result_root = merkle.root_from(result_leaf(result), siblings=material.result_path, **place)
    if asked_root is None or result_root is None:
        return None
    return attest.extend_history(
        material.previous_history,
        batch_digest=merkle.bind(Domain.BATCH, material.count, asked_root),
        results_root=merkle.bind(Domain.RESULT, material.count, result_root),
        time_ms=material.time_ms,
    )
