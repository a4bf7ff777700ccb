"""`dwcp logs`: what services and workloads wrote."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from dwcp.cli.environment import current
from dwcp.cli.options import State
from dwcp.runtime.errors import NotRunning

if TYPE_CHECKING:
    from dwcp.runtime.layout import Layout

_FOLLOW_SECONDS = 0.25
CONNECT_S = 5.0
AGENTS = "dwcp-agent-"
_HIDDEN = frozenset({"at", "level", "event", "service", "pid"})


def logs(
    name: Annotated[
        str, typer.Argument(help="a service, or a workload's id; all services when left out")
    ] = "",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on as lines are written")] = False,
    lines: Annotated[
        int,
        typer.Option("-n", "--lines", min=0, help="how many of the last lines; a workload's are all shown"),
    ] = 50,
    stream: Annotated[str, typer.Option(help="of a workload: stdout or stderr")] = "stdout",
    state: State = None,
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
    for file, line in _merged(files, lines):
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
    from dwcp.api.requests import refusal
    from dwcp.cli.calls import ServiceRefused, ServiceUnavailable
    from dwcp.runtime.keys import client_context
    from dwcp.runtime.platform import Platform, base_url, services_of

    env = current()
    asked = agent.attempt_logs(name, stream=stream, follow=follow)
    plans = [plan for plan in services_of(Platform(layout, env.clock)) if plan.name.startswith(AGENTS)]
    silent = []
    wait = httpx.Timeout(CONNECT_S, read=None)  # followed as long as the user likes
    with httpx.Client(verify=client_context(env.operator_tls(layout)), trust_env=False, timeout=wait) as http:
        for plan in plans:
            try:
                with http.stream("GET", base_url(plan) + asked.path) as answer:
                    if answer.status_code == httpx.codes.OK:
                        _write_stream(answer, as_json)
                        return
                    if answer.status_code != httpx.codes.NOT_FOUND:
                        said = refusal(answer.read(), status=answer.status_code)
                        raise ServiceRefused(said.code, said.detail)
            except httpx.ConnectError:
                silent.append(plan.name)
            except httpx.HTTPError as exc:
                raise ServiceUnavailable(
                    f"{plan.name} broke off ({str(exc) or type(exc).__name__}); ask again"
                ) from exc
    if silent:
        raise ServiceUnavailable(
            f"{', '.join(silent)} did not answer, the other agents have no logs of {name}"
        )
    raise ServiceRefused("not_found", f"no agent has logs of {name}: see `dwcp workloads {name}`")


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


def _merged(files: list[Path], count: int) -> list[tuple[Path, str]]:
    """The last lines of all files together, by time; one without a time stays behind the one before it."""
    found = []
    for file in files:
        at = ""
        for line in _last_lines(file, count):
            at = _time(line) or at
            found.append((at, file, line))
    return [(file, line) for _, file, line in sorted(found, key=lambda one: one[0])[-count:]] if count else []


def _time(line: str) -> str:
    try:
        event = json.loads(line)
    except ValueError:
        return ""
    return str(event.get("at", "")) if isinstance(event, dict) else ""


def _follow(files: list[Path]) -> Iterator[tuple[Path, str]]:
    """New lines of all files; a file that was rotated is read from its start."""
    opened = {file: _at_end(file) for file in files}
    begun = dict.fromkeys(files, "")
    while True:
        for file, stream in list(opened.items()):
            for line in stream:
                begun[file] += line
                if line.endswith("\n"):  # else its end is still to be written
                    yield file, begun[file].rstrip("\n")
                    begun[file] = ""
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
