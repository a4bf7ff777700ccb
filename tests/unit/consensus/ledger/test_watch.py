"""Watches: every change once, in order, from any revision that is still kept."""

from __future__ import annotations

from random import Random

import pytest
from tests.unit.consensus.ledger.scene import ADMIN, GUEST, STRANGER, USER, Scene

from dwcp.api import kv
from dwcp.consensus.ledger.messages import (
    ReplicaFrame,
    Watch,
    WatchClosed,
    WatchEvents,
    WatchProgress,
)
from dwcp.consensus.ledger.watch import Watches, WatchLimits


def _revisions(frames: list[ReplicaFrame]) -> list[int]:
    return [frame.revision for frame in frames if isinstance(frame, WatchEvents)]


def _published(watches: Watches) -> list[ReplicaFrame]:
    return [frame for _, frame in watches.changed()]


@pytest.mark.parametrize("seed", range(8))
def test_a_watch_from_any_revision_rebuilds_the_present(seed: int) -> None:
    """Goal: no gaps, no duplicates, whole revisions, at every switch from replay to live.

    Method: random writes.
    """
    rng = Random(seed)
    scene = Scene()
    watches = Watches(scene.ledger)
    streams: dict[int, list[ReplicaFrame]] = {}
    starts: dict[int, int] = {}
    for step in range(60):
        key = rng.choice([b"a/1", b"a/2", b"b/1"])
        if rng.random() < 0.3:
            scene.run(kv.Txn((), (kv.DeleteRange(b"a/", b"a0"), kv.Put(b"b/2", b"%d" % step))))
        else:
            scene.put(key, b"%d" % step)
        if rng.random() < 0.3:
            starts[step] = rng.randint(2, scene.ledger.revision + 3)
            streams[step] = watches.open(step, USER.public, Watch(1, b"a/", starts[step]))
        for connection, frame in watches.changed():
            streams[connection].append(frame)

    for connection, frames in streams.items():
        expected = (
            [
                (change.revision, event)
                for change in scene.ledger.changes(starts[connection] - 1)
                for event in change.events
                if event.key.startswith(b"a/")
            ]
            if starts[connection] <= scene.ledger.revision
            else []
        )
        told = [
            (frame.revision, event)
            for frame in frames
            if isinstance(frame, WatchEvents)
            for event in frame.events
        ]
        assert told == expected
        assert all(event.mod_revision == revision for revision, event in told)


def test_now_means_after_the_present() -> None:
    """Goal: from_revision 0 sends no history. Method: write, watch, write."""
    scene = Scene()
    scene.put(b"k", b"1")
    watches = Watches(scene.ledger)
    assert watches.open(1, USER.public, Watch(1, b"k")) == []
    scene.put(b"k", b"2")

    assert _revisions(_published(watches)) == [3]
    assert _published(watches) == []


def test_a_future_start_delivers_nothing_earlier() -> None:
    """Goal: the bug etcd had. Method: watch two revisions ahead."""
    scene = Scene()
    scene.put(b"k", b"1")
    watches = Watches(scene.ledger)
    assert watches.open(1, USER.public, Watch(1, b"k", 4)) == []
    seen = []
    for value in (b"2", b"3", b"4"):
        scene.put(b"k", value)
        seen += _revisions(_published(watches))

    assert seen == [4, 5]


def test_compacted_history_ends_the_watch_with_a_way_on() -> None:
    """Goal: a gap is never silent. Method: watch from below the floor, then from where the answer says."""
    scene = Scene(history_revisions_kept=3)
    for i in range(10):
        scene.put(b"k", b"%d" % i)
    watches = Watches(scene.ledger)
    (closed,) = watches.open(1, USER.public, Watch(1, b"k", 2))
    assert isinstance(closed, WatchClosed)
    assert closed.code == "compacted"
    assert len(watches) == 0

    again = watches.open(1, USER.public, Watch(1, b"k", closed.resume_revision))
    assert _revisions(again) == [9, 10, 11]
    assert again[-1] == WatchProgress(1, 11)
    (below,) = watches.open(1, USER.public, Watch(2, b"k", -5))
    assert isinstance(below, WatchClosed)


def test_live_watches_end_when_a_batch_outruns_history() -> None:
    """Goal: even a batch larger than the history kept cannot cause a silent gap. Method: one such batch."""
    scene = Scene(history_revisions_kept=3)
    scene.put(b"k", b"")
    watches = Watches(scene.ledger)
    watches.open(1, USER.public, Watch(1, b"k"))
    scene.run(*[kv.Put(b"k", b"%d" % i) for i in range(10)])
    (closed,) = _published(watches)

    assert isinstance(closed, WatchClosed)
    assert (closed.code, closed.resume_revision) == ("compacted", 3)


def test_a_long_replay_comes_in_pieces() -> None:
    """Goal: opening a watch sends a bounded amount. Method: small bounds; follow the resume revisions."""
    scene = Scene()
    for i in range(20):
        scene.put(b"k", b"%d" % i)
    watches = Watches(scene.ledger, WatchLimits(replay_bytes_max=100))
    start, seen, pieces = 2, [], 0
    while True:
        frames = watches.open(1, USER.public, Watch(1, b"k", start))
        seen += _revisions(frames)
        pieces += 1
        last = frames[-1]
        if not isinstance(last, WatchClosed):
            break
        assert last.code == "slow"
        start = last.resume_revision

    assert seen == list(range(2, 22))
    assert pieces > 3


def test_a_large_revision_is_cut_but_marked() -> None:
    """Goal: whole revisions, however large. Method: a transaction of many puts in small frames."""
    scene = Scene()
    watches = Watches(scene.ledger, WatchLimits(frame_bytes_max=64))
    scene.open()
    watches.open(1, USER.public, Watch(1, b""))
    scene.run(kv.Txn((), tuple(kv.Put(b"key%d" % i, b"value") for i in range(9))))
    frames = [frame for frame in _published(watches) if isinstance(frame, WatchEvents)]

    assert len(frames) > 2
    assert [frame.complete for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert [event.key for frame in frames for event in frame.events] == [b"key%d" % i for i in range(9)]


def test_grants_bound_watches_as_they_change() -> None:
    """Goal: nobody watches what they may not read, nor after the grant is gone.

    Method: before, during, after.
    """
    scene = Scene()
    watches = Watches(scene.ledger)
    for client, prefix in ((GUEST, b""), (GUEST, b"other"), (STRANGER, b"guest/")):
        (closed,) = watches.open(1, client.public, Watch(1, prefix))
        assert isinstance(closed, WatchClosed)
        assert closed.code == "permission_denied"
    assert watches.open(1, GUEST.public, Watch(1, b"guest/")) == []
    scene.put(b"guest/k", b"1")
    assert len(_published(watches)) == 1
    scene.run(kv.Revoke(GUEST.public), key=ADMIN)
    scene.put(b"guest/k", b"2")
    (closed,) = _published(watches)
    assert isinstance(closed, WatchClosed)
    assert len(watches) == 0


def test_watches_are_counted_replaced_and_dropped() -> None:
    """Goal: a connection's watches are bounded, and go with it.

    Method: open too many, reuse a number, drop.
    """
    scene = Scene()
    watches = Watches(scene.ledger)
    for number in range(WatchLimits().watches_max):
        assert watches.open(1, USER.public, Watch(number, b"k")) == []
    (refused,) = watches.open(1, USER.public, Watch(1000, b"k"))
    assert isinstance(refused, WatchClosed)
    assert refused.code == "too_many"
    assert watches.open(1, USER.public, Watch(3, b"other")) == []
    assert watches.open(2, USER.public, Watch(3, b"k")) == []
    scene.put(b"k", b"")
    assert len(_published(watches)) == WatchLimits().watches_max
    watches.drop(1)
    scene.put(b"k", b"")
    assert len(_published(watches)) == 1
    watches.close(2, 3)
    watches.close(2, 3)
    assert len(watches) == 0


def test_a_snapshot_ends_all_watches() -> None:
    """Goal: what a state transfer skipped is not skipped silently.

    Method: install a later state under a watch.
    """
    ahead = Scene(checkpoint_interval=1)
    for i in range(5):
        ahead.put(b"k", b"%d" % i)
    behind = Scene(checkpoint_interval=1)
    watches = Watches(behind.ledger)
    watches.open(1, USER.public, Watch(1, b"k"))
    snapshot = ahead.ledger.snapshot()
    behind.ledger.install(snapshot.parts, snapshot.root)
    ((connection, closed),) = watches.reset()

    assert connection == 1
    assert isinstance(closed, WatchClosed)
    assert closed.resume_revision == 2
    assert _revisions(watches.open(1, USER.public, Watch(1, b"k", 2))) == [2, 3, 4, 5, 6]
