"""The product's replicas and clients as the cast of a history.

Everything is what production composes: engine, ledger, outbox, client sessions.
The checkers stand at two places: around `Ledger.apply`, and at the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from dwcp.consensus.core.logformat import Journal
from dwcp.consensus.core.machine import Commit, Effect, Event, Signer
from dwcp.consensus.core.outbox import Outbox
from dwcp.consensus.engines.probft.engine import ProBFT
from dwcp.consensus.engines.probft.messages import CheckpointVote as WireCheckpoint
from dwcp.consensus.engines.probft.messages import Kind, NewLeader, NewView, Propose
from dwcp.consensus.engines.probft.messages import Vote as WireVote
from dwcp.consensus.engines.probft.params import Params as EngineParams
from dwcp.consensus.engines.probft.rules import Rules
from dwcp.consensus.ledger.genesis import Genesis, GenesisClient, GenesisReplica, Params
from dwcp.consensus.ledger.ledger import Executed, Ledger
from dwcp.consensus.ledger.operations import PayloadChecker
from dwcp.consensus.ledger.outputs import Channel
from dwcp.consensus.ledger.port import ClientPort
from dwcp.consensus.ledger.replica import Replica
from dwcp.consensus.ledger.verifier import ClaimVerifier
from dwcp.consensus.sim import liars, proofs
from dwcp.consensus.sim.callers import LedgerCaller, client_name
from dwcp.consensus.sim.checkers import Vote
from dwcp.consensus.sim.keys import Crypto, key_of
from dwcp.consensus.sim.node import Distort, Node
from dwcp.consensus.sim.proofs import CHECKPOINT, COMMIT, PREPARE, PROPOSE
from dwcp.consensus.sim.scenario import Liar, Scenario
from dwcp.consensus.sim.world import World

_PHASES = {Kind.PROPOSE: PROPOSE, Kind.PREPARE: PREPARE, Kind.COMMIT: COMMIT}


@dataclass(frozen=True, slots=True)
class Parts:
    """What a history runs; a planted bug replaces one of them."""

    rules: Rules = field(default_factory=Rules)
    ledger: Callable[[Genesis], WatchedLedger] = lambda genesis: WatchedLedger(genesis)
    outbox: type[Outbox] = Outbox
    replica: type[Replica] = Replica
    journal: type[Journal] = Journal


def genesis_of(scenario: Scenario) -> Genesis:
    """Four or more replicas and the scenario's clients, on a chain of this seed's own."""
    replicas = tuple(_replica(number) for number in range(scenario.n))
    clients = tuple(
        GenesisClient(client_name(number), key_of(client_name(number)).public.hex(), ("",), ("",))
        for number in range(scenario.clients)
    )
    params = Params(
        checkpoint_interval=scenario.checkpoint_interval,
        window=scenario.window,
        batch_count_max=scenario.batch_count_max,
    )
    nonce = Random(f"genesis/{scenario.seed}").randbytes(32).hex()
    return Genesis("simulated", replicas, clients, "00" * 32, nonce, params=params)


def _replica(number: int) -> GenesisReplica:
    public = key_of(f"replica-{number}").public.hex()
    name = f"replica-{number}"
    return GenesisReplica(number, name, name, name, 9000, 9001, 8080, public, public)


class Cluster:
    """The cast: ProBFT replicas, their clients and their liars."""

    def __init__(self, scenario: Scenario, parts: Parts | None = None) -> None:
        self._scenario = scenario
        self._parts = parts or Parts()
        self.genesis = genesis_of(scenario)
        self._crypto = Crypto(scenario.real_signatures)
        self._promised: dict[tuple[int, str, int, int], bytes] = {}
        self._views: set[int] = set()

    @property
    def chain_id(self) -> bytes:
        return self.genesis.chain_id

    @property
    def journal(self) -> type[Journal]:
        return self._parts.journal

    # ------------------------------------------------------------------ replicas

    def host(self, world: World, node: Node, *, voting: bool) -> Replica:
        """A replica as after its start: its ledger stands at the newest snapshot on disk."""
        genesis, crypto, me = self.genesis, self._crypto, node.replica
        key = key_of(f"replica-{me}")
        signer = crypto.signer(key)
        ledger = self._ledger(world, node)
        tags = crypto.authenticators(key, genesis.chain_id)
        checker = PayloadChecker(
            me=me,
            n=genesis.n,
            chain_id=genesis.chain_id,
            params=genesis.params,
            authenticators=tags,
            verify=crypto.verify,
        )
        return self._parts.replica(
            me=me,
            genesis=genesis,
            machine=self._engine(world, node, signer, voting),
            ledger=ledger,
            verifier=ClaimVerifier(committee=genesis.committee(), checker=checker, verify=crypto.verify),
            checker=checker,
            port=ClientPort(me=me, genesis=genesis, ledger=ledger, authenticators=tags),
            signer=signer,
            voting=voting,
            outbox=self._parts.outbox(),
            snapshots=node.snapshots,
        )

    def _ledger(self, world: World, node: Node) -> Ledger:
        ledger = self._parts.ledger(self.genesis)
        if node.snapshots:
            newest = node.snapshots[-1]
            ledger.install(newest.parts, newest.root)
        if node.honest:
            ledger.watch(world, node.place)
        return ledger

    def _engine(self, world: World, node: Node, signer: Signer, voting: bool) -> ProBFT:
        scenario, params = self._scenario, self.genesis.params
        engine = CountedEngine(
            me=node.replica,
            n=scenario.n,
            chain_id=self.chain_id,
            epoch=0,
            params=EngineParams(
                checkpoint_interval=params.checkpoint_interval,
                window=params.window,
                batch_bytes_max=params.batch_bytes_max,
                batch_count_max=params.batch_count_max,
            ),
            signer=signer,
            rules=self._parts.rules,
            voting=voting,
        )
        engine.world, engine.place = world, node.place
        return engine

    # ------------------------------------------------------------------ clients, liars

    def callers(self, world: World) -> Sequence[LedgerCaller]:
        return [
            LedgerCaller(
                number,
                genesis=self.genesis,
                crypto=self._crypto,
                rng=Random(f"client/{self._scenario.seed}/{number}"),
                outstanding_max=self._scenario.outstanding,
                sessions=world.sessions,
                reads=world.reads,
            )
            for number in range(self._scenario.clients)
        ]

    def distortion(self, liar: Liar) -> Distort:
        rng = Random(f"liar/{self._scenario.seed}/{liar.replica}")
        key = key_of(f"replica-{liar.replica}")
        pen = liars.Pen(signer=self._crypto.signer(key), chain_id=self.chain_id, replica=liar.replica)
        match liar.lie:
            case "silent":
                return liars.silent(rng)
            case "withhold":
                return liars.withholding(rng)
            case "equivocate":
                return liars.Equivocator(rng, pen)
            case "mutate":
                return liars.Mutator(rng, pen)
            case _:
                raise ValueError(f"{liar.lie} needs no distortion")

    # ------------------------------------------------------------------ what frames promise

    def inspect(self, world: World, node: Node, frame: bytes) -> None:
        """Feed the checkers with what a replica promises in a frame that it signed."""
        if node.honest and frame[0] == Channel.ENGINE:
            world.barriers.sent(node.place, frame[1:])
        message = liars.decode(frame)
        if message is None or message.sender != node.replica:
            return
        body = message.body
        if isinstance(body, (Propose, WireVote)):
            votes = [Vote(_PHASES[Kind(message.kind)], body.view, body.slot, body.digest)]
        elif isinstance(body, NewView):
            votes = [Vote(PROPOSE, body.view, each.slot, each.digest) for each in body.headers]
            if body.view not in self._views:
                self._views.add(body.view)
                world.coverage.view_changes += 1
        elif isinstance(body, WireCheckpoint):
            votes = [Vote(CHECKPOINT, 0, body.index, body.state_root)]
        else:
            votes = []
        if node.honest:
            if isinstance(body, NewLeader):
                world.votes.reported(node.replica, body.report.view)
            for shown in proofs.shown(message, quorum=self.genesis.quorum):
                world.votes.shown(node.replica, shown, liars=self._scenario.liar_ids)
        if node.honest:
            world.votes.sent(node.replica, votes)
        else:
            self._count_lies(world, node.replica, votes)

    def synced(self, world: World, node: Node, records: int) -> None:
        world.barriers.synced(node.place, records)

    def _count_lies(self, world: World, replica: int, votes: Sequence[Vote]) -> None:
        for vote in votes:
            known = self._promised.setdefault((replica, vote.phase, vote.view, vote.slot), vote.digest)
            world.coverage.equivocations += known != vote.digest

    def conclude(self, world: World) -> None:
        world.reads.conclude()
        world.coverage.state_transfers = world.coverage.notes["snapshot.installed"]


class CountedEngine(ProBFT):
    """The product's engine; the world counts its steps and notes which effects wait for which record."""

    world: World
    place: int

    def start(self, *, now_ms: int, journal: Sequence[bytes], applied: int, applied_ms: int) -> list[Effect]:
        effects = super().start(now_ms=now_ms, journal=journal, applied=applied, applied_ms=applied_ms)
        self.world.barriers.started(self.place)
        self.world.barriers.emitted(self.place, effects)
        return effects

    def step(self, event: Event, *, now_ms: int) -> list[Effect]:
        self.world.steps += 1
        effects = super().step(event, now_ms=now_ms)
        self.world.barriers.emitted(self.place, effects)
        return effects


class WatchedLedger(Ledger):
    """The product's ledger; tells the checkers what it executes and installs."""

    def __init__(self, genesis: Genesis) -> None:
        super().__init__(genesis)
        self._world: World | None = None
        self._place = 0

    def watch(self, world: World, place: int) -> None:
        self._world, self._place = world, place

    def apply(self, commit: Commit) -> Executed:
        executed = super().apply(commit)
        world = self._world
        if world is not None:
            world.barriers.executed(self._place, commit.index)
            world.agreement.executed(self._place, commit, executed)
            world.sessions.executed(self._place, executed)
            world.reads.executed(executed)
        return executed

    def install(self, parts: tuple[bytes, ...], root: bytes) -> int:
        index = super().install(parts, root)
        if self._world is not None:
            self._world.agreement.installed(self._place, index, root)
        return index
