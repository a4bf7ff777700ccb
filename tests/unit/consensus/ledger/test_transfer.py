"""Snapshots between replicas: every part checked, none fetched twice, any source replaceable."""

from __future__ import annotations

from tests.unit.consensus.ledger.scene import Scene
from tests.unit.consensus.ledger.worlds import ledger_with

from dwcp.consensus.crypto import codec
from dwcp.consensus.ledger.checkpoint import part_digest, state_root
from dwcp.consensus.ledger.ledger import Ledger, Snapshot
from dwcp.consensus.ledger.outputs import ToPeers
from dwcp.consensus.ledger.transfer import Part, PartsAnswer, SnapshotTransfer


def body_of(frame: ToPeers) -> bytes:
    return frame.frame[1:]


def bring(asker: SnapshotTransfer, asks: list[ToPeers], source: Snapshot) -> tuple[Snapshot | None, int]:
    """Carry frames until the snapshot is whole; also how many parts travelled."""
    server = SnapshotTransfer(me=3, n=4)
    parts = 0
    while asks:
        answers, _ = server.receive(0, body_of(asks[0]), {source.root: source}.get)
        if not answers:
            return None, parts
        parts += len(codec.Codec[PartsAnswer](PartsAnswer).decode(body_of(answers[0])).parts)
        asks, whole = asker.receive(3, body_of(answers[0]), {}.get)
        if whole is not None:
            return whole, parts
    return None, parts


def test_a_snapshot_arrives_whole_and_installs() -> None:
    """Goal: the state travels. Method: transfer to an empty ledger and compare roots."""
    genesis, source = ledger_with(keys=200)
    snapshot = source.snapshot()
    asker = SnapshotTransfer(me=0, n=4)

    whole, _ = bring(asker, asker.begin(snapshot.index, snapshot.root, sources=(3,)), snapshot)

    assert whole == snapshot
    fresh = Ledger(genesis)
    assert fresh.install(whole.parts, whole.root) == snapshot.index
    assert fresh.history_digest == source.history_digest
    assert not asker.active


def test_parts_already_held_are_not_sent() -> None:
    """Goal: a lagging node fetches what changed. Method: hold every part but the list and one."""
    _, source = ledger_with(keys=50)
    snapshot = source.snapshot()
    asker = SnapshotTransfer(me=0, n=4)
    asks = asker.begin(snapshot.index, snapshot.root, sources=(3,), held=snapshot.parts[2:])

    whole, travelled = bring(asker, asks, snapshot)

    assert whole == snapshot
    assert travelled <= 2


def test_a_forged_part_is_not_kept() -> None:
    """Goal: a lying source costs time only. Method: parts that do not match the root, then an honest source."""
    _, source = ledger_with(keys=50)
    snapshot = source.snapshot()
    asker = SnapshotTransfer(me=0, n=4)
    asks = asker.begin(snapshot.index, snapshot.root, sources=(2,))
    forged = b"\0" + codec.encode(PartsAnswer(snapshot.root, (Part(0, b"forged"), Part(1, b"forged"))))

    assert asker.receive(2, forged[1:], {}.get) == ([], None)
    assert asker.active
    asks = asker.retry()
    assert asks[0].to != (2,)
    whole, _ = bring(asker, asks, snapshot)
    assert whole == snapshot


def test_a_newer_snapshot_replaces_an_unfinished_one() -> None:
    """Goal: a node that falls further behind does not wait for a snapshot that peers dropped."""
    asker = SnapshotTransfer(me=0, n=4)
    asker.begin(8, b"a" * 32, sources=(1,))

    assert asker.begin(16, b"b" * 32, sources=(1,))
    assert asker.begin(8, b"a" * 32, sources=(1,)) == []


def test_a_replaced_transfer_keeps_what_it_brought() -> None:
    """Goal: a large state arrives though newer checkpoints keep replacing it. Method: stop half way.

    Take the list and half of the parts, begin anew for a newer state, count what travels.
    """
    scene = Scene(checkpoint_interval=100)
    for i in range(98):
        scene.put(b"k%d" % i, b"v")
    scene.put(b"last", b"v")
    old = scene.ledger.snapshot()
    for _ in range(100):
        scene.put(b"last", b"w")
    new = scene.ledger.snapshot()
    assert new.index == old.index + 100
    asker = SnapshotTransfer(me=0, n=4)
    asker.begin(old.index, old.root, sources=(3,))
    half = tuple(Part(i, old.parts[i]) for i in range(len(old.parts) - 20))
    asker.receive(3, codec.encode(PartsAnswer(old.root, half[:1])), {}.get)
    asker.receive(3, codec.encode(PartsAnswer(old.root, half[1:])), {}.get)
    assert asker.active

    whole, travelled = bring(asker, asker.begin(new.index, new.root, sources=(3,)), new)
    assert whole == new
    changed = len(set(new.parts) - set(old.parts))
    assert travelled <= changed + 20 + 1
    assert travelled < len(new.parts) // 2


def test_the_root_commits_to_the_list_of_parts() -> None:
    """Goal: part 0 is under the root and lists the others. Method: recompute both."""
    _, source = ledger_with(keys=20)
    snapshot = source.snapshot()

    assert state_root(snapshot.parts[0]) == snapshot.root
    assert all(len(part_digest(part)) == 32 for part in snapshot.parts)
