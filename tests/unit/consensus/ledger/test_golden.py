"""The formats stay what they were: golden files are still made alike, and still read."""

from __future__ import annotations

import pytest
from tests.unit.consensus.ledger import golden
from tests.unit.consensus.ledger.scene import USER, genesis_of

from dwcp.api import kv
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.crypto.codec import Codec
from dwcp.consensus.ledger import genesis, messages, operations, receipts
from dwcp.consensus.ledger.ledger import Ledger

_PARTS: Codec[tuple[bytes, tuple[bytes, ...]]] = Codec(tuple[bytes, tuple[bytes, ...]])


def _entries(name: str) -> dict[str, bytes]:
    lines = (golden.GOLDEN / name).read_text().splitlines()
    return {key: bytes.fromhex(value) for key, value in (line.split(" ") for line in lines)}


@pytest.mark.parametrize("name", sorted(golden.files()))
def test_formats_are_made_as_ever(name: str) -> None:
    """Goal: no accidental change of a format. Method: compare bytes with the golden file."""
    assert golden.files()[name] == (golden.GOLDEN / name).read_bytes()


def test_operations_and_results_are_read() -> None:
    """Goal: old logs decode. Method: decode each golden line."""
    for name, data in _entries("ledger/operations.txt").items():
        assert operations.decode_operation(data) == golden.OPERATIONS[name]
    result: Codec[kv.Result] = Codec(kv.Result)
    for name, data in _entries("ledger/results.txt").items():
        assert result.decode(data) == golden.RESULTS[name]


def test_frames_are_read_and_directions_kept_apart() -> None:
    """Goal: old clients are understood; no frame passes in the wrong direction. Method: decode both ways."""
    for name, data in _entries("ledger/client-frames.txt").items():
        assert messages.decode_client(data) == golden.CLIENT_FRAMES[name]
        with pytest.raises(MalformedFrame):
            messages.decode_replica(data)
    for name, data in _entries("ledger/replica-frames.txt").items():
        assert messages.decode_replica(data) == golden.REPLICA_FRAMES[name]
        with pytest.raises(MalformedFrame):
            messages.decode_client(data)
    with pytest.raises(MalformedFrame, match="at most"):
        messages.decode_client(bytes(messages.FRAME_BYTES_MAX + 1))


def test_bundle_genesis_receipt_and_snapshot_are_read() -> None:
    """Goal: what an old release wrote is still proof and state.

    Method: verify and install the golden files.
    """
    body = _entries("ledger/bundle.txt")["body"]
    chain = genesis.load(golden.GOLDEN / "receipt/genesis.json")
    bundle = operations.decode(body, chain.params)
    assert bundle.signature_holds(chain.chain_id)

    receipt = receipts.decode((golden.GOLDEN / "receipt/receipt-v1.json").read_bytes())
    facts = receipts.verify(receipt, chain)
    assert facts.client == USER.public
    assert facts.operation == kv.Txn((), (kv.Put(b"k", b"v"),))

    root, parts = _PARTS.decode((golden.GOLDEN / "snapshot/snapshot-v1.bin").read_bytes())
    ledger = Ledger(genesis_of(checkpoint_interval=1))
    assert ledger.install(parts, root) == golden.busy_scene().ledger.index
    assert ledger.revision == golden.busy_scene().ledger.revision
