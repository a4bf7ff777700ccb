"""Events and receipts on their way to the manager. Nothing waits for it, and nothing is lost that matters:
states are in the log, receipts stay on disk until the manager has them, events are only news."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from pathlib import Path

import httpx
import msgspec
import structlog

from dwcp.api import manager
from dwcp.api.manager import EVENTS_PER_POST_MAX, EventKind, Report, StoredReceipt
from dwcp.api.requests import Request
from dwcp.runtime import shim
from dwcp.runtime.clock import Clock
from dwcp.runtime.layout import ensure

EVENTS_HELD_MAX = 1000  # older ones are dropped while the manager is away
GATHER_S = 0.05  # events of this span travel together
RETRY_S = 5.0
RECEIPTS_KEPT = 2000  # sent ones beyond this are deleted, oldest first

_WORD = re.compile(r"[A-Za-z0-9-]{1,80}")


class Dispatch:
    """`receipts/` holds every receipt of this agent, `receipts/unsent/` links to those still to be sent."""

    def __init__(
        self,
        *,
        directory: Path,
        node: str,
        client: httpx.AsyncClient,
        manager_url: str,
        clock: Clock,
        logger: structlog.stdlib.BoundLogger,
        events_max: int = EVENTS_HELD_MAX,
    ) -> None:
        self._kept = ensure(directory)
        self._unsent = ensure(directory / "unsent")
        self._node = node
        self._client = client
        self._url = manager_url
        self._clock = clock
        self._logger = logger
        self._events: deque[Report] = deque(maxlen=events_max)
        self._news = asyncio.Event()

    # ------------------------------------------------------------------ the teller's side

    def tell(self, workload: str, attempt: int, kind: EventKind, **fields: int | float | str) -> None:
        """Queue an event; the oldest is dropped when too many wait."""
        report = Report(workload, kind, self._node, attempt, self._clock.now_ms(), fields)
        self._logger.info(f"workload.{kind.value}", workload=workload, attempt=attempt, **fields)
        self._events.append(report)
        self._news.set()

    def keep(self, receipt: StoredReceipt) -> None:
        """Durable here, then sent. A full disk costs the copy here, and is logged."""
        name = _file_name(receipt.workload, receipt.attempt, receipt.kind)
        try:
            shim.write_durable(self._kept / name, msgspec.json.encode(receipt))
            (self._unsent / name).unlink(missing_ok=True)
            (self._unsent / name).hardlink_to(self._kept / name)
        except OSError as exc:
            self._logger.error("receipt.not_kept", receipt=name, error=str(exc))
        self._news.set()

    def has(self, workload: str, attempt: int, kind: str) -> bool:
        return (self._kept / _file_name(workload, attempt, kind)).exists()

    def of(self, workload: str) -> list[StoredReceipt]:
        """Every receipt of one workload; a damaged file is left out and logged."""
        if _WORD.fullmatch(workload) is None:
            return []
        found = [self._read(path) for path in sorted(self._kept.glob(f"{workload}.*.json"))]
        return [receipt for receipt in found if receipt is not None]

    # ------------------------------------------------------------------ the manager's side

    async def run(self) -> None:
        """Until cancelled."""
        self._news.set()  # what an earlier life left unsent
        while True:
            await self._news.wait()
            await asyncio.sleep(GATHER_S)
            self._news.clear()
            if not await self._send_all():
                await asyncio.sleep(RETRY_S)
                self._news.set()

    async def _send_all(self) -> bool:
        """Whether nothing is left to send."""
        while self._events:
            batch = tuple(list(self._events)[:EVENTS_PER_POST_MAX])
            if not await self._post(manager.report(batch)):
                return False
            for sent in batch:
                if self._events and self._events[0] is sent:
                    self._events.popleft()
        for path in sorted(self._unsent.iterdir()):
            if not await self._post_receipt(path):
                return False
        self._thin_out()
        return True

    async def _post_receipt(self, path: Path) -> bool:
        receipt = await asyncio.to_thread(self._read, path)
        sent = receipt is None or await self._post(manager.keep_receipt(receipt))
        if sent:
            await asyncio.to_thread(path.unlink, missing_ok=True)
        return sent

    def _read(self, path: Path) -> StoredReceipt | None:
        """None for a damaged file: sending it again and again would help nobody."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=StoredReceipt)
        except (OSError, msgspec.MsgspecError) as exc:
            self._logger.error("receipt.damaged", receipt=path.name, error=str(exc))
            return None

    async def _post(self, wanted: Request) -> bool:
        """True also for a refusal that another try would meet again."""
        try:
            answer = await self._client.request(
                wanted.method, self._url + wanted.path, content=wanted.body, headers=wanted.headers
            )
        except httpx.HTTPError as exc:
            self._logger.debug("manager.unreachable", error=str(exc))
            return False
        if 400 <= answer.status_code < 500:
            self._logger.error("manager.refused", path=wanted.path, answer=answer.text[:300])
            return True
        return answer.status_code < 400

    def _thin_out(self) -> None:
        kept = sorted(self._kept.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in kept[: max(0, len(kept) - RECEIPTS_KEPT)]:
            path.unlink(missing_ok=True)


def _file_name(workload: str, attempt: int, kind: str) -> str:
    return f"{workload}.{attempt}.{kind}.json"
