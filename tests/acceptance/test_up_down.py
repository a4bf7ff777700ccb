"""One command brings everything up, another one takes everything down; mistakes are sentences."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from tests.acceptance.running import RunningPlatform, installed, started

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def running() -> Iterator[RunningPlatform]:
    """One start for all tests of this group."""
    with started() as platform:
        yield platform


@pytest.fixture(scope="module")
def stopped() -> Iterator[RunningPlatform]:
    """An installation whose processes never run for long."""
    with installed() as platform:
        yield platform


def service(platform: RunningPlatform, name: str) -> dict[str, object]:
    found: dict[str, object] = next(one for one in platform.json("status")["services"] if one["name"] == name)
    return found


def test_everything_is_ready_and_well(running: RunningPlatform) -> None:
    """Goal: `up` means usable. Method: status and the monitor's verdict, from outside."""
    status = running.json("status")
    health = httpx.get(f"http://{running.net}.0.14:8081/api/clusters/control/health").json()

    assert status["verdict"] == "ok"
    assert all(one["ready"] for one in status["services"])
    assert (health["verdict"], health["can_lose"], len(health["members"])) == ("ok", 1, 4)


def test_second_up_changes_nothing(running: RunningPlatform) -> None:
    """Goal: `up` twice is harmless. Method: compare pids before and after."""
    before = {one["name"]: one["pid"] for one in running.json("status")["services"]}

    again = running.json("up")

    assert {one["name"]: one["pid"] for one in again["services"]} == before


def test_every_service_answers_its_routes(running: RunningPlatform) -> None:
    """Goal: each service can be watched. Method: ask all plain listeners for all four pages."""
    for one in running.json("status")["services"]:
        if one["address"].startswith("http://"):
            assert httpx.get(one["address"] + "/health").json()["verdict"] == "ok", one["name"]
            assert httpx.get(one["address"] + "/ready").status_code == 200, one["name"]
            assert "dwcp_build_info" in httpx.get(one["address"] + "/metrics").text, one["name"]
            assert httpx.get(one["address"] + "/version").json()["version"], one["name"]


def test_one_process_line_names_the_selector(running: RunningPlatform) -> None:
    """Goal: `pgrep -f compression-api` finds one process of an installation. Method: read all its command lines."""
    lines = [" ".join(process.cmdline()) for process in running.platform.supervisor.processes()]

    assert len([line for line in lines if "compression-api" in line]) == 1


def test_killed_service_comes_back(running: RunningPlatform) -> None:
    """Goal: supervision works. Method: SIGKILL the monitor and wait for another pid that is ready."""
    pid = service(running, "dwcp-monitoring")["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = (
            service(running, "dwcp-monitoring") if running.dwcp("status", "--json").returncode == 0 else {}
        )
        if found.get("ready") and found["pid"] != pid:
            return
        time.sleep(0.5)
    pytest.fail("the monitor did not come back")


def test_restart_arms_failpoints_for_one_service(running: RunningPlatform) -> None:
    """Goal: tests can kill at a point. Method: arm a pause, look at the command line, restart without."""
    running.restart("maddpg-allocator", "allocator.place.before=pause:1")
    armed = _command_line(running, "maddpg-allocator")
    running.restart("maddpg-allocator")
    plain = _command_line(running, "maddpg-allocator")

    assert "allocator.place.before=pause:1" in armed
    assert "--failpoint" not in plain


def _command_line(platform: RunningPlatform, name: str) -> list[str]:
    """The service's own command line: for a moment after the fork, its process still shows supervisord's."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for state in platform.platform.supervisor.states():
            if state.name == name and state.pid:
                line = psutil.Process(state.pid).cmdline()
                if any(name in part for part in line):
                    return line
        time.sleep(0.1)
    pytest.fail(f"{name} has no process")


def test_state_is_private(running: RunningPlatform) -> None:
    """Goal: a running platform opens nothing to other users. Method: modes of logs, data and the socket."""
    for folder in ("keys", "tokens", "data", "run", "log", "authority"):
        assert (running.root / folder).stat().st_mode & 0o077 == 0, folder


def test_world_readable_key_stops_the_start(stopped: RunningPlatform) -> None:
    """Goal: a leaked key is refused. Method: chmod 644, up."""
    key = stopped.layout.sign_key("probft-2")
    key.chmod(0o644)
    done = stopped.dwcp("up")
    key.chmod(0o600)

    assert done.returncode == 2
    assert "chmod 600" in done.stderr
    assert str(key) in done.stderr


def test_missing_key_stops_the_start(stopped: RunningPlatform) -> None:
    """Goal: a lost key is named. Method: move it away, up."""
    key = stopped.layout.keys("dwcp-agent-rome") / "tls.key"
    kept = key.rename(key.with_suffix(".kept"))
    done = stopped.dwcp("up")
    kept.rename(key)

    assert done.returncode == 2
    assert "is missing" in done.stderr


def test_contradicting_world_is_refused(stopped: RunningPlatform) -> None:
    """Goal: an edited cluster.yaml cannot change the members. Method: drop a replica, up."""
    cluster = stopped.layout.cluster
    text = cluster.read_text()
    cluster.write_text(text.replace(stopped.net, "127.250"))
    done = stopped.dwcp("up")
    cluster.write_text(text)

    assert done.returncode == 4
    assert "cluster.yaml" in done.stderr
    assert "genesis.json" in done.stderr


def test_taken_port_names_the_service_and_the_owner(stopped: RunningPlatform) -> None:
    """Goal: who to free is said. Method: take the allocator's port in this process, up."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((f"{stopped.net}.0.13", 8080))
        taken.listen()
        done = stopped.dwcp("up")

    assert done.returncode == 2
    assert "maddpg-allocator cannot listen on" in done.stderr
    assert f"by process {os.getpid()}" in done.stderr


def test_down_leaves_nothing() -> None:
    """Goal: `down` means gone, even without the supervisor. Method: kill the supervisor, down, look at every pid."""
    with started() as platform:
        processes = platform.platform.supervisor.processes()
        supervisor = next(process for process in processes if "supervisor" in " ".join(process.cmdline()))
        supervisor.kill()
        answer = platform.json("down")
        gone, alive = psutil.wait_procs(processes, timeout=5)

    assert len(processes) == 12
    assert alive == []
    assert answer["killed"]
    assert len(gone) == len(processes)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="enable with: apt-get install -y bubblewrap")
def test_doctor_finds_nothing_wrong(running: RunningPlatform) -> None:
    """Goal: a good machine passes. Method: run it; warnings of this machine are allowed, faults are not."""
    done = running.dwcp("doctor", "--json")

    assert done.returncode in {0, 1}, done.stdout
