"""`dwcp compress` and `dwcp decompress`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dwcp.cli import output as printing
from dwcp.cli.options import Json
from dwcp.compression.errors import PayloadRefused

if TYPE_CHECKING:
    from dwcp.runtime.blockstreams import Passed, Tell

STREAM = Path("-")
SUFFIX = ".dwcz"
Source = Annotated[
    Path, typer.Argument(help="a file or a directory; - or nothing: standard input", show_default=False)
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="where the result goes; -: standard output")
]
CodecName = Annotated[str, typer.Option("--codec", help="auto, or a codec such as zstd-3, brotli-5, xz-6")]
Link = Annotated[
    float | None,
    typer.Option("--link", min=0.001, help="the link's rate, Mbit/s; else the output is measured"),
]
Resume = Annotated[bool, typer.Option("--resume", help="go on where a broken run stopped")]
Force = Annotated[bool, typer.Option("--force", "-f", help="replace an output file that exists")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]
BytesMax = Annotated[int | None, typer.Option("--max-bytes", help="refuse to write more raw bytes than this")]


def compress(
    source: Source = STREAM,
    output: Output = None,
    codec: CodecName = "auto",
    link: Link = None,
    resume: Resume = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compress a file, a directory or standard input into one checked stream.

    Every block carries its hash; with --codec auto each is packed so that it arrives soonest on
    the link. A file gets its name when it is complete; until then it is NAME.part.

    Example: dwcp compress ./data -o data.dwcz

    Example: dwcp compress ./data -o - | ssh rome dwcp decompress - -o data
    """
    from dwcp.cli import packing

    target = output or (STREAM if source == STREAM else source.with_name(source.name + SUFFIX))
    _check_streams(target, resume=resume)
    packing.require_codec(codec)
    began = time.monotonic()
    with _telling("compressing", packing.size_of(source), quiet=quiet or as_json) as tell:
        job = packing.Packing(source, target, codec=codec, link_mbps=link, resume=resume, force=force)
        if target == STREAM:
            passed = packing.to_stream(job, printing.binary(), tell=tell)
        else:
            passed = packing.to_file(job, tell=tell)
    _report(source, target, passed, time.monotonic() - began, as_json=as_json)


def decompress(
    source: Source = STREAM,
    output: Output = None,
    resume: Resume = False,
    force: Force = False,
    max_bytes: BytesMax = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Unpack what `dwcp compress` made; every block is verified before it is written.

    A result gets its name when the whole stream was verified; until then it is NAME.part. On
    standard output only verified blocks appear; a damaged stream ends with exit code 2.

    Example: dwcp decompress data.dwcz -o data

    Example: dwcp compress log.txt -o - | dwcp decompress > copy.txt
    """
    from dwcp.cli import packing

    target = output or _unpacked_name(source)
    _check_streams(target, resume=resume)
    began = time.monotonic()
    with _telling("decompressing", packing.size_of(source), quiet=quiet or as_json, packed=True) as tell:
        unpacking = packing.Unpacking(source, target, resume=resume, force=force, raw_bytes_max=max_bytes)
        out = printing.binary() if target == STREAM else None
        passed = packing.unpacked(unpacking, out, tell=tell)
    _report(source, target, passed, time.monotonic() - began, as_json=as_json)


def _unpacked_name(source: Path) -> Path:
    if source == STREAM:
        return STREAM
    if not source.exists():
        raise PayloadRefused(f"{source} does not exist")
    if source.suffix != SUFFIX:
        raise typer.BadParameter(f"{source} does not end in {SUFFIX}: say where to, with --output")
    return source.with_suffix("")


def _check_streams(target: Path, *, resume: bool) -> None:
    if target == STREAM and resume:
        raise typer.BadParameter("--resume needs an output file: a pipe cannot be read again")


@contextmanager
def _telling(what: str, total: int | None, *, quiet: bool, packed: bool = False) -> Iterator[Tell]:
    """A bar for files, a count for pipes, with the time left where that is known.

    `packed`: the total is of the container's bytes, not of the raw ones.
    """
    from dwcp.cli.progress import meter

    with printing.progress(quiet=quiet) as bars:
        show: Callable[[int], None] = meter(bars, what, total)
        yield lambda passed: show(passed.packed_bytes if packed else passed.raw_bytes)


def _report(source: Path, target: Path, passed: Passed, seconds: float, *, as_json: bool) -> None:
    """The answer; beside the stream where that is standard output."""
    answer = {
        "source": str(source),
        "output": str(target),
        "raw_bytes": passed.raw_bytes,
        "packed_bytes": passed.packed_bytes,
        "blocks": passed.blocks,
        "seconds": round(seconds, 3),
    }
    ratio = passed.raw_bytes / passed.packed_bytes if passed.packed_bytes else 1.0
    text = f"{target}: {passed.raw_bytes} raw bytes, {passed.packed_bytes} packed ({ratio:.2f}×), {seconds:.1f} s"
    if target != STREAM:
        printing.show(answer, as_json=as_json, text=text)
    elif as_json:
        import json

        printing.remark(json.dumps(answer, ensure_ascii=False))
