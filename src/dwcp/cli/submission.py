"""The steps of a submission: read and check, hand over the files, create, with one id throughout."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dwcp.api import manager as api
from dwcp.api.manager import NodeList, Submission, WorkloadView
from dwcp.api.workloads import Job, Node, PayloadRef
from dwcp.cli.calls import ServiceUnavailable
from dwcp.control.errors import JobRefused
from dwcp.control.jobs import JOB_FILE_BYTES_MAX, check_payload, check_possible, read_job
from dwcp.runtime.errors import NotRunning

if TYPE_CHECKING:
    from rich.progress import Progress

    from dwcp.cli.calls import ControlPlane
    from dwcp.runtime.clock import Clock
    from dwcp.runtime.config import TlsFiles

T = TypeVar("T")
FIRST_PATIENCE_MS = (
    15_000  # how long a manager that is restarting is waited for before anything is handed over
)
PATIENCE_MS = 60_000  # and after
PAUSE_S = 0.5


def new_identity() -> str:
    """`w-` and 50 random bits in base32."""
    return "w-" + base64.b32encode(secrets.token_bytes(7)).decode().lower()[:10]


def read_file(path: Path) -> Job:
    """The job of a file; never reads more than a job file may have."""
    try:
        with path.open("rb") as file:
            return read_job(file.read(JOB_FILE_BYTES_MAX + 1), source=str(path))
    except OSError as exc:
        raise JobRefused(f"{path}: cannot be read: {exc.strerror}") from exc


def patiently(ask: Callable[[], T], *, patience_ms: int, clock: Clock, sleep: Callable[[float], None]) -> T:
    """Asks again while the manager is away or unsure. Only for what may be asked twice."""
    until = clock.monotonic_ms() + patience_ms
    while True:
        try:
            return ask()
        except (ServiceUnavailable, NotRunning):
            if clock.monotonic_ms() > until:
                raise
            sleep(PAUSE_S)


def check_here(job: Job, manager: ControlPlane) -> Node | None:
    """Refuses what no node could ever run, before anything is uploaded; the node that takes the files."""
    nodes = [view.node for view in manager.ask(NodeList, api.nodes()).nodes]
    if not nodes:
        raise ServiceUnavailable(
            "no worker machine has joined yet; try again in a moment, or see `dwcp status`"
        )
    check_possible(job, nodes)
    if job.data is None:
        return None
    return min((node for node in nodes if node.site == job.data.site), key=lambda node: node.name)


def hand_over(
    job: Job, *, base: Path, node: Node, identity: str, tls: TlsFiles, bars: Progress
) -> PayloadRef:
    """Gives the files to the agent of their site. `base` is the folder that `data.path` is relative to."""
    from dwcp.runtime.http_client import client as open_client
    from dwcp.runtime.payloads import Handed, read_tree, upload

    assert job.data is not None  # the caller asks only then
    tree = read_tree((base / job.data.path).absolute())
    task = bars.add_task("reading", total=tree.total_bytes, state="")

    def tell(handed: Handed) -> None:
        bars.update(task, description=handed.stage, completed=handed.done_bytes, total=handed.total_bytes)

    async def send() -> PayloadRef:
        async with open_client(tls, timeout_s=60) as client:
            held = await upload(client, f"https://{node.address}", tree, workload=identity, tell=tell)
        return PayloadRef(root=held.root, bytes=held.bytes, files=held.files, site=node.site, agent=node.name)

    payload = asyncio.run(send())
    bars.remove_task(task)
    check_payload(job, payload)
    return payload


def create(
    manager: ControlPlane, submission: Submission, *, clock: Clock, sleep: Callable[[float], None]
) -> WorkloadView:
    """Creates the workload; repeats under the same id while the manager is away or unsure."""
    try:
        return patiently(
            lambda: manager.ask(WorkloadView, api.submit(submission)),
            patience_ms=PATIENCE_MS,
            clock=clock,
            sleep=sleep,
        )
    except (ServiceUnavailable, NotRunning) as exc:
        raise ServiceUnavailable(
            f"whether {submission.id} was created is not known: {exc}; see `dwcp workloads {submission.id}`"
        ) from exc
