"""`dwcp submit`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dwcp.cli import output
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State

if TYPE_CHECKING:
    from dwcp.api.manager import WorkloadView
    from dwcp.api.workloads import Job
    from dwcp.cli.calls import ControlPlane
    from dwcp.cli.environment import Environment
    from dwcp.runtime.layout import Layout

File = Annotated[Path | None, typer.Argument(help="the job file, YAML", show_default=False)]
FileOption = Annotated[
    Path | None, typer.Option("--file", "-f", help="the job file, instead of the argument")
]
Wait = Annotated[bool, typer.Option("--wait", help="follow it to its end and verify the receipt")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]


def submit(
    job_file: File = None,
    file: FileOption = None,
    wait: Wait = False,
    quiet: Quiet = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Submit a job: check it, hand its files to the agent of their site, create the workload.

    `data.path` in the job file is relative to the job file. With --wait the exit code is
    the job's: 0 done, 2 failed or cancelled, 3 unknown.

    Example: dwcp submit example/job.yaml --wait
    """
    from dwcp.cli.calls import control_plane
    from dwcp.cli.commands.watch import conclude
    from dwcp.cli.submission import read_file

    path = job_file or file
    if path is None or (job_file and file):
        raise typer.BadParameter("name one job file, as in `dwcp submit job.yaml`")
    env = current()
    layout = env.layout(state)
    job = read_file(path)
    with control_plane(env, layout) as manager:
        view = _submit(env, layout, manager, job, base=path.parent, quiet=quiet or as_json)
        if not wait:
            text = f"{view.id} is {view.state.state.value}: follow it with `dwcp watch {view.id}`"
            output.show(view, as_json=as_json, text=text)
            return
        if not as_json:
            output.remark(f"submitted {view.id}")
        conclude(env, layout, manager, view.id, as_json=as_json, quiet=quiet)


def _submit(
    env: Environment, layout: Layout, manager: ControlPlane, job: Job, *, base: Path, quiet: bool
) -> WorkloadView:
    from dwcp.api.manager import Submission
    from dwcp.cli import submission
    from dwcp.runtime.supervision import Supervisor

    identity = submission.new_identity()
    is_up = Supervisor(layout).is_running()  # else there is nobody to wait for
    node = submission.patiently(
        lambda: submission.check_here(job, manager),
        patience_ms=submission.FIRST_PATIENCE_MS if is_up else 0,
        clock=env.clock,
        sleep=time.sleep,
    )
    payload = None
    with output.progress(quiet=quiet) as bars:
        if node is not None:
            payload = submission.hand_over(
                job,
                base=base,
                node=node,
                identity=identity,
                tls=env.operator_tls(layout),
                bars=bars,
            )
    wanted = Submission(id=identity, job=job, payload=payload)
    return submission.create(manager, wanted, clock=env.clock, sleep=time.sleep)
