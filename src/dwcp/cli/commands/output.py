"""`dwcp output`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dwcp.cli import output as printing
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State, Workload
from dwcp.control.errors import ControlError

if TYPE_CHECKING:
    from dwcp.api.manager import WorkloadView
    from dwcp.api.workloads import Output
    from dwcp.cli.calls import ControlPlane
    from dwcp.runtime.config import TlsFiles

Directory = Annotated[Path, typer.Argument(help="where to put the files; new, or empty")]


class NoOutput(ControlError):
    """The workload has published no output, or the machine that holds it is not known any more."""

    code = "no_output"


def output(identity: Workload, directory: Directory, state: State = None, as_json: Json = False) -> None:
    """Fetch a workload's output and verify every file against the root in the control log.

    Nothing is overwritten; a fetch that broke off goes on when it is repeated.

    Example: dwcp output w-abcdefghij ./result
    """
    from dwcp.api import manager as api
    from dwcp.cli.calls import control_plane

    env = current()
    layout = env.layout(state)
    with control_plane(env, layout) as manager:
        view = manager.ask(api.WorkloadView, api.workload(identity))
        published, url = _source(view, manager)
    fetched = _fetch(url, published, directory, env.operator_tls(layout), quiet=as_json)
    text = f"{fetched} files, verified against {published.root}, in {directory}"
    answer = {"workload": identity, "root": published.root, "files": fetched, "directory": str(directory)}
    printing.show(answer, as_json=as_json, text=text)


def _source(view: WorkloadView, manager: ControlPlane) -> tuple[Output, str]:
    """The output of the attempt that ended it, and the agent that holds it."""
    from dwcp.api import manager as api

    published = view.outputs.get(str(view.state.attempt))
    if published is None:
        raise NoOutput(f"{view.id} is {view.state.state.value} and has published no output")
    nodes = manager.ask(api.NodeList, api.nodes()).nodes
    for node in (entry.node for entry in nodes):
        if node.name in (published.node, published.agent):
            return published, f"https://{node.address}"
    raise NoOutput(f"{view.id}: its output is at {published.node}, which is no node any more")


def _fetch(url: str, published: Output, directory: Path, tls: TlsFiles, *, quiet: bool) -> int:
    from dwcp.runtime.http_client import client as open_client
    from dwcp.runtime.shipping import Progress, download

    target = directory.absolute()
    with printing.progress(quiet=quiet) as bars:
        task = bars.add_task("fetching", total=published.bytes, state="")

        def tell(progress: Progress) -> None:
            bars.update(task, completed=progress.done_bytes, total=progress.total_bytes)

        async def pull() -> int:
            async with open_client(tls, timeout_s=60) as client:
                root = bytes.fromhex(published.root)
                return (await download(client, url, root, target, tell=tell)).file_count

        return asyncio.run(pull())
