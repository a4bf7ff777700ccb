"""`dwcp init`, `up`, `down` and `status`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from dwcp.cli import output
from dwcp.cli.environment import current
from dwcp.cli.options import Json, State
from dwcp.runtime.errors import Exit

if TYPE_CHECKING:
    from dwcp.runtime.platform import PlatformStatus, Wishes

HEALTH_PATH = "/api/clusters/all/health"
Net = Annotated[
    str | None, typer.Option("--net", help="loopback network, for example 127.77; else $DWCP_NET")
]
Replicas = Annotated[int | None, typer.Option("--replicas", help="control replicas, 4 or 7")]
Testing = Annotated[bool, typer.Option("--testing", help="let services accept --failpoint; for tests only")]
Lease = Annotated[str | None, typer.Option("--lease", help="lease of an attempt, for example 30s")]


def init(
    state: State = None,
    net: Net = None,
    replicas: Replicas = None,
    testing: Testing = False,
    lease: Lease = None,
    as_json: Json = False,
) -> None:
    """Make keys, genesis and journals, once. `dwcp up` does it by itself where needed.

    Example: dwcp init --net 127.77 --replicas 7
    """
    from dwcp.runtime.platform import Platform

    env = current()
    layout = env.layout(state)
    made = Platform(layout, env.clock).initialise(_wishes(net, replicas, testing, lease))
    text = (
        f"made a new installation in {layout.root}" if made else f"{layout.root} is an installation already"
    )
    output.show({"state": layout.root, "made": made}, as_json=as_json, text=text)


def up(
    state: State = None,
    net: Net = None,
    replicas: Replicas = None,
    testing: Testing = False,
    lease: Lease = None,
    as_json: Json = False,
) -> None:
    """Start everything and wait until it is ready; what runs already stays as it is.

    Example: dwcp up --net 127.77
    """
    from dwcp.runtime.platform import Platform

    env = current()
    platform = Platform(env.layout(state), env.clock)
    begun_ms = env.clock.monotonic_ms()
    with output.progress(quiet=as_json) as bars:
        task = bars.add_task("starting", total=None, state="")

        def progress(name: str, ready: int, total: int) -> None:
            bars.update(task, completed=ready, total=total, state=f"{ready}/{total} {name}")
            if bars.disable and not as_json:
                output.remark(f"ready {ready}/{total}: {name}")

        status = platform.up(_wishes(net, replicas, testing, lease), progress=progress)
    seconds = (env.clock.monotonic_ms() - begun_ms) / 1000
    text = f"{len(status.services)} services are ready ({seconds:.1f} s); health of all: {status.console}{HEALTH_PATH}"
    output.show(status, as_json=as_json, text=text, table=_table(status))


def down(state: State = None, as_json: Json = False) -> None:
    """Stop everything that this installation runs; its data stays.

    Example: dwcp down
    """
    from dwcp.runtime.platform import Platform

    env = current()
    layout = env.layout(state)
    killed = Platform(layout, env.clock).down() if layout.root.exists() else []
    text = "\n".join([f"had to stop {line}" for line in killed] + ["everything is stopped"])
    output.show({"state": layout.root, "killed": killed}, as_json=as_json, text=text)


def status(state: State = None, as_json: Json = False) -> int:
    """Show every service: its process, whether it is ready, and what it says of itself.

    Exit code 0: all ready and well; 1: some are not; 3: nothing runs.

    Example: dwcp status --json
    """
    from dwcp.runtime.platform import Platform

    env = current()
    found = Platform(env.layout(state), env.clock).status()
    text = (
        f"{found.verdict.upper()}  {found.state}"
        if found.running
        else f"UNKNOWN  {found.state}: nothing runs"
    )
    output.show(found, as_json=as_json, text=text, table=_table(found) if found.running else None)
    if not found.running:
        return Exit.UNKNOWN
    return Exit.OK if found.ready and found.verdict == "ok" else Exit.FINDINGS


def _wishes(net: str | None, replicas: int | None, testing: bool, lease: str | None) -> Wishes:
    from dwcp.runtime.platform import Wishes

    return Wishes(
        net=net or current().variables.net or None,
        replicas=replicas,
        testing=testing or None,
        lease_ms=_lease_ms(lease) if lease else None,
    )


def _lease_ms(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,6})(ms|s|m)", text)
    if found is None:
        raise typer.BadParameter(f"--lease {text!r}: give a duration such as 3s or 30s")
    return int(found[1]) * {"ms": 1, "s": 1000, "m": 60_000}[found[2]]


def _table(status: PlatformStatus) -> output.Table:
    rows = [
        (
            service.name,
            service.state,
            "yes" if service.ready else "no",
            service.verdict,
            str(service.pid or "-"),
            f"{service.rss_mb:.0f}",
            service.address,
            service.detail,
        )
        for service in status.services
    ]
    return output.Table(("service", "process", "ready", "health", "pid", "MB", "address", ""), rows)
