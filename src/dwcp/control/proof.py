"""What an operation and its result say about a workload: reading a verified receipt's content.

Knows nothing of signatures: whoever calls has verified the receipt first.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from dwcp.api.kv import Operation, Put, Range, RangeDone, Result, Txn, TxnDone
from dwcp.api.workloads import WorkloadState, state_key

OBSERVED = "observed-"  # proven by a committed read, where the writer's own receipt never came


@dataclass(frozen=True, slots=True)
class ProvenState:
    """`written`: the operation made the state so; else it read it so."""

    state: WorkloadState
    written: bool

    def is_filed_as(self, kind: str, attempt: int) -> bool:
        """Whether a receipt of this state may bear that label: whoever hands it in chose the label."""
        return (kind.removeprefix(OBSERVED), attempt) == (self.state.state.value, self.state.attempt)


def proven_state(operation: Operation, result: Result, *, workload: str) -> ProvenState | None:
    """The workload's state that this committed operation wrote or read; None if it proves none."""
    if not isinstance(operation, Txn) or not isinstance(result, TxnDone) or not result.succeeded:
        return None
    key = state_key(workload)
    if len(operation.success) != len(result.results):
        return None
    for part, done in zip(operation.success, result.results, strict=True):
        if isinstance(part, Put) and part.key == key:
            return _proven(part.value, written=True)
        if isinstance(part, Range) and part.key == key and isinstance(done, RangeDone):
            found = [kv.value for kv in done.kvs if kv.key == key]
            return _proven(found[0], written=False) if found else None
    return None


def _proven(value: bytes, *, written: bool) -> ProvenState | None:
    try:
        return ProvenState(msgspec.json.decode(value, type=WorkloadState), written)
    except msgspec.DecodeError:
        return None
