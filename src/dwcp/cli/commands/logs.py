"""`dwcp logs`: what services and workloads wrote."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from dwcp.cli.environment import current
from dwcp.runtime.errors import NotRunning

if TYPE_CHECKING:
    from dwcp.runtime.layout import Layout

_FOLLOW_SECONDS = 0.25
_HIDDEN = frozenset({"at", "level", "event", "service", "pid"})


def logs(
    name: Annotated[
        str, typer.Argument(help="a service, or a workload's id; all services when left out")
    ] = "",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on as lines are written")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="how many of the last lines")] = 50,
    stream: Annotated[str, typer.Option(help="of a workload: stdout or stderr")] = "stdout",
    state: Annotated[Path | None, typer.Option("--state", help="state folder; else $DWCP_STATE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the JSON lines as they are")] = False,
) -> None:
    """Show the logs of services, or what a workload's command wrote.

    Example: dwcp logs dwcp-manager -f
    """
    layout = current().layout(state)
    if name.startswith("w-"):
        _workload(layout, name, stream=stream, follow=follow, as_json=as_json)
        return
    files = _files(layout, name)
    for file in files:
        for line in _last_lines(file, lines):
            _write(file, line, as_json)
    if follow:
        for file, line in _follow(files):
            _write(file, line, as_json)


def _files(layout: Layout, name: str) -> list[Path]:
    files = [layout.log(name)] if name else sorted(layout.logs.glob("*.log"))
    known = ", ".join(sorted(file.stem for file in layout.logs.glob("*.log"))) or "none"
    if not files or not files[0].exists():
        raise NotRunning(f"there is no log of {name or 'any service'} in {layout.logs}; logs there: {known}")
    return files


def _workload(layout: Layout, name: str, *, stream: str, follow: bool, as_json: bool) -> None:
    """What an attempt wrote is asked of the agents: the one that ran it knows."""
    import httpx

    from dwcp.api import agent
    from dwcp.runtime.keys import client_context
    from dwcp.runtime.platform import Platform, base_url, services_of

    env = current()
    asked = agent.attempt_logs(name, stream=stream, follow=follow)
    plans = [plan for plan in services_of(Platform(layout, env.clock)) if plan.name.startswith("dwcp-agent-")]
    with httpx.Client(verify=client_context(env.operator_tls(layout)), trust_env=False, timeout=None) as http:  # noqa: S113  # followed as long as the user likes
        for plan in plans:
            with http.stream("GET", base_url(plan) + asked.path) as answer:
                if answer.status_code == 200:
                    _write_stream(answer, as_json)
                    return
    raise NotRunning(f"no agent has logs of {name}: see `dwcp workloads {name}`")


def _write_stream(answer: object, as_json: bool) -> None:
    import httpx

    assert isinstance(answer, httpx.Response)
    out = current().out
    for text in answer.iter_text():
        out.write(json.dumps({"text": text}) + "\n" if as_json else text)
        out.flush()


def _last_lines(file: Path, count: int) -> list[str]:
    with file.open(encoding="utf-8", errors="replace") as stream:
        return [line.rstrip("\n") for line in stream.readlines()[-count:]] if count else []


def _follow(files: list[Path]) -> Iterator[tuple[Path, str]]:
    """New lines of all files; a file that was rotated is read from its start."""
    opened = {file: _at_end(file) for file in files}
    while True:
        for file, stream in list(opened.items()):
            for line in stream:
                yield file, line.rstrip("\n")
            if file.exists() and file.stat().st_size < stream.tell():
                stream.close()
                opened[file] = file.open(encoding="utf-8", errors="replace")
        time.sleep(_FOLLOW_SECONDS)


def _at_end(file: Path) -> TextIO:
    stream = file.open(encoding="utf-8", errors="replace")
    stream.seek(0, 2)
    return stream


def _write(file: Path, line: str, as_json: bool) -> None:
    out = current().out
    if as_json:
        out.write(line + "\n")
    else:
        out.write(_readable(file.stem, line) + "\n")
    out.flush()


def _readable(service: str, line: str) -> str:
    """Time, level, service, event, then the rest as key=value."""
    try:
        event = json.loads(line)
    except ValueError:
        return f"{service}  {line}"
    if not isinstance(event, dict):
        return f"{service}  {line}"
    rest = " ".join(f"{key}={value}" for key, value in event.items() if key not in _HIDDEN)
    return f"{event.get('at', '')} {event.get('level', ''):<7} {service:<17} {event.get('event', '')} {rest}".rstrip()
