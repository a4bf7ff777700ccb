"""Faults that come over time: partitions, clogs, pauses, blackouts, clock jumps, routes, old disks.

Each plans its next occurrence; all of them end when the world is calm, except that
twins stay apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dwcp.consensus.sim.node import Node

if TYPE_CHECKING:
    from dwcp.consensus.sim.world import World


class Storms:
    """The weather plan of one history."""

    def __init__(self, world: World) -> None:
        self._world = world

    def begin(self) -> None:
        scenario, rng = self._world.scenario, self._world.rng
        every = scenario.climate.partition_every_us
        if every:
            self._world.schedule(rng.randrange(2 * every), self._partition)
        if scenario.climate.clog_every_us:
            self._world.schedule(rng.randrange(2 * scenario.climate.clog_every_us), self._clog)
        if scenario.pause_every_us:
            self._world.schedule(rng.randrange(2 * scenario.pause_every_us), self._pause)
        if scenario.blackout_every_us:
            self._world.schedule(rng.randrange(2 * scenario.blackout_every_us), self._black_out)
        if scenario.clock_jumps:
            self._world.schedule(rng.randrange(2_000_000), self._jump)
        if self._world.twins:
            self._world.schedule(rng.randrange(500_000), self._reroute)
        for liar in scenario.liars:
            if liar.lie == "rollback":
                self._world.schedule(
                    rng.randrange(1_000_000), self._roll_back, self._world.nodes[liar.replica]
                )

    def _partition(self) -> None:
        if self._world.calm:
            return
        shape = self._world.weather.partition(range(len(self._world.nodes)))
        self._world.coverage.partitions += 1
        self._world.tell(f"partition: {shape}")
        climate = self._world.scenario.climate
        lasts = self._world.rng.randrange(1, 2 * climate.partition_for_us)
        self._world.schedule(lasts, self._heal)
        self._world.schedule(
            lasts + self._world.rng.randrange(2 * climate.partition_every_us), self._partition
        )

    def _heal(self) -> None:
        self._world.weather.heal()

    def _clog(self) -> None:
        if not self._world.calm:
            self._world.weather.clog(range(len(self._world.nodes)), self._world.now_us)
            self._world.schedule(
                self._world.rng.randrange(2 * self._world.scenario.climate.clog_every_us), self._clog
            )

    def _pause(self) -> None:
        """SIGSTOP: the process does nothing for a while, then everything at once."""
        if self._world.calm:
            return
        node = self._world.rng.choice(self._world.nodes)
        node.paused_until = self._world.now_us + self._world.rng.randrange(1, 3_000_000)
        self._world.coverage.pauses += 1
        self._world.schedule(self._world.rng.randrange(2 * self._world.scenario.pause_every_us), self._pause)

    def _black_out(self) -> None:
        """Everybody at once: what is on no disk is nowhere."""
        if self._world.calm:
            return
        self._world.coverage.blackouts += 1
        for node in self._world.nodes:
            if node.up:
                self._world.crash(node, "blackout")
        every = self._world.scenario.blackout_every_us
        self._world.schedule(self._world.rng.randrange(2 * every), self._black_out)

    def _jump(self) -> None:
        if not self._world.calm:
            node = self._world.rng.choice(self._world.nodes)
            node.skew_us += self._world.rng.randint(-800_000, 800_000)
            self._world.coverage.clock_jumps += 1
            self._world.schedule(self._world.rng.randrange(4_000_000), self._jump)

    def _reroute(self) -> None:
        """Which of the twins each sender reaches; they stay split after calm."""
        self._world.coverage.reroutes += 1
        self._world.routes = {
            (sender, replica): self._world.rng.choice(places)
            for replica, places in self._world.twins.items()
            for sender in range(len(self._world.nodes))
        }
        self._world.schedule(self._world.rng.randrange(3_000_000), self._reroute)

    def _roll_back(self, node: Node) -> None:
        """A disk that went back in time: the node starts again from an older image."""
        if self._world.calm:
            return
        if node.old_disk is None:
            node.remember()
        elif node.up:
            self._world.coverage.rollbacks += 1
            self._world.crash(node, "rollback", power=False)
            node.roll_back()
            node.old_disk = None
        self._world.schedule(self._world.rng.randrange(3_000_000), self._roll_back, node)
