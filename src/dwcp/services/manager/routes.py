"""The manager's routes. They parse, call the coordinator, and map its refusals; they decide nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import FastAPI, Request, Response

from dwcp.api.manager import (
    EVENT_WAIT_S_MAX,
    EVENTS_PER_POST_MAX,
    WORKLOADS_PER_PAGE_MAX,
    BreakerList,
    BreakerReset,
    Drain,
    NodeList,
    ReceiptList,
    Report,
    Reports,
    StoredReceipt,
    Submission,
    TransferList,
    WorkloadList,
)
from dwcp.api.rebalance import Order, Wish
from dwcp.control import errors
from dwcp.runtime.http import Refusal, json_response, principal
from dwcp.runtime.telemetry import Telemetry
from dwcp.services import bodies
from dwcp.services.manager.coordinator import Coordinator
from dwcp.services.manager.dependencies import Dependencies
from dwcp.services.manager.events import Events
from dwcp.services.manager.ports import LogRefused, LogUnreachable, ReceiptStore, ReceiptUnwanted
from dwcp.services.manager.views import node_view, workload_view

RECEIPTS_PATH, EVENTS_PATH = "/api/v1/receipts", "/api/v1/events"
T = TypeVar("T")
FIELDS_MAX = 16
TEXT_MAX = 2_000
STATUS: dict[type[errors.ControlError], int] = {
    errors.DemandImpossible: 422,
    errors.JobRefused: 422,
    errors.WorkloadUnknown: 404,
    errors.NodeUnknown: 404,
    errors.WorkloadExists: 409,
    errors.WorkloadEnded: 409,
    errors.RebalanceRefused: 409,
    errors.RebalanceUnderWay: 409,
    errors.Contended: 503,
    errors.ClockSkewed: 503,
    errors.NotReady: 503,
}


class Desk:
    """Answers the routes; `wake` lets the loop decide at once.

    `prove` raises `ReceiptUnwanted` unless that receipt is genuine and about work of that node.
    """

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        dependencies: Dependencies,
        events: Events,
        receipts: ReceiptStore,
        prove: Callable[[StoredReceipt, str], None],
        telemetry: Telemetry,
        wake: Callable[[], None],
    ) -> None:
        self._coordinator = coordinator
        self._dependencies = dependencies
        self._events = events
        self._receipts = receipts
        self._prove = prove
        self._telemetry = telemetry
        self._wake = wake

    # ------------------------------------------------------------------ workloads

    async def submit(self, request: Request) -> Response:
        submission = await bodies.read(request, Submission)
        by = principal(request).name
        try:
            entry, made = await _mapped(self._coordinator.submit(submission, by=by))
        except Refusal as exc:
            self._telemetry.count("dwcp_manager_refused_total", reason=exc.code)
            raise
        self._wake()
        return json_response(workload_view(entry), 201 if made else 200)

    async def workloads(self, request: Request) -> Response:
        self._need_loaded()
        most = WORKLOADS_PER_PAGE_MAX
        limit = int(bodies.number(request, "limit", default=most, most=most))
        active = bodies.number(request, "active", default=0, most=1)
        inventory = self._coordinator.inventory
        found = inventory.active() if active else inventory.workloads()
        newest = found[max(0, len(found) - limit) :]
        views = tuple(workload_view(entry) for entry in newest)
        return json_response(WorkloadList(workloads=views, revision=inventory.revision, total=len(found)))

    async def workload(self, identity: str) -> Response:
        self._need_loaded()
        entry = self._coordinator.inventory.workload(identity)
        if entry is None:
            raise Refusal(404, "workload_unknown", f"there is no workload {identity[:40]!r}")
        return json_response(workload_view(entry))

    async def cancel(self, identity: str) -> Response:
        entry = await _mapped(self._coordinator.cancel(identity))
        self._wake()
        return json_response(workload_view(entry))

    async def receipts(self, identity: str) -> Response:
        return json_response(ReceiptList(receipts=tuple(await self._receipts.of(identity))))

    async def keep_receipt(self, request: Request) -> Response:
        node = _need_agent(request)
        receipt = await bodies.read(request, StoredReceipt)
        try:
            self._prove(receipt, node)
            await self._receipts.keep(receipt)
        except ReceiptUnwanted as exc:
            raise Refusal(422, "malformed", str(exc)) from exc
        except OSError as exc:
            raise Refusal(507, "no_space", f"the receipt cannot be stored: {exc.strerror}") from exc
        return json_response({"kept": True})

    # ------------------------------------------------------------------ nodes

    async def nodes(self) -> Response:
        self._need_loaded()
        inventory, known = self._coordinator.inventory, self._dependencies
        views = tuple(
            node_view(
                entry, known.reach(entry.name), known.watchlist.detail(entry.name), known.used(entry.name)
            )
            for entry in inventory.nodes()
        )
        return json_response(NodeList(nodes=views, revision=inventory.revision))

    async def drain(self, name: str, request: Request) -> Response:
        wanted = await bodies.read(request, Drain, empty=Drain())
        entry = await _mapped(self._coordinator.drain(name, undo=wanted.undo, keep=wanted.keep))
        self._wake()
        known = self._dependencies
        detail = known.watchlist.detail(name)
        return json_response(node_view(entry, known.reach(name), detail, known.used(name)))

    # ------------------------------------------------------------------ moves

    async def wish(self, request: Request) -> Response:
        wanted = await bodies.read(request, Wish, empty=Wish())
        return json_response(await _mapped(self._coordinator.wish(wanted)))

    async def order(self, request: Request) -> Response:
        wanted = await bodies.read(request, Order)
        view = await _mapped(self._coordinator.order(wanted, by=principal(request).name))
        self._wake()
        return json_response(view)

    async def rebalance(self) -> Response:
        self._need_loaded()
        return json_response(self._coordinator.moves.view())

    # ------------------------------------------------------------------ events

    async def events(self, request: Request) -> Response:
        after = int(bodies.number(request, "after", default=0, most=2**53))
        wait_s = bodies.number(request, "wait_s", default=0, most=EVENT_WAIT_S_MAX)
        workload = request.query_params.get("workload", "")
        return json_response(await self._events.wait_after(after, workload=workload, wait_s=wait_s))

    async def report(self, request: Request) -> Response:
        node = _need_agent(request)
        reports = (await bodies.read(request, Reports)).reports
        if len(reports) > EVENTS_PER_POST_MAX:
            raise Refusal(
                422, "too_many", f"at most {EVENTS_PER_POST_MAX} reports at once, got {len(reports)}"
            )
        own = [report for report in reports if self._is_own(report, node)]
        for report in own:
            self._events.append(principal(request).name, report)
        return json_response({"kept": len(own)})

    def _is_own(self, report: Report, node: str) -> bool:
        """Whether an agent may tell this: of its node, and of no attempt that is known to be elsewhere."""
        entry = self._coordinator.inventory.workload(report.workload)
        elsewhere = (
            entry is not None and entry.state.attempt == report.attempt and entry.state.node not in ("", node)
        )
        return report.node == node and not elsewhere and _is_short(report)

    async def transfers(self) -> Response:
        return json_response(TransferList(transfers=tuple(self._events.transfers())))

    # ------------------------------------------------------------------ breakers

    async def breakers(self) -> Response:
        return json_response(BreakerList(breakers=tuple(self._dependencies.views())))

    async def reset_breaker(self, request: Request) -> Response:
        wanted = await bodies.read(request, BreakerReset, empty=BreakerReset())
        if not self._dependencies.reset(wanted.name):
            names = ", ".join(view.name for view in self._dependencies.views()) or "none yet"
            raise Refusal(
                404, "breaker_unknown", f"no breaker is named {wanted.name[:60]!r}; there are: {names}"
            )
        self._wake()
        return await self.breakers()

    def _need_loaded(self) -> None:
        if not self._coordinator.loaded:
            raise Refusal(
                503, "not_ready", "the manager has not read the control log yet; try again in a moment"
            )


def add_routes(app: FastAPI, desk: Desk) -> None:
    """Every route beside those that all services have."""
    for method, path, route in (
        ("POST", "/api/v1/workloads", desk.submit),
        ("GET", "/api/v1/workloads", desk.workloads),
        ("GET", "/api/v1/workloads/{identity}", desk.workload),
        ("POST", "/api/v1/workloads/{identity}/cancel", desk.cancel),
        ("GET", "/api/v1/workloads/{identity}/receipts", desk.receipts),
        ("POST", RECEIPTS_PATH, desk.keep_receipt),
        ("GET", "/api/v1/nodes", desk.nodes),
        ("POST", "/api/v1/nodes/{name}/drain", desk.drain),
        ("POST", "/api/v1/rebalance:plan", desk.wish),
        ("POST", "/api/v1/rebalance", desk.order),
        ("GET", "/api/v1/rebalance", desk.rebalance),
        ("GET", EVENTS_PATH, desk.events),
        ("POST", EVENTS_PATH, desk.report),
        ("GET", "/api/v1/transfers", desk.transfers),
        ("GET", "/circuit-breaker/state", desk.breakers),
        ("POST", "/circuit-breaker/reset", desk.reset_breaker),
    ):
        app.add_api_route(path, route, methods=[method], response_model=None)


async def _mapped(work: Awaitable[T]) -> T:
    """The control plane's refusals as HTTP answers."""
    try:
        return await work
    except errors.ControlError as exc:
        raise Refusal(STATUS.get(type(exc), 400), exc.code, str(exc)) from exc
    except LogUnreachable as exc:
        detail = f"the control log did not answer, whether it happened is not known: {exc}; ask again"
        raise Refusal(503, "indeterminate", detail) from exc
    except LogRefused as exc:
        raise Refusal(502, "log_refused", f"the control log refused it: {exc}") from exc


def _is_short(report: Report) -> bool:
    """Many are kept in memory, so none may be long."""
    fields = report.fields
    texts = [report.workload, *fields, *(value for value in fields.values() if isinstance(value, str))]
    return len(fields) <= FIELDS_MAX and all(len(text) <= TEXT_MAX for text in texts)


def _need_agent(request: Request) -> str:
    """The node whose agent asks."""
    node = principal(request).node
    if not node:
        raise Refusal(403, "forbidden", "only an agent reports here, over mutual TLS, about its own node")
    return node
