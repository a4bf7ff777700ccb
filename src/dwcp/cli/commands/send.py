"""`dwcp send`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from dwcp.cli import output as printing
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State

From = Annotated[str, typer.Argument(metavar="FROM", help="a path, or SITE:NAME; -: standard input")]
To = Annotated[
    str,
    typer.Argument(
        metavar="TO", help="SITE:[NAME], https://HOST:PORT/[NAME], a directory, or -: standard output"
    ),
]
STREAM = "-"
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]
CodecName = Annotated[str, typer.Option("--codec", help="auto, or a codec such as zstd-3")]


def send(
    source: From,
    target: To,
    codec: CodecName = "auto",
    state: State = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Send a file, a directory or standard input to a site's agent, or fetch what was sent.

    Only chunks that the agent lacks travel, over mutual TLS, packed as the link and the data
    suggest. A send that broke off goes on when it is repeated; the answer comes when all of it is
    verified and durable there. Sending to a name again replaces what is there. What was sent is
    fetched into a new directory; one file may go to standard output instead, once all of it is
    verified (--json then answers on standard error).

    Example: dwcp send ./results rome:results

    Example: dwcp send rome:results ./copy

    Example: dwcp send - rome:log < log.txt && dwcp send rome:log - | grep ERROR
    """
    from dwcp.cli import packing, sending

    packing.require_codec(codec)
    env = current()
    layout = env.layout(state)
    began = time.monotonic()
    there, back = sending.place(target), sending.place(source)
    if (there is None) == (back is None):
        raise typer.BadParameter("one of FROM and TO is a site, as in `dwcp send ./data rome:data`")
    link = sending.Link(env, layout, codec=codec)
    with printing.progress(quiet=quiet or as_json) as bars:
        if there is not None:
            done = sending.push(Path(source), there, link, bars)
        else:
            assert back is not None
            done = (
                sending.fetch_stream(back, printing.binary(), link, bars)
                if target == STREAM
                else sending.fetch(back, Path(target), link, bars)
            )
    seconds = time.monotonic() - began
    text = (
        f"{done.name}: {done.files} files, {done.bytes} bytes, {done.moved_bytes} of them moved, "
        f"{seconds:.1f} s, verified against {done.root}"
    )
    answer = {
        "name": done.name,
        "root": done.root,
        "bytes": done.bytes,
        "files": done.files,
        "moved_bytes": done.moved_bytes,
        "seconds": round(seconds, 3),
    }
    if target != STREAM:
        printing.show(answer, as_json=as_json, text=text)
    elif as_json:
        printing.remark(json.dumps(answer, ensure_ascii=False))
