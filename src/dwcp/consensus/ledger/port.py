"""The client port's side of a replica: who is connected, who is answered, who watches.

Sans-IO. A connection is known after its `Hello`; replies go to the newest
connection of the session that proved the client's key, and to nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.core.machine import Payload
from dwcp.consensus.crypto.mac import Authenticators, UnusableKey
from dwcp.consensus.ledger import messages
from dwcp.consensus.ledger.genesis import Genesis
from dwcp.consensus.ledger.ledger import Executed, Ledger, Outcome
from dwcp.consensus.ledger.messages import Answer, Share
from dwcp.consensus.ledger.operations import Bundle, BundleRefused, payload_digest
from dwcp.consensus.ledger.operations import decode as decode_bundle
from dwcp.consensus.ledger.outputs import CloseClient, Output, ToClient
from dwcp.consensus.ledger.watch import Watches

ASKED_MAX = 64  # requests of one connection whose reply was asked of everybody
RETRY_AFTER_MS = 100


class Status(Protocol):
    """What a status reply tells; `replica.ReplicaStatus` is one."""

    @property
    def index(self) -> int: ...
    @property
    def view(self) -> int: ...
    @property
    def leader(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def voting(self) -> bool: ...
    @property
    def revision(self) -> int: ...
    @property
    def state_transfer(self) -> bool: ...


@dataclass(slots=True)
class _Connection:
    client: bytes
    session: int
    asked: dict[int, None] = field(default_factory=dict)  # first sequences, oldest first


class ClientPort:
    """Invariant: `_by_session[s]` is a key of `_connections` whose client and session are `s`."""

    def __init__(self, *, me: int, genesis: Genesis, ledger: Ledger, authenticators: Authenticators) -> None:
        self._me = me
        self._genesis = genesis
        self._ledger = ledger
        self._authenticators = authenticators
        self._connections: dict[int, _Connection] = {}
        self._by_session: dict[tuple[bytes, int], int] = {}
        self._watches = Watches(ledger)

    def __len__(self) -> int:
        return len(self._connections)

    # ----------------------------------------------------------------- frames in

    def receive(
        self,
        connection: int,
        frame: bytes,
        *,
        shares: Mapping[int, Share],
        status: Callable[[], Status],
        overloaded: bool,
    ) -> tuple[list[Output], Payload | None]:
        """Answer a frame; a payload is returned where it is to be ordered."""
        try:
            message = messages.decode_client(frame)
        except MalformedFrame as exc:
            return [self.refuse(connection, "malformed", str(exc)), _close(connection, "malformed")], None
        if isinstance(message, messages.Hello):
            return self._greet(connection, message), None
        known = self._connections.get(connection)
        if isinstance(message, messages.StatusRequest):
            return [self._status(connection, status())], None
        if known is None:
            return [self.refuse(connection, "unauthenticated", "the first frame must be Hello")], None
        match message:
            case messages.Request():
                return self._request(connection, known, message, shares, overloaded)
            case messages.Query(query, data):
                result = self._ledger.query(known.client, data)
                reply = messages.QueryReply(query, self._ledger.index, result)
                return [ToClient(connection, messages.encode(reply))], None
            case messages.Watch():
                return self._framed(connection, self._watches.open(connection, known.client, message)), None
            case messages.Unwatch(watch):
                self._watches.close(connection, watch)
        return [], None

    def _greet(self, connection: int, hello: messages.Hello) -> list[Output]:
        if hello.version != messages.VERSION:
            return [self.refuse(connection, "version", f"this replica speaks {messages.VERSION}")]
        if hello.chain_id != self._genesis.chain_id:
            return [self.refuse(connection, "wrong_chain", f"this is chain {self._genesis.name}")]
        if not self._ledger.knows(hello.client) or not self._proven(hello):
            sentence = "the key is not registered, or its tag does not hold"
            return [self.refuse(connection, "unauthenticated", sentence)]
        self.closed(connection)
        self._connections[connection] = _Connection(hello.client, hello.session)
        self._by_session[hello.client, hello.session] = connection
        welcome = messages.Welcome(
            messages.VERSION, self._genesis.chain_id, self._me, self._ledger.index, self._ledger.revision
        )
        return [ToClient(connection, messages.encode(welcome))]

    def _proven(self, hello: messages.Hello) -> bool:
        try:
            return messages.hello_holds(hello, self._authenticators.of(hello.client))
        except UnusableKey:
            return False

    def _request(
        self,
        connection: int,
        known: _Connection,
        request: messages.Request,
        shares: Mapping[int, Share],
        overloaded: bool,
    ) -> tuple[list[Output], Payload | None]:
        try:
            bundle = decode_bundle(request.body, self._genesis.params)
        except BundleRefused as exc:
            return [self.refuse(connection, "bundle", str(exc))], None
        if (bundle.client, bundle.session) != (known.client, known.session):
            return [self.refuse(connection, "bundle", "it belongs to another client or session")], None
        answers = self._ledger.answered(bundle)
        if answers is not None:
            return [self._repeat(connection, bundle, answers, shares)], None
        if self._ledger.forgotten(bundle):
            return [], None
        if overloaded:
            full = messages.Overloaded(bundle.session, bundle.first_sequence, RETRY_AFTER_MS)
            return [ToClient(connection, messages.encode(full))], None
        if request.replies is messages.Replies.ALL:
            known.asked[bundle.first_sequence] = None
            if len(known.asked) > ASKED_MAX:
                del known.asked[next(iter(known.asked))]
        return [], Payload(payload_digest(request.body), request.body, request.tags)

    def _repeat(
        self,
        connection: int,
        bundle: Bundle,
        answers: tuple[Answer, ...],
        shares: Mapping[int, Share],
    ) -> ToClient:
        """The kept answers again, with whatever shares are still at hand."""
        indexes = dict.fromkeys(answer.index for answer in answers)
        held = tuple(shares[index] for index in indexes if index in shares)
        materials = self._ledger.materials(bundle) if bundle.receipt else ()
        reply = messages.Reply(self._me, bundle.session, answers, held, materials)
        return ToClient(connection, messages.encode(reply))

    def _status(self, connection: int, status: Status) -> ToClient:
        reply = messages.StatusReply(
            self._me,
            status.epoch,
            status.view,
            status.leader,
            status.index,
            status.revision,
            status.voting,
        )
        return ToClient(connection, messages.encode(reply))

    # ----------------------------------------------------------------- frames out

    def executed(self, executed: Executed, share: Share | None) -> list[Output]:
        """Replies and watch events of one position."""
        outputs: list[Output] = []
        shares = (share,) if share is not None else ()
        for outcome in executed.outcomes:
            reply = self._reply(outcome, shares)
            if reply is not None:
                outputs.append(reply)
        for connection, frame in self._watches.changed():
            outputs.append(ToClient(connection, messages.encode(frame)))
        return outputs

    def _reply(self, outcome: Outcome, shares: tuple[Share, ...]) -> ToClient | None:
        bundle = outcome.bundle
        connection = self._by_session.get((bundle.client, bundle.session))
        if connection is None:
            return None
        asked = self._connections[connection].asked
        if not bundle.asks(self._me) and bundle.first_sequence not in asked:
            return None
        asked.pop(bundle.first_sequence, None)
        reply = messages.Reply(self._me, bundle.session, outcome.answers, shares, outcome.materials)
        return ToClient(connection, messages.encode(reply))

    def refuse(self, connection: int, code: str, detail: str) -> ToClient:
        return ToClient(connection, messages.encode(messages.Refused(code, detail)))

    def _framed(self, connection: int, frames: list[messages.ReplicaFrame]) -> list[Output]:
        return [ToClient(connection, messages.encode(frame)) for frame in frames]

    # ----------------------------------------------------------------- life

    def closed(self, connection: int) -> None:
        """Forget a connection and its watches."""
        known = self._connections.pop(connection, None)
        if known is not None and self._by_session.get((known.client, known.session)) == connection:
            del self._by_session[known.client, known.session]
        self._watches.drop(connection)

    def reset(self) -> list[Output]:
        """The state was replaced by a snapshot: watches would have gaps, so they end."""
        outputs: list[Output] = []
        for connection, frame in self._watches.reset():
            outputs.append(ToClient(connection, messages.encode(frame)))
        return outputs


def _close(connection: int, reason: str) -> CloseClient:
    return CloseClient(connection, reason)
