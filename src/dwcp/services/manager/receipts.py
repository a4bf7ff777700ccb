"""Receipts on disk: one file each, written once, so that they outlive the manager and its memory."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import msgspec

from dwcp.api.manager import StoredReceipt
from dwcp.api.workloads import State
from dwcp.runtime.layout import ensure
from dwcp.services.manager.ports import ReceiptUnwanted

KINDS = frozenset(state.value for state in State) | frozenset(f"observed-{state.value}" for state in State)
_FILE = re.compile(r"([0-9]{1,9})-([a-z-]+)\.json")
_IDENTITY = re.compile(r"w-[a-z2-7]{10}")


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
