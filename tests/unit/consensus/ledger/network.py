"""Four ledgers in lockstep behind a perfect network: what a client session talks to in tests."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.consensus.ledger.scene import REPLICA_KEYS, USER, authenticators, genesis_of

from dwcp.consensus.core.machine import Commit, Payload
from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.consensus.ledger import messages, operations
from dwcp.consensus.ledger.attest import Attestor
from dwcp.consensus.ledger.client import ClientSession, Outcome, ToReplica
from dwcp.consensus.ledger.ledger import Ledger
from dwcp.consensus.ledger.messages import Replies, Reply, Request

Twist = Callable[[int, Reply], Reply | None]


class Network:
    """Every request becomes a batch of its own. `twist` may change or drop a replica's reply."""

    def __init__(self, n: int = 4, **params: int) -> None:
        self.genesis = genesis_of(n, **params)
        self.ledgers = [Ledger(self.genesis) for _ in range(n)]
        self.attestors = [
            Attestor(me=i, chain_id=self.genesis.chain_id, signer=REPLICA_KEYS[i]) for i in range(n)
        ]
        self.now_ms = 1000
        self.twist: Twist = lambda _, reply: reply
        self.deaf: set[int] = set()  # replicas that requests do not reach
        self.frames: list[ToReplica] = []

    def session(self, key: SigningKey = USER, session: int = 1, next_sequence: int = 0) -> ClientSession:
        return ClientSession(
            genesis=self.genesis,
            public=key.public,
            signer=key,
            authenticators=authenticators(self.genesis.n, key, self.genesis.chain_id),
            session=session,
            next_sequence=next_sequence,
        )

    def deliver(self, session: ClientSession, frames: list[ToReplica]) -> list[Outcome]:
        """Carry frames to the replicas and replies back, until nobody has anything to say."""
        outcomes: list[Outcome] = []
        waiting = list(frames)
        while waiting:
            sent = waiting.pop(0)
            self.frames.append(sent)
            for replica, reply in self._replies(sent):
                twisted = self.twist(replica, reply)
                if twisted is None:
                    continue
                outcomes += session.receive(replica, messages.encode(twisted), now_ms=self.now_ms)
                waiting += session.flush(now_ms=self.now_ms)
        return outcomes

    def _replies(self, sent: ToReplica) -> list[tuple[int, Reply]]:
        request = messages.decode_client(sent.frame)
        if not isinstance(request, Request) or sent.replica in self.deaf:
            return []
        bundle = operations.decode(request.body, self.genesis.params)
        kept = self.ledgers[sent.replica].answered(bundle)
        if kept is not None:
            shares = self.attestors[sent.replica].shares(answer.index for answer in kept)
            materials = self.ledgers[sent.replica].materials(bundle) if bundle.receipt else ()
            return [(sent.replica, Reply(sent.replica, bundle.session, kept, shares, materials))]
        payload = Payload(operations.payload_digest(request.body), request.body)
        return self._commit(payload, sent.replica if request.replies is Replies.ALL else None)

    def _commit(self, payload: Payload, asked: int | None) -> list[tuple[int, Reply]]:
        self.now_ms += 10
        replies = []
        for i, ledger in enumerate(self.ledgers):
            executed = ledger.apply(Commit(ledger.index + 1, 0, self.now_ms, (payload,)))
            share = self.attestors[i].attest(
                epoch=0, index=executed.index, history_digest=executed.history_digest
            )
            outcome = executed.outcomes[0]
            if outcome.bundle.asks(i) or i == asked:
                number = outcome.bundle.session
                replies.append((i, Reply(i, number, outcome.answers, (share,), outcome.materials)))
        return replies
