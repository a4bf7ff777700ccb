"""A receipt that verifies: a workload's end, attested by three replicas of the scene's committee."""

from __future__ import annotations

from typing import Any

import msgspec
from tests.unit.consensus.ledger.scene import REPLICA_KEYS, USER, Scene, genesis_of

from dwcp.api import kv
from dwcp.api.workloads import State, WorkloadState, state_key
from dwcp.consensus.ledger import receipts
from dwcp.consensus.ledger.attest import Attestor

ID = "w-aaaaaaaaaa"
GENESIS = genesis_of()


def genuine() -> dict[str, Any]:
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
