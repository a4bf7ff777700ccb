"""A running platform on which processes are killed at named points while real jobs go through it.

Every point of a service is armed at once, with its "has fired" mark already made; `arm` takes one
mark away. So a case costs no restart but the one that its kill makes.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import json
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
from tests.acceptance.running import RunningPlatform, started

from dwcp.api.kv import Put, RangeDone, Txn
from dwcp.api.workloads import Output, WorkloadState, prefix_end, state_key
from dwcp.consensus.ledger import genesis as genesis_file
from dwcp.consensus.ledger import receipts
from dwcp.runtime import failpoints, keys
from dwcp.runtime.client import LedgerClient
from dwcp.runtime.platform import base_url, services_of
from dwcp.runtime.supervision import ServiceState

FINAL = {"done", "failed", "unknown", "cancelled"}
PAYLOAD_BYTES = 2_000_000
FILE_BYTES_MAX = 120_000
TRIES = 3  # not every job passes every point: a busy source goes by its own table
SILENCE_S = 10.5  # how long a source that got no answer does not ask the compression service again

# Whose processes pass the points with this prefix; a point of a replica is passed by all of them.
PASSED_BY = {
    "manager.": ("dwcp-manager",),
    "allocator.": ("maddpg-allocator",),
    "compression.": ("compression-api",),
    "ship.source.": ("dwcp-agent-oslo",),
    "ship.target.": ("dwcp-agent-rome", "dwcp-agent-oslo"),
    "agent.": ("dwcp-agent-rome",),
    "shim.": ("dwcp-agent-rome",),
    "node.": ("probft-1", "probft-2", "probft-3", "probft-4"),
}


def points_of(service: str) -> list[str]:
    """Every point that a process of this service can pass."""
    return [
        name
        for name in failpoints.POINTS
        if any(name.startswith(prefix) and service in services for prefix, services in PASSED_BY.items())
    ]


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    """Real processes have no event to wait for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not after {seconds} s: {what}"
        time.sleep(0.1)


class Witness:
    """Counts starts where no sandbox, disk or agent of the product has a say: each command calls in here."""

    def __init__(self, host: str) -> None:
        self._server = socket.create_server((host, 0))
        self.address: tuple[str, int] = self._server.getsockname()
        self.starts: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection, connection.makefile() as file:
                self.starts[file.readline().strip()] += 1

    def call(self, token: str) -> str:
        """The shell words with which a command says that it has begun."""
        host, port = self.address
        return f"bash -c 'echo {token} >/dev/tcp/{host}/{port}'"

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(timeout=5)


@dataclass
class Job:
    """One submission: its id, its files and the token by which its command calls the witness."""

    id: str
    token: str
    payload: Path
    retry: str


@dataclass
class Drill:
    """Kills, jobs and evidence on one platform."""

    running: RunningPlatform
    folder: Path
    witness: Witness
    _prepared: set[str] = field(default_factory=set)
    _urls: dict[str, str] = field(init=False)
    _operator: httpx.Client = field(init=False)  # a new connection each time: processes come and go
    _tokens: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self._urls = {plan.name: base_url(plan) for plan in services_of(self.running.platform)}
        self._operator = httpx.Client(
            verify=keys.client_context(self.running.layout.tls("operator")),
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
        )

    def close(self) -> None:
        self._operator.close()

    # ------------------------------------------------------------------ processes

    def state_of(self, service: str) -> ServiceState:
        states = self.running.platform.supervisor.states()
        return next(state for state in states if state.name == service)

    def pid(self, service: str) -> int:
        return self.state_of(service).pid

    def is_ready(self, service: str) -> bool:
        """Whether the process that runs now says that it is ready."""
        state = self.state_of(service)
        if not state.pid or state.state not in {"STARTING", "RUNNING"}:
            return False
        try:
            return self._operator.get(self._urls[service] + "/ready", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def wait_ready(self, *services: str) -> None:
        for service in services:
            wait_until(lambda name=service: self.is_ready(name), f"{service} is ready")  # type: ignore[misc]

    def settle(self) -> None:
        """Wait until everything that is meant to run is ready again, so that cases do not overlap."""
        self.wait_ready(*(state.name for state in self.running.platform.supervisor.states() if state.pid))

    # ------------------------------------------------------------------ points

    def _mark(self, service: str, point: str) -> Path:
        return self.running.layout.data(service) / "failpoints" / f"{point}.fired"

    def arm(self, point: str, service: str = "") -> str:
        """From now on the service dies when it passes the point, once; returns the service."""
        service = service or next(s for p, s in PASSED_BY.items() if point.startswith(p))[0]
        if service not in self._prepared:
            self._prepare(service)
        self.wait_ready(service)
        self._mark(service, point).unlink()
        return service

    def _prepare(self, service: str) -> None:
        points = points_of(service)
        for point in points:
            failpoints.mark_fired(point, self.running.layout.data(service))
        self.running.restart(service, *(f"{point}=kill" for point in points))
        self._prepared.add(service)
        self.settle()

    def disarm(self, service: str, point: str) -> None:
        failpoints.mark_fired(point, self.running.layout.data(service))

    def has_fired(self, service: str, point: str) -> bool:
        return self._mark(service, point).exists()

    # ------------------------------------------------------------------ jobs

    @staticmethod
    def _fill(folder: Path, token: str) -> None:
        """About 2 MB of real files, each beginning with the token, so that they have to travel each time."""
        taken = 0
        for number, source in enumerate(_sources()):
            if taken >= PAYLOAD_BYTES:
                break
            content = source.read_bytes()
            taken += len(content)
            (folder / f"{number:04d}-{source.name[:40]}").write_bytes(token.encode() + content)

    def submit(
        self, *, retry: str, site: str = "rome", sleep_s: float = 0.3, cpu: float = 0.5, data: bool = True
    ) -> Job:
        """Through the command line, as a user would; its command hashes its files and calls the witness."""
        job = self.write(retry=retry, site=site, sleep_s=sleep_s, cpu=cpu, data=data)
        done = self.running.dwcp("submit", "-f", str(self.folder / f"{job.token}.yaml"), "--json")
        assert done.returncode == 0, done.stderr + done.stdout
        job.id = str(json.loads(done.stdout)["id"])
        return job

    def write(self, *, retry: str, site: str, sleep_s: float, cpu: float, data: bool) -> Job:
        """The job file and its payload; nothing is submitted."""
        token = f"t{next(self._tokens)}-{time.monotonic_ns()}"
        payload = self.folder / f"payload-{token}"
        payload.mkdir()
        if data:
            self._fill(payload, token)
        hashing = "find . -type f -name '0*' -print0 | sort -z | xargs -0 -r sha256sum > out/index.txt"
        content: dict[str, Any] = {
            "name": "drill",
            "demand": {"cpu": cpu, "memory_mib": 128, "storage_mib": 64},
            "run": ["sh", "-c", f"{self.witness.call(token)}; {hashing}; sleep {sleep_s}"],
            "network": "egress",
            "retry": retry,
            "limits": {"wall": "60s"},
        }
        if site:
            content["place"] = {"site": site}
        if data:
            content["data"] = {"path": str(payload), "site": "oslo"}
        (self.folder / f"{token}.yaml").write_text(json.dumps(content))
        return Job("", token, payload, retry)

    def view(self, job: Job) -> dict[str, Any]:
        """The workload as the manager shows it; empty while the manager is away."""
        try:
            url = f"http://{self.running.net}.0.11:8080/api/v1/workloads/{job.id}"
            answer = self._operator.get(url, timeout=5)
        except httpx.HTTPError:
            return {}
        return dict(answer.json()) if answer.status_code == 200 else {}

    def shown(self, job: Job) -> str:
        return str(self.view(job).get("state", {}).get("state", ""))

    def finish(self, job: Job, *, seconds: float = 75) -> WorkloadState:
        """Wait for the end; the state is then read from the log and not from the manager."""
        wait_until(lambda: self.shown(job) in FINAL, f"{job.id} ends: {self.view(job)}", seconds=seconds)
        rows = self.read(state_key(job.id))
        return msgspec.json.decode(rows[0], type=WorkloadState)

    # ------------------------------------------------------------------ the log

    def read(self, key: bytes, *, prefix: bool = False) -> list[bytes]:
        """Values of a key, or of all that begin with it."""
        return list(self.rows(key, prefix_end(key) if prefix else b"").values())

    def rows(self, key: bytes, end: bytes) -> dict[str, bytes]:
        """By an ordered read under the operator's own key."""

        async def ask(ledger: LedgerClient) -> RangeDone:
            return await ledger.range(key, end, linearizable=True)

        return {kv.key.decode(): kv.value for kv in self._ask(ask).kvs}

    def write_positions(self, count: int) -> None:
        """Make the log longer, one position for each write."""

        async def ask(ledger: LedgerClient) -> None:
            for number in range(count):
                await ledger.txn(Txn(success=(Put(b"/drill", str(number).encode()),)), timeout_s=30)

        self._ask(ask)

    def _ask(self, ask: Callable[[LedgerClient], Any]) -> Any:
        layout = self.running.layout

        async def go() -> Any:
            ledger = await LedgerClient.open(
                genesis=genesis_file.load(layout.genesis),
                key=keys.load_sign_key(layout.sign_key("operator")),
                tls=layout.tls("operator"),
                session_path=None,
            )
            try:
                return await ask(ledger)
            finally:
                await ledger.close()

        return asyncio.run(go())

    # ------------------------------------------------------------------ evidence

    def starts(self, job: Job) -> int:
        """Durable start markers of its attempts on all agents; tombstones are not starts."""
        markers = self.running.root.glob(f"data/dwcp-agent-*/attempts/{job.id}-*/started")
        return sum("abandoned" not in json.loads(marker.read_bytes()) for marker in markers)

    def outputs(self, job: Job) -> list[Output]:
        """What was published, as the log has it."""
        values = self.read(f"/w/{job.id}/out/".encode(), prefix=True)
        return [msgspec.json.decode(value, type=Output) for value in values]

    def check_output(self, job: Job) -> None:
        """Fetched by the command line, every line against the files that were handed over."""
        folder = self.folder / f"out-{job.id}"
        done = self.running.dwcp("output", job.id, str(folder))
        assert done.returncode == 0, done.stderr
        expected = [
            f"{hashlib.sha256(file.read_bytes()).hexdigest()}  ./{file.name}"
            for file in sorted(job.payload.glob("0*"))
        ]
        assert (folder / "index.txt").read_text().splitlines() == expected
        shutil.rmtree(folder)

    def receipts(self, job: Job) -> list[Path]:
        """Its receipts as files, each verified against genesis alone."""
        folder = self.folder / f"receipts-{job.id}"
        done = self.running.dwcp("receipt", "get", job.id, "--out", str(folder))
        assert done.returncode == 0, done.stderr
        genesis = genesis_file.load(self.running.layout.genesis)
        files = sorted(folder.iterdir())
        for file in files:
            receipts.verify(receipts.decode(file.read_bytes()), genesis)
        return files

    def check_safe(self, job: Job, state: WorkloadState) -> None:
        """`retry: safe`: done, one output, and it is the right one, with proof."""
        assert state.state == "done", state
        assert [output.root for output in self.outputs(job)] == [state.output_root]
        assert self.witness.starts[job.token] >= 1
        self.check_output(job)
        assert self.receipts(job)

    def check_never(self, job: Job, state: WorkloadState) -> None:
        """`retry: never`: done or unknown, and both kinds of evidence say at most one start."""
        assert state.state in {"done", "unknown"}, state
        assert self.starts(job) <= 1
        assert self.witness.starts[job.token] <= 1
        assert len(self.outputs(job)) == (state.state == "done")
        if state.state == "done":
            assert self.witness.starts[job.token] == 1
            self.check_output(job)

    def check(self, job: Job, state: WorkloadState) -> None:
        """By its own `retry`; once all are back, as the agent that holds an output may just have been killed."""
        self.settle()
        check = self.check_safe if job.retry == "safe" else self.check_never
        check(job, state)
        held = {
            key: value
            for key, value in self.rows(b"/n/", prefix_end(b"/n/")).items()
            if key.endswith("/alloc")
        }
        assert all(job.id.encode() not in value for value in held.values()), f"still held: {held}"
        shutil.rmtree(job.payload)

    def run_with_kill(self, point: str, *, retry: str, service: str = "") -> None:
        """Arm, run jobs until the kill happened, judge each by all evidence."""
        service = self.arm(point, service)
        try:
            for _ in range(TRIES):
                job = self.submit(
                    retry=retry, sleep_s=2.5 if "lease" in point else 0.3
                )  # renewed each second
                self.check(job, self.finish(job))
                if self.has_fired(service, point):
                    return
                time.sleep(SILENCE_S if point.startswith("compression.") else 0)
        finally:
            if not self.has_fired(service, point):
                self.disarm(service, point)
        raise AssertionError(f"{service} never passed {point}")


@functools.cache
def _sources() -> Sequence[Path]:
    """Real files of this machine, looked for once: half a second."""
    found = sorted(Path("/usr/share").glob("*/*/*"))
    files = [path for path in found if path.is_file() and not path.is_symlink()]
    return [path for path in files if 1000 < path.stat().st_size < FILE_BYTES_MAX]


@contextmanager
def drill(folder: Path, *, lease: str = "3s") -> Iterator[Drill]:
    """A platform that is up; taken down at the end, whatever happened."""
    with started(lease=lease) as running:
        witness = Witness(f"{running.net}.0.99")
        made = Drill(running, folder, witness)
        try:
            yield made
        finally:
            made.close()
            witness.close()
