"""Damaged or contradicting files of an installation, and full disks: each service says what is wrong, and stops.

Services are started by hand on an installation that does not run, as the supervisor would.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from tests.acceptance.running import ROOT, RunningPlatform, installed
from tests.acceptance.sieges import FINAL, TRACEBACK, Siege

from dwcp.runtime import installation
from dwcp.runtime.installation import open_world, write_configs
from dwcp.runtime.layout import Layout
from dwcp.runtime.world import default_world, services

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]
needs_mounts = pytest.mark.skipif(os.geteuid() != 0, reason="enable with: run as root, which may mount tmpfs")
MODULES = {plan.name: plan.module for plan in services(default_world(), Layout(Path()))}
SERVICES = [
    name
    for name in MODULES
    if name not in {"probft-2", "probft-3", "probft-4", "dwcp-agent-rome", "dwcp-agent-lima"}
]
REFUSED, FAILED = 4, 2


@pytest.fixture(scope="module")
def made() -> Iterator[RunningPlatform]:
    """An installation whose configurations are written and whose processes never ran."""
    with installed() as platform:
        write_configs(platform.layout, open_world(platform.layout))
        yield platform


def start(platform: RunningPlatform, name: str, config: Path | None = None) -> tuple[int, str]:
    """Exit code and standard error of a service that cannot start."""
    module = MODULES[name]
    done = subprocess.run(
        [sys.executable, "-m", module, "--config", str(config or platform.layout.config(name))],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert TRACEBACK not in done.stderr + done.stdout, done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_unknown_keys_name_the_nearest(made: RunningPlatform, tmp_path: Path, name: str) -> None:
    """Goal: a misspelled key is never ignored. Method: one letter too many in each service's configuration."""
    content = yaml.safe_load(made.layout.config(name).read_text())
    content["data_dirr"] = content.pop("data_dir")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content))
    code, err = start(made, name, config)
    assert code == FAILED
    assert str(config) in err
    assert "'data_dirr'" in err
    assert "did you mean 'data_dir'" in err


@pytest.mark.parametrize(
    "content",
    ["", "[" * 3000, "a: &a [*a]", "- 1", "name: [", "\x00", "name: !!python/object:x {}", "x" * 2_000_000],
)
def test_junk_configurations_get_a_sentence(made: RunningPlatform, tmp_path: Path, content: str) -> None:
    """Goal: a broken file is named. Method: empty, deep, self-referring, tagged and oversized YAML."""
    config = tmp_path / "config.yaml"
    config.write_text(content)
    code, err = start(made, "maddpg-allocator", config)
    assert code == FAILED, err
    assert len(err.strip().splitlines()) == 1, err
    assert str(config) in err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("lease_ms:", "lease_m:", ("unknown key 'lease_m'", "did you mean 'lease_ms'")),
        ("uplink_mbps: 100.0", "uplink_mbp: 100.0", ("uplink_mbp", "did you mean 'uplink_mbps'")),
        ("uplink_mbps: 100.0", "uplink_mbps: fast", ("uplink_mbps",)),
        ("lease_ms: 3000", "lease_ms: -1", ("lease_ms",)),
        ("- hub", "- atlantis", ("atlantis",)),
    ],
)
def test_bad_cluster_files_are_refused(
    made: RunningPlatform, old: str, new: str, words: tuple[str, ...]
) -> None:
    """Goal: an edit of cluster.yaml that means nothing stops `up`. Method: one edit each."""
    cluster = made.layout.cluster
    text = cluster.read_text()
    assert old in text
    cluster.write_text(text.replace(old, new, 1))
    try:
        done = made.dwcp("up")
    finally:
        cluster.write_text(text)
    assert done.returncode in {FAILED, REFUSED}, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in (str(cluster), *words):
        assert word in done.stderr


def _private_files(platform: RunningPlatform, name: str) -> list[Path]:
    files = [platform.layout.tls(name).key]
    return files + [key for key in [platform.layout.sign_key(name)] if key.exists()]


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize(
    "fault", ["world-readable", *(pytest.param(f, marks=pytest.mark.accept) for f in ("missing", "damaged"))]
)
def test_no_service_starts_with_a_bad_key(made: RunningPlatform, name: str, fault: str) -> None:
    """Goal: a leaked, lost or broken key is named, never used. Method: each private file of each service."""
    for key in _private_files(made, name):
        content, mode = key.read_bytes(), key.stat().st_mode & 0o777
        if fault == "missing":
            key.unlink()
        elif fault == "world-readable":
            key.chmod(0o644)
        else:
            key.write_bytes(b"\x00junk")
        try:
            code, err = start(made, name)
        finally:
            key.write_bytes(content)
            key.chmod(mode)
        assert code == FAILED, f"{key}: {code}: {err}"
        assert str(key) in err


def test_a_swapped_genesis_is_refused(made: RunningPlatform) -> None:
    """Goal: nobody joins another chain by a copied file. Method: another installation's genesis, up."""
    genesis = made.layout.genesis
    text = genesis.read_text()
    with installed() as other:
        genesis.write_text(other.layout.genesis.read_text())
        done = made.dwcp("up")
        code, err = start(made, "probft-1")
        genesis.write_text(text)
    assert done.returncode == REFUSED, done.stderr
    assert str(genesis) in done.stderr
    assert code == REFUSED
    assert str(genesis) in err


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"version": 99}', b"null"])
def test_a_junk_genesis_gets_a_sentence(made: RunningPlatform, content: bytes) -> None:
    """Goal: a damaged genesis is named. Method: junk in its place; `up`, `status` and a node."""
    genesis = made.layout.genesis
    text = genesis.read_bytes()
    genesis.write_bytes(content)
    try:
        for command in ("up", "status"):
            done = made.dwcp(command)
            assert done.returncode in {FAILED, REFUSED}, done.stderr
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr
            assert str(genesis) in done.stderr
        code, err = start(made, "probft-1")
        assert code in {FAILED, REFUSED}
        assert str(genesis) in err
    finally:
        genesis.write_bytes(text)


def test_another_replicas_data_is_refused(made: RunningPlatform) -> None:
    """Goal: a replica never votes with another's memory. Method: probft-2's data in place of probft-1's."""
    own, kept = made.layout.data("probft-1"), made.layout.data("probft-1").with_name("kept")
    own.rename(kept)
    shutil.copytree(made.layout.data("probft-2"), own)
    try:
        code, err = start(made, "probft-1")
    finally:
        shutil.rmtree(own)
        kept.rename(own)
    assert code in {FAILED, REFUSED}, err
    assert str(own) in err or "journal" in err, err


def test_a_lost_genesis_is_no_first_boot(made: RunningPlatform) -> None:
    """Goal: `up` never makes a second chain over existing data. Method: genesis moved away, up."""
    genesis = made.layout.genesis
    kept = genesis.rename(genesis.with_suffix(".kept"))
    try:
        done = made.dwcp("up")
    finally:
        kept.rename(genesis)
    assert done.returncode == REFUSED, done.stderr
    assert "genesis.json" in done.stderr
    assert installation.exists(made.layout)


def test_a_damaged_token_file_lets_nobody_in(made: RunningPlatform) -> None:
    """Goal: junk in tokens.json is a sentence for the operator. Method: `dwcp token list` over junk."""
    text = made.layout.tokens.read_bytes()
    made.layout.tokens.write_bytes(b"[junk")
    try:
        done = made.dwcp("token", "list")
    finally:
        made.layout.tokens.write_bytes(text)
    assert done.returncode == FAILED
    assert str(made.layout.tokens) in done.stderr


# --------------------------------------------------------------------------- full disks


@contextmanager
def small_disk(folder: Path, *, mib: int) -> Iterator[Path]:
    """A file system of its own under a folder, with what was in it; taken away at the end."""
    kept = folder.with_name(f".{folder.name}.kept")
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.rename(kept)
    folder.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "none", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        folder.rmdir()
        kept.rename(folder)
        pytest.skip(f"enable with: a container that may mount tmpfs ({mounted.stderr.strip()})")
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()
        kept.rename(folder)


def fill(folder: Path) -> Path:
    """A file that takes whatever is left. Unbuffered: a buffer's rest would fail once more at the close."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65_536)
        except OSError as exc:
            assert exc.errno == errno.ENOSPC  # noqa: PT017  # the end that is wanted
    return ballast


@needs_mounts
def test_a_full_disk_ends_in_a_sentence_and_recovers(tmp_path: Path) -> None:
    """Goal: no space is a sentence, not a loss. Method: fill the disks of four processes while they run."""
    sizes = {"probft-4": 8, "dwcp-agent-oslo": 120, "dwcp-agent-rome": 120, "dwcp-manager": 4}
    with installed() as platform, ExitStack() as disks:
        folders = {name: platform.layout.data(name) for name in sizes}
        for name, folder in folders.items():
            disks.enter_context(small_disk(folder, mib=sizes[name]))
        try:
            platform.json("up")
            siege = Siege(platform, tmp_path)
            siege.run_job()
            check_full_manager(siege, folders["dwcp-manager"])
            check_full_source(siege, folders["dwcp-agent-oslo"])
            check_full_target(siege, folders["dwcp-agent-rome"])
            check_full_node(siege, folders["probft-4"])
            siege.check_logs()
        finally:
            platform.dwcp("down")


def check_full_manager(siege: Siege, folder: Path) -> None:
    """Its copies of receipts are all that it keeps: jobs go on, and the end's receipt comes once there is room."""
    ballast = fill(folder)
    workload = siege.run_job()
    ballast.unlink()

    def delivered() -> bool:
        done = siege.dwcp("receipt", "get", workload, "--json")
        return done.code == 0 and any(one["kind"] == "done" for one in json.loads(done.out)["receipts"])

    siege.wait(delivered, f"the receipt of {workload}", 60)


def check_full_target(siege: Siege, folder: Path) -> None:
    """A node that cannot record an attempt starts nothing, and says so in the log; with room it works again."""
    ballast = fill(folder)
    workload = siege.start_job()
    siege.wait(lambda: siege.state(workload)["state"] in FINAL, f"the end of {workload}", 60)
    ballast.unlink()
    state = siege.state(workload)
    assert (state["state"], state["started"]) == ("failed", False), state
    assert "No space left" in state["reason"], state
    siege.run_job()


def check_full_source(siege: Siege, folder: Path) -> None:
    """New files are refused by name of the disk; with room again they are taken."""
    payload = siege.folder / "large"
    payload.mkdir()
    (payload / "noise").write_bytes(os.urandom(2_000_000))
    ballast = fill(folder)
    answer = siege.submit_folder(payload)
    ballast.unlink()
    assert answer.code in {FAILED, REFUSED}, answer.err
    answer.check("free", str(folder))
    again = siege.submit_folder(payload)
    assert again.code == 0, again.err


def check_full_node(siege: Siege, folder: Path) -> None:
    """The replica stops with a sentence and votes no more; the others go on; with room it comes back."""
    ballast = fill(folder)
    siege.run_job()
    log = siege.layout.log("probft-4")
    until = time.monotonic() + 60
    while "No space left" not in log.read_text(errors="replace"):
        siege.run_job()  # a little more to write
        assert time.monotonic() < until, "the replica writes on without space"
    assert "free space on this file system" in log.read_text()
    ballast.unlink()
    siege.running.restart("probft-4")
    siege.wait_ready()
    assert siege.run_job()
