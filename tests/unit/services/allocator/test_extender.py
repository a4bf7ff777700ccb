"""The kube-scheduler extender against the request format of k8s.io/kube-scheduler/extender/v1."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.services.allocator.desks import Bench, nodes, with_model

from dwcp.api.allocator import NodesChange
from dwcp.runtime.http import Health, application
from dwcp.services.allocator.extender_routes import (
    FILTER_PATH,
    PRIORITIZE_PATH,
    ExtenderMalformed,
    add_extender_routes,
    pod_demand,
    quantity,
)

POD = {
    "metadata": {"name": "web-0", "namespace": "default", "uid": "1"},
    "spec": {
        "containers": [
            {
                "name": "a",
                "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"cpu": "2"}},
            },
            {
                "name": "b",
                "resources": {"requests": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1G"}},
            },
            {"name": "c"},
        ],
        "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "2", "memory": "64Mi"}}}],
        "overhead": {"cpu": "250m"},
    },
}


def post(bench: Bench, path: str, body: object) -> httpx.Response:
    app = application(Health("maddpg-allocator", version="0"), bench.telemetry)
    add_extender_routes(app, bench.desk)

    async def exchange() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://allocator") as client:
            return await client.post(
                path, content=body if isinstance(body, bytes) else msgspec.json.encode(body)
            )

    return asyncio.run(exchange())


def described(name: str, *, cpu: str = "8", memory: str = "16Gi") -> dict[str, Any]:
    """A v1.Node as the scheduler sends it, as far as it matters here."""
    allocatable = {"cpu": cpu, "memory": memory, "ephemeral-storage": "100Gi", "pods": "110"}
    return {
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/region": "eu"}},
        "status": {"allocatable": allocatable},
    }


def test_names_of_a_kept_fleet() -> None:
    """Goal: `nodeCacheCapable: true`. Method: one node too small, one draining, one that nobody knows."""
    bench = with_model()
    told = nodes(3)
    small = msgspec.structs.replace(
        told[1], capacity=msgspec.structs.replace(told[1].capacity, cpu_milli=1000)
    )
    bench.desk.change(NodesChange(upsert=(told[0], small, told[2]), drain=("n002",)))
    names = ["n000", "n001", "n002", "stranger"]
    found = post(bench, FILTER_PATH, {"Pod": POD, "Nodes": None, "NodeNames": names}).json()

    assert found["NodeNames"] == ["n000"]
    assert found["Nodes"] is None
    assert found["Error"] == ""
    assert found["FailedNodes"] == {"n001": "cpu_milli: 1000 free of 2250 needed"}
    assert set(found["FailedAndUnresolvableNodes"]) == {"n002", "stranger"}


def test_objects_of_a_scheduler_without_a_cache() -> None:
    """Goal: `nodeCacheCapable: false`: objects come and go whole. Method: one that fits, one that does not."""
    items = [described("big"), described("tiny", cpu="100m")]
    found = post(Bench(), FILTER_PATH, {"Pod": POD, "Nodes": {"items": items}, "NodeNames": None}).json()

    assert found["Nodes"]["items"] == [items[0]]
    assert found["NodeNames"] is None
    assert set(found["FailedNodes"]) == {"tiny"}


@pytest.mark.parametrize("key", ["NodeNames", "nodenames", "nodeNames"])
def test_priorities_are_whole_numbers_from_0_to_10(key: str) -> None:
    """Goal: HostPriorityList, in the order of the request; keys in any case, as Go reads them. Method: a kept fleet."""
    bench = with_model()
    bench.tell(nodes(6))
    names = [f"n{row:03}" for row in range(6)]
    found = post(bench, PRIORITIZE_PATH, {"pod": POD, key: names}).json()

    assert [one["Host"] for one in found] == names
    assert all(set(one) == {"Host", "Score"} and type(one["Score"]) is int for one in found)
    assert max(one["Score"] for one in found) == 10
    assert min(one["Score"] for one in found) >= 0
    assert bench.desk.model().decisions == 0, "the scheduler binds: nothing is counted or reserved"


def test_what_a_pod_asks_for() -> None:
    """Goal: the sum of the containers or one init container, and overhead, as the scheduler counts. Method: all of
    them."""
    demand = pod_demand(POD)

    assert demand.cpu_milli == 2250
    assert demand.memory_mib == 1536
    assert demand.storage_mib == 954, "a gigabyte, rounded up to whole MiB"


def test_sidecars_count_beside_the_containers_and_the_init_containers_after_them() -> None:
    """Goal: a pod with sidecars is no smaller than the scheduler holds it to be. Method: KEP-753's cases: an init
    container before the sidecar, and one after it."""

    def container(cpu: str, *, stays: bool = False) -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": cpu}}} | ({"restartPolicy": "Always"} if stays else {})

    for before, after, expected in (("3", "100m", 3000), ("100m", "3", 3500), ("1", "1", 1500)):
        first = [container(before), container("500m", stays=True), container(after)]
        pod = {"spec": {"containers": [container("1")], "initContainers": first}}
        assert pod_demand(pod).cpu_milli == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", 0.5),
        ("2", 2.0),
        ("1.5Gi", 1.5 * 2**30),
        ("12e3", 12_000.0),
        ("1k", 1000.0),
        (3, 3.0),
        ("100n", 1e-7),
    ],
)
def test_quantities(text: object, value: float) -> None:
    """Goal: Kubernetes' own notation. Method: each kind."""
    assert quantity(text) == pytest.approx(value)


@given(st.text(max_size=12) | st.none() | st.booleans() | st.floats(allow_nan=True))
def test_other_quantities_are_refused_or_finite(text: object) -> None:
    """Goal: nothing odd gets through. Method: anything."""
    try:
        assert abs(quantity(text)) < float("inf")
    except ExtenderMalformed:
        pass


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", {}, {"Pod": 3}, {"Pod": POD, "Nodes": {"items": [{}]}},
     {"Pod": {"spec": {"containers": [{"resources": {"requests": {"cpu": "much"}}}]}}, "NodeNames": ["a"]}],
)  # fmt: skip
def test_junk_gets_a_sentence(body: object) -> None:
    """Goal: the scheduler is told in its own field. Method: several kinds of junk."""
    got = post(Bench(), FILTER_PATH, body)

    assert got.status_code == 200
    assert got.json()["Error"]
    assert post(Bench(), PRIORITIZE_PATH, body).status_code == 400
