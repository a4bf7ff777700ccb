"""`dwcp sim`."""

from __future__ import annotations

from typing import Annotated

import typer

from dwcp.cli import output
from dwcp.cli.options import Json
from dwcp.runtime.errors import Exit

Engine = Annotated[str, typer.Option("--engine", help="which consensus engine")]
Nodes = Annotated[int, typer.Option("--nodes", help="replicas")]
Seeds = Annotated[str, typer.Option("--seeds", help="FIRST:AFTER_LAST, or one seed")]
Jobs = Annotated[int, typer.Option("--jobs", help="processes")]
Slots = Annotated[int | None, typer.Option("--slots", help="positions each seed commits at least")]
Bug = Annotated[str | None, typer.Option("--bug", help="plant a deliberate bug, or all, and find it")]
Verbose = Annotated[bool, typer.Option("--verbose", help="tell the story of each seed")]


def sim(
    engine: Engine = "probft",
    nodes: Nodes = 4,
    seeds: Seeds = "0:100",
    jobs: Jobs = 1,
    slots: Slots = None,
    bug: Bug = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Run the deterministic simulator: each seed is one history of faults, checked at every step.

    Exit code 1 where a seed found a violation or got stuck, or a planted bug was not found.

    Example: dwcp sim --engine probft --nodes 4 --seeds 0:1000 --jobs 2 --json
    """
    from dwcp.consensus.sim.run import SLOTS_MIN, BadRequest, SimRequest, print_progress, run

    try:
        request = SimRequest(
            engine=engine,
            nodes=nodes,
            seeds=_range(seeds),
            jobs=jobs,
            slots=SLOTS_MIN if slots is None else slots,
            bug=bug,
            verbose=verbose,
        )
        report = run(request, print_progress)
    except BadRequest as exc:
        raise typer.BadParameter(str(exc)) from exc
    answer = report.as_json()
    output.show(answer, as_json=as_json, text="\n".join(f"{key}: {value}" for key, value in answer.items()))
    raise typer.Exit(Exit.OK if report.clean else Exit.FINDINGS)


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        return (int(first), int(last)) if last else (int(first), int(first) + 1)
    except ValueError as exc:
        raise typer.BadParameter(f"--seeds {text!r} is no range; write 0:1000") from exc
