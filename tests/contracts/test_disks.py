"""One suite for every `core.logformat.Disk`: what the simulator relies on is what the real one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dwcp.consensus.core.errors import DiskFailed
from dwcp.consensus.core.logformat import Disk, Identity, Journal
from dwcp.consensus.sim.disks import SimDisk
from dwcp.runtime.disk import RealDisk

MakeDisk = Callable[[Path], Disk]


def _simulated(folder: Path) -> Disk:
    return SimDisk(Random(str(folder)))


@pytest.fixture(params=[RealDisk, _simulated], ids=["real", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    make: MakeDisk = request.param
    return make(tmp_path)


def test_appends_add_up(disk: Disk) -> None:
    """Goal: a file is what was appended, in order, seen at once by its writer. Method: three appends."""
    disk.create("a")
    for piece in (b"one", b"", b"two" * 10_000):
        disk.append("a", piece)
    disk.sync("a")

    assert disk.read("a") == b"one" + b"two" * 10_000


def test_create_replaces(disk: Disk) -> None:
    """Goal: `create` begins anew. Method: content, create, read; then append."""
    disk.create("a")
    disk.append("a", b"old")
    disk.create("a")

    assert disk.read("a") == b""
    disk.append("a", b"new")
    assert disk.read("a") == b"new"


def test_names_are_sorted_and_renames_replace(disk: Disk) -> None:
    """Goal: names behave alike. Method: make out of order, rename over another, remove, list."""
    for name in ("c", "a", "b"):
        disk.create(name)
        disk.append(name, name.encode())
    assert disk.list() == ["a", "b", "c"]

    disk.rename("c", "a")
    disk.remove("b")
    disk.sync_dir()

    assert disk.list() == ["a"]
    assert disk.read("a") == b"c"


def test_a_renamed_file_goes_on_under_its_new_name(disk: Disk) -> None:
    """Goal: the journal's rewrite (write, sync, rename, append) works. Method: append after the rename."""
    disk.create("journal")
    disk.append("journal", b"old")
    disk.create("journal.new")
    disk.append("journal.new", b"fresh")
    disk.sync("journal.new")
    disk.rename("journal.new", "journal")
    disk.sync_dir()
    disk.append("journal", b"er")
    disk.sync("journal")

    assert disk.read("journal") == b"fresher"


@pytest.mark.parametrize("method", ["read", "sync", "remove"])
def test_what_is_not_there_is_a_sentence(disk: Disk, method: str) -> None:
    """Goal: a missing file is `DiskFailed`, never a traceback of the system's. Method: each method."""
    with pytest.raises(DiskFailed):
        getattr(disk, method)("missing")


def test_renaming_what_is_not_there_is_a_sentence(disk: Disk) -> None:
    """Goal: the same for `rename`. Method: a missing source."""
    with pytest.raises(DiskFailed):
        disk.rename("missing", "a")


Step = tuple[str, bytes]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "rewrite", "reopen"]), st.binary(max_size=700)), max_size=12
    )
)
def test_a_journal_reads_back_alike_on_both(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step]
) -> None:
    """Goal: the same history gives the same journal. Method: random appends, rewrites and reopenings."""
    identity = Identity(b"c" * 32, 1, b"n" * 16)
    folder = tmp_path_factory.mktemp("journal")
    real, simulated = RealDisk(folder), _simulated(folder)
    try:
        results = [_history(each, identity, steps) for each in (real, simulated)]
        assert results[0] == results[1]
        assert real.read("journal") == simulated.read("journal")
    finally:
        real.close()


def _history(disk: Disk, identity: Identity, steps: list[Step]) -> tuple[bytes, ...]:
    journal = Journal.create(disk, identity)
    for step, record in steps:
        if step == "append":
            journal.append((record, b"second"))
            journal.sync()
        elif step == "rewrite":
            journal.rewrite((record,))
        else:
            _, journal = Journal.open(disk, chain_id=identity.chain_id, replica=identity.replica)
    records, _ = Journal.open(disk, chain_id=identity.chain_id, replica=identity.replica)
    return records
