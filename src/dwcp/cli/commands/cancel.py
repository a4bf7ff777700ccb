"""`dwcp cancel`."""

from __future__ import annotations

from dwcp.cli import output
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State, Workload


def cancel(identity: Workload, state: State = None, as_json: Json = False) -> None:
    """Cancel a workload: at once where it waits; where it runs its agent stops it and says so.

    Example: dwcp cancel w-abcdefghij
    """
    from dwcp.api import manager as api
    from dwcp.cli.calls import control_plane

    env = current()
    with control_plane(env, env.layout(state)) as manager:
        view = manager.ask(api.WorkloadView, api.cancel(identity))
    ended = view.state.state.value == "cancelled"
    text = f"{view.id} is cancelled" if ended else f"{view.id}: {view.state.node} was asked to stop it"
    output.show(view, as_json=as_json, text=text)
