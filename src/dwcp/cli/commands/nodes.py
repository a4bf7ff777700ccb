"""`dwcp nodes`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dwcp.cli import output
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State

if TYPE_CHECKING:
    from dwcp.api.manager import NodeView

RESOURCES = ("cpu_milli", "memory_mib", "storage_mib", "bandwidth_mbps")


def nodes(state: State = None, as_json: Json = False) -> None:
    """List worker machines: status, whether they answer, and what of each resource is placed.

    Example: dwcp nodes --json
    """
    from dwcp.api import manager as api
    from dwcp.cli.calls import control_plane

    env = current()
    with control_plane(env, env.layout(state)) as manager:
        listed = manager.ask(api.NodeList, api.nodes()).nodes
    columns = ("node", "site", "status", "answers", "cpu/1000", "MiB", "disk MiB", "Mbit/s", "work")
    table = output.Table(columns, [_row(view) for view in listed])
    output.show(
        {"nodes": listed}, as_json=as_json, text="" if listed else "no nodes", table=table if listed else None
    )


def _row(view: NodeView) -> tuple[str, ...]:
    placed = view.allocation.placed
    amounts = [
        f"{sum(getattr(entry.demand, name) for entry in placed)}/{getattr(view.node.capacity, name)}"
        for name in RESOURCES
    ]
    work = ", ".join(entry.workload for entry in placed)
    return (view.node.name, view.node.site, view.node.status.value, view.reach.value, *amounts, work)
