"""The shim with real processes: it outlives its agent, its command never outlives it, and starts once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dwcp.api.workloads import Demand, Job
from dwcp.control.attempt import Cause
from dwcp.runtime import sandbox, shim
from dwcp.runtime.attempts import AttemptDirectory, AttemptStore, LaunchFailed

pytestmark = pytest.mark.process


def until(condition: Callable[[], bool], within_s: float = 15) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def prepare(tmp_path: Path, script: str, *, number: int = 1, lease_s: float = 30) -> AttemptDirectory:
    attempt = AttemptStore(tmp_path).attempt("w-test", number)
    attempt.path.mkdir(parents=True, mode=0o700)
    attempt.fresh_work()
    attempt.mark_shipped(sandbox.sandbox_uid(number), "out")
    attempt.set_lease(shim.boottime_ns() + int(lease_s * 1e9))
    attempt.file("script").write_text(script)
    return attempt


def orders(attempt: AttemptDirectory, script: str) -> dict[str, object]:
    job = Job(name="t", demand=Demand(cpu=1, memory_mib=64, storage_mib=16), run=("sh", "-c", script))
    confinement = sandbox.confine(job, uid=sandbox.sandbox_uid(attempt.number))
    return sandbox.launch(confinement, directory=attempt.path, group=None)


def start(attempt: AttemptDirectory, *failpoints: str) -> AttemptDirectory:
    words = [word for name in failpoints for word in ("--failpoint", f"{name}=kill")]
    mark = ["--failpoint-directory", str(attempt.path.parent / "failpoints")]
    attempt.launch(orders(attempt, attempt.file("script").read_text()), [*words, *mark] if words else [])
    return attempt


def gone(attempt: AttemptDirectory) -> bool:
    """As an agent looks at it: what a killed shim left behind is killed too."""
    attempt.kill_orphans()
    return not attempt.is_alive


def starts(attempt: AttemptDirectory) -> int:
    try:
        return attempt.file("stdout").read_text().count("started\n")
    except FileNotFoundError:
        return 0


def descendants(marker: str) -> list[int]:
    """Host pids whose command line carries `marker`: the command of one test."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if marker.encode() in words:
                found.append(int(entry.name))
    return found


def test_the_command_outlives_the_agent(tmp_path: Path) -> None:
    """Goal: kill -9 of an agent costs nothing. Method: a stand-in agent starts the shim in its own process
    group and is killed with the whole group; the command ends well and a new reader finds its status."""
    attempt = prepare(tmp_path, "echo started; sleep 1; echo finished")
    code = (
        "import json,sys,time\n"
        "from pathlib import Path\n"
        "from dwcp.runtime.attempts import AttemptStore\n"
        f"AttemptStore(Path({str(tmp_path)!r})).attempt('w-test', 1).launch(json.loads(sys.argv[1]), ())\n"
        "print('up', flush=True); time.sleep(60)\n"
    )

    given = json.dumps(orders(attempt, attempt.file("script").read_text()))
    with subprocess.Popen(
        [sys.executable, "-c", code, given],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": "src"},
    ) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"up\n"
        os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()
    found = AttemptStore(tmp_path).attempt("w-test", 1)
    assert found.is_alive
    identity = found.shim()
    assert identity is not None
    assert identity.runs
    until(lambda: not found.is_alive)
    ended = found.exit()
    assert ended is not None
    assert ended.status == 0
    assert found.file("stdout").read_text() == "started\nfinished\n"
    assert not identity.runs


def test_a_second_start_is_refused(tmp_path: Path) -> None:
    """Goal: at most one start per attempt. Method: launch while it runs and again after its end."""
    attempt = start(prepare(tmp_path, "echo started; sleep 1"))
    start(attempt)
    until(lambda: not attempt.is_alive)
    start(attempt)
    assert attempt.exit() is not None
    assert starts(attempt) == 1


def test_racing_launches_start_once(tmp_path: Path) -> None:
    """Goal: the marker decides races. Method: six shims at once for one attempt; exactly one gets through."""
    attempt = prepare(tmp_path, "echo started; sleep 0.5")
    shim.write_durable(attempt.file("launch.json"), b"{}")
    start_orders = orders(attempt, attempt.file("script").read_text())

    shim.write_durable(attempt.file("launch.json"), json.dumps(start_orders).encode())
    argv = [sys.executable, "-I", "-S", shim.__file__, str(attempt.path)]
    racers = [subprocess.Popen(argv, stderr=subprocess.DEVNULL) for _ in range(6)]
    codes = sorted(racer.wait() for racer in racers)
    assert codes == [shim.STARTED] + [shim.REFUSED] * 5
    until(lambda: not attempt.is_alive)
    assert starts(attempt) == 1


def test_a_tombstone_stops_a_late_shim(tmp_path: Path) -> None:
    """Goal: an attempt that was given up can never start. Method: abandon, then launch."""
    attempt = prepare(tmp_path, "echo started")
    assert attempt.abandon()
    assert not attempt.abandon()
    start(attempt)
    facts = attempt.facts()
    assert (facts.launched, facts.abandoned, facts.alive, facts.exit) == (True, True, False, None)
    assert starts(attempt) == 0


def test_the_command_dies_with_its_shim(tmp_path: Path) -> None:
    """Goal: nothing runs unattended. Method: SIGKILL the shim; every process of the command vanishes, and no
    exit status is left, which is what makes the fate unknown."""
    attempt = start(prepare(tmp_path, "echo started; sleep 7341 & setsid sleep 7341"))
    until(lambda: starts(attempt) == 1 and len(descendants("7341")) >= 2)
    attempt.kill()
    until(lambda: not attempt.is_alive and not descendants("7341"))
    assert attempt.exit() is None
    facts = attempt.facts()
    assert (facts.launched, facts.alive) == (True, False)


def test_a_lapsed_lease_kills_the_command_without_any_agent(tmp_path: Path) -> None:
    """Goal: a cut-off agent's work ends in time.
    Method: a short lease that nobody renews; measure the end."""
    attempt = start(prepare(tmp_path, "echo started; sleep 7342", lease_s=1.5))
    deadline_ns = attempt.lease_deadline_ns()
    until(lambda: not attempt.is_alive)
    assert shim.boottime_ns() - deadline_ns < 0.5e9
    ended = attempt.exit()
    assert ended is not None
    assert ended.cause is Cause.LEASE
    assert not descendants("7342")


def test_a_renewed_lease_keeps_it_alive(tmp_path: Path) -> None:
    """Goal: the shim follows the file. Method: renew past the first deadline; the command finishes."""
    attempt = start(prepare(tmp_path, "echo started; sleep 2", lease_s=1.2))
    attempt.set_lease(shim.boottime_ns() + 20 * 10**9)
    until(lambda: not attempt.is_alive)
    ended = attempt.exit()
    assert ended is not None
    assert (ended.status, ended.cause) == (0, None)


def test_no_start_on_a_lapsed_lease(tmp_path: Path) -> None:
    """Goal: a slow agent starts nothing late.
    Method: launch with a lease in the past: recorded as not entered."""
    attempt = start(prepare(tmp_path, "echo started", lease_s=-1))
    until(lambda: attempt.exit() is not None)
    ended = attempt.exit()
    assert ended is not None
    assert (ended.cause, ended.entered) == (Cause.LEASE, False)
    assert starts(attempt) == 0


def test_a_stop_asks_first_and_then_kills(tmp_path: Path) -> None:
    """Goal: a cancelled job may clean up, but not for ever. Method: one that traps SIGTERM and ends, one that
    ignores it."""
    polite = start(
        prepare(tmp_path, "trap 'echo bye; exit 0' TERM; echo started; while :; do sleep 0.1; done")
    )
    rude = start(prepare(tmp_path, "trap '' TERM; echo started; while :; do sleep 0.1; done", number=2))
    until(lambda: starts(polite) == starts(rude) == 1)
    for attempt in (polite, rude):
        attempt.stop(Cause.CANCELLED)
        attempt.stop(Cause.LEASE)  # the first cause stays
    until(lambda: not polite.is_alive and not rude.is_alive)
    assert "bye" in polite.file("stdout").read_text()
    for attempt in (polite, rude):
        ended = attempt.exit()
        assert ended is not None
        assert ended.cause is Cause.CANCELLED


@pytest.mark.parametrize(
    ("point", "started", "recorded"),
    [
        ("shim.exec.before", 0, False),
        ("shim.exec.after", None, False),
        ("shim.exit.before_record", 1, False),
        ("shim.exit.after_record", 1, True),
    ],
)
def test_a_shim_killed_at_any_point_leaves_no_doubt(
    tmp_path: Path, point: str, started: int | None, recorded: bool
) -> None:
    """Goal: after SIGKILL at each failpoint the disk says what is known, and nothing can start again.
    Method: arm, launch, wait until nothing lives, look; launch again: refused. `None`: either is right."""
    attempt = start(prepare(tmp_path, "echo started; sleep 0.3"), point)
    until(lambda: (tmp_path / "failpoints" / f"{point}.fired").exists() and gone(attempt))
    assert (attempt.exit() is not None) == recorded
    before = starts(attempt)
    assert before == started if started is not None else before <= 1
    start(attempt)
    until(lambda: not attempt.is_alive)
    assert starts(attempt) == before
    assert attempt.facts().launched


def test_a_shim_killed_during_the_setup_leaves_nothing(tmp_path: Path) -> None:
    """Goal: bubblewrap binds the sandbox's life to its own late; that gap must not leave a command running.
    Method: SIGKILL shims at many moments around the start; afterwards nothing is alive, and a command
    that was not let in by its shim has not begun."""
    for number in range(1, 25):
        attempt = start(prepare(tmp_path, "echo started; sleep 7343", number=number))
        time.sleep(number * 0.002)
        identity = attempt.shim()
        assert identity is not None
        os.kill(identity.pid, signal.SIGKILL)
        until(lambda attempt=attempt: gone(attempt))  # type: ignore[misc]
    until(lambda: not descendants("7343"))


def test_what_a_killed_shim_left_behind_is_found_and_killed(tmp_path: Path) -> None:
    """Goal: the deterministic half of the test above. Method: a leader takes lock and marker as a shim does,
    starts a child that inherits the lock, and dies; the attempt looks alive until its orphans are killed."""
    attempt = prepare(tmp_path, "")
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from dwcp.runtime import shim\n"
        "os.setsid()\n"
        "folder = Path(sys.argv[1])\n"
        "os.set_inheritable(shim.lock(folder), True)\n"
        "me = os.getpid()\n"
        "shim.take_marker(folder, {'pid': me, 'start_ticks': shim.start_ticks(me), 'boot_id': shim.boot_id()})\n"
        "if os.fork() == 0: os.execvp('sleep', ['sleep', '7344'])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(attempt.path)], check=True, env={**os.environ, "PYTHONPATH": "src"}
    )
    assert attempt.is_alive
    identity = attempt.shim()
    assert identity is not None
    assert not identity.runs
    until(lambda: gone(attempt))
    assert not descendants("7344")


@pytest.mark.parametrize(("word", "ran"), [("go\nmore\n", True), ("", False)])
def test_the_gate_opens_for_a_word_and_not_for_a_dead_shim(word: str, ran: bool) -> None:
    """Goal: no command begins without its shim. Method: the gate alone, with a line and with an end of file;
    the command itself finds an empty standard input."""
    argv = ["sh", "-c", sandbox.GATE, "gate", "sh", "-c", "echo ran; cat"]
    done = subprocess.run(argv, input=word, capture_output=True, text=True, check=False)
    assert done.stdout == ("\nran\n" if ran else "\n")


def test_a_command_killed_from_outside_is_told_apart(tmp_path: Path) -> None:
    """Goal: a kill that is not ours is no ordinary failure. Method: the failpoint that SIGKILLs the command,
    and a SIGTERM, against a command that ends with status 3 by itself."""
    killed = start(prepare(tmp_path, "echo started; sleep 5"), "shim.command")
    until(lambda: not killed.is_alive)
    ended = killed.exit()
    assert ended is not None
    assert (ended.status, ended.killed, ended.cause) == (137, True, None)
    asked = start(prepare(tmp_path, "kill -TERM $$; sleep 5", number=3))
    until(lambda: not asked.is_alive)
    ended = asked.exit()
    assert ended is not None
    assert (ended.status, ended.killed, ended.cause) == (143, True, None)
    own = start(prepare(tmp_path, "exit 3", number=2))
    until(lambda: not own.is_alive)
    assert own.exit() is not None
    assert not own.exit().killed  # type: ignore[union-attr]


def test_a_shim_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Goal: a sentence instead of a hang. Method: the attempt's folder is gone."""
    attempt = AttemptStore(tmp_path).attempt("w-test", 1)
    attempt.path.mkdir()
    attempt.file("lock").mkdir()
    with pytest.raises(LaunchFailed, match="w-test-1"):
        attempt.launch({}, ())
