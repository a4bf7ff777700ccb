"""What the manager asks of a receipt before it keeps it: genuine, filed as what it proves, of the node's own work."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.consensus.ledger.scene import REPLICA_KEYS, USER, Scene, genesis_of

from dwcp.api import kv
from dwcp.api.manager import StoredReceipt
from dwcp.api.workloads import State, WorkloadState, state_key
from dwcp.consensus.ledger import receipts
from dwcp.consensus.ledger.attest import Attestor
from dwcp.services.manager.ports import ReceiptUnwanted
from dwcp.services.manager.receipts import proof_needed

ID = "w-aaaaaaaaaa"
GENESIS = genesis_of()


def _genuine() -> dict[str, Any]:
    """A receipt that attempt 2 of `ID` ended as done on rome."""
    state = WorkloadState(state=State.DONE, attempt=2, node="rome")
    scene = Scene()
    scene.open()
    wanted = kv.Txn(success=(kv.Put(state_key(ID), msgspec.json.encode(state)),))
    executed = scene.commit(scene.payload([wanted], first=1, receipt=True))
    outcome = executed.outcomes[0]
    attestors = [(n, Attestor(me=n, chain_id=GENESIS.chain_id, signer=REPLICA_KEYS[n])) for n in range(3)]
    shares = [
        (n, one.attest(epoch=0, index=executed.index, history_digest=executed.history_digest))
        for n, one in attestors
    ]
    receipt = receipts.assemble(
        genesis=GENESIS,
        client=USER.public,
        session=1,
        operation=outcome.bundle.operations[0],
        result=outcome.answers[0].result,
        material=outcome.materials[0],
        shares=shares,
    )
    content: dict[str, Any] = msgspec.to_builtins(receipt)
    return content


GENUINE = _genuine()
GOOD = StoredReceipt(workload=ID, attempt=2, kind="done", receipt=GENUINE)


@pytest.mark.parametrize("kind", ["done", "observed-done"])
def test_a_genuine_receipt_is_taken(kind: str) -> None:
    """Goal: the check lets the truth through. Method: a receipt of three replicas, under both of its names."""
    proof_needed(GENESIS)(msgspec.structs.replace(GOOD, kind=kind), "rome")


@pytest.mark.parametrize(
    ("change", "node", "sentence"),
    [
        ({"receipt": {"x": 1}}, "rome", "proves nothing"),
        ({"receipt": {}}, "rome", "proves nothing"),
        ({"receipt": {**GENUINE, "time_ms": 1}}, "rome", "proves nothing"),
        ({"receipt": {**GENUINE, "attestations": GENUINE["attestations"][:2]}}, "rome", "proves nothing"),
        ({"kind": "failed"}, "rome", "does not prove"),
        ({"attempt": 1}, "rome", "does not prove"),
        ({"workload": "w-bbbbbbbbbb"}, "rome", "does not prove"),
        ({}, "oslo", "work of rome"),
    ],
)
def test_everything_else_is_refused(change: dict[str, Any], node: str, sentence: str) -> None:
    """Goal: nothing forged, misfiled or of another node takes a receipt's place. Method: one change each."""
    with pytest.raises(ReceiptUnwanted, match=sentence):
        proof_needed(GENESIS)(msgspec.structs.replace(GOOD, **change), node)
