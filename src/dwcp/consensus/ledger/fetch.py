"""Brings payload bodies that a replica knows by digest only, and serves others'.

Sans-IO and bounded: it asks one source at a time for each digest, moves on when
a timer fires, and takes only what it asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dwcp.consensus.core.machine import Payload
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Codec, Record
from dwcp.consensus.ledger.operations import payload_digest
from dwcp.consensus.ledger.outputs import Channel, ToPeers

WANTED_MAX = 4096  # digests; an engine's window of full batches asks for fewer
REQUEST_DIGESTS_MAX = 512
ANSWER_BYTES_MAX = 4 * 1024 * 1024
RETRY_MS = 200
_DIGEST_SIZE = 32


class PayloadRequest(Record, frozen=True, tag=1):
    digests: tuple[bytes, ...]


class Body(Record, frozen=True):
    body: bytes
    tags: bytes


class PayloadAnswer(Record, frozen=True, tag=2):
    bodies: tuple[Body, ...]


_CODEC: Codec[PayloadRequest | PayloadAnswer] = Codec(PayloadRequest | PayloadAnswer)
_PREFIX = bytes([Channel.PAYLOADS])


class PayloadFetch:
    """`0 ≤ wanted ≤ WANTED_MAX`; a digest leaves when its body arrives or is no longer wanted."""

    __slots__ = ("_me", "_peers", "_turn", "_wanted")

    def __init__(self, *, me: int, n: int) -> None:
        self._me = me
        self._peers = tuple(peer for peer in range(n) if peer != me)
        self._wanted: dict[bytes, tuple[int, ...]] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._wanted)

    def want(self, digests: Sequence[bytes], sources: Sequence[int]) -> list[ToPeers]:
        """Ask for bodies, first from `sources`."""
        room = WANTED_MAX - len(self._wanted)
        fresh = [d for d in dict.fromkeys(digests) if d not in self._wanted][:room]
        first = tuple(source for source in sources if source != self._me)
        for address in fresh:
            self._wanted[address] = first
        return self._ask(fresh, attempt=0)

    def retry(self) -> list[ToPeers]:
        """Nothing came in time: ask the next source for everything that is still wanted."""
        self._turn += 1
        return self._ask(list(self._wanted), attempt=self._turn)

    def _ask(self, digests: list[bytes], *, attempt: int) -> list[ToPeers]:
        by_source: dict[int, list[bytes]] = {}
        for address in digests:
            sources = self._wanted[address]
            order = sources + tuple(peer for peer in self._peers if peer not in sources)
            by_source.setdefault(order[attempt % len(order)], []).append(address)
        asks = []
        for source, wanted in by_source.items():
            for start in range(0, len(wanted), REQUEST_DIGESTS_MAX):
                request = PayloadRequest(tuple(wanted[start : start + REQUEST_DIGESTS_MAX]))
                asks.append(ToPeers((source,), _PREFIX + codec.encode(request)))
        return asks

    def receive(
        self, sender: int, body: bytes, held: Callable[[bytes], Payload | None]
    ) -> tuple[list[ToPeers], tuple[Payload, ...]]:
        """A peer's frame: answer its request from `held`, or take the bodies asked for.

        Raises `MalformedFrame`.
        """
        message = _CODEC.decode(body)
        if isinstance(message, PayloadRequest):
            return self._serve(sender, message, held), ()
        return [], self._take(message)

    def _serve(
        self, sender: int, request: PayloadRequest, held: Callable[[bytes], Payload | None]
    ) -> list[ToPeers]:
        bodies: list[Body] = []
        size = 0
        for address in request.digests[:REQUEST_DIGESTS_MAX]:
            payload = held(address) if len(address) == _DIGEST_SIZE else None
            if payload is None or payload.body is None:
                continue
            size += len(payload.body) + len(payload.tags)
            if bodies and size > ANSWER_BYTES_MAX:
                break
            bodies.append(Body(payload.body, payload.tags))
        if not bodies:
            return []
        return [ToPeers((sender,), _PREFIX + codec.encode(PayloadAnswer(tuple(bodies))))]

    def _take(self, answer: PayloadAnswer) -> tuple[Payload, ...]:
        taken = []
        for item in answer.bodies:
            address = payload_digest(item.body)
            if self._wanted.pop(address, None) is not None:
                taken.append(Payload(address, item.body, item.tags))
        return tuple(taken)

    def forget(self, digests: Sequence[bytes]) -> None:
        """These are no longer wanted: they were committed or came by another way."""
        for address in digests:
            self._wanted.pop(address, None)
