"""The control log as the agent's port wants it, over the ledger's client; maps its errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import msgspec

from dwcp.api.kv import RangeDone, Txn, TxnDone
from dwcp.runtime.client import Indeterminate, LedgerClient, Overloaded, Refused
from dwcp.services.agent.ports import Committed, Hint, LogRefused, LogUnsure


class LedgerLog:
    """`ControlLog` over one client and its session."""

    def __init__(self, client: LedgerClient) -> None:
        self._client = client

    async def txn(self, txn: Txn, *, receipt: bool, timeout_s: float) -> Committed:
        try:
            got = await self._client.txn(txn, receipt=receipt, timeout_s=timeout_s)
        except (Indeterminate, Overloaded) as exc:
            raise LogUnsure(str(exc)) from exc
        except Refused as exc:
            raise LogRefused(str(exc)) from exc
        if not isinstance(got.result, TxnDone):
            raise LogRefused(f"a transaction was answered with {type(got.result).__name__}")
        return Committed(got.result, None if got.receipt is None else msgspec.to_builtins(got.receipt))

    async def read(self, key: bytes, *, linearizable: bool, timeout_s: float) -> RangeDone:
        try:
            return await self._client.range(key, linearizable=linearizable, timeout_s=timeout_s)
        except (Indeterminate, Overloaded) as exc:
            raise LogUnsure(str(exc)) from exc
        except Refused as exc:
            raise LogRefused(str(exc)) from exc

    async def watch(self, prefix: bytes) -> AsyncIterator[Hint]:
        """From the present on. What was missed before is found by reading this node's allocation."""
        try:
            async with aclosing(self._client.watch(prefix)) as batches:  # type: ignore[type-var]  # it is a generator, typed as an iterator
                async for batch in batches:
                    for event in batch.events:
                        yield Hint(event.key, batch.revision, event.value)
        except (Indeterminate, Overloaded) as exc:
            raise LogUnsure(str(exc)) from exc
        except Refused as exc:
            raise LogRefused(str(exc)) from exc
