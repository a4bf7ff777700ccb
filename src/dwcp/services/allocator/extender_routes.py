"""The allocator as a kube-scheduler extender: `filter` and `prioritize`.

The types of k8s.io/kube-scheduler/extender/v1 have no JSON tags, so their fields are written as in Go (`NodeNames`),
and read in any case, as Go reads them. A node that the fleet knows is judged by the fleet; one that only the request
describes has what its status says is allocatable, as the scheduler has done its own accounting. Nothing is reserved:
the scheduler binds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
from fastapi import FastAPI, Request, Response

from dwcp.allocation.fleet import QUANTITY_MAX
from dwcp.api.allocator import Candidate, Mask, NodeState, PlaceRequest
from dwcp.api.workloads import Capacity
from dwcp.runtime.http import json_response
from dwcp.services.allocator.desk import Desk

FILTER_PATH, PRIORITIZE_PATH = "/extender/filter", "/extender/prioritize"
PURE_PATHS = (FILTER_PATH, PRIORITIZE_PATH)
SCORE_MAX = 10  # MaxExtenderPriority
SITE_LABEL = "topology.kubernetes.io/region"
MIB = 2**20
_FINAL = frozenset({"status", "site"})  # reasons that preemption does not change
_SUFFIX = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip
_QUANTITY = re.compile(r"([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)(?:[eE]([+-]?[0-9]{1,2}))?([A-Za-z]{0,2})")

Json = Mapping[str, Any]  # Any: Kubernetes' objects, of which a few fields are read


class ExtenderMalformed(ValueError):
    """The request is none that a kube-scheduler sends."""


def add_extender_routes(app: FastAPI, desk: Desk) -> None:
    """Answers are 200 with `Error` filled where the request cannot be used, as the scheduler expects."""

    async def filtered(request: Request) -> Response:
        try:
            return json_response(filter_nodes(desk, _read(await request.body())))
        except ValueError as exc:
            return json_response({"Error": str(exc)})

    async def prioritized(request: Request) -> Response:
        try:
            return json_response(prioritize(desk, _read(await request.body())))
        except ValueError as exc:
            return json_response({"Error": str(exc)}, 400)  # a HostPriorityList has no place for an error

    app.add_api_route(FILTER_PATH, filtered, methods=["POST"], response_model=None)
    app.add_api_route(PRIORITIZE_PATH, prioritized, methods=["POST"], response_model=None)


def filter_nodes(desk: Desk, args: Json) -> dict[str, Any]:
    """ExtenderFilterResult. Raises `ExtenderMalformed`, `FleetMalformed`, `FleetStale`."""
    names, items = _nodes(args)
    verdicts = _judged(desk, args, names, items)
    fits = [name for name in names if not verdicts[name].masks]
    failed: dict[str, str] = {}
    final: dict[str, str] = {}
    for name in names:
        masks = verdicts[name].masks
        if masks:
            hopeless = any(mask.reason in _FINAL for mask in masks)
            (final if hopeless else failed)[name] = "; ".join(
                mask.detail or f"{mask.reason}: {mask.free} free of {mask.needed} needed" for mask in masks
            )
    found: dict[str, Any] = {"FailedNodes": failed, "FailedAndUnresolvableNodes": final, "Error": ""}
    if items is None:
        return found | {"Nodes": None, "NodeNames": fits}
    return found | {"Nodes": {"items": [items[name] for name in fits]}, "NodeNames": None}


def prioritize(desk: Desk, args: Json) -> list[dict[str, Any]]:
    """HostPriorityList: 0 … 10, the best feasible node 10. Raises as `filter_nodes`."""
    names, items = _nodes(args)
    verdicts = _judged(desk, args, names, items)
    scores = {name: verdicts[name].score for name in names if not verdicts[name].masks}
    low, high = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    span = high - low
    return [
        {
            "Host": name,
            "Score": 0
            if name not in scores
            else SCORE_MAX
            if span <= 0
            else _scaled(scores[name], low, span),
        }
        for name in names
    ]


def quantity(text: Any) -> float:  # Any: whatever stands in the object
    """A Kubernetes quantity such as "500m", "1Gi" or 2. Raises `ExtenderMalformed`."""
    if isinstance(text, int | float) and not isinstance(text, bool) and np.isfinite(text):
        return float(text)
    found = _QUANTITY.fullmatch(text) if isinstance(text, str) and len(text) < 64 else None
    if found is None or found[3] not in _SUFFIX:
        raise ExtenderMalformed(f"{str(text)[:40]!r} is no quantity")
    return float(found[1]) * 10.0 ** int(found[2] or 0) * _SUFFIX[found[3]]


def _scaled(score: float, low: float, span: float) -> int:
    return round((score - low) / span * SCORE_MAX)


def _judged(desk: Desk, args: Json, names: list[str], items: dict[str, Json] | None) -> dict[str, Candidate]:
    """A verdict on each node of the request; a name that nobody described is masked."""
    pod = _field(args, "Pod")
    if not isinstance(pod, Mapping):
        raise ExtenderMalformed("Pod is missing")
    asked_for = set(names)
    known = {node.name for node in desk.fleet.nodes() if node.name in asked_for}
    described = {name: _state(name, items[name]) for name in names if items is not None and name not in known}
    demand = pod_demand(pod)
    meta = _part(pod, "metadata")
    workload = f"{meta.get('namespace', '')}/{meta.get('name', '')}"
    found: dict[str, Candidate] = {}
    if known:
        asked = PlaceRequest(workload=workload, demand=demand, fleet=desk.revision)
        found |= {one.node: one for one in desk.simulate(asked).candidates if one.node in known}
    if described:
        asked = PlaceRequest(workload=workload, demand=demand, nodes=tuple(described.values()))
        found |= {one.node: one for one in desk.simulate(asked).candidates}
    return found | {name: _unknown(name) for name in names if name not in found}


def pod_demand(pod: Json) -> Capacity:
    """What the pod asks for: the sum over its containers and sidecars (init containers that go on), or what one of
    its other init containers needs beside the sidecars before it; and overhead."""
    spec = _part(pod, "spec")
    running = [_requests(container) for container in _list(spec, "containers")]
    first = [(_requests(one), one.get("restartPolicy") == "Always") for one in _list(spec, "initContainers")]
    overhead = _part(spec, "overhead")
    totals = {}
    for name in ("cpu", "memory", "ephemeral-storage"):
        sidecars = most = 0.0
        for asked, stays in first:
            own = asked.get(name, 0.0)
            most = max(most, sidecars + own)
            sidecars += own if stays else 0.0
        whole = sum(one.get(name, 0.0) for one in running) + sidecars
        totals[name] = max(whole, most) + (quantity(overhead[name]) if name in overhead else 0.0)
    return _capacity(totals["cpu"], totals["memory"], totals["ephemeral-storage"], up=True)


def _requests(container: Json) -> dict[str, float]:
    found = _part(_part(container, "resources"), "requests")
    return {name: quantity(found[name]) for name in ("cpu", "memory", "ephemeral-storage") if name in found}


def _state(name: str, item: Json) -> NodeState:
    """A node as its own object shows it."""
    labels = _part(_part(item, "metadata"), "labels")
    has = _part(_part(item, "status"), "allocatable")
    amounts = [quantity(has.get(resource, 0)) for resource in ("cpu", "memory", "ephemeral-storage")]
    return NodeState(name=name, site=str(labels.get(SITE_LABEL, "")), capacity=_capacity(*amounts, up=False))


def _capacity(cpu: float, memory: float, storage: float, *, up: bool) -> Capacity:
    """Demand rounds up, capacity down: what is promised is there."""
    rounded = np.ceil if up else np.floor
    amounts = [
        int(rounded(min(max(one, 0.0), float(QUANTITY_MAX))))
        for one in (cpu * 1000, memory / MIB, storage / MIB)
    ]
    return Capacity(amounts[0], amounts[1], amounts[2], 0)


def _unknown(name: str) -> Candidate:
    return Candidate(
        node=name, masks=(Mask(reason="status", detail=f"{name} is not known to the allocator"),)
    )


def _nodes(args: Json) -> tuple[list[str], dict[str, Json] | None]:
    """The names in order, and the objects where the scheduler sent them."""
    names = _field(args, "NodeNames")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return list(dict.fromkeys(names)), None
    items = _list(_field(args, "Nodes") or {}, "items")
    found = {str(_part(item, "metadata").get("name", "")): item for item in items}
    if "" in found:
        raise ExtenderMalformed("Nodes: an item has no name")
    return list(found), found


def _read(body: bytes) -> Json:
    try:
        args = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise ExtenderMalformed(f"the body is no ExtenderArgs: {exc}") from exc
    if not isinstance(args, Mapping):
        raise ExtenderMalformed("the body is no ExtenderArgs")
    return args


def _field(args: Json, name: str) -> Any:  # Any: as it was sent
    return next((value for key, value in args.items() if key.lower() == name.lower()), None)


def _part(whole: Any, name: str) -> Json:  # Any: as it was sent
    found = whole.get(name) if isinstance(whole, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _list(whole: Any, name: str) -> Iterable[Json]:  # Any: as it was sent
    found = whole.get(name) if isinstance(whole, Mapping) else None
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
