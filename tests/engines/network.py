"""A tiny network for engines: function calls, one seed, real codec, real persist barrier.

Not the simulator: no weather, no ledger. Messages wait in one list from which the seed
picks; a journal group waits until it is synced; a crash loses what was not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from dwcp.consensus.core import machine
from dwcp.consensus.core.machine import Payload
from dwcp.consensus.crypto.hashes import Domain, digest
from dwcp.consensus.engines.probft.engine import ProBFT
from dwcp.consensus.engines.probft.messages import Message
from dwcp.consensus.engines.probft.params import Params
from dwcp.consensus.engines.probft.rules import Rules

CHAIN = bytes(range(32))
EPOCH = 0
PASSING = (
    machine.Verify,
    machine.Fetch,
    machine.SetTimer,
    machine.CancelTimer,
    machine.Accuse,
    machine.Note,
)


def payload(text: str) -> Payload:
    body = text.encode()
    return Payload(digest(Domain.BUNDLE, body), body, b"tag")


@dataclass(frozen=True)
class KeyedSigner:
    """A keyed hash in the place of a signature; who knows the id can sign, tests lie with it."""

    me: int

    def sign(self, signed: bytes) -> bytes:
        return blake2b(signed, key=b"replica-%d" % self.me).digest()


class KeyedVerifier:
    """Checks keyed signatures; payloads are valid unless their body starts with b"bad"."""

    def holds(self, claim: machine.Claim) -> bool:
        if isinstance(claim, machine.SignatureClaim):
            return KeyedSigner(claim.signer).sign(claim.signed) == claim.signature
        return all(
            p.body is not None and digest(Domain.BUNDLE, p.body) == p.digest and not p.body.startswith(b"bad")
            for p in claim.payloads
        )

    def check(self, message: object, claims: tuple[machine.Claim, ...]) -> machine.Verified:
        return machine.Verified(message, all(self.holds(claim) for claim in claims))


@dataclass
class Node:
    """One replica with its host's state: outbox, journal, timers, a counting application."""

    me: int
    engine: ProBFT
    journal: list[bytes] = field(default_factory=list)
    waiting: list[machine.Effect] = field(default_factory=list)
    timers: dict[str, int] = field(default_factory=dict)
    history: list[tuple[int, int, tuple[bytes, ...]]] = field(default_factory=list)
    applied: int = 0
    snapshot: tuple[int, list[tuple[int, int, tuple[bytes, ...]]]] = (0, [])
    notes: list[machine.Note] = field(default_factory=list)
    accusations: list[machine.Accuse] = field(default_factory=list)
    installs: list[int] = field(default_factory=list)
    verified: int = 0
    up: bool = True
    saves: bool = True  # snapshots become durable

    def root(self, index: int) -> bytes:
        kept = [entry for entry in self.history if entry[0] <= index]
        return digest(Domain.STATE, repr(kept).encode())


class Network:
    """`n` replicas; `step()` delivers one message, `run()` all; time moves by `tick()` only."""

    def __init__(
        self,
        n: int = 4,
        *,
        seed: int = 0,
        params: Params | None = None,
        rules: Rules | None = None,
        learners: frozenset[int] = frozenset(),
        instant: bool = True,
    ) -> None:
        self.n = n
        self.random = random.Random(seed)
        self.params = params or Params(checkpoint_interval=8, window=16, timeout_start_ms=300)
        self.rules = rules
        self.learners = learners
        self.instant = instant  # journal groups are durable at once
        self.now_ms = 1_000_000
        self.flying: list[tuple[int, int, bytes]] = []
        self.sent: list[tuple[int, int, Message]] = []
        self.drop: Callable[[int, int, Message], bool] = lambda sender, to, message: False
        self.serves: Callable[[int], bool] = lambda index: True  # whether a snapshot still exists
        self.verifier = KeyedVerifier()
        self.trace: list[str] | None = None
        self.votes: dict[tuple[int, int, int, int], bytes] = {}
        self.decisions: dict[int, tuple[int, tuple[bytes, ...]]] = {}
        self.nodes = [Node(i, self._engine(i)) for i in range(n)]
        for node in self.nodes:
            self._handle(node, node.engine.start(now_ms=self.now_ms, journal=[], applied=0, applied_ms=0))

    def _engine(self, me: int) -> ProBFT:
        return ProBFT(
            me=me,
            n=self.n,
            chain_id=CHAIN,
            epoch=EPOCH,
            params=self.params,
            signer=KeyedSigner(me),
            rules=self.rules,
            voting=me not in self.learners,
        )

    # ------------------------------------------------------------ effects

    def feed(self, me: int, event: machine.Event) -> None:
        node = self.nodes[me]
        if node.up:
            self._handle(node, node.engine.step(event, now_ms=self.now_ms))

    def _handle(self, node: Node, effects: list[machine.Effect]) -> None:
        verifies = []
        for effect in effects:
            if isinstance(effect, machine.Verify):
                verifies.append(effect)
            elif isinstance(effect, PASSING):
                self._pass(node, effect)
            else:
                node.waiting.append(effect)
        if self.instant:
            self.sync(node.me)
        else:
            self._release(node)
        for verify in verifies:
            node.verified += len(verify.claims)
            self.feed(node.me, self.verifier.check(verify.message, verify.claims))

    def _pass(self, node: Node, effect: machine.Effect) -> None:
        match effect:
            case machine.SetTimer(name, after_ms):
                node.timers[name] = self.now_ms + after_ms
            case machine.CancelTimer(name):
                node.timers.pop(name, None)
            case machine.Note():
                node.notes.append(effect)
            case machine.Accuse():
                node.accusations.append(effect)

    def _release(self, node: Node) -> None:
        """Let go of what no record holds back."""
        while node.waiting and not isinstance(node.waiting[0], machine.Persist):
            self._perform(node, node.waiting.pop(0))

    def sync(self, me: int, *, records: int | None = None) -> None:
        """Make the next `records` records (default: all) durable and release what waited for them."""
        node = self.nodes[me]
        self._release(node)
        while node.waiting and (records is None or records > 0):
            effect = node.waiting.pop(0)
            assert isinstance(effect, machine.Persist)
            node.journal.append(effect.record)
            records = None if records is None else records - 1
            self._release(node)

    def _perform(self, node: Node, effect: machine.Effect) -> None:
        match effect:
            case machine.Send(to, frame):
                for peer in to:
                    assert peer != node.me
                    self._sent(node.me, peer, frame)
                    self.flying.append((node.me, peer, frame))
            case machine.Commit():
                self._commit(node, effect)
            case machine.Truncate():
                node.journal = node.engine.records()
            case machine.InstallSnapshot(index, _, sources):
                node.installs.append(index)
                self._install(node, index, sources)

    def _sent(self, me: int, to: int, frame: bytes) -> None:
        """Every frame of an honest replica is checked: one digest per (sender, kind, slot, view)."""
        message = self.nodes[me].engine.decode(frame)
        assert isinstance(message, Message)
        self.sent.append((me, to, message))
        body = message.body
        if message.kind <= 3 and message.sender == me:
            key = (me, message.kind, body.slot, body.view)
            assert self.votes.setdefault(key, body.digest) == body.digest, f"double vote {key}"

    def _commit(self, node: Node, commit: machine.Commit) -> None:
        assert commit.index == node.applied + 1, (node.me, commit.index, node.applied)
        digests = tuple(p.digest for p in commit.payloads)
        known = self.decisions.setdefault(commit.index, (commit.time_ms, digests))
        assert known == (commit.time_ms, digests), f"replicas disagree at {commit.index}"
        if node.history and digests:
            assert commit.time_ms > node.history[-1][1], (node.me, commit.index, node.history[-3:])
        node.applied = commit.index
        node.history.append((commit.index, commit.time_ms, digests))
        at_checkpoint = commit.index % self.params.checkpoint_interval == 0
        root = node.root(commit.index) if at_checkpoint else None
        self.feed(node.me, machine.Applied(commit.index, root))
        if root is not None and node.saves:
            node.snapshot = (commit.index, [e for e in node.history if e[0] <= commit.index])
            self.feed(node.me, machine.Snapshotted(commit.index, root))

    def _install(self, node: Node, index: int, sources: tuple[int, ...]) -> None:
        if not self.serves(index):
            return
        for source in sources:
            found, history = self.nodes[source].snapshot
            if found >= index:
                kept = [entry for entry in history if entry[0] <= index]
                node.history, node.applied = list(kept), index
                node.snapshot = (index, list(kept))
                root = node.root(index)
                self.feed(node.me, machine.Snapshotted(index, root, installed=True))
                return

    # ------------------------------------------------------------ scheduling

    def step(self) -> bool:
        """Deliver one message of the seed's choice; False when none flies."""
        if not self.flying:
            return False
        sender, to, frame = self.flying.pop(self.random.randrange(len(self.flying)))
        node = self.nodes[to]
        message = node.engine.decode(frame)
        assert isinstance(message, Message)
        if node.up and not self.drop(sender, to, message):
            if self.trace is not None:
                self.trace.append(describe(sender, to, message))
            self.feed(to, machine.Received(sender, message))
        return True

    def run(self, *, limit: int = 200_000) -> None:
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("the network never came to rest")

    def tick(self, *, ms: int = 50, times: int = 1) -> None:
        """Move time, fire what is due, deliver everything."""
        for _ in range(times):
            self.now_ms += ms
            for node in self.nodes:
                due = sorted(name for name, at in node.timers.items() if at <= self.now_ms)
                for name in due:
                    if node.up and node.timers.pop(name, None) is not None:
                        self.feed(node.me, machine.TimerFired(name))
            self.run()

    def submit(self, text: str, *, to: tuple[int, ...] | None = None) -> None:
        for me in to if to is not None else range(self.n):
            self.feed(me, machine.Submitted((payload(text),)))

    def crash(self, me: int) -> None:
        node = self.nodes[me]
        node.up = False
        node.waiting.clear()
        node.timers.clear()
        self.flying = [f for f in self.flying if f[1] != me]

    def restart(self, me: int) -> None:
        """The journal, and the application from its last snapshot."""
        node = self.nodes[me]
        index, history = node.snapshot
        node.up, node.applied, node.history = True, index, list(history)
        node.engine = self._engine(me)
        last_ms = max((time_ms for _, time_ms, digests in history if digests), default=0)
        start = node.engine.start(
            now_ms=self.now_ms, journal=list(node.journal), applied=index, applied_ms=last_ms
        )
        self._handle(node, start)
        if index:
            self.feed(me, machine.Snapshotted(index, node.root(index)))

    # ------------------------------------------------------------ questions

    def committed(self, me: int) -> list[str]:
        """Names of digests committed at `me`, in order, without null batches."""
        return [d.hex()[:8] for _, _, digests in self.nodes[me].history for d in digests]

    def all_committed(self, text: str, *, among: tuple[int, ...] | None = None) -> bool:
        wanted = payload(text).digest
        return all(
            any(wanted in digests for _, _, digests in self.nodes[me].history)
            for me in (among if among is not None else range(self.n))
        )


def describe(sender: int, to: int, message: Message) -> str:
    """One line of a transcript."""
    body = message.body
    name = type(body).__name__ if message.kind not in (2, 3) else ("", "", "Prepare", "Commit")[message.kind]
    fields = []
    for key in ("slot", "view", "index", "decided", "stable", "installed"):
        value = getattr(body, key, None)
        if isinstance(value, int):
            fields.append(f"{key}={value}")
    found = getattr(body, "digest", None)
    if found is not None:
        fields.append(f"digest={found.hex()[:8]}")
    if hasattr(body, "report"):
        rows = ",".join(f"{r.slot}@{r.view}" for r in body.report.rows)
        fields.append(f"view={body.report.view} rows=[{rows}]")
    if hasattr(body, "headers"):
        rows = ",".join(f"{h.slot}:{h.digest.hex()[:8]}" for h in body.headers)
        fields.append(f"reports={len(body.reports)} headers=[{rows}]")
    return f"{sender} -> {to}  {name} {' '.join(fields)}"
