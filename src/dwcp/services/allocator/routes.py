"""The allocator's routes over one `Desk`, which holds what little the service remembers."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI, Request, Response

from dwcp.allocation.decide import PolicyUnknown, decide
from dwcp.allocation.fleet import FleetMalformed
from dwcp.allocation.heuristics import HEURISTICS, Links
from dwcp.allocation.reservations import Reservations
from dwcp.api.allocator import (
    NODES_MAX,
    ModelInfo,
    NodeState,
    PlaceAnswer,
    PlaceRequest,
    Released,
    ReleaseRequest,
    SeenNode,
    SeenNodes,
)
from dwcp.api.workloads import Capacity
from dwcp.runtime.clock import Clock, boottime_ns
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.http import Refusal, json_response
from dwcp.runtime.telemetry import Telemetry
from dwcp.services import bodies

PLACE_PATH, RELEASE_PATH = "/v1/place", "/v1/release"
NO_MODEL = "no learned model is loaded; placements come from the heuristic named in `policy`"
_NOTHING = Capacity(cpu_milli=0, memory_mib=0, storage_mib=0, bandwidth_mbps=0)


class Desk:
    """Answers placement requests; remembers reservations and the nodes of the last request."""

    def __init__(
        self,
        *,
        policy: str,
        reservation_ms: int,
        clock: Clock,
        telemetry: Telemetry,
        links: Links | None = None,
    ) -> None:
        self.policy = policy
        self._links = links or {}
        self._clock = clock
        self._telemetry = telemetry
        self._reservations = Reservations(ttl_ms=reservation_ms)
        self._seen: tuple[NodeState, ...] = ()
        self._seen_ms: int | None = None
        self._show_zeros()

    def place(self, wanted: PlaceRequest) -> PlaceAnswer:
        """Raises `FleetMalformed`, `PolicyUnknown`."""
        if len(wanted.nodes) > NODES_MAX:
            raise FleetMalformed(f"nodes: {len(wanted.nodes)}; at most {NODES_MAX} in one request")
        started_ns, now_ms = boottime_ns(), self._clock.now_ms()
        reserved = self._reservations.by_node(wanted.nodes, workload=wanted.workload, now_ms=now_ms)
        chosen = msgspec.structs.replace(wanted, policy=wanted.policy or self.policy)
        answer = decide(chosen, reserved=reserved, links=self._links)
        self._seen, self._seen_ms = wanted.nodes, now_ms
        if answer.node:
            self._reservations.reserve(wanted.workload, answer.node, wanted.demand, now_ms=now_ms)
        self._count(answer, (boottime_ns() - started_ns) / 1e9)
        return answer

    def release(self, workload: str) -> bool:
        return self._reservations.release(workload)

    def nodes(self) -> SeenNodes:
        now_ms = self._clock.now_ms()
        current = self._reservations.current(now_ms=now_ms)
        reserved = self._reservations.by_node(self._seen, workload="", now_ms=now_ms)
        seen = tuple(SeenNode(node=node, reserved=reserved.get(node.name, _NOTHING)) for node in self._seen)
        age_ms = -1 if self._seen_ms is None else max(0, now_ms - self._seen_ms)
        return SeenNodes(nodes=seen, reservations=current, age_ms=age_ms)

    def model(self) -> ModelInfo:
        return ModelInfo(
            model="none", detail=NO_MODEL, policy=self.policy, policies=tuple(sorted(HEURISTICS))
        )

    def _count(self, answer: PlaceAnswer, took_s: float) -> None:
        self._telemetry.count("dwcp_maddpg_optimization_total", policy=answer.policy)
        self._telemetry.observe("dwcp_maddpg_optimization_seconds", took_s)
        if not answer.node:
            reasons = {mask.reason for candidate in answer.candidates for mask in candidate.masks}
            for reason in sorted(reasons):
                self._telemetry.count("dwcp_maddpg_optimization_infeasible_total", resource=reason)

    def _show_zeros(self) -> None:
        """A query finds every series before its first event."""
        for policy in HEURISTICS:
            self._telemetry.touch("dwcp_maddpg_optimization_total", policy=policy)
        for reason in ("cpu_milli", "memory_mib", "storage_mib", "bandwidth_mbps", "status", "site"):
            self._telemetry.touch("dwcp_maddpg_optimization_infeasible_total", resource=reason)
        self._telemetry.touch("dwcp_maddpg_optimization_seconds")
        self._telemetry.gauge("dwcp_maddpg_optimization_reward", 0)


def add_routes(app: FastAPI, desk: Desk) -> None:
    """`/v1/place`, `/v1/release`, `/v1/nodes`, `/v1/model`."""

    async def place(request: Request) -> Response:
        failpoint("allocator.place.before")
        wanted = await bodies.read(request, PlaceRequest)
        try:
            answer = desk.place(wanted)
        except (FleetMalformed, PolicyUnknown) as exc:
            raise Refusal(422, "malformed", str(exc)) from exc
        failpoint("allocator.place.after")
        return json_response(answer)

    async def release(request: Request) -> Response:
        wanted = await bodies.read(request, ReleaseRequest)
        return json_response(Released(released=desk.release(wanted.workload)))

    async def nodes() -> Response:
        return json_response(desk.nodes())

    async def model() -> Response:
        return json_response(desk.model())

    app.add_api_route(PLACE_PATH, place, methods=["POST"], response_model=None)
    app.add_api_route(RELEASE_PATH, release, methods=["POST"], response_model=None)
    app.add_api_route("/v1/nodes", nodes, methods=["GET"], response_model=None)
    app.add_api_route("/v1/model", model, methods=["GET"], response_model=None)
