"""`dwcp workloads`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dwcp.cli import output
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State
from dwcp.runtime.clock import iso

if TYPE_CHECKING:
    from dwcp.api.manager import WorkloadView

Identity = Annotated[str, typer.Argument(help="one workload's id; all are listed without it")]
Active = Annotated[bool, typer.Option("--active", help="only those that have not ended")]

Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="how many of the newest")]


def workloads(
    identity: Identity = "",
    active: Active = False,
    limit: Limit = 50,
    state: State = None,
    as_json: Json = False,
) -> None:
    """List the newest workloads, or show one.

    Example: dwcp workloads --active
    """
    from dwcp.api import manager as api
    from dwcp.cli.calls import control_plane

    env = current()
    with control_plane(env, env.layout(state)) as manager:
        if identity:
            view = manager.ask(api.WorkloadView, api.workload(identity))
            output.show(view, as_json=as_json, table=_one(view))
            return
        found = manager.ask(api.WorkloadList, api.workloads(active=active, limit=limit))
    shown = list(found.workloads)
    text = "" if shown else "no workloads"
    answer = {"workloads": shown, "total": found.total}
    output.show(answer, as_json=as_json, text=text, table=_all(shown) if shown else None)
    if found.total > len(shown) and not as_json:
        output.remark(f"the newest {len(shown)} of {found.total}; more with --limit")


def _all(views: list[WorkloadView]) -> output.Table:
    columns = ("id", "name", "state", "node", "attempt", "submitted", "note")
    rows = [
        (
            view.id,
            view.job.name,
            view.state.state.value,
            view.state.node,
            str(view.state.attempt or ""),
            iso(view.submitted_ms),
            _note(view),
        )
        for view in views
    ]
    return output.Table(columns, rows)


def _one(view: WorkloadView) -> output.Table:
    state, payload = view.state, view.payload
    rows = [
        ("id", view.id),
        ("name", view.job.name),
        ("state", state.state.value),
        ("node", state.node),
        ("attempt", str(state.attempt)),
        ("placed by", state.policy),
        ("limits", state.limits_enforced),
        ("exit status", "" if state.exit_status is None else str(state.exit_status)),
        ("output root", state.output_root),
        ("payload", f"{payload.files} files, {payload.bytes} bytes at {payload.site}" if payload else ""),
        ("retry", view.job.retry.value),
        ("submitted", f"{iso(view.submitted_ms)} by {view.submitted_by}"),
        ("lease ends", iso(state.lease_deadline_ms) if state.lease_deadline_ms else ""),
        ("note", _note(view)),
    ]
    return output.Table(("what", "value"), [row for row in rows if row[1]])


def _note(view: WorkloadView) -> str:
    state = view.state
    notes = [state.reason]
    if state.cancel and state.state.value != "cancelled":
        notes.append("cancellation asked")
    if state.move:
        notes.append(f"moving to {state.move}")
    if state.deadline_missed:
        notes.append("deadline missed")
    return "; ".join(note for note in notes if note)
