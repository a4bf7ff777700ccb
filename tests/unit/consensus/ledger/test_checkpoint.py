"""Checkpoints: equal states have equal roots, snapshots go on where they left off, and lies are found."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.consensus.ledger.scene import ADMIN, GUEST, USER, Scene

from dwcp.api import kv
from dwcp.consensus.crypto import codec
from dwcp.consensus.ledger import checkpoint
from dwcp.consensus.ledger.checkpoint import SnapshotInvalid
from dwcp.consensus.ledger.ledger import Ledger

OPERATION = st.one_of(
    st.builds(kv.Put, st.binary(min_size=1, max_size=2), st.binary(max_size=4)),
    st.builds(kv.DeleteRange, st.binary(max_size=1), st.sampled_from([b"", b"\0", b"\x80"])),
    st.builds(kv.Compact, st.integers(1, 30)),
    st.builds(
        lambda key, value: kv.Txn((), (kv.Put(key, value), kv.DeleteRange(b"\x01", b"\x02"))),
        st.binary(min_size=2, max_size=2),
        st.binary(max_size=2),
    ),
)


@settings(deadline=None, max_examples=25)
@given(
    before=st.lists(OPERATION, max_size=25),
    after=st.lists(OPERATION, max_size=25),
    session=st.integers(1, 3),
)
def test_a_restored_ledger_goes_on_exactly_alike(
    before: list[kv.Operation], after: list[kv.Operation], session: int
) -> None:
    """Goal: a replica that installs a snapshot can never diverge.

    Method: install, run both, compare everything.
    """
    scene = Scene(checkpoint_interval=1, history_revisions_kept=6, sessions_per_client_max=2)
    scene.open()
    for op in before:
        scene.run(op, key=ADMIN, session=session)
    snapshot = scene.ledger.snapshot()
    restored = Ledger(scene.genesis)
    assert restored.install(snapshot.parts, snapshot.root) == scene.ledger.index
    done = len(scene.commits)
    for op in after:
        scene.run(op, key=ADMIN, session=4 - session)

    for commit in scene.commits[done:]:
        restored.apply(commit)
    assert restored.snapshot() == scene.ledger.snapshot()
    assert restored.history_digest == scene.ledger.history_digest
    assert restored.size == scene.ledger.size


def test_replayed_commits_lead_to_the_same_snapshot() -> None:
    """Goal: the incremental root equals a root made at once.

    Method: one ledger checkpoints often, one once.
    """
    often, once = Scene(checkpoint_interval=1), Scene(checkpoint_interval=1)
    rng = Random(5)
    for i in range(300):
        often.put(b"k%d" % rng.randrange(60), b"%d" % i)
    once.ledger = Ledger(often.genesis)
    # The only difference is when it encodes.
    once.ledger._params = msgspec.structs.replace(once.genesis.params, checkpoint_interval=301)
    for commit in often.commits:
        once.ledger.apply(commit)

    assert once.ledger.snapshot().root == often.ledger.snapshot().root


def test_roots_appear_at_checkpoints_only() -> None:
    """Goal: the engine gets a root exactly where the interval says. Method: ten positions, interval three."""
    scene = Scene(checkpoint_interval=3)
    scene.open()
    roots = {}
    for first in range(1, 10):
        executed = scene.commit(scene.payload([kv.Put(b"k", b"")], first=first))
        roots[executed.index] = executed.state_root

    assert [index for index, root in roots.items() if root is not None] == [3, 6, 9]
    assert scene.ledger.snapshot().index == 9
    assert scene.ledger.snapshot().root == roots[9]


def test_everything_is_under_the_root() -> None:
    """Goal: no part of the state can differ unseen. Method: change each kind of state, compare roots."""
    roots = set()

    def root(*runs: object, **params: int) -> None:
        scene = Scene(checkpoint_interval=1, **params)
        scene.open()
        for run in runs:
            scene.run(*run)  # type: ignore[misc]
        roots.add(scene.ledger.snapshot().root)

    root()
    root((kv.Put(b"a", b"1"),))
    root((kv.Put(b"a", b"2"),))
    root((kv.Put(b"a", b"1"), kv.Put(b"a", b"1")))
    root((kv.Range(b"a"),))
    scene = Scene(checkpoint_interval=1)
    scene.open()
    scene.run(kv.Grant(GUEST.public, "guest", (b"",), ()), key=ADMIN)
    roots.add(scene.ledger.snapshot().root)
    scene = Scene(checkpoint_interval=1)
    scene.open(ttl_ms=5)
    roots.add(scene.ledger.snapshot().root)

    assert len(roots) == 7


def test_sessions_survive_in_the_snapshot() -> None:
    """Goal: exactly once across a state transfer. Method: retry at the restored ledger what ran before it."""
    scene = Scene(checkpoint_interval=1)
    scene.open()
    payload = scene.payload([kv.Put(b"k", b"v")], first=1)
    first = scene.commit(payload)
    snapshot = scene.ledger.snapshot()
    scene.ledger = Ledger(scene.genesis)
    scene.ledger.install(snapshot.parts, snapshot.root)
    again = scene.commit(payload)

    assert again.outcomes[0].answers == first.outcomes[0].answers
    assert scene.ledger.revision == 2


@pytest.mark.parametrize("kind", ["flip", "swap", "drop", "extra", "root", "empty", "manifest", "none"])
def test_a_tampered_snapshot_changes_nothing(kind: str) -> None:
    """Goal: a lying peer cannot install anything. Method: every way to tamper; the state stays as it was."""
    scene = Scene(checkpoint_interval=1)
    for i in range(40):
        scene.put(b"k%d" % i, b"v")
    snapshot = scene.ledger.snapshot()
    parts, root = list(snapshot.parts), snapshot.root
    longest = max(range(1, len(parts)), key=lambda i: len(parts[i]))
    match kind:
        case "flip":
            parts[longest] = parts[longest][:-1] + bytes([parts[longest][-1] ^ 1])
        case "swap":
            shortest = min(range(1, len(parts)), key=lambda i: len(parts[i]))
            parts[longest], parts[shortest] = parts[shortest], parts[longest]
        case "drop":
            del parts[-1]
        case "extra":
            parts.append(parts[-1])
        case "root":
            root = bytes(32)
        case "empty":
            parts = []
        case "manifest":
            parts[0] = parts[0][:-1]
    target = Ledger(scene.genesis)
    before = (target.index, target.snapshot().root)
    if kind == "none":
        target.install(tuple(parts), root)
        return
    with pytest.raises(SnapshotInvalid):
        target.install(tuple(parts), root)
    assert (target.index, target.snapshot().root) == before


def test_a_certified_but_unreadable_manifest_is_a_sentence() -> None:
    """Goal: bytes of another format under a valid root never raise anything else.

    Method: junk under its own root.
    """
    scene = Scene()
    for junk in (b"", b"\x95junk", scene.ledger.snapshot().parts[1]):
        with pytest.raises(SnapshotInvalid):
            scene.ledger.install((junk,), checkpoint.state_root(junk))


def _encoded_by_a_checkpoint(keys: int) -> tuple[int, int]:
    """Bytes encoded anew, and parts renewed, by a checkpoint after ten changes to a state of `keys` keys."""
    scene = Scene(checkpoint_interval=1_000_000, window=1_000_000)
    scene.open()
    value = bytes(50)
    for start in range(0, keys, 64):
        ops = [kv.Put(b"key-%d" % i, value) for i in range(start, min(start + 64, keys))]
        scene.commit(scene.payload(ops, first=1 + start))
    scene.next[USER.public, 1] = 1 + keys + 64
    scene.ledger._checkpoint()
    before = {id(part) for part in scene.ledger.snapshot().parts}
    for i in range(10):
        scene.put(b"key-%d" % (i * 7), b"changed")
    renewed = [part for part in scene.ledger._checkpoint().parts[1:] if id(part) not in before]
    return sum(map(len, renewed)), len(renewed)


def test_checkpoint_cost_follows_the_change_and_not_the_state() -> None:
    """Goal: ten changes cost as much at ten times the state. Method: count bytes and parts encoded anew."""
    small_bytes, small_parts = _encoded_by_a_checkpoint(8_000)
    large_bytes, large_parts = _encoded_by_a_checkpoint(80_000)

    assert small_parts <= 12
    assert large_parts <= 12
    assert large_bytes < 2 * small_bytes


def test_buckets_grow_with_keys_and_sessions_alike_everywhere() -> None:
    """Goal: parts stay small, and a restored ledger has as many.

    Method: 3,000 keys and 300 sessions, then restore.
    """
    scene = Scene(checkpoint_interval=10, sessions_per_client_max=1000)
    for session in range(1, 301):
        scene.run(*[kv.Put(b"%d/%d" % (session, i), b"") for i in range(10)], session=session)
    snapshot = scene.ledger.snapshot()
    restored = Ledger(scene.genesis)
    restored.install(snapshot.parts, snapshot.root)
    done = len(scene.commits)
    for session in range(301, 320):
        scene.run(kv.DeleteRange(b"1", b"2"), session=session)
    for commit in scene.commits[snapshot.index : done] + scene.commits[done:]:
        restored.apply(commit)

    assert len(snapshot.parts) == 2 + 256 + 128
    assert restored.snapshot() == scene.ledger.snapshot()
    assert restored.snapshot().index > snapshot.index


def test_every_part_fits_a_frame() -> None:
    """Goal: large values and long histories can be transferred. Method: 8 MB of versions under one key."""
    scene = Scene(checkpoint_interval=1)
    for i in range(8):
        scene.put(b"large", bytes([i]) * 1_000_000)
    snapshot = scene.ledger.snapshot()
    restored = Ledger(scene.genesis)
    restored.install(snapshot.parts, snapshot.root)
    scene.put(b"small", b"")
    restored.apply(scene.commits[-1])

    assert max(map(len, snapshot.parts)) <= checkpoint.PART_BYTES_MAX
    assert len(snapshot.parts) > 2 + 2 * checkpoint.BUCKETS_MIN
    assert restored.snapshot() == scene.ledger.snapshot()


def test_a_manifest_that_contradicts_itself_is_refused() -> None:
    """Goal: bounds of a snapshot are checked even under a valid root. Method: impossible cuts and counts."""
    scene = Scene(checkpoint_interval=1)
    scene.open()
    snapshot = scene.ledger.snapshot()
    manifest: codec.Codec[checkpoint.Manifest] = codec.Codec(checkpoint.Manifest)
    good = manifest.decode(snapshot.parts[0])
    changes: list[dict[str, object]] = [
        {"cuts": ((0, 2),)},
        {"cuts": ((0, 1),)},
        {"cuts": ((99_999, 2),)},
        {"cuts": ((-1, 2),)},
        {"key_buckets": 0},
        {"key_buckets": 96},
        {"key_buckets": 2**40},
        {"session_buckets": -5},
        {"session_buckets": 96},
        {"digests": good.digests[:-1]},
        {"version": 2},
    ]
    for change in changes:
        bad = codec.encode(msgspec.structs.replace(good, **change))
        with pytest.raises(SnapshotInvalid):
            Ledger(scene.genesis).install((bad, *snapshot.parts[1:]), checkpoint.state_root(bad))


def test_list_parts_lets_each_part_be_checked_alone() -> None:
    """Goal: transfer checks parts as they arrive. Method: digests against parts, and a wrong root."""
    scene = Scene(checkpoint_interval=1)
    scene.put(b"k", b"v")
    snapshot = scene.ledger.snapshot()
    digests = checkpoint.list_parts(snapshot.parts[0], snapshot.root)

    assert list(digests) == [checkpoint.part_digest(part) for part in snapshot.parts[1:]]
    with pytest.raises(SnapshotInvalid, match="certified"):
        checkpoint.list_parts(snapshot.parts[0], bytes(32))
    assert replace(snapshot, root=bytes(32)) != snapshot
