"""The connections between clients and replicas: ordered, and broken where a frame could be lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from dwcp.consensus.ledger.outputs import CloseClient, ToClient
from dwcp.consensus.sim.node import Node

if TYPE_CHECKING:
    from dwcp.consensus.sim.world import World

RECONNECT_US = 50_000
TICK_US = 20_000  # between two looks of a client at its timeouts


class Caller(Protocol):
    """A simulated client: the ledger's client session and a workload."""

    @property
    def outstanding(self) -> int: ...
    def opened(self, replica: int) -> list[tuple[int, bytes]]: ...
    def closed(self, replica: int) -> None: ...
    def receive(self, replica: int, frame: bytes, *, now_us: int) -> list[tuple[int, bytes]]: ...
    def tick(self, *, now_us: int) -> list[tuple[int, bytes]]: ...
    def finish(self) -> None:
        """Begin no further operation."""
        ...


class Lines:
    """Who is connected to whom. A connection breaks when either end or the link is down."""

    def __init__(self, world: World, callers: Sequence[Caller]) -> None:
        self._world = world
        self._callers = callers
        self._links: dict[tuple[int, int], tuple[int, int]] = {}  # (client, replica): (connection, place)
        self._arrivals: dict[tuple[int, int], int] = {}
        self._next_connection = 1

    def open(self, client: int, replica: int) -> None:
        """Connect a client to a replica, or try again later."""
        if (client, replica) in self._links:
            return
        place = self._world.places_of(replica, replica)[0]
        node, home = self._world.nodes[place], len(self._world.nodes) + client
        if not node.up or self._world.weather.is_cut(home, place):
            self._world.schedule(RECONNECT_US, self.open, client, replica)
            return
        connection = self._next_connection
        self._next_connection += 1
        self._links[client, replica] = (connection, place)
        node.connections[connection] = client
        self._client_sends(client, self._callers[client].opened(replica))

    def _break(self, client: int, replica: int) -> None:
        """Both ends notice, the client first; it connects again."""
        connection, place = self._links.pop((client, replica))
        self._arrivals.pop((connection, 0), None)
        self._arrivals.pop((connection, 1), None)
        node = self._world.nodes[place]
        if node.connections.pop(connection, None) is not None and node.host is not None:
            node.host.client_closed(connection)
        self._callers[client].closed(replica)
        self._world.schedule(RECONNECT_US, self.open, client, replica)

    def _client_sends(self, client: int, frames: list[tuple[int, bytes]]) -> None:
        for replica, frame in frames:
            link = self._links.get((client, replica))
            if link is None:
                continue
            connection, place = link
            node, home = self._world.nodes[place], len(self._world.nodes) + client
            if connection not in node.connections or self._world.weather.is_cut(home, place):
                self._break(client, replica)
                continue
            delay = self._in_order(connection, 0, self._world.weather.delay(home, place, self._world.now_us))
            self._world.schedule(delay, self._client_arrives, node, connection, frame)

    def _in_order(self, connection: int, direction: int, delay: int) -> int:
        """A connection keeps order: nothing arrives before what was sent earlier."""
        at = max(self._world.now_us + delay, self._arrivals.get((connection, direction), 0))
        self._arrivals[connection, direction] = at
        return at - self._world.now_us

    def _client_arrives(self, node: Node, connection: int, frame: bytes) -> None:
        host = node.host
        if host is None or connection not in node.connections:
            return
        if node.paused_until > self._world.now_us:
            self._world.schedule(
                node.paused_until - self._world.now_us, self._client_arrives, node, connection, frame
            )
            return
        self._world.step(node, lambda now_ms: host.client_frame(connection, frame, now_ms=now_ms))

    def to_client(self, node: Node, output: ToClient) -> bool:
        client = node.connections.get(output.connection)
        if client is not None:
            home = len(self._world.nodes) + client
            delay = self._in_order(
                output.connection, 1, self._world.weather.delay(node.place, home, self._world.now_us)
            )
            self._world.schedule(delay, self._client_receives, client, node.replica, output)
        return True

    def close_client(self, node: Node, output: CloseClient) -> bool:
        client = node.connections.get(output.connection)
        if client is not None and self._links.get((client, node.replica), (0, 0))[0] == output.connection:
            self._break(client, node.replica)
        return True

    def _client_receives(self, client: int, replica: int, output: ToClient) -> None:
        if self._links.get((client, replica), (0, 0))[0] != output.connection:
            return
        self._world.mark(client, output.frame)
        caller = self._callers[client]
        self._client_sends(client, caller.receive(replica, output.frame, now_us=self._world.now_us))

    def tick(self, client: int) -> None:
        """A client looks at its timeouts; connections whose machine is gone are noticed here."""
        for replica in range(self._world.scenario.n):
            link = self._links.get((client, replica))
            if link is not None and link[0] not in self._world.nodes[link[1]].connections:
                self._break(client, replica)
        self._client_sends(client, self._callers[client].tick(now_us=self._world.now_us))
        self._world.schedule(TICK_US, self.tick, client)
