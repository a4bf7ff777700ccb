"""One replica, whole and sans-IO: engine, outbox, ledger, clients, fetches and snapshots.

The production driver and the simulator both host this class, so what the
simulator shows is what runs. It owns no rule of agreement (the engine does) and
no rule of execution (the ledger does): it carries effects from one to the other,
in the order of `core.machine`'s contract.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dwcp.consensus.core import machine as m
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.core.outbox import Outbox
from dwcp.consensus.ledger import attest
from dwcp.consensus.ledger.fetch import RETRY_MS as FETCH_RETRY_MS
from dwcp.consensus.ledger.fetch import PayloadFetch
from dwcp.consensus.ledger.forward import decode_forward, forward_frames
from dwcp.consensus.ledger.genesis import Genesis
from dwcp.consensus.ledger.ledger import Executed, Ledger, Snapshot
from dwcp.consensus.ledger.messages import Share
from dwcp.consensus.ledger.operations import BundleRefused, PayloadChecker
from dwcp.consensus.ledger.outputs import (
    Accused,
    CancelTimer,
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
from dwcp.consensus.ledger.transfer import RETRY_MS as TRANSFER_RETRY_MS
from dwcp.consensus.ledger.transfer import SnapshotTransfer

_ENGINE_TIMER = "engine:"
_FETCH_TIMER = "replica:fetch"
_TRANSFER_TIMER = "replica:transfer"
_ENGINE_PREFIX = bytes([Channel.ENGINE])
SHARES_KEPT = 1024  # positions whose ATTEST is kept for retries


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one replica that need not be alike everywhere."""

    pending_bytes_max: int = 16 * 1024 * 1024  # payloads waiting to be ordered


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What health pages and the simulator's bounds look at."""

    index: int
    view: int
    leader: int
    epoch: int
    voting: bool
    revision: int
    state_transfer: bool
    pending_bytes: int
    held_effects: int
    fetching: int
    connections: int


class Replica:
    """`durable`, `rotated` and `snapshot_durable` answer what `outputs` says they answer."""

    def __init__(  # noqa: PLR0913  collaborators are passed one by one
        self,
        *,
        me: int,
        genesis: Genesis,
        machine: m.Machine,
        ledger: Ledger,
        verifier: m.Verifier,
        checker: PayloadChecker,
        port: ClientPort,
        signer: m.Signer,
        voting: bool = True,
        limits: Limits | None = None,
        outbox: Outbox | None = None,
        snapshots: Sequence[Snapshot] = (),
    ) -> None:
        """`snapshots` are those on disk, oldest first; `ledger` stands at the newest."""
        self._me = me
        self._genesis = genesis
        self._machine = machine
        self._ledger = ledger
        self._verifier = verifier
        self._checker = checker
        self._port = port
        self._signer = signer
        self._voting = voting
        self._limits = limits or Limits()
        self._outbox = outbox if outbox is not None else Outbox()
        self._fetch = PayloadFetch(me=me, n=genesis.n)
        self._transfer = SnapshotTransfer(me=me, n=genesis.n)
        self._offered = {snapshot.root: snapshot for snapshot in snapshots}
        self._certified = 0  # the newest position whose snapshot is certified and on disk here
        self._shares: dict[int, Share] = {}
        self._saving: Snapshot | None = None
        self._save_next: Snapshot | None = None
        self._installing = False
        self._install_next: Snapshot | None = None
        self._rotate_wanted = False
        self._rotating = False
        self._epoch = genesis.epoch
        self._leader = machine.leader

    # ----------------------------------------------------------------- life

    def start(self, *, now_ms: int, journal: Sequence[bytes]) -> list[Output]:
        """Recover from the journal; the ledger already stands at its newest snapshot."""
        ledger = self._ledger
        found = ledger.snapshot()  # before the journal's commits lead to a newer one, durable nowhere
        effects = self._machine.start(
            now_ms=now_ms, journal=journal, applied=ledger.index, applied_ms=ledger.time_ms
        )
        outputs = self._carry(effects, now_ms)
        if found.index:
            outputs += self._step(m.Snapshotted(found.index, found.root), now_ms)
        return outputs

    def status(self) -> ReplicaStatus:
        return ReplicaStatus(
            index=self._ledger.index,
            view=self._machine.view,
            leader=self._machine.leader,
            epoch=self._epoch,
            voting=self._voting,
            revision=self._ledger.revision,
            state_transfer=self._transfer.active,
            pending_bytes=self._machine.pending_bytes,
            held_effects=len(self._outbox),
            fetching=len(self._fetch),
            connections=len(self._port),
        )

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @property
    def machine(self) -> m.Machine:
        return self._machine

    # ----------------------------------------------------------------- peers

    def peer_frame(self, sender: int, frame: bytes, *, now_ms: int) -> list[Output]:
        """A frame from the link that authenticated `sender`. Junk is counted and dropped."""
        if not frame:
            return [_junk(sender, "an empty frame")]
        try:
            return self._peer_frame(sender, frame[0], frame[1:], now_ms)
        except MalformedFrame as exc:
            return [_junk(sender, str(exc))]

    def _peer_frame(self, sender: int, channel: int, body: bytes, now_ms: int) -> list[Output]:
        match channel:
            case Channel.ENGINE:
                return self._step(m.Received(sender, self._machine.decode(body)), now_ms)
            case Channel.PAYLOADS:
                asks, payloads = self._fetch.receive(sender, body, self._machine.payload)
                outputs: list[Output] = list(asks)
                if payloads:
                    outputs += self._step(m.PayloadReady(payloads), now_ms)
                return outputs
            case Channel.SNAPSHOT:
                asks, snapshot = self._transfer.receive(sender, body, self._offered.get)
                return [*asks, *(self._received_snapshot(snapshot) if snapshot else [])]
            case Channel.BUNDLES:
                return self._forwarded(sender, body, now_ms)
            case _:
                return [_junk(sender, f"no channel {channel}")]

    def _forwarded(self, sender: int, body: bytes, now_ms: int) -> list[Output]:
        """Clients' bundles that a peer passed on: taken only while this replica leads."""
        payloads = decode_forward(body)
        if self._machine.leader != self._me or self._overloaded():
            return []
        admitted: list[m.Payload] = []
        for payload in payloads:
            try:
                bundle = self._checker.admit(payload)
            except BundleRefused as exc:
                return [_junk(sender, str(exc))]
            if self._ledger.knows(bundle.client) and self._ledger.answered(bundle) is None:
                admitted.append(payload)
        return self._step(m.Submitted(tuple(admitted)), now_ms) if admitted else []

    # ----------------------------------------------------------------- clients

    def client_frame(self, connection: int, frame: bytes, *, now_ms: int) -> list[Output]:
        """A frame from an authenticated TLS connection; `Hello` must come first."""
        return self.client_frames(((connection, frame),), now_ms=now_ms)

    def client_frames(self, frames: Iterable[tuple[int, bytes]], *, now_ms: int) -> list[Output]:
        """Frames that came together: their payloads are submitted together, so that they share a batch."""
        outputs: list[Output] = []
        payloads: list[m.Payload] = []
        overloaded = self._overloaded()
        for connection, frame in frames:
            answers, payload = self._port.receive(
                connection, frame, shares=self._shares, status=self.status, overloaded=overloaded
            )
            outputs += answers
            if payload is not None:
                try:
                    self._checker.admit(payload)  # by a backup too: it may lead next
                except BundleRefused as exc:
                    outputs.append(self._port.refuse(connection, "bundle", str(exc)))
                    continue
                payloads.append(payload)
        if payloads:
            outputs += self._submit(tuple(payloads), now_ms)
        return outputs

    def _submit(self, payloads: tuple[m.Payload, ...], now_ms: int) -> list[Output]:
        """Order clients' payloads; the leader hears of them too."""
        outputs: list[Output] = []
        if self._machine.leader != self._me:
            outputs += [ToPeers((self._machine.leader,), frame) for frame in forward_frames(payloads)]
        return outputs + self._step(m.Submitted(payloads), now_ms)

    def client_closed(self, connection: int) -> None:
        self._port.closed(connection)

    def _overloaded(self) -> bool:
        return self._machine.pending_bytes > self._limits.pending_bytes_max

    # ----------------------------------------------------------------- timers, disk

    def timer(self, name: str, *, now_ms: int) -> list[Output]:
        if name.startswith(_ENGINE_TIMER):
            return self._step(m.TimerFired(name[len(_ENGINE_TIMER) :]), now_ms)
        if name == _FETCH_TIMER:
            return self._fetch_timer(list(self._fetch.retry()))
        if name == _TRANSFER_TIMER and self._transfer.active:
            return [*self._transfer.retry(), SetTimer(_TRANSFER_TIMER, TRANSFER_RETRY_MS)]
        return []

    def durable(self, sequence: int, *, now_ms: int) -> list[Output]:
        """Group `sequence` is on disk: release what it held back."""
        return self._carry_released(self._outbox.durable(sequence), now_ms)

    def rotated(self, *, now_ms: int) -> list[Output]:
        """The journal has been replaced."""
        self._rotating = False
        return self._carry_released([], now_ms)

    def snapshot_durable(self, index: int, *, now_ms: int) -> list[Output]:
        """The snapshot at `index` is on disk: install it if it was fetched, tell the engine."""
        snapshot = self._saving
        if snapshot is None or snapshot.index != index:
            return []
        self._saving = None
        installed, self._installing = self._installing, False
        outputs: list[Output] = []
        if installed and snapshot.index > self._ledger.index:
            self._ledger.install(snapshot.parts, snapshot.root)
            outputs.append(Observed("snapshot.installed", {"index": index}))
            outputs += self._port.reset()
        outputs += self._step(m.Snapshotted(index, snapshot.root, installed), now_ms)
        later, self._install_next = self._install_next, None
        if later is not None:
            outputs += self._received_snapshot(later)
        return outputs + self._save_waiting()

    # ----------------------------------------------------------------- effects

    def _step(self, event: m.Event, now_ms: int) -> list[Output]:
        return self._carry(self._machine.step(event, now_ms=now_ms), now_ms)

    def _carry(self, effects: list[m.Effect], now_ms: int) -> list[Output]:
        return self._carry_released(self._outbox.push(effects), now_ms)

    def _carry_released(self, released: list[m.Effect], now_ms: int) -> list[Output]:
        """Perform released effects in order; what they cause is carried in turn."""
        outputs: list[Output] = []
        waiting = deque(released)
        while waiting:
            event = self._perform(waiting.popleft(), outputs)
            if event is not None:
                effects = self._machine.step(event, now_ms=now_ms)
                waiting.extend(self._outbox.push(effects))
        if self._machine.leader != self._leader:
            outputs += self._follow(self._machine.leader)
        self._write(outputs)
        return outputs

    def _follow(self, leader: int) -> list[Output]:
        """The leader changed: it may not know what clients gave to this replica alone."""
        self._leader = leader
        pending = () if leader == self._me else self._machine.pending()
        return [ToPeers((leader,), frame) for frame in forward_frames(pending)]

    def _perform(self, effect: m.Effect, outputs: list[Output]) -> m.Event | None:
        """Turn one effect into outputs; the event that it answers with, if any."""
        match effect:
            case m.Send(to, frame):
                outputs.append(ToPeers(to, _ENGINE_PREFIX + frame))
            case m.Verify(message, claims):
                return self._verifier.check(message, claims)
            case m.Commit():
                return self._commit(effect, outputs)
            case m.SetTimer(name, after_ms):
                outputs.append(SetTimer(_ENGINE_TIMER + name, after_ms))
            case m.CancelTimer(name):
                outputs.append(CancelTimer(_ENGINE_TIMER + name))
            case m.Fetch(digests, sources):
                outputs += self._fetch_timer(list(self._fetch.want(digests, sources)))
            case m.Truncate(below):
                self._certified = below - 1
                self._rotate_wanted = True
            case m.InstallSnapshot(index, state_root, sources):
                outputs += self._begin_transfer(index, state_root, sources)
            case m.Accuse(culprit, kind, proof):
                outputs.append(Accused(culprit, kind, proof))
            case m.Note(event, fields):
                outputs.append(Observed(event, fields))
        return None

    def _write(self, outputs: list[Output]) -> None:
        """Hand out the next group, or the rewritten journal; never both at once."""
        if self._rotating:
            return
        if self._rotate_wanted and not self._outbox.writing:
            self._rotate_wanted, self._rotating = False, True
            outputs.append(RotateLog(tuple(self._machine.records())))
            return
        group = self._outbox.take_group()
        if group is not None:
            outputs.append(WriteGroup(group.sequence, group.records))

    def _fetch_timer(self, outputs: list[Output]) -> list[Output]:
        if len(self._fetch):
            outputs.append(SetTimer(_FETCH_TIMER, FETCH_RETRY_MS))
        return outputs

    # ----------------------------------------------------------------- execution

    def _commit(self, commit: m.Commit, outputs: list[Output]) -> m.Applied | None:
        """Execute a position and reply; None where a snapshot overtook it."""
        if commit.index <= self._ledger.index:
            return None
        executed = self._ledger.apply(commit)
        self._fetch.forget([payload.digest for payload in commit.payloads])
        if executed.outcomes:
            outputs += self._port.executed(executed, self._attest(executed))
        if executed.state_root is not None:
            outputs += self._checkpoint()
        return m.Applied(executed.index, executed.state_root)

    def _attest(self, executed: Executed) -> Share | None:
        """Sign the position once; a learner's word would count for nobody."""
        if not self._voting:
            return None
        share = attest.attest(
            chain_id=self._genesis.chain_id,
            me=self._me,
            epoch=executed.epoch,
            index=executed.index,
            history_digest=executed.history_digest,
            signer=self._signer,
        )
        self._shares[executed.index] = share
        if len(self._shares) > SHARES_KEPT:
            del self._shares[next(iter(self._shares))]
        return share

    # ----------------------------------------------------------------- snapshots

    def _checkpoint(self) -> list[Output]:
        """Offer the new checkpoint to peers and save it: the journal is cut only below a saved one."""
        snapshot = self._ledger.snapshot()
        self._offer(snapshot)
        self._save_next = snapshot
        return self._save_waiting()

    def _offer(self, snapshot: Snapshot) -> None:
        """Let peers fetch it; those older than the newest certified one are forgotten."""
        held = self._offered.values()
        self._offered = {each.root: each for each in held if each.index >= self._certified}
        self._offered[snapshot.root] = snapshot

    def _save_waiting(self) -> list[Output]:
        """Start the waiting save, if none is under way."""
        snapshot = self._save_next
        if self._saving is not None or snapshot is None:
            return []
        self._saving, self._save_next = snapshot, None
        return [self._save(snapshot)]

    def _save(self, snapshot: Snapshot) -> SaveSnapshot:
        return SaveSnapshot(snapshot.index, snapshot.root, snapshot.parts, self._certified)

    def _begin_transfer(self, index: int, root: bytes, sources: Sequence[int]) -> list[Output]:
        if index <= self._ledger.index:
            return []
        newest = next(reversed(self._offered.values()), None)
        asks = self._transfer.begin(index, root, sources=sources, held=newest.parts if newest else ())
        if not asks:
            return []
        started = Observed("snapshot.transfer.started", {"index": index})
        return [started, *asks, SetTimer(_TRANSFER_TIMER, TRANSFER_RETRY_MS)]

    def _received_snapshot(self, snapshot: Snapshot) -> list[Output]:
        """Whole and matching its certified root: make it durable before anything stands on it."""
        if snapshot.index <= self._ledger.index:
            return []
        if self._installing:
            self._install_next = snapshot
            return []
        self._installing = True
        self._save_next = None
        self._saving = snapshot
        self._offer(snapshot)
        return [CancelTimer(_TRANSFER_TIMER), self._save(snapshot)]


def _junk(sender: int, reason: str) -> Observed:
    return Observed("peer.junk", {"peer": sender, "reason": reason})
