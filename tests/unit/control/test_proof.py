"""What a receipt's content proves about a workload."""

from __future__ import annotations

import msgspec
import pytest

from dwcp.api.kv import KeyValue, Operation, Put, PutDone, Range, RangeDone, Result, Txn, TxnDone
from dwcp.api.workloads import State, WorkloadState, state_key
from dwcp.control.proof import proven_state

ID = "w-aaaaaaaaaa"
KEY = state_key(ID)
DONE = msgspec.json.encode(WorkloadState(state=State.DONE, attempt=2))


def written(value: bytes = DONE, *, key: bytes = KEY, held: bool = True) -> tuple[Operation, Result]:
    return Txn(success=(Put(key, value),)), TxnDone(5, 1, held, (PutDone(5),))


def seen(value: bytes = DONE, *, key: bytes = KEY) -> tuple[Operation, Result]:
    kv = KeyValue(key, value, 1, 4, 2)
    return Txn(success=(Range(KEY),)), TxnDone(5, 1, True, (RangeDone(5, (kv,), 1, False),))


def test_a_write_and_a_read_prove_the_state() -> None:
    """Goal: both kinds of receipt count, and say which they are. Method: one of each."""
    proven = proven_state(*written(), workload=ID)
    assert proven is not None
    assert (proven.state.state, proven.state.attempt, proven.written) == (State.DONE, 2, True)
    observed = proven_state(*seen(), workload=ID)
    assert observed is not None
    assert (observed.state.state, observed.written) == (State.DONE, False)


@pytest.mark.parametrize(
    ("operation", "result"),
    [
        written(held=False),
        written(key=state_key("w-bbbbbbbbbb")),
        written(b"junk"),
        seen(key=b"/other"),
        (Put(KEY, DONE), PutDone(5)),
        (Txn(success=(Range(KEY),)), TxnDone(5, 1, True, (RangeDone(5, (), 0, False),))),
        (Txn(success=(Put(KEY, DONE),)), TxnDone(5, 1, True, ())),
        (Txn(failure=(Put(KEY, DONE),)), TxnDone(5, 1, True, ())),
    ],
)
def test_anything_else_proves_nothing(operation: Operation, result: Result) -> None:
    """Goal: a valid receipt of something else is no proof. Method: lost races, other keys, other operations."""
    assert proven_state(operation, result, workload=ID) is None
