"""A replicated log so small that its mistakes are known: one fixed leader, no liars.

It lets the world, the disks and the checkers be tested without any product engine.
Replica 0 numbers requests, everyone persists before answering, a majority commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dwcp.consensus.core.logformat import Journal
from dwcp.consensus.core.machine import Commit, Effect, Payload, Persist, Send
from dwcp.consensus.core.outbox import Outbox
from dwcp.consensus.ledger.ledger import Executed
from dwcp.consensus.ledger.outputs import Output, SetTimer, ToClient, ToPeers, WriteGroup
from dwcp.consensus.sim.checkers import Vote
from dwcp.consensus.sim.node import Distort, Node
from dwcp.consensus.sim.scenario import Liar
from dwcp.consensus.sim.world import World

RESEND_MS = 100


@dataclass(frozen=True, slots=True)
class ToyStatus:
    index: int
    view: int = 1
    held_effects: int = 0
    pending_bytes: int = 0


def pack(kind: str, slot: int, content: bytes = b"") -> bytes:
    return kind.encode() + slot.to_bytes(4, "big") + content


def unpack(frame: bytes) -> tuple[str, int, bytes]:
    return chr(frame[0]), int.from_bytes(frame[1:5], "big"), frame[5:]


class ToyReplica:
    """`eager`: a planted mistake, promises leave before they are durable."""

    def __init__(self, world: World, node: Node, *, eager: bool) -> None:
        self._world = world
        self._node = node
        self._n = world.scenario.n
        self._eager = eager
        self._outbox = Outbox()
        self._log: dict[int, bytes] = {}
        self._acks: dict[int, set[int]] = {}
        self._decided: set[int] = set()
        self._executed = 0
        self._proposed: set[bytes] = set()

    @property
    def _leading(self) -> bool:
        return self._node.replica == 0

    def status(self) -> ToyStatus:
        return ToyStatus(self._executed)

    def start(self, *, now_ms: int, journal: Sequence[bytes]) -> list[Output]:
        for record in journal:
            _, slot, content = unpack(record)
            self._log[slot] = content
            self._acks[slot] = {self._node.replica}
            self._proposed.add(content)
        return [SetTimer("resend", RESEND_MS)]

    def peer_frame(self, sender: int, frame: bytes, *, now_ms: int) -> list[Output]:
        kind, slot, content = unpack(frame)
        if kind == "A" and slot not in self._log:  # append
            return self._accept(slot, content, Send((0,), pack("K", slot)))
        if kind == "A":
            return self._carry([Send((0,), pack("K", slot))])
        if kind == "K" and slot in self._acks:  # acknowledged
            self._acks[slot].add(sender)
            return self._decide(slot)
        if kind == "D" and slot in self._log:  # decided
            self._decided.add(slot)
            return self._execute()
        return []

    def client_frame(self, connection: int, frame: bytes, *, now_ms: int) -> list[Output]:
        """Frames hold client and sequence; the same one again is not ordered again."""
        if not self._leading or frame in self._proposed:
            return self._execute(again=frame)
        self._proposed.add(frame)
        slot = len(self._log) + 1
        peers = tuple(range(1, self._n))
        self._acks[slot] = {0}
        return self._accept(slot, frame, Send(peers, pack("A", slot, frame)))

    def _accept(self, slot: int, content: bytes, answer: Send) -> list[Output]:
        self._log[slot] = content
        promise = Persist(pack("A", slot, content))
        return self._carry([answer, promise] if self._eager else [promise, answer])

    def client_closed(self, connection: int) -> None:
        pass

    def timer(self, name: str, *, now_ms: int) -> list[Output]:
        effects: list[Effect] = []
        if self._leading:
            for slot, content in self._log.items():
                behind = tuple(peer for peer in range(1, self._n) if peer not in self._acks[slot])
                effects.append(Send(behind, pack("A", slot, content)))
                if slot in self._decided:
                    effects.append(Send(tuple(range(1, self._n)), pack("D", slot)))
        return [*self._carry(effects), SetTimer("resend", RESEND_MS)]

    def durable(self, sequence: int, *, now_ms: int) -> list[Output]:
        return self._release(self._outbox.durable(sequence))

    def rotated(self, *, now_ms: int) -> list[Output]:
        return []

    def snapshot_durable(self, index: int, *, now_ms: int) -> list[Output]:
        return []

    def _decide(self, slot: int) -> list[Output]:
        if slot in self._decided or len(self._acks[slot]) <= self._n // 2:
            return []
        self._decided.add(slot)
        return [*self._carry([Send(tuple(range(1, self._n)), pack("D", slot))]), *self._execute()]

    def _execute(self, again: bytes = b"") -> list[Output]:
        fresh = []
        while self._executed + 1 in self._decided:
            self._executed += 1
            content = self._log[self._executed]
            fresh.append(content)
            commit = Commit(self._executed, 0, self._executed, (Payload(content, content),))
            executed = Executed(self._executed, 0, self._executed, b"", content, b"", b"", None, (), 0, 0)
            self._world.agreement.executed(self._node.place, commit, executed)
        done = {self._log[slot] for slot in range(1, self._executed + 1)}
        answers = fresh + ([again] if again in done else [])
        connections = list(self._node.connections)
        return [ToClient(to, answer) for answer in answers for to in connections]

    def _carry(self, effects: list[Effect]) -> list[Output]:
        return self._release(self._outbox.push(effects))

    def _release(self, effects: list[Effect]) -> list[Output]:
        outputs: list[Output] = [ToPeers(e.to, e.frame) for e in effects if isinstance(e, Send)]
        group = self._outbox.take_group()
        return outputs if group is None else [*outputs, WriteGroup(group.sequence, group.records)]


class ToyCaller:
    """One request at a time, sent to the leader until it is answered."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._sequence = 1
        self._finishing = False
        self.answered = 0

    @property
    def outstanding(self) -> int:
        return 0 if self._finishing and self.answered == self._sequence else 1

    def _request(self) -> bytes:
        return b"%d/%d" % (self._number, self._sequence)

    def opened(self, replica: int) -> list[tuple[int, bytes]]:
        return []

    def closed(self, replica: int) -> None:
        pass

    def receive(self, replica: int, frame: bytes, *, now_us: int) -> list[tuple[int, bytes]]:
        if frame != self._request() or replica != 0 or self.answered == self._sequence:
            return []
        self.answered = self._sequence
        if self._finishing:
            return []
        self._sequence += 1
        return [(0, self._request())]

    def tick(self, *, now_us: int) -> list[tuple[int, bytes]]:
        return [(0, self._request())] if self.outstanding else []

    def finish(self) -> None:
        self._finishing = True


class ToyCast:
    """Makes toys; `eager` plants the mistake."""

    def __init__(self, *, eager: bool = False) -> None:
        self._eager = eager

    @property
    def chain_id(self) -> bytes:
        return bytes(32)

    @property
    def journal(self) -> type[Journal]:
        return Journal

    def host(self, world: World, node: Node, *, voting: bool) -> ToyReplica:
        return ToyReplica(world, node, eager=self._eager)

    def callers(self, world: World) -> list[ToyCaller]:
        return [ToyCaller(number) for number in range(world.scenario.clients)]

    def inspect(self, world: World, node: Node, frame: bytes) -> None:
        kind, slot, content = unpack(frame)
        if kind == "A":
            world.votes.sent(node.replica, [Vote("append", 1, slot, content)])

    def synced(self, world: World, node: Node, records: int) -> None:
        pass

    def distortion(self, liar: Liar) -> Distort:
        raise NotImplementedError

    def conclude(self, world: World) -> None:
        pass
