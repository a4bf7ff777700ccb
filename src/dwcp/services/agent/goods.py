"""Payloads in and outputs out, over this agent's chunk store and the agents that hold payloads."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import msgspec

from dwcp.api.workloads import Node, PayloadRef, node_key
from dwcp.compression.errors import ShipFailed, SourceFailed, TransferError
from dwcp.compression.manifest import root as root_of
from dwcp.runtime import shipping, trees
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.packflow import Pacer
from dwcp.services.agent.ports import (
    Captured,
    ControlLog,
    LogRefused,
    LogUnsure,
    OutputRefused,
    PayloadDelayed,
    PayloadLost,
    Progress,
)

PATIENCE = shipping.Patience(failures=4)  # the courier tries again, as long as that makes progress
READ_TIMEOUT_S = 5.0


class StoreGoods:
    """`Goods` over one chunk store. The payload's agent is found by its node's entry in the log."""

    def __init__(
        self, *, store: ChunkStore, log: ControlLog, client: httpx.AsyncClient, downlink: Pacer
    ) -> None:
        self._store = store
        self._log = log
        self._client = client
        self._downlink = downlink

    async def fetch(
        self, payload: PayloadRef, into: Path, *, owner: str, progress: Progress, priority: int = 2
    ) -> None:
        try:
            root = bytes.fromhex(payload.root)
        except ValueError as exc:
            raise PayloadLost(f"{payload.root[:80]!r} is no payload root") from exc
        try:
            manifest = await shipping.pull(
                root,
                [await self._source(payload)],
                store=self._store,
                owner=owner,
                client=self._client,
                pacer=self._downlink.weighted(2.0**priority),
                tell=lambda moved: progress(moved.done_bytes, moved.total_bytes),
                patience=PATIENCE,
            )
            await asyncio.to_thread(trees.materialise, manifest, self._store, into)
        except (ShipFailed, SourceFailed) as exc:
            raise PayloadDelayed(str(exc)) from exc
        except TransferError as exc:
            raise PayloadLost(str(exc)) from exc

    async def _source(self, payload: PayloadRef) -> shipping.Source:
        try:
            read = await self._log.read(node_key(payload.agent), linearizable=False, timeout_s=READ_TIMEOUT_S)
            node = msgspec.json.decode(read.kvs[0].value, type=Node)
        except (LogUnsure, LogRefused) as exc:
            raise PayloadDelayed(f"the log does not say where {payload.agent} is: {exc}") from exc
        except (IndexError, msgspec.MsgspecError) as exc:
            raise PayloadDelayed(f"the log knows no agent {payload.agent}") from exc
        return shipping.Source(payload.agent, f"https://{node.address}")

    async def capture(self, folder: Path, *, owner: str) -> Captured:
        try:
            manifest = await asyncio.to_thread(trees.capture, folder, self._store, owner=owner)
        except TransferError as exc:
            raise OutputRefused(str(exc)) from exc
        return Captured(root_of(manifest).hex(), manifest.total_bytes, manifest.file_count)

    async def release(self, owner: str) -> None:
        await asyncio.to_thread(self._release, owner)

    def _release(self, owner: str) -> None:
        for root, owners in self._store.roots().items():
            if owner in owners:
                self._store.release(root, owner=owner)

    async def claims(self) -> list[str]:
        return sorted({owner for owners in self._store.roots().values() for owner in owners})
