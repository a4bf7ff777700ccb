"""An agent's HTTP interface as others use it: requests whose bodies are small.

Payload and output streams have a format of their own (`runtime.payloads`,
`runtime.shipping`); here are only the paths that everybody must agree on.
All of it is mutual TLS only.
"""

from __future__ import annotations

from typing import Any

from dwcp.api.requests import Request, request
from dwcp.api.workloads import Shape


class KeptReceipts(Shape, frozen=True):
    """`GET /v1/receipts/ID`: what the agent itself holds, in case that the manager missed one."""

    receipts: tuple[
        dict[str, Any], ...
    ]  # Any: `api.manager.StoredReceipt`, opaque to a reader of another version


class RealUse(Shape, frozen=True):
    """What a node's commands really use now, beside what was promised to them."""

    cpu_milli: int
    memory_mib: int


def health() -> Request:
    return request("GET", "health")


def receipts(workload: str) -> Request:
    return request("GET", "v1", "receipts", workload)


def attempt_logs(workload: str, *, stream: str = "stdout", follow: bool = False) -> Request:
    query = {"stream": stream, "follow": "true" if follow else ""}
    return request("GET", "v1", "attempts", workload, "logs", query=query)


def payload_path(workload: str) -> str:
    """Where `dwcp submit` streams the files of one workload."""
    return request("POST", "v1", "payloads", query={"workload": workload}).path


def manifest(root: str) -> Request:
    return request("GET", "v1", "manifests", root)
