"""`dwcp ledger`: the control log itself, under the operator's own key."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcp.cli import output
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State
from dwcp.runtime.errors import Exit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dwcp.runtime.client import LedgerClient

app = typer.Typer(no_args_is_help=True, help="Read and write the control log.", rich_markup_mode=None)
Key = Annotated[str, typer.Argument(help="the key")]
Prefix = Annotated[bool, typer.Option("--prefix", help="every key that begins with it")]
Stale = Annotated[bool, typer.Option("--stale", help="one replica's word, possibly old, without a commit")]
ValueText = Annotated[str, typer.Argument(help="the value, as text")]
TxnFile = Annotated[Path | None, typer.Argument(help="JSON file; standard input without it")]


@app.command()
def get(
    key: Key, prefix: Prefix = False, stale: Stale = False, state: State = None, as_json: Json = False
) -> None:
    """Read a key; linearizable, unless --stale. Exit code 1 where there is none.

    Example: dwcp ledger get /w/ --prefix
    """
    from dwcp.api.workloads import prefix_end
    from dwcp.cli.ledger_text import shown_result

    raw = key.encode("utf-8", "surrogateescape")
    end = prefix_end(raw) if prefix and raw else (b"\0" if prefix else b"")
    found = _with_ledger(state, lambda ledger: ledger.range(raw or b"\0", end, linearizable=not stale))
    shown = shown_result(found)
    lines = [
        f"{pair['key']} = {pair.get('value', pair.get('value_hex'))}  (revision {pair['mod_revision']})"
        for pair in shown["kvs"]
    ]
    output.show(shown, as_json=as_json, text="\n".join(lines) or f"no key {key!r}")
    raise typer.Exit(Exit.OK if found.kvs else Exit.FINDINGS)


@app.command()
def put(key: Key, value: ValueText, state: State = None, as_json: Json = False) -> None:
    """Write a key.

    Example: dwcp ledger put /test/a hello
    """
    from dwcp.api.kv import Put
    from dwcp.cli.ledger_text import shown_result

    operation = Put(key.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape"))
    done = _with_ledger(state, lambda ledger: ledger.submit(operation))
    shown = shown_result(done.result) | {"index": done.index}
    output.show(shown, as_json=as_json, text=_committed(shown))


@app.command()
def txn(file: TxnFile = None, state: State = None, as_json: Json = False) -> None:
    """Commit a transaction given as JSON. Exit code 1 where its comparisons did not hold.

    Example: echo '{"success": [{"put": "/test/a", "value": "1"}]}' | dwcp ledger txn
    """
    from dwcp.api.kv import TxnDone
    from dwcp.cli.ledger_text import TXN_BYTES_MAX, read_txn, shown_result

    if file is not None:
        with file.open("rb") as source:
            text = source.read(TXN_BYTES_MAX + 1)
    else:
        text = sys.stdin.buffer.read(TXN_BYTES_MAX + 1)
    wanted = read_txn(text)
    done = _with_ledger(state, lambda ledger: ledger.txn(wanted))
    shown = shown_result(done.result) | {"index": done.index}
    held = isinstance(done.result, TxnDone) and done.result.succeeded
    branch = "success" if held else "failure"
    output.show(shown, as_json=as_json, text=f"{_committed(shown)}, branch {branch}")
    raise typer.Exit(Exit.OK if held else Exit.FINDINGS)


def _committed(shown: dict[str, Any]) -> str:
    # Any: JSON values
    rest = [
        f"{key} {value if isinstance(value, int | str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in shown.items()
        if key != "index"
    ]
    return ", ".join([f"committed at position {shown['index']}", *rest])


def _with_ledger(state: Path | None, ask: Callable[[LedgerClient], Awaitable[Any]]) -> Any:
    # Any: what `ask` returns
    from dwcp.cli.calls import open_ledger

    env = current()

    async def run() -> Any:
        async with await open_ledger(env, env.layout(state)) as ledger:
            return await ask(ledger)

    return asyncio.run(run())
