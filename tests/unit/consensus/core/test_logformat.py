"""The journal: what a crash may do to it, what damage must be refused, and that its bytes stay readable."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp.consensus.core.errors import DiskFailed, LogCorrupt
from dwcp.consensus.core.logformat import (
    GROUP_OVERHEAD,
    HEADER_SIZE,
    NAME,
    ForeignJournal,
    Identity,
    Journal,
    JournalExists,
    NoJournal,
    UnknownFormat,
    encode_group,
    encode_header,
    recover,
)
from dwcp.consensus.sim.disks import SECTOR, PowerLost, SimDisk, drop_sectors

GOLDEN = Path(__file__).parents[3] / "golden" / "log"
CHAIN = bytes(range(32))
IDENTITY = Identity(CHAIN, 2, b"nonce-of-16-byte")
GROUPS: list[tuple[bytes, ...]] = [(b"first",), (b"second", b""), (b"x" * 700,)]


def disk_of(groups: list[tuple[bytes, ...]], *, seed: int = 1) -> SimDisk:
    disk = SimDisk(Random(seed))
    journal = Journal.create(disk, IDENTITY)
    for group in groups:
        journal.append(group)
        journal.sync()
    return disk


def reopen(disk: SimDisk) -> tuple[bytes, ...]:
    return Journal.open(disk, chain_id=CHAIN, replica=2)[0]


def bytes_of(groups: list[tuple[bytes, ...]]) -> bytes:
    """A journal to which `groups` were appended."""
    data = encode_header(IDENTITY, first=1, sealed=HEADER_SIZE)
    for sequence, group in enumerate(groups, start=1):
        data += encode_group(sequence, group, nonce=IDENTITY.nonce)
    return data


def write(journal: Journal) -> None:
    journal.append((b"vote",))
    journal.sync()


def flat(groups: list[tuple[bytes, ...]]) -> tuple[bytes, ...]:
    return tuple(record for group in groups for record in group)


def test_records_come_back_in_order() -> None:
    """Goal: nothing lost or merged. Method: three groups, one with an empty record, reopened twice."""
    disk = disk_of(GROUPS)

    assert reopen(disk) == flat(GROUPS)
    assert reopen(disk) == flat(GROUPS)


def test_a_reopened_journal_goes_on() -> None:
    """Goal: numbering survives a restart. Method: reopen, append, reopen."""
    disk = disk_of(GROUPS)
    _, journal = Journal.open(disk, chain_id=CHAIN, replica=2)
    journal.append((b"later",))
    journal.sync()

    assert reopen(disk) == (*flat(GROUPS), b"later")


def test_no_journal_is_a_learner_not_a_first_boot() -> None:
    """Goal: a wiped directory never makes a fresh voter. Method: open an empty disk."""
    with pytest.raises(NoJournal, match="learner"):
        reopen(SimDisk(Random(1)))


def test_a_second_init_is_refused() -> None:
    """Goal: votes are not forgotten by running init twice. Method: create over an existing journal."""
    with pytest.raises(JournalExists):
        Journal.create(disk_of(GROUPS), IDENTITY)


@pytest.mark.parametrize(("chain", "replica"), [(bytes(32), 2), (CHAIN, 3)])
def test_someone_elses_journal_is_refused(chain: bytes, replica: int) -> None:
    """Goal: swapped data directories are noticed. Method: open with another chain, another replica."""
    with pytest.raises(ForeignJournal, match="journal"):
        Journal.open(disk_of(GROUPS), chain_id=chain, replica=replica)


def test_a_newer_format_is_named() -> None:
    """Goal: a downgrade says so instead of reading nonsense. Method: a header of version 9, its sum right."""
    import struct
    import zlib

    data = bytearray(bytes_of(GROUPS))
    struct.pack_into(">H", data, 8, 9)
    struct.pack_into(">I", data, HEADER_SIZE - 4, zlib.crc32(bytes(data[: HEADER_SIZE - 4])))
    with pytest.raises(UnknownFormat, match="format 9"):
        recover(bytes(data))


def test_a_leftover_temporary_file_is_no_journal() -> None:
    """Goal: a crash while rewriting loses nothing. Method: every operation of a rewrite as the last one."""
    operations = 5  # create, append, sync, rename, sync_dir
    for last in range(operations):
        disk = disk_of(GROUPS, seed=last)
        _, journal = Journal.open(disk, chain_id=CHAIN, replica=2)
        disk.fail_after(last)
        with pytest.raises(PowerLost):
            journal.rewrite((b"kept",))
        disk.lose_power()
        assert reopen(disk) in (flat(GROUPS), (b"kept",))
        assert disk.list() == [NAME]


def test_rewriting_drops_what_is_no_longer_needed() -> None:
    """Goal: the journal is bounded. Method: rewrite to one record, append, reopen; the file shrank."""
    disk = disk_of([(b"old" * 1000,)] * 20)
    size = len(disk.read(NAME))
    _, journal = Journal.open(disk, chain_id=CHAIN, replica=2)
    journal.rewrite((b"kept",))
    journal.append((b"new",))
    journal.sync()

    assert len(disk.read(NAME)) == journal.size < size // 100
    assert reopen(disk) == (b"kept", b"new")


def test_recovered_bytes_are_durable_before_anyone_acts_on_them() -> None:
    """Goal: a promise read from the page cache cannot vanish in a second crash.

    Method: append without sync, let the process alone die (the bytes stay readable), open, then lose
    power under every fate: the record that was reported must still be there.
    """
    for seed in range(40):
        disk = disk_of(GROUPS, seed=seed)
        _, journal = Journal.open(disk, chain_id=CHAIN, replica=2)
        journal.append((b"vote",))
        assert reopen(disk)[-1] == b"vote"
        disk.lose_power()
        assert reopen(disk)[-1] == b"vote"


@pytest.mark.parametrize("fault", ["refuse_sync", "full"])
def test_a_failed_write_is_never_retried(fault: str) -> None:
    """Goal: after a failed sync nothing may pass for durable. Method: fail once, heal the disk, try again."""
    disk = disk_of(GROUPS)
    _, journal = Journal.open(disk, chain_id=CHAIN, replica=2)
    setattr(disk, fault, True)
    with pytest.raises(DiskFailed):
        write(journal)
    setattr(disk, fault, False)
    for retry in (journal.sync, lambda: journal.append((b"again",)), lambda: journal.rewrite(())):
        with pytest.raises(DiskFailed, match="earlier"):
            retry()


RECORDS = st.binary(max_size=1500)
GROUP_LISTS = st.lists(st.lists(RECORDS, min_size=1, max_size=4).map(tuple), min_size=1, max_size=6)


@given(GROUP_LISTS, st.data())
def test_any_tear_of_the_tail_recovers_whole_groups(
    groups: list[tuple[bytes, ...]], data: st.DataObject
) -> None:
    """Goal: a torn last group is cut, and never half of it. Method: every prefix of an unsynced group."""
    whole = bytes_of(groups)
    before = bytes_of(groups[:-1])
    size = data.draw(st.integers(len(before), len(whole)))

    recovered = recover(whole[:size])

    assert recovered.records == flat(groups if size == len(whole) else groups[:-1])
    assert recovered.cut == (0 if size == len(whole) else size - len(before))


@given(GROUP_LISTS, st.integers(0, 2**32))
def test_any_reordering_of_sectors_recovers_whole_groups(groups: list[tuple[bytes, ...]], seed: int) -> None:
    """Goal: sectors that never reached the disk cut the group. Method: zero a random choice of the tail's."""
    durable = len(bytes_of(groups[:-1]))
    torn = bytearray(bytes_of(groups))
    drop_sectors(torn, durable, Random(seed))

    recovered = recover(bytes(torn))

    intact = torn == bytes_of(groups)
    assert recovered.records == flat(groups if intact else groups[:-1])


@given(GROUP_LISTS.filter(lambda groups: len(groups) > 1), st.data())
def test_any_flipped_byte_before_the_last_group_is_refused(
    groups: list[tuple[bytes, ...]], data: st.DataObject
) -> None:
    """Goal: damage to a durable promise is no torn tail. Method: flip one byte anywhere before."""
    damaged = bytearray(bytes_of(groups))
    position = data.draw(st.integers(0, len(bytes_of(groups[:-1])) - 1))
    damaged[position] ^= data.draw(st.integers(1, 255))

    with pytest.raises((LogCorrupt, UnknownFormat)):
        recover(bytes(damaged))


@pytest.mark.parametrize("position", [0, 9, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + GROUP_OVERHEAD, -1])
def test_damage_to_a_rewritten_journal_is_refused_even_at_its_end(position: int) -> None:
    """Goal: a rewritten journal is one group; losing it must not look like a torn tail.

    Method: rewrite, flip one byte (or cut the file), open.
    """
    disk = disk_of([])
    _, journal = Journal.open(disk, chain_id=CHAIN, replica=2)
    journal.rewrite(flat(GROUPS))
    data = bytearray(disk.read(NAME))
    data[position] ^= 1
    with pytest.raises((LogCorrupt, UnknownFormat)):
        recover(bytes(data))
    with pytest.raises(LogCorrupt):
        recover(disk.read(NAME)[:-1])


def test_a_group_that_vanished_whole_is_refused() -> None:
    """Goal: a hole between groups is a lost vote. Method: leave out the first or a middle one."""
    for missing in (0, 1):
        data = encode_header(IDENTITY, first=1, sealed=HEADER_SIZE)
        for sequence, group in enumerate(GROUPS, start=1):
            if sequence != missing + 1:
                data += encode_group(sequence, group, nonce=IDENTITY.nonce)
        with pytest.raises(LogCorrupt, match="follows"):
            recover(data)


def test_a_group_forged_inside_a_record_is_not_believed() -> None:
    """Goal: a client whose bytes reach the journal cannot turn a torn write into corruption.

    Method: a record that contains a well-formed group under another nonce; tear the group around it.
    """
    forged = encode_group(9, (b"evil",), nonce=bytes(16))
    data = bytes_of([(b"good",), (b"padding" + forged + b"padding" * 100,)])

    assert recover(data[: -SECTOR // 2]).records == (b"good",)


def test_the_tail_is_gone_after_it_was_cut() -> None:
    """Goal: garbage of a torn group never stands before later groups. Method: tear, open, append, reopen."""
    disk = disk_of(GROUPS)
    disk.append(NAME, encode_group(4, (b"torn",), nonce=IDENTITY.nonce)[:-1])
    records, journal = Journal.open(disk, chain_id=CHAIN, replica=2)
    assert records == flat(GROUPS)
    assert journal.cut > 0
    journal.append((b"next",))
    journal.sync()

    assert reopen(disk) == (*flat(GROUPS), b"next")


def test_golden_journal_stays_readable() -> None:
    """Goal: every released journal can be read for ever. Method: bytes written by format 1."""
    golden = (GOLDEN / "journal.v1").read_bytes()

    recovered = recover(golden)

    assert recovered.identity == IDENTITY
    assert recovered.records == flat(GROUPS)
    assert golden == bytes_of(GROUPS)  # and is still what we write
