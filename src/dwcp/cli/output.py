"""The only place that writes what commands answer: tables and sentences for people, or one JSON document.

With `--json` standard output holds that document and nothing else; progress and
remarks go to standard error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import msgspec
import typer

from dwcp.cli.environment import Environment, current

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@dataclass(frozen=True, slots=True)
class Table:
    """Rows for people."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def show(answer: object, *, as_json: bool, text: str = "", table: Table | None = None) -> None:
    """Prints `answer` as JSON, or `text` and `table` for people; one of them, never both."""
    env = current()
    if as_json:
        plain = msgspec.to_builtins(answer, enc_hook=str, str_keys=True)
        env.out.write(json.dumps(plain, ensure_ascii=False) + "\n")
        return
    if text:
        env.out.write(text + "\n")
    if table is not None:
        _write_table(env, table)


def remark(text: str) -> None:
    """A sentence beside the answer: on standard error."""
    env = current()
    env.err.write(text + "\n")
    env.err.flush()


def console(env: Environment | None = None, *, err: bool = False) -> Console:
    """A rich console on the current streams."""
    from rich.console import Console

    env = env or current()
    stream = env.err if err else env.out
    width = None if stream.isatty() else 200  # a file or a pipe has no width of its own
    return Console(file=stream, no_color=not env.colors, highlight=False, width=width)


def binary() -> BinaryIO:
    """Standard output for bytes. Raises `BadParameter` where a person would see them."""
    out = current().out
    if out.isatty():
        raise typer.BadParameter("this is binary: name a file, or pipe it on")
    return out.buffer


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Progress bars on standard error; invisible where that is no terminal or `quiet` is set."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    view = console(err=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    disable = quiet or not view.is_terminal
    with Progress(*columns, console=view, disable=disable, transient=True) as bars:
        yield bars


def _write_table(env: Environment, table: Table) -> None:
    from rich.table import Table as RichTable

    drawn = RichTable(*table.columns, box=None, pad_edge=False, header_style="bold")
    for row in table.rows:
        drawn.add_row(*row)
    console(env).print(drawn)
