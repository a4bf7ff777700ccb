"""`dwcp drain`."""

from __future__ import annotations

from typing import Annotated

import typer

from dwcp.cli import output
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State

Node = Annotated[str, typer.Argument(help="the node's name, as `dwcp nodes` lists it")]
Undo = Annotated[bool, typer.Option("--undo", help="take it into service again")]

Keep = Annotated[bool, typer.Option("--keep", help="move nothing away: what is there goes on to its end")]


def drain(
    node: Node, undo: Undo = False, keep: Keep = False, state: State = None, as_json: Json = False
) -> None:
    """Take a worker machine out of service: it gets no new work, and what may run again moves elsewhere.

    What never started moves, and what its job allows to run again (retry: safe), a few at a time and as
    there is room; the rest goes on to its end.

    Example: dwcp drain rome, and later: dwcp drain rome --undo
    """
    from dwcp.api import manager as api
    from dwcp.cli.calls import control_plane

    env = current()
    with control_plane(env, env.layout(state)) as manager:
        view = manager.ask(api.NodeView, api.drain(node, undo=undo, keep=keep))
    left = len(view.allocation.placed)
    fate = "they go on to their end" if keep else "what may run again is moved, the rest goes on"
    text = f"{node} takes work again" if undo else f"{node} gets no new work; {left} are placed there: {fate}"
    output.show(view, as_json=as_json, text=text)
