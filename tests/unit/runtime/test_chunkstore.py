"""The chunk store on a real disk: crashes, damage, quota, sharing, and who may forget what."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dwcp.compression import manifest as m
from dwcp.compression.chunking import address
from dwcp.compression.errors import (
    ChunkDamaged,
    ChunkMissing,
    ManifestMissing,
    QuotaExceeded,
    RequestInvalid,
    StoreFull,
    StoreUnusable,
)
from dwcp.compression.manifest import Chunk, Entry, Kind, Manifest
from dwcp.runtime.chunkstore import ChunkStore


def _payload(*contents: bytes) -> Manifest:
    return m.make(
        Entry(f"f{at}", Kind.FILE, 0o644, len(content), (Chunk(address(content), len(content)),))
        for at, content in enumerate(contents)
    )


def _keep(store: ChunkStore, *contents: bytes, owner: str = "w-1") -> bytes:
    for content in contents:
        store.put(address(content), content)
    return store.commit(_payload(*contents), owner=owner)


def _chunk_file(store: ChunkStore, content: bytes) -> Path:
    name = address(content).hex()
    return store.directory / "chunks" / name[:2] / name[2:]


def test_what_is_committed_is_there_after_reopening(tmp_path: Path) -> None:
    """Manifest, chunks and owners survive; nothing else is needed to read them."""
    root = _keep(ChunkStore.open(tmp_path), b"one", b"two")

    again = ChunkStore.open(tmp_path)

    assert again.manifest(root) == _payload(b"one", b"two")
    assert again.get(address(b"two")) == b"two"
    assert again.roots() == {root: frozenset({"w-1"})}
    assert again.bytes_held == 6


def test_a_commit_without_all_chunks_is_refused(tmp_path: Path) -> None:
    """A manifest never claims chunks that are not here."""
    store = ChunkStore.open(tmp_path)
    store.put(address(b"one"), b"one")

    with pytest.raises(ChunkMissing, match="1 of 2 chunks"):
        store.commit(_payload(b"one", b"two"), owner="w-1")
    assert store.roots() == {}


def test_bytes_of_another_address_are_refused(tmp_path: Path) -> None:
    """A caller that lies about an address leaves no trace."""
    store = ChunkStore.open(tmp_path)

    with pytest.raises(ChunkDamaged):
        store.put(address(b"one"), b"two")
    assert not store.has(address(b"one"))


def test_a_tampered_chunk_is_found_and_can_be_healed(tmp_path: Path) -> None:
    """A flipped byte on disk is never returned: the chunk is gone, and may be put again."""
    store = ChunkStore.open(tmp_path)
    root = _keep(store, b"precious")
    _chunk_file(store, b"precious").write_bytes(b"Precious")

    with pytest.raises(ChunkDamaged, match="damaged on disk"):
        store.get(address(b"precious"))
    assert not store.complete(root)
    assert [chunk.size for chunk in store.missing([Chunk(address(b"precious"), 8)])] == [8]

    store.put(address(b"precious"), b"precious")
    assert store.complete(root)
    assert store.sweep() == 0
    store.release(root, owner="w-1")
    assert store.bytes_held == 0


def test_leftovers_of_a_crash_are_checked_before_they_count(tmp_path: Path) -> None:
    """After a crash chunks without a manifest may be torn: the good one is used, the torn one is not."""
    store = ChunkStore.open(tmp_path)
    for content in (b"good", b"torn"):
        store.put(address(content), content)
    _chunk_file(store, b"torn").write_bytes(b"to")
    (store.directory / "tmp" / "half").write_bytes(b"half a chunk")

    again = ChunkStore.open(tmp_path)

    assert again.has(address(b"good"))
    assert not again.has(address(b"torn"))
    assert list((again.directory / "tmp").iterdir()) == []


def test_a_committed_chunk_of_the_wrong_size_is_not_counted(tmp_path: Path) -> None:
    """A file cut behind our back makes its payload incomplete at the next opening."""
    store = ChunkStore.open(tmp_path)
    root = _keep(store, b"one", b"two")
    _chunk_file(store, b"two").write_bytes(b"")

    assert not ChunkStore.open(tmp_path).complete(root)


def test_a_damaged_manifest_is_set_aside_with_a_sentence(tmp_path: Path) -> None:
    """One bad manifest does not keep the store from opening, and is not believed."""
    store = ChunkStore.open(tmp_path)
    root, other = _keep(store, b"one"), _keep(store, b"two")
    path = store.directory / "manifests" / root.hex()
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")

    again = ChunkStore.open(tmp_path)

    assert set(again.roots()) == {other}
    assert root.hex() in again.problems[0]
    assert not (again.directory / "owners" / root.hex()).exists()


def test_owners_keep_a_payload_until_the_last_one_leaves(tmp_path: Path) -> None:
    """Shared chunks stay for the other payload; the rest goes with its last owner."""
    store = ChunkStore.open(tmp_path)
    first = _keep(store, b"shared", b"only first")
    second = _keep(store, b"shared", owner="w-2")
    assert store.adopt(first, owner="w-3")

    store.release(first, owner="w-1")
    assert store.complete(first)
    store.release(first, owner="w-3")

    assert not store.complete(first)
    assert not store.has(address(b"only first"))
    assert store.complete(second)
    with pytest.raises(ManifestMissing):
        store.manifest(first)
    assert set(ChunkStore.open(tmp_path).roots()) == {second}


def test_adoption_of_what_is_not_here_says_no(tmp_path: Path) -> None:
    """`False` means: ship it."""
    assert not ChunkStore.open(tmp_path).adopt(bytes(32), owner="w-1")


def test_the_quota_makes_room_from_leftovers_only(tmp_path: Path) -> None:
    """Loose chunks give way; committed and held ones never do, and then the quota is a sentence."""
    store = ChunkStore.open(tmp_path, quota_bytes=30)
    root = _keep(store, b"c" * 10)
    store.put(address(b"l" * 10), b"l" * 10)
    with store.hold([address(b"h" * 10)]):
        store.put(address(b"h" * 10), b"h" * 10)
        store.put(address(b"n" * 10), b"n" * 10)  # sweeps the leftover

        assert store.complete(root)
        assert store.has(address(b"h" * 10))
        assert not store.has(address(b"l" * 10))
        with pytest.raises(QuotaExceeded, match="may hold 30 bytes"):
            store.put(address(b"x" * 25), b"x" * 25)


def test_a_release_leaves_what_a_transfer_holds(tmp_path: Path) -> None:
    """A payload is released while another one with the same chunk is on its way: the chunk stays for it."""
    store = ChunkStore.open(tmp_path)
    root = _keep(store, b"shared")
    with store.hold([address(b"shared")]):
        store.release(root, owner="w-1")

        assert store.has(address(b"shared"))
        second = store.commit(_payload(b"shared"), owner="w-2")
    assert store.sweep() == 0
    assert store.complete(second)


def test_an_owner_may_leave_everything_at_once(tmp_path: Path) -> None:
    """A workload's payload and outputs go together; what others own stays."""
    store = ChunkStore.open(tmp_path)
    _keep(store, b"payload")
    _keep(store, b"output")
    other = _keep(store, b"other", owner="w-2")

    store.release_owner("w-1")

    assert store.roots() == {other: frozenset({"w-2"})}
    assert store.bytes_held == 5


def test_the_reserve_of_the_disk_is_kept(tmp_path: Path) -> None:
    """A store stops before the disk is full, because journals need it too."""
    store = ChunkStore.open(tmp_path, reserve_bytes=1 << 60)

    with pytest.raises(StoreFull, match="bytes free"):
        store.put(address(b"x"), b"x")
    assert list((store.directory / "tmp").iterdir()) == []


class Asked(ChunkStore):
    """A store that counts how often it asks a disk whose room a test tells."""

    free = 10 << 30
    asked = 0

    def _free(self) -> int:
        self.asked += 1
        return self.free


def test_the_room_of_a_disk_is_asked_for_now_and_then(tmp_path: Path) -> None:
    """Goal: no question for each chunk where there is plenty, and none too late. Method: 32 MiB in chunks of
    256 KiB on a disk of 10 GiB; then somebody else fills it but for the reserve, and 16 MiB come."""
    store = Asked.open(tmp_path, reserve_bytes=1 << 20)
    assert isinstance(store, Asked)
    _put(store, range(128))
    assert store.asked == 2

    store.free = 1 << 20
    with pytest.raises(StoreFull, match="bytes free"):
        _put(store, range(1000, 1066))


def _put(store: ChunkStore, numbers: range) -> None:
    """A chunk of 256 KiB for each."""
    for number in numbers:
        data = number.to_bytes(4, "big") * (64 << 10)
        store.put(address(data), data)


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk: run as root")
def test_a_full_disk_is_a_sentence_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """A real file system of 1 MiB fills up: `StoreFull`, no half file, and it goes on with space."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        store = ChunkStore.open(tmp_path, reserve_bytes=0)
        (tmp_path / "ballast").write_bytes(bytes(700_000))
        store._reserve_bytes = -(
            1 << 30
        )  # the check beforehand is out of the way: the write itself must fail
        data = random.Random(3).randbytes(250_000)
        other = random.Random(4).randbytes(250_000)
        store.put(address(data), data)
        with pytest.raises(StoreFull, match="full"):
            store.put(address(other), other)
        assert list((store.directory / "tmp").iterdir()) == []
        (tmp_path / "ballast").unlink()
        store.put(address(other), other)
        assert store.get(address(other)) == other
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk: run as root")
def test_leftovers_give_way_before_the_disk_is_called_full(tmp_path: Path) -> None:
    """Little space and a leftover of a broken transfer: the leftover goes, the new chunk is kept."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        store = ChunkStore.open(tmp_path, reserve_bytes=650_000)
        leftover, wanted = bytes(250_000), b"x" * 250_000
        store.put(address(leftover), leftover)

        store.put(address(wanted), wanted)

        assert not store.has(address(leftover))
        assert store.has(address(wanted))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_names_that_would_leave_the_store_are_refused(tmp_path: Path) -> None:
    """Tenants and owners become file names."""
    store = ChunkStore.open(tmp_path)
    for name in ("../x", "", "a/b", ".hidden", "x" * 101):
        with pytest.raises(RequestInvalid):
            ChunkStore.open(tmp_path, tenant=name)
        with pytest.raises(RequestInvalid):
            store.commit(_payload(), owner=name)


def test_tenants_do_not_see_each_other(tmp_path: Path) -> None:
    """The same bytes stored by one tenant are not there for another."""
    _keep(ChunkStore.open(tmp_path, tenant="one"), b"secret")

    assert not ChunkStore.open(tmp_path, tenant="two").has(address(b"secret"))


def test_a_store_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    """A file where the directory should be."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreUnusable, match="check"):
        ChunkStore.open(tmp_path / "file")


def test_threads_may_put_and_read_side_by_side(tmp_path: Path) -> None:
    """Eight threads put the same chunks: each is counted once."""
    store = ChunkStore.open(tmp_path)
    contents = [b"content %d" % n for n in range(40)]

    def work() -> None:
        for content in contents:
            store.put(address(content), content)
            assert store.get(address(content)) == content

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert store.bytes_held == sum(len(content) for content in contents)
    assert ChunkStore.open(tmp_path).bytes_held == store.bytes_held


_CONTENTS = (b"a", b"bb", b"ccc", b"dddd")


class _Histories(RuleBasedStateMachine):
    """Random commits, releases, sweeps and reopenings against a model of plain dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = ChunkStore.open(Path(self.folder.name))
        self.model: dict[bytes, tuple[set[bytes], set[str]]] = {}

    @rule(chosen=st.sets(st.sampled_from(_CONTENTS), min_size=1), owner=st.sampled_from(["x", "y"]))
    def commit(self, chosen: set[bytes], owner: str) -> None:
        root = _keep(self.store, *sorted(chosen), owner=owner)
        self.model.setdefault(root, (chosen, set()))[1].add(owner)

    @rule(chosen=st.sets(st.sampled_from(_CONTENTS), min_size=1), owner=st.sampled_from(["x", "y"]))
    def release(self, chosen: set[bytes], owner: str) -> None:
        root = m.root(_payload(*sorted(chosen)))
        self.store.release(root, owner=owner)
        if root in self.model:
            self.model[root][1].discard(owner)
            if not self.model[root][1]:
                del self.model[root]

    @rule(content=st.sampled_from(_CONTENTS))
    def leave_behind(self, content: bytes) -> None:
        self.store.put(address(content), content)

    @rule()
    def sweep(self) -> None:
        self.store.sweep()
        needed = set().union(*(chosen for chosen, _ in self.model.values()))
        assert self.store.bytes_held == sum(len(content) for content in needed)

    @rule()
    def reopen(self) -> None:
        self.store = ChunkStore.open(Path(self.folder.name))

    @invariant()
    def everything_owned_is_complete(self) -> None:
        assert self.store.roots() == {root: frozenset(owners) for root, (_, owners) in self.model.items()}
        assert all(self.store.complete(root) for root in self.model)

    def teardown(self) -> None:
        self.folder.cleanup()


TestHistories = _Histories.TestCase
TestHistories.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)


def test_rechecking_removes_all_that_is_damaged(tmp_path: Path) -> None:
    """Goal: after one damaged chunk nothing else is vouched for unread. Method: damage all but one, recheck."""
    store = ChunkStore.open(tmp_path)
    pieces = [bytes([number]) * 5000 for number in range(4)]
    for piece in pieces:
        store.put(address(piece), piece)
    for piece in pieces[1:]:
        next(tmp_path.rglob(address(piece).hex()[2:])).write_bytes(b"other")

    store.recheck([address(piece) for piece in pieces])

    assert [store.has(address(piece)) for piece in pieces] == [True, False, False, False]
