"""What the manager asks of a receipt before it keeps it: genuine, filed as what it proves, of the node's own work."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.control.genuine import GENESIS, ID, genuine

from dwcp.api.manager import StoredReceipt
from dwcp.services.manager.ports import ReceiptUnwanted
from dwcp.services.manager.receipts import proof_needed

GENUINE = genuine()
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
