"""Options that many commands share, so that they are called and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

State = Annotated[
    Path | None, typer.Option("--state", help="state folder; else $DWCP_STATE, else the default")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
Workload = Annotated[str, typer.Argument(help="the workload's id, as `dwcp submit` printed it")]
