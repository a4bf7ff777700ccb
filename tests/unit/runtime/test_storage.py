"""A replica's data directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from dwcp.consensus.core.logformat import ForeignJournal, Journal, JournalExists
from dwcp.consensus.ledger.ledger import Snapshot
from dwcp.runtime.disk import DirectoryInUse
from dwcp.runtime.storage import (
    Forgetful,
    Opened,
    SnapshotDamaged,
    initialise,
    open_storage,
)

CHAIN = b"c" * 32
SNAPSHOT = Snapshot(128, b"r" * 32, (b"list", b"", b"bucket" * 1000))


def opened(folder: Path, *, replica: int = 1) -> Opened:
    return open_storage(folder, chain_id=CHAIN, replica=replica)


def test_a_made_directory_votes_and_an_empty_one_learns(tmp_path: Path) -> None:
    """Goal: a missing journal is never a first boot. Method: open an empty folder twice, then a made one."""
    for _ in range(2):
        learner = opened(tmp_path / "empty")
        assert "runs as a learner" in learner.learner
        assert isinstance(learner.journal, Forgetful)
        learner.journal.append((b"x",))
        learner.journal.sync()
        learner.close()
    initialise(tmp_path / "made", chain_id=CHAIN, replica=1)

    voter = opened(tmp_path / "made")

    assert voter.learner == ""
    assert isinstance(voter.journal, Journal)
    voter.close()


def test_a_journal_is_made_once(tmp_path: Path) -> None:
    """Goal: `init` never forgets votes. Method: initialise twice."""
    initialise(tmp_path, chain_id=CHAIN, replica=1)

    with pytest.raises(JournalExists):
        initialise(tmp_path, chain_id=CHAIN, replica=1)


def test_a_damaged_journal_makes_a_learner_and_is_left_alone(tmp_path: Path) -> None:
    """Goal: lost votes stop voting, and the evidence stays. Method: flip a byte of the first of two groups."""
    initialise(tmp_path, chain_id=CHAIN, replica=1)
    storage = opened(tmp_path)
    storage.journal.append((b"one" * 50,))
    storage.journal.sync()
    storage.journal.append((b"two" * 50,))
    storage.journal.sync()
    storage.close()
    path = tmp_path / "journal" / "journal"
    data = bytearray(path.read_bytes())
    data[data.index(b"oneone") + 3] ^= 1
    path.write_bytes(data)

    learner = opened(tmp_path)

    assert "votes are lost" in learner.learner
    assert path.read_bytes() == data
    learner.close()


def test_a_foreign_directory_is_refused_and_its_locks_are_free_again(tmp_path: Path) -> None:
    """Goal: a refusal leaves nothing held. Method: the wrong replica, then the right one."""
    initialise(tmp_path, chain_id=CHAIN, replica=2)

    with pytest.raises(ForeignJournal, match="it is of replica 2, the configuration says 1"):
        opened(tmp_path)

    right = opened(tmp_path, replica=2)
    with pytest.raises(DirectoryInUse):
        opened(tmp_path, replica=2)
    right.close()


def test_a_snapshot_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """Goal: round trip, empty parts and large ones included. Method: save, reopen, load."""
    storage = opened(tmp_path)
    storage.snapshots.save(SNAPSHOT, keep_from=0)
    storage.close()

    storage = opened(tmp_path)

    assert storage.snapshots.indexes() == [128]
    assert storage.snapshots.load(128) == SNAPSHOT
    storage.close()


@pytest.mark.parametrize("offset", [0, 12, 60, 90, 200, 3000, -1])
def test_any_damage_to_a_snapshot_is_found(tmp_path: Path, offset: int) -> None:
    """Goal: no damaged state is loaded. Method: flip a byte in the head, in a part's head, in a part."""
    storage = opened(tmp_path)
    storage.snapshots.save(SNAPSHOT, keep_from=0)
    path = tmp_path / "snapshots" / f"snapshot-{128:016d}"
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)

    with pytest.raises(SnapshotDamaged):
        storage.snapshots.load(128)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(SnapshotDamaged):
        storage.snapshots.load(128)
    storage.close()


def test_an_unfinished_snapshot_is_not_seen(tmp_path: Path) -> None:
    """Goal: a snapshot is whole or absent. Method: a temporary file left behind, then a good save over it."""
    storage = opened(tmp_path)
    (tmp_path / "snapshots" / "snapshot.new").write_bytes(b"half")

    assert storage.snapshots.indexes() == []
    storage.snapshots.save(SNAPSHOT, keep_from=0)
    assert storage.snapshots.indexes() == [128]
    storage.close()


def test_older_snapshots_stay_from_the_certified_one_on(tmp_path: Path) -> None:
    """Goal: peers that are behind find the certified one. Method: five saves, `keep_from` in the middle, then late."""
    storage = opened(tmp_path)
    for index in range(1, 6):
        storage.snapshots.save(Snapshot(index, b"r" * 32, (b"",)), keep_from=2)
    assert storage.snapshots.indexes() == [2, 3, 4, 5]

    storage.snapshots.save(Snapshot(6, b"r" * 32, (b"",)), keep_from=100)

    assert storage.snapshots.indexes() == [5, 6]
    storage.close()
