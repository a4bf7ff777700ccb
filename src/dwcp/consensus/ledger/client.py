"""A client's session with the ledger, sans-IO: bundles, retries, tallies and receipts.

The host connects to every replica, sends `greeting` first on each connection,
and carries frames both ways. A result is final once f+1 replicas agree on it:
at least one of them is honest. The host stores the session number and, if it
wants to resume one, `next_sequence`; a fresh number per run is simplest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dwcp.api import kv
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.core.machine import Signer
from dwcp.consensus.crypto import codec, signatures
from dwcp.consensus.crypto.codec import Codec
from dwcp.consensus.crypto.mac import Authenticator
from dwcp.consensus.ledger import attest, messages, operations, receipts
from dwcp.consensus.ledger.genesis import Genesis
from dwcp.consensus.ledger.messages import (
    Material,
    Overloaded,
    Replies,
    Reply,
    Request,
    Share,
    StatusReply,
    StatusRequest,
)
from dwcp.consensus.ledger.operations import Flags, Signed, Verify
from dwcp.consensus.ledger.receipts import Receipt, ReceiptInvalid
from dwcp.consensus.ledger.sessions import WINDOW

RETRY_MS = 1000  # first retry, to everyone; then doubled
RETRY_MS_MAX = 8000
RECEIPT_ATTEMPTS_MAX = 4  # tries for a receipt once the result is known
_RESULT: Codec[kv.Result] = Codec(kv.Result)
_STATUS = messages.encode(StatusRequest())


@dataclass(frozen=True, slots=True)
class ToReplica:
    """A frame for one replica's connection; dropped where there is none now, retries will follow."""

    replica: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class Completed:
    """The result of one operation. `receipt` is None unless asked for, and if no quorum could give one."""

    sequence: int
    index: int
    result: kv.Result
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A frame that is no reply to a bundle: answers to queries, watches, status; or a refusal."""

    replica: int
    frame: messages.ReplicaFrame


Outcome = Completed | Event


@dataclass(slots=True)
class _Pending:
    """One operation in flight. One vote for each replica, its latest."""

    operation: bytes
    receipt: bool
    bundle: _Sent | None = None
    votes: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    shares: dict[int, Share] = field(default_factory=dict)
    materials: dict[int, Material] = field(default_factory=dict)
    attempts_left: int = RECEIPT_ATTEMPTS_MAX
    abandoned: bool = False  # nobody waits for the result


@dataclass(slots=True)
class _Sent:
    """One bundle: its frames stay the same at every retry."""

    body: bytes
    tags: bytes
    repliers: tuple[int, ...]
    entrances: tuple[int, ...]  # whom it was handed to first
    open: set[int]  # sequences without a result
    wait_ms: int
    due_ms: int


class ClientSession:
    """One session of one client. Call `flush` after `submit`, and `timer` at `due_ms`.

    Sequence 0 opens the session and completes like any other; where that is
    `Failed`, the session number was used before: begin another session.
    """

    def __init__(
        self,
        *,
        genesis: Genesis,
        public: bytes,
        signer: Signer,
        authenticators: Sequence[Authenticator],
        session: int,
        next_sequence: int = 0,
        ttl_ms: int = 86_400_000,
        check: Verify = signatures.verify,
    ) -> None:
        """`session` must be higher than any this client used before, e.g. its start time in µs.

        `authenticators` are those shared with each replica, by id.
        """
        self._genesis = genesis
        self._public = public
        self._signer = signer
        self._authenticators = tuple(authenticators)
        self._session = session
        self._check = check
        self._next = next_sequence
        self._queue: list[tuple[int, _Pending]] = []
        self._pending: dict[int, _Pending] = {}
        self._bundles: list[_Sent] = []
        self._hints = [0] * genesis.n  # whom each replica takes for the leader
        self._leader = 0
        self._silences = [0] * genesis.n  # retries that a replica was too late for
        self._connected: set[int] = set()
        self._opened = next_sequence > 0
        if not self._opened:
            self._enqueue(kv.OpenSession(ttl_ms), receipt=False)

    # ----------------------------------------------------------------- surface

    @property
    def session(self) -> int:
        return self._session

    @property
    def next_sequence(self) -> int:
        """What to resume the session with; store it before frames leave, skipping some is harmless."""
        return self._next

    @property
    def outstanding(self) -> int:
        """Operations without a result."""
        return len(self._pending)

    @property
    def due_ms(self) -> int | None:
        """When to call `timer`; None while nothing is in flight."""
        return min((bundle.due_ms for bundle in self._bundles), default=None)

    @property
    def leader(self) -> int:
        """The replica that most replicas take for the leader."""
        return self._leader

    def greeting(self, replica: int) -> bytes:
        """The first frame on a new connection to `replica`."""
        return messages.encode(
            messages.hello(
                chain_id=self._genesis.chain_id,
                client=self._public,
                session=self._session,
                authenticator=self._authenticators[replica],
            )
        )

    def submit(self, operation: kv.Operation, *, receipt: bool = False) -> int:
        """Queue an operation; its sequence, by which `Completed` names it."""
        return self._enqueue(operation, receipt=receipt)

    def flush(self, *, now_ms: int) -> list[ToReplica]:
        """Send what is queued, as few bundles as possible, as far as the session's window reaches."""
        out: list[ToReplica] = []
        # Bundles may be ordered as nobody sent them: none follows the one that opens the session too soon.
        while self._queue and (self._opened or not self._bundles):
            count = self._sendable()
            if not count:
                break
            taken, self._queue = self._queue[:count], self._queue[count:]
            bundle = self._bundle(taken, now_ms)
            self._bundles.append(bundle)
            frame = self._request(bundle, Replies.ASKED)
            out.extend(ToReplica(each, frame) for each in bundle.entrances)
            if self.leader not in bundle.entrances:
                out.extend(ToReplica(each, _STATUS) for each in bundle.entrances)
        return out

    def receive(self, replica: int, frame: bytes, *, now_ms: int) -> list[Outcome]:
        """What a replica's frame settles; raises `MalformedFrame`: close that connection.

        Call `flush` afterwards: the window may have moved.
        """
        message = messages.decode_replica(frame)
        match message:
            case Reply():
                return self._on_reply(replica, message)
            case StatusReply():
                self._hint(replica, message.leader)
                return [Event(replica, message)]
            case Overloaded():
                self._on_overloaded(message, now_ms)
                return [Event(replica, message)]
            case _:
                return [Event(replica, message)]

    def timer(self, *, now_ms: int) -> tuple[list[ToReplica], list[Outcome]]:
        """Retry what is due, to every replica; settles results whose receipt cannot be had."""
        out: list[ToReplica] = []
        outcomes: list[Outcome] = []
        for bundle in list(self._bundles):
            if bundle.due_ms > now_ms:
                continue
            self._note_silence(bundle)
            outcomes.extend(self._give_up_receipts(bundle))
            if not bundle.open:
                continue
            frame = self._request(bundle, Replies.ALL)
            out.extend(ToReplica(each, frame) for each in range(self._genesis.n))
            out.extend(ToReplica(each, _STATUS) for each in range(self._genesis.n))
            bundle.wait_ms = min(bundle.wait_ms * 2, RETRY_MS_MAX)
            bundle.due_ms = now_ms + bundle.wait_ms
        return out, outcomes

    def connected(self, replica: int) -> list[ToReplica]:
        """Frames to send on a fresh connection, after the greeting: who leads, and whatever is in flight."""
        self._connected.add(replica)
        self._silences[replica] = 0
        frames = [self._request(bundle, Replies.ALL) for bundle in self._bundles if bundle.open]
        return [ToReplica(replica, frame) for frame in (_STATUS, *frames)]

    def disconnected(self, replica: int) -> list[ToReplica]:
        """The connection is gone: others are asked first until it is back.

        What was handed to it, or awaits its reply, goes to everybody else at once: waiting for
        the retry would cost each operation a second where one replica dies.
        """
        self._connected.discard(replica)
        leaning = [b for b in self._bundles if b.open and replica in (*b.entrances, *b.repliers)]
        frames = [_STATUS, *(self._request(bundle, Replies.ALL) for bundle in leaning)]
        return [ToReplica(each, frame) for each in sorted(self._connected) for frame in frames]

    def abandon(self, sequence: int) -> None:
        """Stop waiting for an operation. Whether it happens is then unknown."""
        pending = self._pending.get(sequence)
        if pending is None:
            return
        if pending.bundle is None:
            # Its number is sent all the same, as a read of nothing, to keep sequences contiguous.
            pending.operation = codec.encode(kv.Range(b""))
            pending.abandoned = True
        else:
            del self._pending[sequence]
            self._settle(sequence, pending)

    # ----------------------------------------------------------------- sending

    def _enqueue(self, operation: kv.Operation, *, receipt: bool) -> int:
        sequence = self._next
        self._next += 1
        pending = _Pending(codec.encode(operation), receipt)
        self._pending[sequence] = pending
        self._queue.append((sequence, pending))
        return sequence

    def _sendable(self) -> int:
        """How many queued operations fit one bundle now: contiguous, alike, inside the window."""
        params = self._genesis.params
        first, head = self._queue[0]
        # The server's window ends at the highest sequence executed: nothing sent may push an open one out.
        oldest = self._oldest(first)
        size = count = 0
        for sequence, pending in self._queue[: params.bundle_count_max]:
            size += len(pending.operation) + 5
            if pending.receipt != head.receipt or sequence - oldest >= WINDOW:
                break
            if count and size > params.request_bytes_max:
                break
            count += 1
        return count

    def _oldest(self, first: int) -> int:
        """The lowest sequence in flight, or `first` where none is."""
        return min((min(bundle.open) for bundle in self._bundles if bundle.open), default=first)

    def _bundle(self, taken: list[tuple[int, _Pending]], now_ms: int) -> _Sent:
        receipt = taken[0][1].receipt
        repliers = self._repliers()
        signed = Signed(
            self._public,
            self._session,
            taken[0][0],
            self._oldest(taken[0][0]),
            Flags.RECEIPT if receipt else Flags.NONE,
            0 if receipt or self._genesis.n > 63 else sum(1 << replica for replica in repliers),
            tuple(pending.operation for _, pending in taken),
        )
        body = operations.build(signed, chain_id=self._genesis.chain_id, signer=self._signer)
        tags = operations.make_payload(body, self._authenticators).tags
        asked = tuple(range(self._genesis.n)) if receipt else repliers
        bundle = _Sent(body, tags, asked, self._entrances(), set(), RETRY_MS, now_ms + RETRY_MS)
        for sequence, pending in taken:
            pending.bundle = bundle
            bundle.open.add(sequence)
        return bundle

    def _repliers(self) -> tuple[int, ...]:
        """f+1 replicas to reply, those first that are connected and never late; sessions spread over them."""
        n = self._genesis.n
        ranked = sorted(
            range(n),
            key=lambda each: (each not in self._connected, self._silences[each], (each + self._session) % n),
        )
        return tuple(sorted(ranked[: self._genesis.f + 1]))

    def _entrances(self) -> tuple[int, ...]:
        """Where a request goes: to the leader; without a connection to it, to everybody else.

        Replicas leave a dead leader's view only together, so more than one must know of the work.
        """
        leader = self.leader
        if leader in self._connected or not self._connected:
            return (leader,)
        return tuple(sorted(self._connected))

    def _request(self, bundle: _Sent, replies: Replies) -> bytes:
        return messages.encode(Request(bundle.body, bundle.tags, replies))

    def _note_silence(self, bundle: _Sent) -> None:
        for replica in bundle.repliers:
            if any(replica not in self._votes(sequence) for sequence in bundle.open):
                self._silences[replica] = min(self._silences[replica] + 1, 8)

    def _votes(self, sequence: int) -> dict[int, tuple[int, bytes]]:
        pending = self._pending.get(sequence)
        return pending.votes if pending is not None else {}

    # ----------------------------------------------------------------- receiving

    def _hint(self, replica: int, leader: int) -> None:
        if 0 <= leader < self._genesis.n:
            self._hints[replica] = leader
            hints = self._hints
            self._leader = max(range(len(hints)), key=lambda each: (hints.count(each), -each))

    def _on_overloaded(self, message: Overloaded, now_ms: int) -> None:
        """Wait as long as asked, within reason: the replica may lie."""
        wait_ms = min(max(message.retry_after_ms, 10), RETRY_MS_MAX)
        for bundle in self._bundles:
            if message.first_sequence in bundle.open:
                bundle.due_ms = now_ms + wait_ms

    def _on_reply(self, replica: int, reply: Reply) -> list[Outcome]:
        if reply.replica != replica or reply.session != self._session:
            raise MalformedFrame(f"replica {replica} answered for another replica or session")
        if self._silences[replica]:
            self._silences[replica] -= 1
        shares = {share.index: share for share in reply.shares}
        materials = {material.sequence: material for material in reply.materials}
        outcomes: list[Outcome] = []
        for answer in reply.answers:
            pending = self._pending.get(answer.sequence)
            if pending is None or pending.bundle is None:
                continue
            pending.votes[replica] = (answer.index, answer.result)
            if pending.receipt:
                self._take_proof(replica, pending, shares.get(answer.index), materials.get(answer.sequence))
            completed = self._tally(answer.sequence, pending)
            if completed is not None and not pending.abandoned:
                outcomes.append(completed)
        return outcomes

    def _take_proof(
        self, replica: int, pending: _Pending, share: Share | None, material: Material | None
    ) -> None:
        if share is not None:
            pending.shares[replica] = share
        if material is not None:
            pending.materials[replica] = material

    def _agreed(self, pending: _Pending) -> tuple[int, bytes] | None:
        """The (index, result) that f+1 replicas gave."""
        counts: dict[tuple[int, bytes], int] = {}
        for vote in pending.votes.values():
            counts[vote] = counts.get(vote, 0) + 1
            if counts[vote] > self._genesis.f:
                return vote
        return None

    def _tally(self, sequence: int, pending: _Pending) -> Completed | None:
        agreed = self._agreed(pending)
        if agreed is None:
            return None
        receipt = None
        if pending.receipt and agreed[0]:
            receipt = self._receipt(sequence, pending, agreed)
            if receipt is None:
                return None
        return self._complete(sequence, pending, agreed, receipt)

    def _complete(
        self, sequence: int, pending: _Pending, agreed: tuple[int, bytes], receipt: Receipt | None
    ) -> Completed:
        del self._pending[sequence]
        self._settle(sequence, pending)
        self._opened = self._opened or sequence == 0
        return Completed(sequence, agreed[0], _RESULT.decode(agreed[1]), receipt)

    def _settle(self, sequence: int, pending: _Pending) -> None:
        bundle = pending.bundle
        if bundle is not None:
            bundle.open.discard(sequence)
            if not bundle.open:
                self._bundles.remove(bundle)

    # ----------------------------------------------------------------- receipts

    def _receipt(self, sequence: int, pending: _Pending, agreed: tuple[int, bytes]) -> Receipt | None:
        """A verified receipt, once a quorum's shares match what some replica's material leads to."""
        index, result = agreed
        for material in pending.materials.values():
            if material.index != index or material.sequence != sequence:
                continue
            history = receipts.history_of(
                client=self._public,
                session=self._session,
                operation=pending.operation,
                result=result,
                material=material,
            )
            fitting = [
                (replica, share)
                for replica, share in pending.shares.items()
                if (share.epoch, share.index, share.history_digest) == (material.epoch, index, history)
            ]
            if len(fitting) < self._genesis.quorum:
                continue
            found = self._assembled(pending, result, material, fitting)
            if found is not None:
                return found
        return None

    def _assembled(
        self, pending: _Pending, result: bytes, material: Material, fitting: list[tuple[int, Share]]
    ) -> Receipt | None:
        genesis = self._genesis
        sound = [
            (replica, share)
            for replica, share in fitting
            if attest.share_holds(
                share,
                replica=replica,
                chain_id=genesis.chain_id,
                committee=genesis.committee(),
                verify=self._check,
            )
        ]
        receipt = receipts.assemble(
            genesis=genesis,
            client=self._public,
            session=self._session,
            operation=pending.operation,
            result=result,
            material=material,
            shares=sound,
        )
        try:
            receipts.verify(receipt, genesis, check=self._check)
        except ReceiptInvalid:
            return None
        return receipt

    def _give_up_receipts(self, bundle: _Sent) -> list[Outcome]:
        """After enough tries, a result that f+1 replicas gave is handed over without its receipt."""
        outcomes: list[Outcome] = []
        for sequence in sorted(bundle.open):
            pending = self._pending.get(sequence)
            if pending is None or not pending.receipt:
                continue
            agreed = self._agreed(pending)
            if agreed is None:
                continue
            pending.attempts_left -= 1
            if pending.attempts_left <= 0:
                outcomes.append(self._complete(sequence, pending, agreed, None))
        return outcomes
