"""`dwcp token`: access tokens of people and scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dwcp.cli import output
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State
from dwcp.runtime.clock import iso
from dwcp.runtime.errors import NotRunning
from dwcp.runtime.tokens import Role, TokenBook

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Make, list and revoke access tokens.")


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="whose token it is")],
    role: Annotated[Role, typer.Option(help="what it allows")] = Role.VIEWER,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a token and show it once; only its hash is kept.

    Example: dwcp token create ci --role operator
    """
    token = _book(state).create(name, role, now_ms=current().clock.now_ms())
    output.show({"name": name, "role": role, "token": token}, as_json=as_json, text=token)


@app.command("list")
def list_tokens(state: State = None, as_json: Json = False) -> None:
    """List the tokens, without their secrets.

    Example: dwcp token list --json
    """
    tokens = _book(state).tokens()
    rows = [(token.name, token.role, iso(token.created_ms)) for token in tokens]
    known = [{"name": token.name, "role": token.role, "created_ms": token.created_ms} for token in tokens]
    output.show({"tokens": known}, as_json=as_json, table=output.Table(("name", "role", "made"), rows))


@app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="whose token")], state: State = None, as_json: Json = False
) -> None:
    """Revoke a token; services refuse it from their next request on.

    Example: dwcp token revoke ci
    """
    _book(state).revoke(name)
    output.show({"revoked": name}, as_json=as_json, text=f"{name} is revoked")


def _book(state: Path | None) -> TokenBook:
    layout = current().layout(state)
    if not layout.tokens.exists():
        raise NotRunning(f"there is no installation in {layout.root}: make one with `dwcp init`")
    return TokenBook(layout.tokens)
