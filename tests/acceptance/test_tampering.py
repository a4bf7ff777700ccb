"""Somebody changes one byte of what is kept: it is found, said in a sentence, and never used.

Chunks and receipts while the platform runs; keys, logs and snapshots while it is down.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.drills import Drill, drill, wait_until

pytestmark = [pytest.mark.process, pytest.mark.accept, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    """One platform for the group; the tests that stop it come last."""
    with drill(tmp_path_factory.mktemp("tampering")) as made:
        yield made


@contextmanager
def flipped(file: Path, *, part: float = 0.5) -> Iterator[None]:
    """One bit of the byte at `part` of what is written there is another one."""
    content = file.read_bytes()
    position = int(len(content.rstrip(b"\0")) * part)
    file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    try:
        yield
    finally:
        file.write_bytes(content)


def chunks(world: Drill, agent: str) -> set[Path]:
    return {path for path in world.running.root.glob(f"data/{agent}/chunks/*/chunks/*/*") if path.is_file()}


def other(value: Any) -> Any:  # Any: a value of a JSON document
    """The same kind of value, changed as little as possible."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        last = "0" if value[-1:] != "0" else "1"
        return value[:-1] + last
    if isinstance(value, list):
        return [other(value[0]), *value[1:]] if value else [1]
    key = sorted(value)[0]
    return {**value, key: other(value[key])}


def test_a_forged_receipt_is_found(world: Drill) -> None:
    """Goal: a receipt proves what it says or nothing. Method: change each of its fields in turn; drop signatures."""
    job = world.submit(retry="never")
    world.check_safe(job, world.finish(job))
    receipt = sorted((world.folder / f"receipts-{job.id}").iterdir())[0]
    document = json.loads(receipt.read_text())
    forgeries = {key: {**document, key: other(value)} for key, value in document.items() if value != []}
    forgeries["too few"] = {**document, "attestations": document["attestations"][:2]}
    for name, forgery in forgeries.items():
        forged = world.folder / "forged.json"
        forged.write_text(json.dumps(forgery))
        genesis = str(world.running.layout.genesis)
        answer = world.running.dwcp("receipt", "verify", str(forged), "--genesis", genesis)
        assert answer.returncode == 2, f"{name}: {answer.stdout}{answer.stderr}"
        assert answer.stderr.strip()


def test_a_changed_output_is_found(world: Drill) -> None:
    """Goal: no wrong byte is handed to a user. Method: flip a bit in each chunk of a published output."""
    before = chunks(world, "dwcp-agent-rome")
    job = world.submit(retry="never")
    state = world.finish(job)
    log = world.running.layout.log("dwcp-agent-rome")
    wait_until(
        lambda: any(job.id in line and "attempt.closed" in line for line in log.read_text().splitlines()),
        "the attempt's payload is given back",
    )
    for path in chunks(world, "dwcp-agent-rome") - before:
        content = path.read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    answer = world.running.dwcp("output", job.id, str(world.folder / "tampered"))

    assert state.state == "done"
    assert answer.returncode == 2, answer.stdout
    assert "chunk" in answer.stderr, answer.stderr
    assert not (world.folder / "tampered" / "index.txt").exists()


def test_a_changed_payload_is_found_before_it_runs(world: Drill) -> None:
    """Goal: no command runs on other bytes than were submitted. Method: stop the target, flip a bit in every
    chunk at the source, let it go on; a new submission of the same files then mends what was damaged."""
    agent = world.pid("dwcp-agent-rome")
    before = chunks(world, "dwcp-agent-oslo")
    os.kill(agent, signal.SIGSTOP)
    try:
        job = world.submit(retry="never")
        for path in chunks(world, "dwcp-agent-oslo") - before:
            content = path.read_bytes()
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    finally:
        os.kill(agent, signal.SIGCONT)
    log = world.running.layout.log("dwcp-agent-rome")
    wait_until(
        lambda: job.id in log.read_text() and "ship.delayed" in log.read_text(), "the damage is noticed"
    )
    assert world.running.dwcp("cancel", job.id).returncode == 0
    state = world.finish(job)

    assert state.state == "cancelled"
    assert world.witness.starts[job.token] == 0
    again = world.running.dwcp("submit", "-f", str(world.folder / f"{job.token}.yaml"), "--wait")
    assert again.returncode == 0, again.stderr


@pytest.fixture(scope="module")
def down(world: Drill) -> Iterator[Drill]:
    """The same installation with a log and snapshots, stopped; each test leaves its files as they were."""
    world.write_positions(300)
    world.settle()
    assert world.running.dwcp("down").returncode == 0
    yield world
    assert world.running.dwcp("up").returncode == 0, "what was put back is as good as before"


def journal(world: Drill) -> Path:
    return world.running.layout.data("probft-2") / "journal" / "journal"


@pytest.mark.parametrize("part", [0.0, 0.05, 0.5])
def test_a_changed_log_record_is_found(down: Drill, part: float) -> None:
    """Goal: a replica never votes from a memory that somebody edited. Method: flip a bit in its journal, up:
    it says so, and either does not run or learns from its peers without a vote."""
    with flipped(journal(down), part=part):
        answer = down.running.dwcp("up")
        shown = json.loads(down.running.dwcp("status", "--json").stdout)["services"]
        down.running.dwcp("down")
    said = answer.stderr + next(row["detail"] for row in shown if row["name"] == "probft-2")

    assert answer.returncode == 2 or "learner" in said
    assert "journal" in said
    assert "damaged" in said or "no journal" in said, said


def test_another_signing_key_is_found(down: Drill) -> None:
    """Goal: a key that was swapped is not used. Method: another replica's key in its place, up."""
    layout = down.running.layout
    key, kept = layout.sign_key("probft-2"), down.folder / "kept.key"
    shutil.copy2(key, kept)
    shutil.copy2(layout.sign_key("probft-3"), key)
    answer = down.running.dwcp("up")
    shutil.copy2(kept, key)

    assert answer.returncode == 4, answer.stdout
    assert str(key) in answer.stderr


def test_a_changed_snapshot_is_not_restored(down: Drill) -> None:
    """Goal: a replica restores only what its digest covers. Method: flip a bit in its snapshots, up; it says
    so and gets a good state from its peers or its journal."""
    folder = down.running.layout.data("probft-2") / "snapshots"
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 100]
    assert files, "300 positions made no snapshot"
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] + b"\xff" + content[len(content) // 2 + 1 :])
    answer = down.running.dwcp("up")
    log = down.running.layout.log("probft-2").read_text()
    try:
        assert "damaged" in log + answer.stderr
        assert answer.returncode == 0, answer.stderr
        job = down.submit(retry="never")
        down.check(job, down.finish(job))
    finally:
        down.running.dwcp("down")
