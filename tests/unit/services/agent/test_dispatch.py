"""Events and receipts towards the manager: bounded, resumed, and kept apart from the work."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import structlog

from dwcp.api.manager import EventKind, Reports, StoredReceipt
from dwcp.runtime.clock import ManualClock
from dwcp.services.agent.dispatch import Dispatch

W = "w-aaaaaaaaaa"


@dataclass
class Manager:
    """The manager's two routes, in memory."""

    status: int = 200
    reports: list[str] = field(default_factory=list)
    receipts: list[StoredReceipt] = field(default_factory=list)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.status < 400 and request.url.path == "/api/v1/events":
            found = msgspec.json.decode(request.content, type=Reports)
            self.reports += [report.kind.value for report in found.reports]
        if self.status < 400 and request.url.path == "/api/v1/receipts":
            self.receipts.append(msgspec.json.decode(request.content, type=StoredReceipt))
        return httpx.Response(self.status)


def make(tmp_path: Path, manager: Manager) -> tuple[Dispatch, httpx.AsyncClient]:
    client = httpx.AsyncClient(transport=httpx.MockTransport(manager.answer))
    made = Dispatch(
        directory=tmp_path,
        node="rome",
        client=client,
        manager_url="https://manager",
        clock=ManualClock(),
        events_max=50,
        logger=structlog.get_logger("test"),
    )
    return made, client


def receipt(kind: str, attempt: int = 1) -> StoredReceipt:
    return StoredReceipt(W, attempt, kind, {"index": 1})


def unsent(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "unsent").iterdir())


def send(tmp_path: Path, manager: Manager, *kinds: str, events: int = 0) -> bool:
    async def story() -> bool:
        made, client = make(tmp_path, manager)
        async with client:
            for kind in kinds:
                made.keep(receipt(kind))
            for _ in range(events):
                made.tell(W, 1, EventKind.SHIPPING, bytes=1, total=2)
            return await made._send_all()

    return asyncio.run(story())


def test_receipts_wait_on_disk_until_the_manager_has_them(tmp_path: Path) -> None:
    """Goal: no receipt is lost to an absent manager. Method: refuse with 503, restart, accept."""
    manager = Manager(status=503)
    assert not send(tmp_path, manager, "running", "done")
    assert len(unsent(tmp_path)) == 2
    manager.status = 200
    assert send(tmp_path, manager)
    assert [stored.kind for stored in manager.receipts] == ["done", "running"]
    assert unsent(tmp_path) == []


def test_a_receipt_that_the_manager_will_never_take_is_not_sent_for_ever(tmp_path: Path) -> None:
    """Goal: no hot loop. Method: 400 for everything; the copy here stays, the queue empties."""
    assert send(tmp_path, Manager(status=400), "done")
    assert unsent(tmp_path) == []
    made, _ = make(tmp_path, Manager())
    assert made.has(W, 1, "done")
    assert made.of(W) == [receipt("done")]


def test_damaged_and_foreign_names_are_no_trouble(tmp_path: Path) -> None:
    """Goal: junk on disk and in requests costs nothing.
    Method: a damaged file, names with wildcards and dots."""
    send(tmp_path, Manager(), "done")
    (tmp_path / f"{W}.2.done.json").write_bytes(b"\xffjunk")
    made, _ = make(tmp_path, Manager())
    assert made.of(W) == [receipt("done")]
    for name in ("*", "../x", "", "w" * 200):
        assert made.of(name) == []


def test_events_are_bounded_while_the_manager_is_away(tmp_path: Path) -> None:
    """Goal: an absent manager costs bounded memory. Method: more events than are held, then a manager."""
    manager = Manager()
    assert send(tmp_path, manager, events=80)
    assert len(manager.reports) == 50
