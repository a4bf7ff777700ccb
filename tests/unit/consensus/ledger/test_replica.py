"""A replica's orderings, driven by a machine that emits exactly what a test tells it to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import pytest
from tests.unit.consensus.ledger.scene import REPLICA_KEYS, USER, Scene

from dwcp.api import kv
from dwcp.consensus.core import machine as m
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.mac import Authenticators, shared_secret
from dwcp.consensus.ledger import transfer
from dwcp.consensus.ledger.forward import decode_forward, forward_frames
from dwcp.consensus.ledger.ledger import Ledger, Snapshot
from dwcp.consensus.ledger.operations import PayloadChecker
from dwcp.consensus.ledger.outputs import (
    Channel,
    Observed,
    Output,
    RotateLog,
    SaveSnapshot,
    SetTimer,
    ToPeers,
    WriteGroup,
)
from dwcp.consensus.ledger.port import ClientPort
from dwcp.consensus.ledger.replica import Limits, Replica
from dwcp.consensus.ledger.verifier import ClaimVerifier

ME = 2
INTERVAL = 4
T = TypeVar("T")


class Script:
    """A machine without a protocol: each step emits the effects that wait in `next`."""

    def __init__(self) -> None:
        self.next: list[m.Effect] = []
        self.recovered: list[m.Effect] = []  # what `start` emits
        self.events: list[m.Event] = []
        self.leader = 0
        self.view = 1
        self.waiting: tuple[m.Payload, ...] = ()
        self.pending_bytes = 0
        self.promises: list[bytes] = []

    def start(
        self, *, now_ms: int, journal: Sequence[bytes], applied: int, applied_ms: int
    ) -> list[m.Effect]:
        del now_ms, journal, applied, applied_ms
        return self.recovered

    def step(self, event: m.Event, *, now_ms: int) -> list[m.Effect]:
        del now_ms
        self.events.append(event)
        effects, self.next = self.next, []
        return effects

    def decode(self, frame: bytes) -> object:
        if frame.startswith(b"junk"):
            raise MalformedFrame("not of this protocol")
        return frame

    def records(self) -> list[bytes]:
        return list(self.promises)

    def payload(self, digest: bytes) -> m.Payload | None:
        return next((p for p in self.waiting if p.digest == digest), None)

    def pending(self) -> tuple[m.Payload, ...]:
        return self.waiting

    def snapshotted(self) -> list[m.Snapshotted]:
        return [event for event in self.events if isinstance(event, m.Snapshotted)]


class Stage:
    """Replica `ME` of a small chain, and a ledger ahead of it that makes commits and snapshots."""

    def __init__(self, *, limits: Limits | None = None) -> None:
        self.scene = Scene(checkpoint_interval=INTERVAL, window=4 * INTERVAL)
        genesis = self.scene.genesis
        self.script = Script()
        key = REPLICA_KEYS[ME]
        tags = Authenticators(lambda peer: shared_secret(key, peer, genesis.chain_id))
        checker = PayloadChecker(
            me=ME, n=genesis.n, chain_id=genesis.chain_id, params=genesis.params, authenticators=tags
        )
        ledger = Ledger(genesis)
        self.replica = Replica(
            me=ME,
            genesis=genesis,
            machine=self.script,
            ledger=ledger,
            verifier=ClaimVerifier(committee=genesis.committee(), checker=checker),
            checker=checker,
            port=ClientPort(me=ME, genesis=genesis, ledger=ledger, authenticators=tags),
            signer=key,
            limits=limits,
        )

    def emit(self, *effects: m.Effect) -> list[Output]:
        """The machine answers some frame with these effects."""
        self.script.next = list(effects)
        return self.replica.peer_frame(0, bytes([Channel.ENGINE]) + b"frame", now_ms=0)

    def grow(self, upto: int) -> Snapshot:
        """Let the chain reach `upto`, a checkpoint; its snapshot."""
        while self.scene.ledger.index < upto:
            self.scene.put(b"k%d" % self.scene.ledger.index, b"v")
        return self.scene.ledger.snapshot()

    def commits(self, upto: int) -> list[m.Commit]:
        """The chain's commits that this replica has not executed, up to `upto`."""
        after = self.replica.ledger.index
        return [commit for commit in self.scene.commits if after < commit.index <= upto]

    def wanted(self, snapshot: Snapshot) -> m.InstallSnapshot:
        return m.InstallSnapshot(snapshot.index, snapshot.root, (0, 1))

    def bring(self, snapshot: Snapshot) -> list[Output]:
        """Every part of a snapshot that the replica asked for, in one answer."""
        parts = tuple(transfer.Part(number, data) for number, data in enumerate(snapshot.parts))
        body = codec.encode(transfer.PartsAnswer(snapshot.root, parts[:1]))
        outputs = self.replica.peer_frame(0, bytes([Channel.SNAPSHOT]) + body, now_ms=0)
        body = codec.encode(transfer.PartsAnswer(snapshot.root, parts[1:]))
        return outputs + self.replica.peer_frame(0, bytes([Channel.SNAPSHOT]) + body, now_ms=0)


def only(outputs: list[Output], kind: type[T]) -> list[T]:
    return [output for output in outputs if isinstance(output, kind)]


# --------------------------------------------------------------------------- the disk


def test_nothing_leaves_before_the_record_it_leans_on() -> None:
    """Goal: the Persist barrier through the replica. Method: a promise, then a word; sync in between."""
    stage = Stage()
    outputs = stage.emit(m.Persist(b"promise"), m.Send((1,), b"word"), m.SetTimer("view", 5))
    assert outputs == [SetTimer("engine:view", 5), WriteGroup(1, (b"promise",))]

    assert stage.replica.durable(1, now_ms=0) == [ToPeers((1,), bytes([Channel.ENGINE]) + b"word")]


def test_the_journal_is_rewritten_only_between_groups() -> None:
    """Goal: a rewrite never races a group. Method: Truncate while a group is in flight, more promises after."""
    stage = Stage()
    stage.script.promises = [b"kept"]
    assert only(stage.emit(m.Persist(b"one")), WriteGroup) == [WriteGroup(1, (b"one",))]
    # The Truncate waits for the record before it, like everything else.
    assert stage.emit(m.Truncate(3), m.Persist(b"two"), m.Send((1,), b"after two")) == []

    outputs = stage.replica.durable(1, now_ms=0)
    assert outputs == [RotateLog((b"kept",))]
    assert stage.emit(m.Persist(b"three")) == [], "no group while the journal is being replaced"

    assert stage.replica.rotated(now_ms=0) == [WriteGroup(2, (b"two", b"three"))]
    assert only(stage.replica.durable(2, now_ms=0), ToPeers) == [
        ToPeers((1,), bytes([Channel.ENGINE]) + b"after two")
    ]


def test_two_truncations_make_one_more_rewrite() -> None:
    """Goal: rewrites do not pile up. Method: two Truncates during a rewrite."""
    stage = Stage()
    assert only(stage.emit(m.Truncate(2)), RotateLog) == [RotateLog(())]
    stage.script.promises = [b"new"]
    assert stage.emit(m.Truncate(3)) == []
    assert stage.emit(m.Truncate(4)) == []
    assert stage.replica.rotated(now_ms=0) == [RotateLog((b"new",))]
    assert stage.replica.rotated(now_ms=0) == []


# --------------------------------------------------------------------------- snapshots


def test_a_snapshot_that_arrives_while_another_is_installed_is_not_lost() -> None:
    """Goal: a replica far behind reaches the newest state it brought.

    Method: the second transfer ends before the first snapshot is durable; both must be installed.
    """
    stage = Stage()
    first = stage.grow(INTERVAL)
    stage.emit(stage.wanted(first))
    saves = only(stage.bring(first), SaveSnapshot)
    assert [save.index for save in saves] == [INTERVAL]

    second = stage.grow(2 * INTERVAL)
    stage.emit(stage.wanted(second))
    assert only(stage.bring(second), SaveSnapshot) == []
    assert stage.replica.ledger.index == 0

    outputs = stage.replica.snapshot_durable(INTERVAL, now_ms=0)
    assert stage.replica.ledger.index == INTERVAL
    assert [save.index for save in only(outputs, SaveSnapshot)] == [2 * INTERVAL]
    stage.replica.snapshot_durable(2 * INTERVAL, now_ms=0)
    assert stage.replica.ledger.index == 2 * INTERVAL
    assert [(e.index, e.installed) for e in stage.script.snapshotted()] == [
        (INTERVAL, True),
        (2 * INTERVAL, True),
    ]


def test_nothing_stands_on_a_snapshot_before_it_is_durable() -> None:
    """Goal: a crash during a transfer loses nothing. Method: look at the ledger until the disk answers."""
    stage = Stage()
    snapshot = stage.grow(INTERVAL)
    stage.emit(stage.wanted(snapshot))
    stage.bring(snapshot)
    assert stage.replica.ledger.index == 0
    assert stage.script.snapshotted() == []
    assert stage.replica.snapshot_durable(99, now_ms=0) == [], "not the one that is being saved"
    stage.replica.snapshot_durable(INTERVAL, now_ms=0)
    assert stage.replica.ledger.index == INTERVAL


def test_a_transfer_overtakes_the_replicas_own_save() -> None:
    """Goal: the answer about an own, older snapshot is not taken for the installed one.

    Method: execute to a checkpoint, and bring a newer snapshot while the own one is being saved.
    """
    stage = Stage()
    newer = stage.grow(2 * INTERVAL)
    own = only(stage.emit(*stage.commits(INTERVAL)), SaveSnapshot)
    assert [save.index for save in own] == [INTERVAL]
    stage.emit(stage.wanted(newer))
    assert [save.index for save in only(stage.bring(newer), SaveSnapshot)] == [2 * INTERVAL]

    stage.replica.snapshot_durable(INTERVAL, now_ms=0)
    assert stage.replica.ledger.index == INTERVAL
    assert stage.script.snapshotted() == []
    stage.replica.snapshot_durable(2 * INTERVAL, now_ms=0)
    assert stage.replica.ledger.index == 2 * INTERVAL
    assert [(e.index, e.installed) for e in stage.script.snapshotted()] == [(2 * INTERVAL, True)]


def test_commits_that_a_snapshot_overtook_are_not_executed_again() -> None:
    """Goal: held commits below an installed snapshot do nothing. Method: release them after it."""
    stage = Stage()
    snapshot = stage.grow(INTERVAL)
    held = stage.commits(2)
    stage.emit(m.Persist(b"promise"), *held)
    stage.emit(stage.wanted(snapshot))
    assert stage.replica.ledger.index == 0  # the wish to install waits for the promise, too

    stage.replica.durable(1, now_ms=0)
    assert stage.replica.ledger.index == 2
    stage.bring(snapshot)
    stage.replica.snapshot_durable(INTERVAL, now_ms=0)
    assert stage.emit(*held) == []
    assert stage.replica.ledger.index == INTERVAL


def test_only_the_newest_checkpoint_waits_for_a_slow_disk() -> None:
    """Goal: saves do not pile up. Method: three checkpoints while the first is being saved."""
    stage = Stage()
    stage.grow(3 * INTERVAL)
    saves = only(stage.emit(*stage.commits(3 * INTERVAL)), SaveSnapshot)
    assert [save.index for save in saves] == [INTERVAL]
    later = only(stage.replica.snapshot_durable(INTERVAL, now_ms=0), SaveSnapshot)
    assert [save.index for save in later] == [3 * INTERVAL]


def test_the_certified_snapshot_stays_on_offer() -> None:
    """Goal: who is behind finds the snapshot that a quorum certified, though this replica went on.

    Method: certify the first of three checkpoints, ask for each.
    """
    stage = Stage()
    roots = [stage.grow(n * INTERVAL).root for n in (1, 2, 3)]

    def serves(root: bytes) -> bool:
        body = codec.encode(transfer.PartsRequest(root, (0,)))
        return bool(stage.replica.peer_frame(1, bytes([Channel.SNAPSHOT]) + body, now_ms=0))

    stage.emit(*stage.commits(INTERVAL))
    stage.emit(m.Truncate(INTERVAL + 1))
    stage.emit(*stage.commits(3 * INTERVAL))
    assert [serves(root) for root in roots] == [True, True, True]
    stage.emit(m.Truncate(2 * INTERVAL + 1))
    stage.grow(4 * INTERVAL)
    stage.emit(*stage.commits(4 * INTERVAL))
    assert [serves(root) for root in roots] == [False, True, True]


def test_only_the_snapshot_found_at_the_start_is_called_durable() -> None:
    """Goal: the journal is never cut below a snapshot that no disk holds.

    Method: start from a snapshot with a journal whose commits lead to the next checkpoint.
    """
    stage = Stage()
    found = stage.grow(INTERVAL)
    stage.replica.ledger.install(found.parts, found.root)
    stage.grow(2 * INTERVAL)
    stage.script.recovered = list(stage.commits(2 * INTERVAL))
    outputs = stage.replica.start(now_ms=0, journal=())
    assert stage.replica.ledger.index == 2 * INTERVAL
    assert [save.index for save in only(outputs, SaveSnapshot)] == [2 * INTERVAL]
    assert stage.script.snapshotted() == [m.Snapshotted(INTERVAL, found.root)]


# --------------------------------------------------------------------------- leaders


def test_what_waits_follows_the_leader() -> None:
    """Goal: a new leader learns what clients gave to a backup alone. Method: change the leader twice."""
    stage = Stage()
    stage.script.waiting = (stage.scene.payload([kv.OpenSession(1000)], first=0),)
    stage.script.leader = 1
    (forwarded,) = only(stage.emit(), ToPeers)
    assert forwarded.to == (1,)
    assert decode_forward(forwarded.frame[1:]) == stage.script.waiting
    assert stage.emit() == [], "once"

    stage.script.leader = ME
    assert stage.emit() == [], "nobody forwards to himself"


def test_forwarded_bundles_are_taken_by_the_leader_alone() -> None:
    """Goal: peers cannot fill a backup's pool. Method: one bundle, as a backup, as the leader, overloaded."""
    stage = Stage(limits=Limits(pending_bytes_max=10))
    bundle = stage.scene.payload([kv.OpenSession(1000)], first=0)
    (frame,) = forward_frames([bundle])
    assert stage.replica.peer_frame(1, frame, now_ms=0) == []
    assert stage.script.events == []

    stage.script.leader = ME
    stage.replica.peer_frame(1, frame, now_ms=0)
    assert stage.script.events == [m.Submitted((bundle,))]
    stage.script.pending_bytes = 11
    stage.replica.peer_frame(1, frame, now_ms=0)
    assert len(stage.script.events) == 1


def test_a_forwarded_bundle_nobody_signed_is_counted() -> None:
    """Goal: the leader proposes only what a client signed. Method: flip a bit of a forwarded bundle."""
    stage = Stage()
    stage.script.leader = ME
    bundle = stage.scene.payload([kv.OpenSession(1000)], first=0, key=USER)
    body = bytearray(bundle.body or b"")
    body[5] ^= 1
    (frame,) = forward_frames([m.Payload(bundle.digest, bytes(body))])
    (junk,) = stage.replica.peer_frame(1, frame, now_ms=0)
    assert isinstance(junk, Observed)
    assert junk.event == "peer.junk"
    assert stage.script.events == []


# --------------------------------------------------------------------------- junk


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x09nothing",
        bytes([Channel.ENGINE]) + b"junk",
        bytes([Channel.PAYLOADS]) + b"junk",
        bytes([Channel.SNAPSHOT]) + b"\xff\xff",
        bytes([Channel.BUNDLES]) + b"\x91",
    ],
)
def test_junk_is_counted_and_changes_nothing(frame: bytes) -> None:
    """Goal: a bad peer costs one line. Method: junk on every channel."""
    stage = Stage()
    (junk,) = stage.replica.peer_frame(3, frame, now_ms=0)
    assert isinstance(junk, Observed)
    assert (junk.event, junk.fields["peer"]) == ("peer.junk", 3)
    assert stage.script.events == []
    assert len(stage.replica.client_frames([(1, b"\xff junk")], now_ms=0)) == 2, "refused, closed"
