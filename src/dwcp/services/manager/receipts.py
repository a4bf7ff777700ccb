"""Receipts on disk: one file each, written once, so that they outlive the manager and its memory."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from dwcp.api.manager import StoredReceipt
from dwcp.api.workloads import State
from dwcp.consensus.ledger import receipts
from dwcp.consensus.ledger.genesis import Genesis
from dwcp.control.proof import OBSERVED, proven_state
from dwcp.runtime.layout import ensure
from dwcp.services.manager.ports import ReceiptUnwanted

KINDS = frozenset(state.value for state in State) | frozenset(OBSERVED + state.value for state in State)
_FILE = re.compile(r"([0-9]{1,9})-([a-z-]+)\.json")
_IDENTITY = re.compile(r"w-[a-z2-7]{10}")


def proof_needed(genesis: Genesis) -> Callable[[StoredReceipt, str], None]:
    """What is asked of a receipt that an agent hands in.

    The first of a kind stays, so a forged one would keep the true one away: its signatures are checked
    here, and that it proves what it is filed as, of an attempt of that agent's node.
    """

    def prove(stored: StoredReceipt, node: str) -> None:
        try:
            facts = receipts.verify(receipts.decode(msgspec.json.encode(stored.receipt)), genesis)
        except receipts.ReceiptInvalid as exc:
            raise ReceiptUnwanted(f"the receipt of {stored.workload[:40]!r} proves nothing: {exc}") from exc
        proven = proven_state(facts.operation, facts.result, workload=stored.workload)
        if proven is None or not proven.is_filed_as(stored.kind, stored.attempt):
            raise ReceiptUnwanted(
                f"the receipt does not prove that {stored.workload[:40]!r} is {stored.kind[:40]!r}"
                f" in attempt {stored.attempt}"
            )
        if proven.state.node not in ("", node):
            raise ReceiptUnwanted(f"the receipt is about work of {proven.state.node}, not of {node}")

    return prove


class ReceiptFiles:
    """`FOLDER/WORKLOAD/ATTEMPT-KIND.json`. The first of a kind stays; its readers verify it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def keep(self, receipt: StoredReceipt) -> None:
        """Durable when it returns. Raises `ReceiptUnwanted` for names that could leave the folder."""
        if not _IDENTITY.fullmatch(receipt.workload) or receipt.kind not in KINDS or receipt.attempt < 0:
            raise ReceiptUnwanted(
                f"receipt of {receipt.workload[:40]!r}, attempt {receipt.attempt}, kind {receipt.kind[:40]!r}"
            )
        await asyncio.to_thread(self._write, receipt)

    def has(self, workload: str, attempt: int, kind: str) -> bool:
        return (self._folder / workload / f"{attempt}-{kind}.json").exists()

    async def of(self, workload: str) -> list[StoredReceipt]:
        """In the order in which they were stored."""
        if not _IDENTITY.fullmatch(workload):
            return []
        return await asyncio.to_thread(self._read, workload)

    def _write(self, receipt: StoredReceipt) -> None:
        folder = ensure(self._folder / receipt.workload)
        path = folder / f"{receipt.attempt}-{receipt.kind}.json"
        if path.exists():
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(receipt))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)

    def _read(self, workload: str) -> list[StoredReceipt]:
        folder = self._folder / workload
        files = [path for path in folder.glob("*.json") if _FILE.fullmatch(path.name)]
        found = []
        for path in sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name)):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=StoredReceipt))
            except msgspec.DecodeError:
                continue  # a damaged copy is as good as none: the fact itself is in the log
        return found
