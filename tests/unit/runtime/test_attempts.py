"""The store of attempts: what is durable, what is damaged, what may be deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dwcp.api.workloads import Demand, Job, Output, Spec
from dwcp.runtime import shim
from dwcp.runtime.attempts import AttemptDamaged, AttemptStore, Prepared, ShimIdentity, remove_tree


def spec(workload: str = "w-a") -> Spec:
    job = Job(name="t", demand=Demand(cpu=1, memory_mib=1, storage_mib=1), run=("true",))
    return Spec(id=workload, job=job, payload=None, submitted_ms=0, submitted_by="test")


def test_a_record_reads_back(tmp_path: Path) -> None:
    """Goal: an agent that restarts knows what it knew.
    Method: write through one store, read through another."""
    prepared = Prepared(spec=spec(), attempt=3, slot=0, limits_enforced="cgroup v1")
    AttemptStore(tmp_path).attempt("w-a", 3).prepare(prepared)
    found = list(AttemptStore(tmp_path).all())
    assert [attempt.prepared() for attempt in found] == [prepared]
    assert found[0].facts().recorded
    output = Output(root="ab", bytes=1, files=1, exit_status=0, node="rome", agent="dwcp-agent-rome")
    found[0].publish(output)
    assert AttemptStore(tmp_path).attempt("w-a", 3).output() == output


def test_slots_are_distinct_among_open_attempts(tmp_path: Path) -> None:
    """Goal: two commands at a time never share a uid. Method: take, close and take again."""
    store = AttemptStore(tmp_path)
    for number in range(3):
        assert store.free_slot() == number
        store.attempt("w-a", number).prepare(Prepared(spec(), number, number, "rlimit"))
    store.attempt("w-a", 1).close()
    assert store.free_slot() == 1


def test_cleaning_spares_open_attempts_and_the_newest(tmp_path: Path) -> None:
    """Goal: bounded disk, nothing in use lost. Method: five closed with known ages, one open; keep two."""
    store = AttemptStore(tmp_path)
    for number in range(6):
        store.attempt("w-a", number).prepare(Prepared(spec(), number, 0, "rlimit"))
        if number:
            store.attempt("w-a", number).close()
            os.utime(store.attempt("w-a", number).file("closed"), (number, number))
    assert store.clean(keep=2) == ["w-a-1", "w-a-2", "w-a-3"]
    assert [attempt.number for attempt in store.all()] == [0, 4, 5]


@pytest.mark.parametrize("name", ["attempt.json", "exit.json", "output.json", "started"])
def test_damage_is_a_sentence_naming_the_file(tmp_path: Path, name: str) -> None:
    """Goal: junk on disk is neither trusted nor a traceback. Method: junk in each file in turn."""
    attempt = AttemptStore(tmp_path).attempt("w-a", 1)
    attempt.path.mkdir()
    attempt.file(name).write_bytes(b"\xff{junk")
    read = {"attempt.json": attempt.prepared, "output.json": attempt.output}.get(name, attempt.facts)
    with pytest.raises(AttemptDamaged, match=name):
        read()


def test_a_recycled_pid_is_not_the_shim(tmp_path: Path) -> None:
    """Goal: adoption never trusts a pid alone.
    Method: this process's pid with other start times and boots."""
    mine = ShimIdentity(os.getpid(), shim.start_ticks(os.getpid()), shim.boot_id())
    assert mine.runs
    assert not ShimIdentity(mine.pid, mine.start_ticks + 1, mine.boot_id).runs
    assert not ShimIdentity(mine.pid, mine.start_ticks, "another boot").runs


def test_closing_drops_the_work_and_keeps_the_record(tmp_path: Path) -> None:
    """Goal: disk is given back, logs stay. Method: close an attempt with work and logs; close it again."""
    attempt = AttemptStore(tmp_path).attempt("w-a", 1)
    attempt.prepare(Prepared(spec(), 1, 0, "rlimit"))
    (attempt.fresh_work() / "big").write_bytes(b"x")
    attempt.file("stdout").write_text("said")
    for _ in range(2):
        attempt.close()
    assert not attempt.work.exists()
    assert attempt.file("stdout").read_text() == "said"
    assert attempt.is_closed


def test_trees_with_closed_folders_and_links_are_removed(tmp_path: Path) -> None:
    """Goal: no job can leave work that its agent cannot delete, nor make it touch anything outside.
    Method: folders without any permission, links to a folder outside, which must keep mode and content."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "kept").write_text("x")
    work = tmp_path / "work"
    (work / "a" / "b").mkdir(parents=True)
    (work / "a" / "b" / "file").write_text("x")
    (work / "a" / "link").symlink_to(outside)
    (work / "a" / "b").chmod(0)
    (work / "a").chmod(0o500)
    remove_tree(work)
    assert not work.exists()
    assert (outside / "kept").read_text() == "x"
    assert outside.stat().st_mode & 0o777 == 0o755
