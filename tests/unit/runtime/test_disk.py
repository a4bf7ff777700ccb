"""The real disk and its thread."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dwcp.consensus.core.errors import DiskFailed
from dwcp.consensus.core.logformat import Identity, Journal
from dwcp.runtime.disk import DirectoryInUse, DiskThread, RealDisk

IDENTITY = Identity(b"c" * 32, 2, b"n" * 16)


def test_a_journal_survives_reopening(tmp_path: Path) -> None:
    """Goal: the journal's format works on real files. Method: write, close, open, compare; rewrite too."""
    disk = RealDisk(tmp_path)
    journal = Journal.create(disk, IDENTITY)
    journal.append((b"one", b"two"))
    journal.sync()
    disk.close()

    disk = RealDisk(tmp_path)
    records, journal = Journal.open(disk, chain_id=IDENTITY.chain_id, replica=2)
    journal.rewrite((b"three",))
    journal.append((b"four",))
    journal.sync()
    disk.close()
    again, _ = Journal.open(RealDisk(tmp_path), chain_id=IDENTITY.chain_id, replica=2)

    assert records == (b"one", b"two")
    assert again == (b"three", b"four")


def test_two_owners_of_one_directory_are_refused(tmp_path: Path) -> None:
    """Goal: one key never votes from two processes. Method: a child process tries the locked directory."""
    disk = RealDisk(tmp_path)
    script = (
        "import sys; from pathlib import Path; from dwcp.runtime.disk import *\n"
        "try: RealDisk(Path(sys.argv[1]))\n"
        "except DirectoryInUse as exc: print(exc); sys.exit(9)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    disk.close()

    assert done.returncode == 9
    assert "another process owns this data directory" in done.stdout
    RealDisk(tmp_path).close()


def test_a_second_owner_in_the_same_process_is_refused(tmp_path: Path) -> None:
    """Goal: the lock is per opening, not per process. Method: open twice."""
    disk = RealDisk(tmp_path)

    with pytest.raises(DirectoryInUse, match="give this one a directory of its own"):
        RealDisk(tmp_path)
    disk.close()


def test_the_lock_is_not_listed_and_modes_are_private(tmp_path: Path) -> None:
    """Goal: readers of the directory see data files only, and nobody else sees them. Method: list, stat."""
    disk = RealDisk(tmp_path / "data")
    disk.create("a")

    assert disk.list() == ["a"]
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "data" / "a").stat().st_mode & 0o777 == 0o600
    disk.close()


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    """Goal: ENOSPC says what to do. Method: /dev/full stands where the file would be."""
    (tmp_path / "journal").symlink_to("/dev/full")
    disk = RealDisk(tmp_path)

    with pytest.raises(DiskFailed, match="No space left on device; free space"):
        disk.append("journal", b"x")
    disk.close()


async def _run_thread(works: list[object]) -> tuple[list[str], list[str]]:
    done: list[str] = []
    failed: list[str] = []
    ended = asyncio.Event()

    def fail(exc: Exception) -> None:
        failed.append(str(exc))
        ended.set()

    thread = DiskThread("disk", failed=fail)
    for number, work in enumerate(works):
        thread.submit(work, lambda number=number: done.append(str(number)))  # type: ignore[arg-type,misc]
    await thread.close()
    await asyncio.sleep(0)
    return done, failed


def test_the_first_failure_ends_the_thread() -> None:
    """Goal: nothing is written after a failed sync. Method: good, bad, good work; only the first is done."""
    ran: list[int] = []

    def bad() -> None:
        raise DiskFailed("the disk is gone")

    works = [lambda: ran.append(1), bad, lambda: ran.append(2)]

    done, failed = asyncio.run(_run_thread(works))

    assert (ran, done, failed) == ([1], ["0"], ["the disk is gone"])
