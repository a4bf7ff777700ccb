"""Reading a service's `/metrics`, as the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dwcp.cli.calls import ServiceUnavailable
from dwcp.cli.environment import Environment
from dwcp.runtime.errors import NotRunning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dwcp.runtime.layout import Layout

TIMEOUT_S = 5.0
BYTES_MAX = 16 * 2**20

Samples = dict[str, list[tuple["Mapping[str, str]", float]]]


def scrape(env: Environment, layout: Layout, service: str) -> Samples:
    """Counters and gauges by name. Raises `ServiceUnavailable`, `NotRunning`, naming the service."""
    import httpx

    from dwcp.runtime.config import load
    from dwcp.runtime.keys import client_context
    from dwcp.runtime.world import World, services, url

    plan = next(plan for plan in services(load(layout.cluster, World), layout) if plan.name == service)
    if plan.mutual is None:
        raise ServiceUnavailable(f"{service} has no address for the operator")
    where = url(plan.mutual, tls=True) + "/metrics"
    context = client_context(env.operator_tls(layout))
    try:
        got = httpx.get(where, verify=context, timeout=TIMEOUT_S, trust_env=False)
    except httpx.ConnectError as exc:
        raise NotRunning(f"{service} does not answer at {where}") from exc
    except httpx.HTTPError as exc:
        raise ServiceUnavailable(f"{service}: {str(exc) or type(exc).__name__}") from exc
    if not got.is_success or len(got.content) > BYTES_MAX:
        raise ServiceUnavailable(f"{service}: /metrics answered {got.status_code}, {len(got.content)} bytes")
    return parse(got.text, service=service)


def parse(text: str, *, service: str) -> Samples:
    """The exposition format by sample names. Raises `ServiceUnavailable` for anything else."""
    from prometheus_client.parser import text_string_to_metric_families

    found: Samples = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    except ValueError as exc:
        raise ServiceUnavailable(f"{service}: its /metrics cannot be read: {exc}") from exc
    return found


def agents(layout: Layout) -> list[str]:
    """The installation's agents by the names of their processes."""
    from dwcp.runtime.config import load
    from dwcp.runtime.principals import AGENTS
    from dwcp.runtime.world import World, services

    return [
        plan.name for plan in services(load(layout.cluster, World), layout) if plan.name.startswith(AGENTS)
    ]
