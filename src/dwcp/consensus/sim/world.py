"""One history: machines, links, disks and clients under one clock, one heap and one seed.

Single-threaded and without I/O. An entry of the heap is (time, number, what,
arguments); the number makes the order total, so a seed is a history.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol

from dwcp.consensus.core.errors import CoreError, DiskFailed
from dwcp.consensus.core.logformat import Identity, Journal
from dwcp.consensus.ledger.ledger import Snapshot
from dwcp.consensus.ledger.outputs import (
    Accused,
    CancelTimer,
    CloseClient,
    Observed,
    Output,
    RotateLog,
    SaveSnapshot,
    SetTimer,
    ToClient,
    ToPeers,
    WriteGroup,
)
from dwcp.consensus.sim.checkers import (
    HELD_EFFECTS_MAX,
    JOURNAL_BYTES_MAX,
    Agreement,
    Barriers,
    Linearizability,
    Sessions,
    Violation,
    Votes,
    require,
)
from dwcp.consensus.sim.coverage import Coverage
from dwcp.consensus.sim.disks import PowerLost, SimDisk
from dwcp.consensus.sim.lines import Caller, Lines
from dwcp.consensus.sim.node import CRASH_POINTS, Distort, Host, Node
from dwcp.consensus.sim.scenario import UNDISTORTED, Liar, Scenario
from dwcp.consensus.sim.storms import Storms
from dwcp.consensus.sim.weather import Weather

EPOCH_MS = 1_700_000_000_000  # virtual time 0, as Unix milliseconds
WEATHER_US_MAX = 60_000_000  # storms end at the latest then
CALM_US_MAX = 400_000_000  # and everything must be done so much later, or the history is stuck
EVENTS_MAX = 400_000  # a livelock is stuck, too
SLOW_FACTOR = 20
BOUNDS_EVERY = 16  # steps between looks at the size of a journal


class Cast(Protocol):
    """Who acts in a history: how replicas and clients are made, and what their frames promise."""

    @property
    def chain_id(self) -> bytes: ...
    @property
    def journal(self) -> type[Journal]: ...
    def host(self, world: World, node: Node, *, voting: bool) -> Host: ...
    def callers(self, world: World) -> Sequence[Caller]: ...
    def inspect(self, world: World, node: Node, frame: bytes) -> None: ...
    def synced(self, world: World, node: Node, records: int) -> None: ...
    def distortion(self, liar: Liar) -> Distort: ...
    def conclude(self, world: World) -> None: ...


class World:
    """Build one per seed, then `run`."""

    def __init__(self, scenario: Scenario, cast: Cast) -> None:
        self.scenario = scenario
        self.cast = cast
        self.now_us = 0
        self.events = 0  # calls of replicas
        self.steps = 0  # of engines
        self.trace = 0
        self.coverage = Coverage()
        self.agreement = Agreement()
        self.votes = Votes()
        self.barriers = Barriers()
        self.sessions = Sessions()
        self.reads = Linearizability()
        self.story: list[str] | None = None
        self.calm = False
        self.rng = Random(f"world/{scenario.seed}")
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._counter = 0
        self.twins: dict[int, tuple[int, int]] = {}
        self.routes: dict[tuple[int, int], int] = {}  # (sender, replica): which twin it reaches
        self._perform: dict[type, Callable[[Node, Any], bool]] = {
            ToPeers: self._to_peers,
            WriteGroup: self._write_group,
            RotateLog: self._rotate_log,
            SaveSnapshot: self._save_snapshot,
            SetTimer: self._set_timer,
            CancelTimer: self._cancel_timer,
            Observed: self._observed,
            Accused: self._accused,
        }
        self.nodes = self._make_nodes()
        places = len(self.nodes) + scenario.clients
        self.weather = Weather(Random(f"weather/{scenario.seed}"), scenario.climate, places=places)
        self.callers = list(cast.callers(self))
        self._lines = Lines(self, self.callers)
        self._perform[ToClient] = self._lines.to_client
        self._perform[CloseClient] = self._lines.close_client
        for node in self.nodes:
            self._initialise(node)

    # ------------------------------------------------------------------ making

    def _make_nodes(self) -> list[Node]:
        """One machine per replica; a twin of replica r is a second machine with r's keys."""
        scenario = self.scenario
        lies = {liar.replica: liar for liar in scenario.liars}
        ids = list(range(scenario.n))
        for liar in scenario.liars:
            if liar.lie == "twins":
                self.twins[liar.replica] = (liar.replica, len(ids))
                ids.append(liar.replica)
        nodes = []
        for place, replica in enumerate(ids):
            rng = Random(f"node/{scenario.seed}/{place}")
            node = Node(place, replica, rng, SimDisk(Random(f"disk/{scenario.seed}/{place}")))
            slow = SLOW_FACTOR if replica == scenario.disk.slow_replica else 1
            node.sync_us = scenario.disk.sync_us * slow
            node.skew_us = rng.randint(-scenario.skew_ms, scenario.skew_ms) * 1000
            if replica in lies:
                node.honest = lies[replica].lie == "wiped"
                node.learner = lies[replica].lie == "wiped"
            nodes.append(node)
        return nodes

    def _initialise(self, node: Node) -> None:
        """What `init` does: a journal header; a wiped replica has none and runs as a learner."""
        if not node.learner:
            nonce = node.rng.randbytes(16)
            Journal.create(node.disk, Identity(self.cast.chain_id, node.replica, nonce))

    # ------------------------------------------------------------------ running

    def run(self) -> None:
        """Raises `Violation`; checker "stuck" where calm did not bring everything to an end."""
        for liar in self.scenario.liars:
            self.coverage.liars[liar.lie] += 1
            if liar.lie not in UNDISTORTED:
                self.nodes[liar.replica].distort = self.cast.distortion(liar)
        for node in self.nodes:
            self._start(node)
        for client in range(len(self.callers)):
            for replica in range(self.scenario.n):
                self._lines.open(client, replica)
            self._lines.tick(client)
        Storms(self).begin()
        self._run_until(self._weathered, WEATHER_US_MAX)
        self._begin_calm()
        self._run_until(self._enough, self.now_us + CALM_US_MAX)
        for caller in self.callers:
            caller.finish()
        if not self._run_until(self._settled, self.now_us + CALM_US_MAX):
            raise Violation("stuck", self._whereabouts())
        self.cast.conclude(self)

    def _run_until(self, done: Callable[[], bool], until_us: int) -> bool:
        heap = self._heap
        steps = 0
        while heap and heap[0][0] <= until_us and self.events < EVENTS_MAX:
            at, _, what, arguments = heapq.heappop(heap)
            self.now_us = at
            what(*arguments)
            steps += 1
            if steps & 15 == 0 and done():
                return True
        return done()

    def _weathered(self) -> bool:
        return self.agreement.highest >= self.scenario.slots_min * 4 // 5

    def _enough(self) -> bool:
        return self.agreement.highest >= self.scenario.slots_min

    def _settled(self) -> bool:
        """All operations are answered, and every honest replica stands where the best one does."""
        if any(caller.outstanding for caller in self.callers):
            return False
        highest = self.agreement.highest
        return highest >= self.scenario.slots_min and all(
            node.host is not None and node.host.status().index == highest
            for node in self.nodes
            if node.honest
        )

    def _whereabouts(self) -> str:
        def stands(node: Node) -> str:
            if node.host is None:
                return f"{node.place} is down"
            status = node.host.status()
            return f"{node.place} at {status.index} in view {status.view}"

        open_calls = sum(caller.outstanding for caller in self.callers)
        places = ", ".join(stands(node) for node in self.nodes)
        return (
            f"{open_calls} operations open, {self.agreement.highest} positions decided, "
            f"{self.events} events, {self.now_us // 1000} ms: {places}"
        )

    def schedule(self, after_us: int, what: Callable[..., None], *arguments: Any) -> None:
        self._counter += 1
        heapq.heappush(self._heap, (self.now_us + after_us, self._counter, what, arguments))

    def now_ms(self, node: Node) -> int:
        """This node's clock."""
        return EPOCH_MS + (self.now_us + node.skew_us) // 1000

    def tell(self, line: str) -> None:
        """A line of the history, kept when a seed is replayed with --verbose."""
        if self.story is not None:
            self.story.append(f"{self.now_us / 1000:12.3f} ms  {line}")

    # ------------------------------------------------------------------ calm and power

    def _begin_calm(self) -> None:
        self.tell("calm")
        self.calm = True
        self.weather.calm()
        for node in self.nodes:
            node.paused_until = min(node.paused_until, self.now_us)
            node.skew_us = max(-50_000, min(50_000, node.skew_us))

    def crash(self, node: Node, point: str, *, power: bool = True) -> None:
        """The machine goes down (or its process alone), and comes back a little later."""
        self.coverage.crashes[point] += 1
        self.tell(f"{node.place} crashes: {point}")
        node.down()
        if power:
            before = node.disk.torn
            node.disk.lose_power()
            self.coverage.torn_writes += node.disk.torn - before
        self.mark(node.place, b"crash")
        limit = 200_000 if self.calm else self.rng.choice([50_000, 500_000, 3_000_000])
        self.schedule(self.rng.randrange(1_000, limit), self._start, node)

    def _start(self, node: Node) -> None:
        """Recovery: journal, newest snapshot, replica. It may be cut short like everything else."""
        if node.up:
            return
        self.tell(f"{node.place} starts")
        records: tuple[bytes, ...] = ()
        if not node.learner:
            if not self.calm and node.rng.random() < self.scenario.crash_rate:
                node.disk.fail_after(node.rng.randrange(6))
            try:
                records, node.journal = self.cast.journal.open(
                    node.disk, chain_id=self.cast.chain_id, replica=node.replica
                )
            except PowerLost:
                self.crash(node, "in_recovery")
                return
            except CoreError as exc:
                raise Violation("recovery", f"{node.place}: {exc}") from exc
            node.disk.fail_after(None)
            self.coverage.torn_tails += node.journal.cut > 0
        node.incarnation += 1
        node.host = self.cast.host(self, node, voting=not node.learner)
        if node.honest:
            self.agreement.stands_at(node.place, node.host.status().index)
        host = node.host
        self.step(node, lambda now_ms: host.start(now_ms=now_ms, journal=records))

    # ------------------------------------------------------------------ steps

    def step(self, node: Node, call: Callable[[int], list[Output]]) -> None:
        """One step of one replica: call it, perform what it asks."""
        self.events += 1
        now_ms = self.now_ms(node)
        try:
            outputs = call(now_ms)
        except Violation:
            raise
        except Exception as exc:
            if node.honest:
                raise Violation("exception", f"{node.place}: {type(exc).__name__}: {exc}") from exc
            self.crash(node, "liar_broke")
            return
        perform = self._perform
        for output in outputs:
            if not perform[type(output)](node, output):
                return
        if node.honest and self.events % BOUNDS_EVERY == 0:
            self._check_bounds(node)

    def _check_bounds(self, node: Node) -> None:
        if node.host is None:
            return
        held = node.host.status().held_effects
        require(held <= HELD_EFFECTS_MAX, "memory", f"{node.place} holds back {held} effects")
        size = node.journal.size if node.journal is not None else 0
        require(size <= JOURNAL_BYTES_MAX, "memory", f"{node.place}: a journal of {size} bytes")

    def mark(self, place: int, data: bytes) -> None:
        """Add to the trace that two runs of one seed must share."""
        self.trace = zlib.crc32(data, self.trace ^ place ^ (self.now_us & 0xFFFF_FFFF))

    # ------------------------------------------------------------------ frames

    def _to_peers(self, node: Node, output: ToPeers) -> bool:
        self.mark(node.place, output.frame)
        if node.distort is not None:
            for to, frame in node.distort(output.to, output.frame):
                self.cast.inspect(self, node, frame)
                self._post(node, to, frame)
            return True
        self.cast.inspect(self, node, output.frame)
        self._post(node, output.to, output.frame)
        return True

    def _post(self, node: Node, to: Sequence[int], frame: bytes) -> None:
        weather, sender, now = self.weather, node.place, self.now_us
        for replica in to:
            for place in self.places_of(replica, sender):
                for delay in weather.delays(sender, place, now):
                    self.schedule(delay, self._deliver, self.nodes[place], node.replica, frame)

    def places_of(self, replica: int, sender: int) -> tuple[int, ...]:
        """Where a frame for `replica` goes: one of its twins, now and then both."""
        if replica not in self.twins:
            return (replica,)
        place = self.routes.get((sender, replica), replica)
        return self.twins[replica] if self.rng.random() < 0.1 else (place,)

    def _deliver(self, node: Node, sender: int, frame: bytes) -> None:
        host = node.host
        if host is None:
            return
        if node.paused_until > self.now_us:
            self.schedule(node.paused_until - self.now_us, self._deliver, node, sender, frame)
            return
        self.step(node, lambda now_ms: host.peer_frame(sender, frame, now_ms=now_ms))

    # ------------------------------------------------------------------ timers

    def _set_timer(self, node: Node, output: SetTimer) -> bool:
        token = node.timers[output.name] = self._counter
        self.schedule(max(0, output.after_ms) * 1000, self._fire, node, output.name, token)
        return True

    def _cancel_timer(self, node: Node, output: CancelTimer) -> bool:
        node.timers.pop(output.name, None)
        return True

    def _fire(self, node: Node, name: str, token: int) -> None:
        host = node.host
        if host is None or node.timers.get(name) != token:
            return
        if node.paused_until > self.now_us:
            self.schedule(node.paused_until - self.now_us, self._fire, node, name, token)
            return
        del node.timers[name]
        self.step(node, lambda now_ms: host.timer(name, now_ms=now_ms))

    # ------------------------------------------------------------------ disk

    def _may_crash(self, node: Node) -> bool:
        return not self.calm and node.rng.random() < self.scenario.crash_rate

    def _write_group(self, node: Node, output: WriteGroup) -> bool:
        self.mark(node.place, b"".join(output.records))
        point = node.rng.choice(CRASH_POINTS) if self._may_crash(node) else ""
        if point == "before_write":
            self.crash(node, point)
            return False
        self._fail_disk(node)
        try:
            if node.journal is not None:
                node.journal.append(output.records)
        except DiskFailed:
            self._disk_failed(node)
            return False
        delay = self._sync_delay(node)
        self.schedule(delay, self._sync, node, node.incarnation, output, point)
        return True

    def _sync(self, node: Node, incarnation: int, output: WriteGroup, point: str) -> None:
        host, sequence = node.host, output.sequence
        if host is None or node.incarnation != incarnation:
            return
        if point == "after_write":
            self.crash(node, point, power=node.rng.random() < 0.8)
            return
        if point == "in_sync":
            node.disk.fail_after(0)
        try:
            if node.journal is not None:
                node.journal.sync()
        except PowerLost:
            self.crash(node, "in_sync")
            return
        except DiskFailed:
            self._disk_failed(node)
            return
        self.cast.synced(self, node, len(output.records))
        if point == "after_sync":
            self.crash(node, point)
        elif point == "in_release":
            self.step(node, lambda now_ms: self._cut_short(node, host.durable(sequence, now_ms=now_ms)))
            if node.incarnation == incarnation and node.up:
                self.crash(node, point)
        else:
            self.step(node, lambda now_ms: host.durable(sequence, now_ms=now_ms))

    @staticmethod
    def _cut_short(node: Node, outputs: list[Output]) -> list[Output]:
        return outputs[: node.rng.randrange(len(outputs) + 1)]

    def _rotate_log(self, node: Node, output: RotateLog) -> bool:
        self.coverage.rotations += 1
        delay = self._sync_delay(node)
        self.schedule(delay, self._rotate, node, node.incarnation, output.records)
        return True

    def _rotate(self, node: Node, incarnation: int, records: tuple[bytes, ...]) -> None:
        host = node.host
        if host is None or node.incarnation != incarnation:
            return
        if self._may_crash(node):
            node.disk.fail_after(node.rng.randrange(5))
        try:
            if node.journal is not None:
                node.journal.rewrite(records)
        except PowerLost:
            self.crash(node, "in_rotation")
            return
        except DiskFailed:
            self._disk_failed(node)
            return
        node.disk.fail_after(None)
        self.step(node, lambda now_ms: host.rotated(now_ms=now_ms))

    def _save_snapshot(self, node: Node, output: SaveSnapshot) -> bool:
        delay = self.scenario.disk.save_syncs * self._sync_delay(node)
        self.schedule(delay, self._saved, node, node.incarnation, output)
        return True

    def _saved(self, node: Node, incarnation: int, output: SaveSnapshot) -> None:
        host = node.host
        if host is None or node.incarnation != incarnation:
            return
        snapshot = Snapshot(output.index, output.state_root, output.parts)
        if self._may_crash(node):
            after = node.rng.random() < 0.5
            if after:
                node.save(snapshot, keep_from=output.keep_from)
            self.crash(node, "after_snapshot" if after else "before_snapshot")
            return
        node.save(snapshot, keep_from=output.keep_from)
        self.coverage.snapshots += 1
        self.step(node, lambda now_ms: host.snapshot_durable(output.index, now_ms=now_ms))

    def _sync_delay(self, node: Node) -> int:
        late = node.rng.random()
        return node.sync_us // 2 + int(late * late * 2 * node.sync_us)

    def _fail_disk(self, node: Node) -> None:
        if not self.calm and node.rng.random() < self.scenario.disk.fail_rate:
            if node.rng.random() < 0.5:
                node.disk.refuse_sync = True
            else:
                node.disk.full = True

    def _disk_failed(self, node: Node) -> None:
        """The process stops; an operator repairs the disk, and what was not synced may be gone."""
        self.coverage.disk_failures += 1
        self.crash(node, "disk_failed")

    # ------------------------------------------------------------------ what replicas report

    def _observed(self, node: Node, output: Observed) -> bool:
        self.coverage.notes[output.event] += 1
        if self.story is not None:
            self.tell(f"{node.place} {output.event} {output.fields}")
        return True

    def _accused(self, node: Node, output: Accused) -> bool:
        """An accusation convinces anyone: it must never name an honest replica."""
        if node.honest:
            culprit = output.culprit
            require(
                culprit in self.scenario.liar_ids,
                "accusation",
                f"{node.place} accuses honest replica {culprit} of {output.kind}",
            )
            self.coverage.accusations += 1
        return True
