"""The manager over HTTP, in process: statuses, sentences, who may report, long polls, breakers, receipts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from tests.unit.services.manager.stage import START_MS, FakeLog, add_node, coordinator, finish

from dwcp.api import manager as api
from dwcp.api import rebalance as moves_api
from dwcp.api.manager import EventKind, Report, StoredReceipt, Submission
from dwcp.api.rebalance import Move, Order, Plan, PlanRequest, RebalanceView, Wish
from dwcp.api.requests import Request, answer, refusal
from dwcp.api.workloads import Demand, Job, Place, State
from dwcp.control.breaker import BreakerLimits
from dwcp.runtime.clock import ManualClock
from dwcp.runtime.http import Health, application
from dwcp.runtime.principals import ANONYMOUS, Principal, of_certificate
from dwcp.runtime.telemetry import Telemetry
from dwcp.runtime.tokens import Role
from dwcp.services.manager.dependencies import AllocatorOrLocal, Dependencies
from dwcp.services.manager.events import RING_MAX, Events
from dwcp.services.manager.ports import LogRefused, LogUnreachable, ReceiptUnwanted
from dwcp.services.manager.receipts import ReceiptFiles
from dwcp.services.manager.routes import Desk, add_routes

ID = "w-aaaaaaaaaa"
AGENT = of_certificate("dwcp-agent-oslo")
JOB = Job(name="j", demand=Demand(cpu=1, memory_mib=64, storage_mib=64), run=("true",))


class Service:
    """The manager's app over a log in memory; `caller` is who asks."""

    def __init__(self, folder: Path) -> None:
        self.log = FakeLog()
        add_node(self.log, "oslo")
        self.events = Events(boot_ms=START_MS)
        self.receipts = ReceiptFiles(folder)
        self.clock = ManualClock()
        telemetry = Telemetry("dwcp-manager", version="0")
        self.dependencies = Dependencies(
            limits=BreakerLimits(),
            clock=self.clock,
            telemetry=telemetry,
            probe_ms=10_000,
            client=httpx.AsyncClient(transport=httpx.MockTransport(self.dependency)),
        )
        self.answers: Callable[[httpx.Request], httpx.Response] = lambda _request: httpx.Response(200)
        self.manager = coordinator(self.log, events=self.events)
        finish(self.manager.refresh(linearizable=True))
        self.woken = 0
        self.caller = ANONYMOUS
        self.app = application(Health("dwcp-manager", version="0"), telemetry)
        desk = Desk(
            coordinator=self.manager,
            dependencies=self.dependencies,
            events=self.events,
            receipts=self.receipts,
            prove=self.prove,
            telemetry=telemetry,
            wake=self.wake,
        )
        add_routes(self.app, desk)

    def prove(self, receipt: StoredReceipt, node: str) -> None:
        """Stands for the check of signatures: `test_receipts.py` has the real one."""
        if receipt.receipt.get("forged") or node != "oslo":
            raise ReceiptUnwanted("it proves nothing")

    def wake(self) -> None:
        self.woken += 1

    def dependency(self, request: httpx.Request) -> httpx.Response:
        return self.answers(request)

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        """Stands for the gate, which has its own tests."""
        scope.setdefault("state", {})["principal"] = self.caller
        await self.app(scope, receive, send)

    async def exchange(self, wanted: Request) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.asgi)
        async with httpx.AsyncClient(transport=transport, base_url="http://manager") as client:
            return await client.request(
                wanted.method, wanted.path, content=wanted.body, headers=wanted.headers
            )

    def send(self, wanted: Request) -> httpx.Response:
        return asyncio.run(self.exchange(wanted))


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "receipts")


def test_a_submission_from_first_to_last(service: Service) -> None:
    """Goal: 201, then 200 for the same, 409 for another job, and it is listed. Method: post and read."""
    wanted = Submission(id=ID, job=JOB)

    assert service.send(api.submit(wanted)).status_code == 201
    assert service.send(api.submit(wanted)).status_code == 200
    other = msgspec.structs.replace(wanted, job=msgspec.structs.replace(JOB, priority=5))
    clash = service.send(api.submit(other))
    assert (clash.status_code, refusal(clash.content, status=409).code) == (409, "workload_exists")
    listed = answer(api.WorkloadList, service.send(api.workloads()).content).workloads
    assert [view.id for view in listed] == [ID]
    one = answer(api.WorkloadView, service.send(api.workload(ID)).content)
    assert (one.state.state, one.submitted_by) == (State.PENDING, "anonymous")
    assert service.woken == 2


def test_a_list_is_bounded_and_says_what_it_left_out(service: Service) -> None:
    """Goal: a long history does not make a long answer. Method: three workloads, one ended; ask for two."""
    for letter in "abc":
        service.send(api.submit(Submission(id=f"w-{letter * 10}", job=JOB)))
        service.log.now_ms += 1
    service.send(api.cancel("w-" + "c" * 10))

    newest = answer(api.WorkloadList, service.send(api.workloads(limit=2)).content)
    assert ([view.id[2] for view in newest.workloads], newest.total) == (["b", "c"], 3)
    active = answer(api.WorkloadList, service.send(api.workloads(active=True, limit=1)).content)
    assert ([view.id[2] for view in active.workloads], active.total) == (["b"], 2)
    assert service.send(Request("GET", "/api/v1/workloads?limit=100000")).status_code == 422


@pytest.mark.parametrize(
    ("demand", "code", "word"),
    [
        (Demand(cpu=99, memory_mib=1, storage_mib=1), "demand_impossible", "demand.cpu"),
        (Demand(cpu=1, memory_mib=-1, storage_mib=1), "job_refused", "demand.memory_mib"),
    ],
)
def test_bad_jobs_get_a_sentence(service: Service, demand: Demand, code: str, word: str) -> None:
    """Goal: 422 naming the key. Method: jobs that the command line would have refused."""
    got = service.send(api.submit(Submission(id=ID, job=msgspec.structs.replace(JOB, demand=demand))))

    assert got.status_code == 422
    assert refusal(got.content, status=422).code == code
    assert word in refusal(got.content, status=422).detail


@pytest.mark.parametrize("body", [b"", b"nope", b"\xff", b'{"id": "w-aaaaaaaaaa"}', b"[" * 5000])
def test_junk_is_refused_on_every_route_that_reads(service: Service, body: bytes) -> None:
    """Goal: a sentence, never a traceback. Method: junk as body of each POST."""
    service.caller = AGENT
    for path in ("/api/v1/workloads", "/api/v1/receipts", "/api/v1/events"):
        assert service.send(Request("POST", path, body)).status_code == 422, path


@pytest.mark.parametrize("query", ["after=x", "after=-1", "wait_s=nan", "wait_s=1e9", "after=1e400"])
def test_bad_queries_are_refused(service: Service, query: str) -> None:
    """Goal: bounded numbers only. Method: words, negatives, NaN, infinity."""
    assert service.send(Request("GET", f"/api/v1/events?{query}")).status_code == 422


def test_unknown_things_are_404(service: Service) -> None:
    """Goal: a sentence that names what is missing. Method: one of each kind."""
    for wanted in (
        api.workload("w-zzzzzzzzzz"),
        api.workload("../../etc/passwd"),
        api.cancel("w-zzzzzzzzzz"),
        api.drain("kyoto"),
        api.reset_breaker("nobody"),
    ):
        got = service.send(wanted)
        assert got.status_code == 404, wanted
        assert refusal(got.content, status=404).detail


def test_cancel_and_drain(service: Service) -> None:
    """Goal: both act and answer with the new view; a second cancel is refused. Method: over HTTP."""
    service.send(api.submit(Submission(id=ID, job=JOB)))

    assert answer(api.WorkloadView, service.send(api.cancel(ID)).content).state.state is State.CANCELLED
    assert service.send(api.cancel(ID)).status_code == 409
    assert answer(api.NodeView, service.send(api.drain("oslo")).content).node.status.value == "draining"
    assert (
        answer(api.NodeView, service.send(api.drain("oslo", undo=True)).content).node.status.value == "ready"
    )
    bare = Request("POST", "/api/v1/nodes/oslo/drain")
    assert answer(api.NodeView, service.send(bare).content).node.status.value == "draining"


def test_an_unreachable_log_is_503_and_a_refusing_one_502(service: Service) -> None:
    """Goal: not known is said as such. Method: both failures of the log."""
    service.log.failing = LogUnreachable("no answer within 10 s")
    got = service.send(api.submit(Submission(id=ID, job=JOB)))
    assert (got.status_code, refusal(got.content, status=503).code) == (503, "indeterminate")
    service.log.failing = LogRefused("no_space")
    assert service.send(api.submit(Submission(id=ID, job=JOB))).status_code == 502


def test_only_agents_report(service: Service) -> None:
    """Goal: neither a person's token nor another process forges events or receipts. Method: post as each."""
    report = Report(workload=ID, kind=EventKind.SHIPPING, node="oslo", fields={"bytes": 5, "total": 10})
    receipt = StoredReceipt(workload=ID, attempt=1, kind="done", receipt={})
    for caller in (Principal("ann", "person", Role.ADMIN), of_certificate("compression-api")):
        service.caller = caller
        assert service.send(api.report((report,))).status_code == 403
        assert service.send(api.keep_receipt(receipt)).status_code == 403

    service.caller = AGENT
    assert service.send(api.report((report,))).status_code == 200
    assert service.send(api.keep_receipt(receipt)).status_code == 200
    events = answer(api.EventList, service.send(api.events(workload=ID)).content).events
    assert [(event.source, event.report.kind) for event in events] == [(AGENT.name, EventKind.SHIPPING)]
    transfers = answer(api.TransferList, service.send(api.transfers()).content).transfers
    assert [(moved.bytes, moved.total, moved.finished) for moved in transfers] == [(5, 10, False)]
    assert service.send(api.report((report,) * 300)).status_code == 422


def test_an_agent_speaks_of_its_own_work_alone(service: Service) -> None:
    """Goal: one agent cannot tell of another's node or attempt, nor fill the memory.
    Method: its own report among foreign ones, one about an attempt placed elsewhere, and a long one."""
    add_node(service.log, "rome")
    finish(service.manager.refresh(linearizable=True))
    service.send(api.submit(Submission(id=ID, job=msgspec.structs.replace(JOB, place=Place(site="rome")))))
    finish(service.manager.step())
    service.caller = AGENT
    good = Report(workload="w-bbbbbbbbbb", kind=EventKind.NOTE, node="oslo", attempt=1)
    reports = (
        good,
        msgspec.structs.replace(good, node="rome"),
        msgspec.structs.replace(good, workload=ID, kind=EventKind.DONE),
        msgspec.structs.replace(good, fields={"reason": "x" * 100_000}),
        msgspec.structs.replace(good, fields={str(n): n for n in range(1000)}),
    )

    assert service.send(api.report(reports)).json() == {"kept": 1}
    told = [event.report for event in service.events.after(0).events if event.source == AGENT.name]
    assert told == [good]


def test_a_forged_receipt_is_refused(service: Service) -> None:
    """Goal: junk never takes the place of the true receipt. Method: one that proves nothing; nothing is kept."""
    service.caller = AGENT
    forged = StoredReceipt(workload=ID, attempt=1, kind="done", receipt={"forged": 1})

    assert service.send(api.keep_receipt(forged)).status_code == 422
    assert asyncio.run(service.receipts.of(ID)) == []


@pytest.mark.parametrize("field", [{"workload": "../x"}, {"kind": "../../x"}, {"attempt": -1}])
def test_receipts_stay_in_their_folder(service: Service, field: dict[str, Any], tmp_path: Path) -> None:
    """Goal: names from outside never become paths. Method: climbing names; the folder stays empty."""
    service.caller = AGENT
    good = {"workload": ID, "attempt": 1, "kind": "done", "receipt": {}}

    got = service.send(Request("POST", "/api/v1/receipts", msgspec.json.encode(good | field)))

    assert got.status_code == 422
    assert not list(tmp_path.rglob("*.json"))


def test_the_first_receipt_stays_and_survives_a_restart(service: Service, tmp_path: Path) -> None:
    """Goal: durable and not replaceable. Method: two of one kind, read through a new store."""
    for number in (1, 2):
        asyncio.run(
            service.receipts.keep(StoredReceipt(workload=ID, attempt=1, kind="done", receipt={"n": number}))
        )
    (tmp_path / "receipts" / ID / "2-done.json").write_bytes(b"torn")

    again = ReceiptFiles(tmp_path / "receipts")
    assert [kept.receipt for kept in asyncio.run(again.of(ID))] == [{"n": 1}]
    assert again.has(ID, 1, "done")
    assert asyncio.run(again.of("../receipts")) == []


def test_a_long_poll_ends_with_the_first_event(service: Service) -> None:
    """Goal: readers hear at once, and only of their workload. Method: append while a reader waits."""

    async def scenario() -> tuple[api.EventList, api.EventList]:
        waiting = asyncio.create_task(service.exchange(api.events(workload=ID, wait_s=30)))
        await asyncio.sleep(0)
        service.events.append("t", Report(workload="w-bbbbbbbbbb", kind=EventKind.NOTE))
        service.events.append("t", Report(workload=ID, kind=EventKind.NOTE))
        first = answer(api.EventList, (await waiting).content)
        ended = asyncio.create_task(service.exchange(api.events(after=first.next_after, wait_s=30)))
        await asyncio.sleep(0)
        service.events.close()
        return first, answer(api.EventList, (await ended).content)

    first, last = asyncio.run(scenario())
    assert [event.report.workload for event in first.events] == [ID]
    assert last.events == ()
    assert last.next_after >= first.next_after


def test_a_reader_that_fell_behind_is_told() -> None:
    """Goal: lost events are said to be lost; sequences grow over restarts. Method: overflow the ring."""
    events = Events(boot_ms=START_MS)
    first = events.append("t", Report(workload=ID, kind=EventKind.NOTE)).sequence
    for _ in range(RING_MAX + 5):
        events.append("t", Report(workload=ID, kind=EventKind.NOTE))

    assert events.after(first).lost
    assert not events.after(0).lost
    page = events.after(0)
    assert len(page.events) == 1_000
    assert page.next_after == page.events[-1].sequence
    assert Events(boot_ms=START_MS + 60_000).append(
        "t", Report(workload=ID, kind=EventKind.NOTE)
    ).sequence > (page.next_after)


def test_breakers_open_by_probes_and_are_reset_by_people(service: Service) -> None:
    """Goal: five failed probes open, a reset closes, an answering probe makes reachable. Method: probe."""

    def refuse(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    service.answers = refuse
    for _ in range(5):
        asyncio.run(service.dependencies.probe({"oslo": "https://oslo"}))
    states = answer(api.BreakerList, service.send(api.breakers()).content).breakers
    assert [(view.name, view.state, view.failures) for view in states] == [("oslo", "open", 5)]
    assert service.dependencies.unreachable() == {"oslo"}
    nodes = answer(api.NodeList, service.send(api.nodes()).content).nodes
    assert (nodes[0].reach.value, "refused" in nodes[0].reach_detail) == ("unreachable", True)

    assert answer(api.BreakerList, service.send(api.reset_breaker()).content).breakers[0].state == "closed"
    service.answers = lambda _request: httpx.Response(200, json={})
    asyncio.run(service.dependencies.probe({"oslo": "https://oslo"}))
    assert service.dependencies.unreachable() == frozenset()


def test_a_dependency_that_comes_back_closes_its_breaker_by_probes_alone(service: Service) -> None:
    """Goal: nobody must reset by hand. Method: open it, let it answer, probe every ten seconds."""
    service.answers = lambda _request: httpx.Response(500)
    for _ in range(5):
        asyncio.run(service.dependencies.probe({"oslo": "https://oslo"}))
    service.answers = lambda _request: httpx.Response(200)
    for _ in range(5):
        service.clock.advance(10_000)
        asyncio.run(service.dependencies.probe({"oslo": "https://oslo"}))

    assert service.dependencies.views()[0].state == "closed"


def _allocator(service: Service, noted: list[str]) -> AllocatorOrLocal:
    return AllocatorOrLocal(
        service.dependencies, url="https://allocator", timeout_s=1, plan_timeout_s=1, noted=noted.append
    )


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(500, text="broken"),
        httpx.Response(200, text="{}"),
        httpx.Response(200, content=b"\xff"),
        httpx.Response(200, content=b"x" * (9 * 2**20)),
    ],
)
def test_without_a_sane_allocator_the_manager_places_alone(
    service: Service, response: httpx.Response
) -> None:
    """Goal: placement never blocks on the allocator, and says so. Method: broken, odd and endless answers."""
    noted: list[str] = []
    service.answers = lambda _request: response
    placer = _allocator(service, noted)
    entry = finish(service.manager.submit(Submission(id=ID, job=JOB), by="t"))[0]

    got = asyncio.run(placer.place(service.manager._request(entry)))

    assert got.node == "oslo"
    assert "fallback" in got.policy
    assert noted


@pytest.mark.parametrize(
    "response",
    [httpx.Response(500), httpx.Response(200, content=b"[1]"), httpx.Response(200, content=b"{}")],
)
def test_plans_are_made_here_where_the_allocator_fails(service: Service, response: httpx.Response) -> None:
    """Goal: a drain never blocks on the allocator, and says so. Method: broken and odd answers, then a good one."""
    noted: list[str] = []
    service.answers = lambda _request: response
    planner = _allocator(service, noted)
    wanted = PlanRequest(nodes=())

    got = asyncio.run(planner.plan(wanted))
    told = msgspec.structs.replace(got, policy="told")
    service.answers = lambda _request: httpx.Response(200, content=msgspec.json.encode(told))

    assert "did not answer" in got.policy
    assert noted
    assert asyncio.run(planner.plan(wanted)).policy == "told"


def test_nothing_is_answered_before_the_log_was_read(service: Service) -> None:
    """Goal: an empty list is never shown for an unread log. Method: unload."""
    service.manager.loaded = False

    for wanted in (api.workloads(), api.workload(ID), api.nodes(), api.cancel(ID)):
        assert service.send(wanted).status_code == 503


def test_rebalance_is_planned_ordered_and_shown(service: Service) -> None:
    """Goal: the three routes and their refusals. Method: nothing to gain, an order that does not hold, no body."""
    service.caller = of_certificate("operator")
    plan = answer(Plan, service.send(moves_api.wish(Wish())).content)
    assert plan.moves == ()
    assert plan.reason
    refused = service.send(moves_api.order(Order("r1", (Move(ID, 1, "oslo", "rome"),))))
    assert (refused.status_code, refusal(refused.content, status=409).code) == (409, "rebalance_refused")
    assert answer(RebalanceView, service.send(moves_api.view()).content).rebalance.ended
