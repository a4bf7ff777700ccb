"""`dwcp ops`: the operations scripts under one contract, and the records of their runs.

`scripts/NAME.sh` is `dwcp ops NAME`. A new script is one line of `SCRIPTS`.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dwcp.cli import output, scripts
from dwcp.cli.commands import allocation_report, model
from dwcp.cli.commands import rebalance as rebalancing
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State
from dwcp.cli.output import Table
from dwcp.runtime.clock import iso
from dwcp.runtime.runs import Runs

SCRIPTS = (
    model.deploy_model,
    model.canary_deploy,
    allocation_report.resource_allocation_report,
    rebalancing.rebalance,
)

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Run the operations scripts.")


@app.command("runs")
def list_runs(
    script: Annotated[str, typer.Option("--script", help="of this script only")] = "*",
    most: Annotated[int, typer.Option("--most", min=1, max=100_000, help="so many of the latest")] = 30,
    state: State = None,
    as_json: Json = False,
) -> None:
    """List the latest runs of operations scripts with what they came to.

    Example: dwcp ops runs --script deploy-model
    """
    found = Runs(current().layout(state).root / "runs").all(script, most=most)
    rows = [
        (
            iso(run.started_ms),
            f"{run.script} {run.target}",
            run.actor,
            "-" if run.exit is None else str(run.exit),
            run.summary or "under way, or broken off",
        )
        for run in found
    ]
    table = Table(("started", "script", "by", "exit", "summary"), rows)
    output.show({"runs": found}, as_json=as_json, text=f"{len(found)} runs", table=table)


@app.command("schema")
def show_schema(
    name: Annotated[str, typer.Argument(help="the script, for example deploy-model")],
    as_json: Json = False,
) -> None:
    """Show the JSON Schema of what a script prints with --json.

    Example: dwcp ops schema deploy-model
    """
    told = {found.name: found for found in map(scripts.of, SCRIPTS)}
    if name not in told:
        raise typer.BadParameter(f"no script is called {name!r}: say one of {', '.join(sorted(told))}")
    described = scripts.schema(told[name])
    output.show(described, as_json=as_json, text=json.dumps(described, indent=2))


for _command in SCRIPTS:
    app.command(scripts.of(_command).name)(_command)
