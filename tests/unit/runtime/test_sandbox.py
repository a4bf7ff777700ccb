"""The sandbox against real kernels: what a command can see, reach and use. Each test runs one shim."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dwcp.api.workloads import Demand, Job, Limits, Network
from dwcp.runtime import cgroups, sandbox, shim
from dwcp.runtime.attempts import AttemptDirectory, AttemptStore

pytestmark = pytest.mark.process

LEASE_S = 30


@dataclass
class Sandboxes:
    """Runs commands as an agent would, in attempts below one folder."""

    store: AttemptStore
    groups: cgroups.Cgroups
    count: int = 0

    def start(self, *run: str, **options: Any) -> AttemptDirectory:
        self.count += 1
        attempt = self.store.attempt("w-test", self.count)
        attempt.path.mkdir(parents=True, mode=0o700)
        attempt.fresh_work()
        job = Job(
            name="t",
            demand=Demand(
                cpu=1, memory_mib=options.get("memory_mib", 128), storage_mib=options.get("storage_mib", 8)
            ),
            run=run,
            network=options.get("network", Network.NONE),
            limits=Limits(wall=options.get("wall", "20s"), files=options.get("files", 1000)),
        )
        confinement = sandbox.confine(
            job, uid=sandbox.sandbox_uid(self.count), hidden=options.get("hidden", ())
        )
        group = None
        if self.groups.version != cgroups.NONE:
            group = self.groups.create(attempt.name, confinement.group_limits)
        for name, content in options.get("put", {}).items():
            (attempt.work / name).write_bytes(content)
        attempt.mark_shipped(confinement.uid, "out")
        attempt.set_lease(shim.boottime_ns() + LEASE_S * 10**9)
        attempt.launch(sandbox.launch(confinement, directory=attempt.path, group=group), ())
        return attempt

    def run(self, *run: str, **options: Any) -> tuple[dict[str, Any], str, str]:
        """(exit record, stdout, stderr)."""
        attempt = self.start(*run, **options)
        ended = wait_exit(attempt)
        return ended, *(attempt.file(name).read_text(errors="replace") for name in ("stdout", "stderr"))


def wait_exit(attempt: AttemptDirectory, *, within_s: float = 25) -> dict[str, Any]:
    until = time.monotonic() + within_s
    while attempt.is_alive or not attempt.file("exit.json").exists():
        assert time.monotonic() < until, f"{attempt.name} did not end"
        time.sleep(0.02)
    found: dict[str, Any] = json.loads(attempt.file("exit.json").read_text())
    return found


@pytest.fixture(scope="module", params=["grouped", "rlimit"])
def sandboxes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sandboxes]:
    sandbox.probe()
    groups = cgroups.Cgroups(cgroups.NONE, {})
    if request.param == "grouped":
        groups = cgroups.detect(f"dwcp-test-{os.getpid()}")
        if groups.version == cgroups.NONE:
            pytest.skip("no writable cgroups: run as root where /sys/fs/cgroup is writable")
    made = Sandboxes(AttemptStore(tmp_path_factory.mktemp("attempts")), groups)
    yield made
    for name in groups.names():
        cgroups.remove(groups.find(name))
    groups.close()


def test_a_command_runs_and_leaves_its_output(sandboxes: Sandboxes) -> None:
    """Goal: the plain case works. Method: write a file, print, exit 3; look at record, logs and file."""
    ended, out, err = sandboxes.run(
        "sh", "-c", "cat in > out/copy; echo hello; echo oops >&2; exit 3", put={"in": b"x"}
    )
    assert (ended["status"], ended["cause"], ended["entered"], ended["killed"]) == (3, None, True, False)
    assert (out, err) == ("hello\n", "oops\n")
    work = sandboxes.store.attempt("w-test", sandboxes.count).work
    assert (work / "out/copy").read_bytes() == b"x"


def test_nothing_of_the_host_but_the_system_is_visible(sandboxes: Sandboxes, tmp_path: Path) -> None:
    """Goal: no state, keys, homes or host /etc inside.
    Method: a secret file and well-known ones are looked for."""
    secret = tmp_path / "keys" / "sign.key"
    secret.parent.mkdir()
    secret.write_text("secret")
    script = f"cat {secret} /etc/shadow /root/.profile; ls /; ls /etc; cat /etc/passwd; env; id -u"
    _, out, err = sandboxes.run("sh", "-c", script)
    assert "secret" not in out
    assert err.count("No such file") == 3
    root, _, rest = out.partition("alternatives")
    assert not {"root", "home", "var", "opt", "srv", "work/briefs"} & set(root.split())
    assert {"shadow", "ssh", "hostname", "dwcp"}.isdisjoint(rest.split())
    assert "job:x:1000" in rest
    assert "HOME=/work" in rest
    assert rest.strip().endswith("1000")


def test_hidden_folders_below_the_system_are_empty(sandboxes: Sandboxes) -> None:
    """Goal: a state folder somewhere below /usr is not shown. Method: hide one that certainly has files."""
    _, out, _ = sandboxes.run(
        "sh", "-c", "ls /usr/share/doc | wc -l; touch /usr/share/doc/x", hidden=("/usr/share/doc",)
    )
    assert out.strip() == "0"


def test_writes_outside_the_work_folder_fail(sandboxes: Sandboxes) -> None:
    """Goal: read-only system. Method: try to create files everywhere; only /work, /tmp, /dev/shm accept."""
    places = "/ /usr /etc /dev /proc /work /tmp /dev/shm"
    script = f"for d in {places}; do touch $d/probe 2>/dev/null && echo $d; done; true"
    _, out, _ = sandboxes.run("sh", "-c", script)
    assert out.split() == ["/work", "/tmp", "/dev/shm"]


def test_no_network_unless_asked(sandboxes: Sandboxes) -> None:
    """Goal: `network: none` reaches nobody, `egress` does. Method: connect to a listener of this test."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        refused, _, _ = sandboxes.run(
            sys.executable if sys.executable.startswith("/usr") else "python3", "-c", code
        )
        reached, _, err = sandboxes.run("python3", "-c", code, network=Network.EGRESS)
    assert refused["status"] == 1
    assert reached["status"] == 0, err


def test_host_processes_are_invisible_and_untouchable(sandboxes: Sandboxes) -> None:
    """Goal: own pid namespace. Method: count /proc entries, try to signal this test's pid."""
    _, out, err = sandboxes.run("sh", "-c", f"ls /proc | grep -c '^[0-9]'; kill -0 {os.getpid()}")
    assert int(out) < 8
    assert "No such process" in err


def test_no_privilege_can_be_gained(sandboxes: Sandboxes) -> None:
    """Goal: no capabilities, no nested user namespaces, no new privileges.
    Method: /proc/self/status and unshare."""
    _, out, err = sandboxes.run(
        "sh", "-c", "grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; unshare -U true"
    )
    values = dict(line.split(":\t") for line in out.splitlines())
    assert int(values["CapEff"], 16) == int(values["CapBnd"], 16) == 0
    assert values["NoNewPrivs"] == "1"
    assert "unshare" in err


def test_a_fork_bomb_is_bounded(sandboxes: Sandboxes) -> None:
    """Goal: processes are limited.
    Method: start more sleepers than allowed; some forks fail, the shim ends all."""
    ended, _, err = sandboxes.run(
        "sh", "-c", f"for i in $(seq {sandbox.PROCESSES_MAX + 50}); do sleep 60 & done; wait"
    )
    assert ended["status"] != 0
    assert "fork" in err.lower()


def test_memory_over_the_demand_is_killed(sandboxes: Sandboxes) -> None:
    """Goal: one hungry job cannot starve a machine. Method: touch 4 × the demand; it must not survive."""
    ended, out, _ = sandboxes.run("python3", "-c", "b = bytearray(512 << 20); print('had it')", memory_mib=64)
    assert "had it" not in out
    assert ended["status"] != 0
    if sandboxes.groups.version != cgroups.NONE:
        assert ended["cause"] == "memory"


def test_many_processes_share_one_memory_limit(sandboxes: Sandboxes) -> None:
    """Goal: the limit is the job's, not each process's.
    Method: 4 processes of half the limit, held for a while."""
    one = "import time; b = bytearray(48 << 20); time.sleep(8)"
    ended, _, _ = sandboxes.run(
        "sh", "-c", f"for i in 1 2 3 4; do python3 -c '{one}' & done; wait; sleep 8", memory_mib=96
    )
    assert ended["cause"] == "memory"


def test_storage_and_file_limits_end_the_command(sandboxes: Sandboxes) -> None:
    """Goal: disk use is bounded. Method: one big file (RLIMIT_FSIZE), many middling ones, many empty ones."""
    big, _, _ = sandboxes.run("sh", "-c", "exec head -c 20000000 /dev/zero > big")
    assert big["status"] == 128 + 25  # SIGXFSZ
    assert sandboxes.store.attempt("w-test", sandboxes.count).file("work/big").stat().st_size <= 8 << 20
    many, _, _ = sandboxes.run(
        "sh", "-c", "for i in 1 2 3; do head -c 4000000 /dev/zero > f$i; done; sleep 15"
    )
    assert many["cause"] == "storage"
    files, _, _ = sandboxes.run("sh", "-c", "for i in $(seq 200); do : > f$i; done; sleep 15", files=100)
    assert files["cause"] == "files"


def test_processes_that_share_their_memory_are_not_counted_twice(sandboxes: Sandboxes) -> None:
    """Goal: many small processes are no memory hog. Method: 60 forks of one process, 40 of 64 MiB in common."""
    code = (
        "import os, time\n"
        "held = b'x' * (40 << 20)\n"
        "for _ in range(60):\n"
        "    if os.fork() == 0: time.sleep(3); os._exit(0)\n"
        "time.sleep(3)\n"
    )
    ended, _, err = sandboxes.run("python3", "-c", code, memory_mib=128)
    assert (ended["status"], ended["cause"]) == (0, None), err


def test_the_wall_limit_ends_the_command(sandboxes: Sandboxes) -> None:
    """Goal: no job runs for ever.
    Method: a sleeper with a wall limit of half a second, background child included."""
    ended, _, _ = sandboxes.run("sh", "-c", "sleep 60 & sleep 60", wall="500ms")
    assert ended["cause"] == "wall"
    assert ended["wall_s"] < 5


def test_logs_are_capped_and_the_command_goes_on(sandboxes: Sandboxes) -> None:
    """Goal: a chatty job neither fills the disk nor blocks. Method: print more than the cap, then succeed."""
    ended, out, _ = sandboxes.run("sh", "-c", f"head -c {sandbox.LOG_BYTES_MAX + 100_000} /dev/zero; exit 0")
    assert ended["status"] == 0
    assert len(out) == sandbox.LOG_BYTES_MAX
    assert ended["log_bytes"]["stdout"] == sandbox.LOG_BYTES_MAX + 100_000


def test_children_left_behind_die_with_the_command(sandboxes: Sandboxes) -> None:
    """Goal: nothing outlives the record of its end.
    Method: a daemonised child; then nobody holds the lock."""
    ended, _, _ = sandboxes.run("sh", "-c", "setsid sleep 300 & exit 0")
    assert ended["status"] == 0
    assert not sandboxes.store.attempt("w-test", sandboxes.count).is_alive


def test_an_unknown_program_is_the_jobs_fault(sandboxes: Sandboxes) -> None:
    """Goal: a wrong `run` ends in a status, not in a hang. Method: run a program that does not exist."""
    ended, _, err = sandboxes.run("no-such-program")
    assert ended["status"] != 0
    assert "no-such-program" in err


@pytest.mark.parametrize(("text", "expected"), [("90s", 90.0), ("5m", 300.0), ("1h", 3600.0), ("500ms", 0.5)])
def test_durations(text: str, expected: float) -> None:
    """Goal: the units of a job file. Method: each unit once."""
    assert sandbox.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "5", "m", "-1s", "5 m", "1e9s", "5M"])
def test_durations_refused(text: str) -> None:
    """Goal: no silent misreading. Method: near misses."""
    with pytest.raises(sandbox.DurationInvalid, match="such as 5m"):
        sandbox.seconds(text)
