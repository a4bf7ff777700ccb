"""Simulated clients: the product's client session, a workload, and what the clients were told."""

from __future__ import annotations

from random import Random

from dwcp.api import kv
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.crypto.codec import encode
from dwcp.consensus.ledger import receipts
from dwcp.consensus.ledger.client import ClientSession, Completed, Outcome, ToReplica
from dwcp.consensus.ledger.genesis import Genesis
from dwcp.consensus.ledger.receipts import ReceiptInvalid
from dwcp.consensus.sim.checkers import Linearizability, Sessions, Violation
from dwcp.consensus.sim.keys import Crypto, key_of
from dwcp.consensus.sim.world import EPOCH_MS

KEYS = 4
RECEIPT_CHANCE = 0.1
THINK_US = 2_000
Frames = list[tuple[int, bytes]]


def client_name(number: int) -> str:
    return f"client-{number}"


class LedgerCaller:
    """Keeps `outstanding_max` operations in flight until told to finish."""

    def __init__(
        self,
        number: int,
        *,
        genesis: Genesis,
        crypto: Crypto,
        rng: Random,
        outstanding_max: int,
        sessions: Sessions,
        reads: Linearizability,
    ) -> None:
        self._rng = rng
        self._genesis = genesis
        self._crypto = crypto
        self._outstanding_max = outstanding_max
        self._sessions = sessions
        self._reads = reads
        self._finishing = False
        self._written = 0
        self._redirected: Frames = []  # waits for the next tick
        self._number = number
        key = key_of(client_name(number))
        self._public = key.public
        tags = crypto.authenticators(key, genesis.chain_id)
        self._session = ClientSession(
            genesis=genesis,
            public=key.public,
            signer=crypto.signer(key),
            authenticators=[tags.of(replica) for replica in genesis.committee()],
            session=1,
            check=crypto.verify,
        )
        self._reads.invoked((self._public, 1, 0))  # the opening of the session

    @property
    def outstanding(self) -> int:
        return self._session.outstanding

    def finish(self) -> None:
        self._finishing = True

    # ------------------------------------------------------------------ connections

    def opened(self, replica: int) -> Frames:
        greeting = (replica, self._session.greeting(replica))
        return [greeting, *_frames(self._session.connected(replica))]

    def closed(self, replica: int) -> None:
        """What leaned on the replica goes to the others with the next tick."""
        self._redirected += _frames(self._session.disconnected(replica))

    def receive(self, replica: int, frame: bytes, *, now_us: int) -> Frames:
        now_ms = EPOCH_MS + now_us // 1000
        try:
            outcomes = self._session.receive(replica, frame, now_ms=now_ms)
        except MalformedFrame:  # a liar's
            return []
        self._settle(outcomes)
        return self._more(now_us)

    def tick(self, *, now_us: int) -> Frames:
        retries, outcomes = self._session.timer(now_ms=EPOCH_MS + now_us // 1000)
        self._settle(outcomes)
        redirected, self._redirected = self._redirected, []
        return [*redirected, *_frames(retries), *self._more(now_us)]

    # ------------------------------------------------------------------ workload

    def _more(self, now_us: int) -> Frames:
        while not self._finishing and self._session.outstanding < self._outstanding_max:
            operation = self._next_operation()
            sequence = self._session.submit(operation, receipt=self._rng.random() < RECEIPT_CHANCE)
            self._reads.invoked((self._public, 1, sequence))
        return _frames(self._session.flush(now_ms=EPOCH_MS + now_us // 1000))

    def _next_operation(self) -> kv.Operation:
        """Puts of unique values, reads, and swaps that compare what is there."""
        rng = self._rng
        key = b"k%d" % rng.randrange(KEYS)
        self._written += 1
        value = b"%d/%d" % (self._number, self._written)
        kind = rng.random()
        if kind < 0.5:
            return kv.Put(key, value)
        if kind < 0.75:
            return kv.Range(key)
        guess = rng.randrange(1, 40)
        guard = kv.Compare(key, kv.Target.MOD, kv.Relation.LESS, guess)
        return kv.Txn((guard,), (kv.Put(key, value),), (kv.Range(key),))

    def _settle(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Completed):
                operation = (self._public, 1, outcome.sequence)
                self._sessions.acknowledge(operation, (outcome.index, encode(outcome.result)))
                self._reads.returned(operation, outcome.index)
                self._check_receipt(outcome)

    def _check_receipt(self, outcome: Completed) -> None:
        if outcome.receipt is None:
            return
        try:
            receipts.verify(outcome.receipt, self._genesis, check=self._crypto.verify)
        except ReceiptInvalid as exc:
            raise Violation("receipt", f"sequence {outcome.sequence}: {exc}") from exc


def _frames(frames: list[ToReplica]) -> Frames:
    return [(each.replica, each.frame) for each in frames]
