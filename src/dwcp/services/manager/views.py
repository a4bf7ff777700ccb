"""What the log holds, as the HTTP interface shows it."""

from __future__ import annotations

from dwcp.api.agent import RealUse
from dwcp.api.manager import NodeView, Reach, WorkloadView
from dwcp.control.inventory import NodeEntry, WorkloadEntry


def workload_view(entry: WorkloadEntry) -> WorkloadView:
    spec = entry.spec
    return WorkloadView(
        id=entry.id,
        job=spec.job,
        payload=spec.payload,
        submitted_ms=spec.submitted_ms,
        submitted_by=spec.submitted_by,
        state=entry.state,
        revision=entry.revision,
        outputs={str(attempt): output for attempt, output in sorted(entry.outputs.items())},
    )


def node_view(entry: NodeEntry, reach: Reach, detail: str, used: RealUse | None = None) -> NodeView:
    return NodeView(node=entry.node, allocation=entry.allocation, reach=reach, reach_detail=detail, used=used)
