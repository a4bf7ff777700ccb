"""The control log as the manager's ports want it, over the ledger's client; maps its errors."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from dwcp.api.kv import KeyValue, Txn, TxnDone
from dwcp.api.workloads import prefix_end
from dwcp.runtime import client as ledger_client
from dwcp.runtime.client import LedgerClient
from dwcp.services.manager.ports import Committed, LogRefused, LogUnreachable

PAGE = 200
TIMEOUT_S = 10.0


class LedgerPort:
    """`ControlLog` and the loop's `Watcher`, both over one client and its session."""

    def __init__(self, client: LedgerClient) -> None:
        self._client = client

    async def txn(self, txn: Txn, *, receipt: bool = False) -> Committed:
        try:
            got = await self._client.txn(txn, receipt=receipt, timeout_s=TIMEOUT_S)
        except (ledger_client.Indeterminate, ledger_client.Overloaded) as exc:
            raise LogUnreachable(str(exc)) from exc
        except ledger_client.Refused as exc:
            raise LogRefused(str(exc)) from exc
        if not isinstance(got.result, TxnDone):
            raise LogRefused(f"the control log answered a transaction with {got.result!r}")
        content = msgspec.to_builtins(got.receipt) if got.receipt is not None else None
        return Committed(got.result, got.index, content)

    async def read(self, prefix: bytes, *, linearizable: bool) -> tuple[list[KeyValue], int]:
        """Page by page, all of them as of the first page's revision."""
        found: list[KeyValue] = []
        start, revision = prefix, 0
        while True:
            try:
                page = await self._client.range(
                    start, prefix_end(prefix), linearizable=linearizable, limit=PAGE, revision=revision
                )
            except (ledger_client.Indeterminate, ledger_client.Overloaded) as exc:
                raise LogUnreachable(str(exc)) from exc
            except ledger_client.Refused as exc:
                raise LogRefused(str(exc)) from exc
            found += page.kvs
            revision = revision or page.revision
            if not page.more or not page.kvs:
                return found, revision
            start = page.kvs[-1].key + b"\0"

    async def watch(
        self, prefix: bytes, *, from_revision: int
    ) -> AsyncIterator[tuple[bytes, bytes | None, int]]:
        try:
            async for batch in self._client.watch(prefix, from_revision=from_revision):
                for event in batch.events:
                    yield event.key, event.value, event.mod_revision
        except (ledger_client.Indeterminate, ledger_client.Overloaded) as exc:
            raise LogUnreachable(str(exc)) from exc
        except (ledger_client.Refused, ledger_client.Compacted) as exc:
            raise LogRefused(str(exc)) from exc
