"""Keys, values and transactions as people write them, and answers as people read them."""

from __future__ import annotations

from typing import Any

import msgspec

from dwcp.api.kv import (
    Compare,
    DeleteDone,
    DeleteRange,
    Done,
    KeyValue,
    Put,
    PutDone,
    Range,
    RangeDone,
    Relation,
    Result,
    Target,
    Txn,
    TxnDone,
)
from dwcp.runtime.errors import Exit, RuntimeFault

TXN_BYTES_MAX = 1_048_576
EXAMPLE = (
    '{"compare": [{"key": "a", "target": "mod", "relation": "equal", "operand": 0}],'
    ' "success": [{"put": "a", "value": "1"}], "failure": [{"get": "a"}]}'
)


class TxnMalformed(RuntimeFault):
    """The transaction cannot be read; `dwcp ledger txn --help` shows one."""

    exit_code = Exit.USAGE


class _Guard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    target: str
    relation: str
    operand: int | str
    key: str = ""


class _Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    put: str | None = None
    value: str | None = None
    get: str | None = None
    delete: str | None = None
    end: str | None = None


class _Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    compare: tuple[_Guard, ...] = ()
    success: tuple[_Step, ...] = ()
    failure: tuple[_Step, ...] = ()


def read_txn(text: bytes) -> Txn:
    """A transaction from JSON, as in `EXAMPLE`. Raises `TxnMalformed`."""
    if len(text) > TXN_BYTES_MAX:
        raise TxnMalformed(f"a transaction has at most {TXN_BYTES_MAX} bytes of text, this one {len(text)}")
    try:
        read = msgspec.json.decode(text, type=_Text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise TxnMalformed(f"the transaction cannot be read: {exc}; it looks like this: {EXAMPLE}") from exc
    return Txn(
        compare=tuple(_guard(guard) for guard in read.compare),
        success=tuple(_step(step) for step in read.success),
        failure=tuple(_step(step) for step in read.failure),
    )


def _guard(guard: _Guard) -> Compare:
    targets = {target.name.lower(): target for target in Target}
    relations = {relation.name.lower(): relation for relation in Relation}
    if guard.target not in targets:
        raise TxnMalformed(f"compare: target {guard.target[:40]!r}; targets: {', '.join(targets)}")
    if guard.relation not in relations:
        raise TxnMalformed(f"compare: relation {guard.relation[:40]!r}; relations: {', '.join(relations)}")
    wants_text = guard.target == "value"
    if wants_text != isinstance(guard.operand, str):
        raise TxnMalformed(f"compare: {guard.target} is compared with a {'text' if wants_text else 'number'}")
    operand = guard.operand.encode() if isinstance(guard.operand, str) else guard.operand
    return Compare(guard.key.encode(), targets[guard.target], relations[guard.relation], operand)


def _step(step: _Step) -> Put | Range | DeleteRange:
    end = (step.end or "").encode()
    if step.put is not None and step.value is not None and step.get is None and step.delete is None:
        return Put(step.put.encode(), step.value.encode())
    if step.get is not None and step.put is None and step.delete is None and step.value is None:
        return Range(step.get.encode(), end)
    if step.delete is not None and step.put is None and step.get is None and step.value is None:
        return DeleteRange(step.delete.encode(), end)
    raise TxnMalformed("a step is one of {put, value}, {get, end?}, {delete, end?}")


def shown_pair(pair: KeyValue) -> dict[str, Any]:
    """One key as JSON; bytes that are no text are shown as hex, and say so."""
    shown: dict[str, Any] = {
        "key": _text(pair.key),
        "create_revision": pair.create_revision,
        "mod_revision": pair.mod_revision,
        "version": pair.version,
    }
    try:
        shown["value"] = pair.value.decode()
    except UnicodeDecodeError:
        shown["value_hex"] = pair.value.hex()
    return shown


def shown_result(result: Result) -> dict[str, Any]:
    """A result as JSON."""
    match result:
        case RangeDone():
            pairs = [shown_pair(pair) for pair in result.kvs]
            return {"revision": result.revision, "count": result.count, "more": result.more, "kvs": pairs}
        case TxnDone():
            parts = [shown_result(part) for part in result.results]
            return {
                "revision": result.revision,
                "time_ms": result.time_ms,
                "succeeded": result.succeeded,
                "results": parts,
            }
        case DeleteDone():
            return {"revision": result.revision, "deleted": result.deleted}
        case PutDone() | Done():
            return {"revision": result.revision}
        case _:
            return {"code": result.code, "detail": result.detail}


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
