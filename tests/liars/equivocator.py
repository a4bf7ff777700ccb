"""A consensus node that lies: it proposes one batch to some peers and another to the rest.

The composition root of the product with one part more, between the replica and its links. The liar
holds its own key, so what it sends is properly signed. Started as a service is, by a test only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any, cast

from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.consensus.ledger.genesis import Genesis
from dwcp.consensus.ledger.ledger import Ledger, Snapshot
from dwcp.consensus.ledger.outputs import Output, ToPeers
from dwcp.consensus.ledger.replica import Replica
from dwcp.consensus.sim import liars
from dwcp.runtime.process import Process, run
from dwcp.services import consensus_node
from dwcp.services.consensus_config import ConsensusConfig


class Liar:
    """A replica whose words to its peers are distorted; all else is the replica's own."""

    def __init__(self, replica: Replica, distort: liars.Distort) -> None:
        self._replica = replica
        self._distort = distort

    def __getattr__(self, name: str) -> Any:  # Any: whatever the replica has under that name
        return getattr(self._replica, name)

    def start(self, *, now_ms: int, journal: Sequence[bytes]) -> list[Output]:
        return self._lie(self._replica.start(now_ms=now_ms, journal=journal))

    def peer_frame(self, sender: int, frame: bytes, *, now_ms: int) -> list[Output]:
        return self._lie(self._replica.peer_frame(sender, frame, now_ms=now_ms))

    def client_frames(self, frames: Iterable[tuple[int, bytes]], *, now_ms: int) -> list[Output]:
        return self._lie(self._replica.client_frames(frames, now_ms=now_ms))

    def timer(self, name: str, *, now_ms: int) -> list[Output]:
        return self._lie(self._replica.timer(name, now_ms=now_ms))

    def durable(self, sequence: int, *, now_ms: int) -> list[Output]:
        return self._lie(self._replica.durable(sequence, now_ms=now_ms))

    def rotated(self, *, now_ms: int) -> list[Output]:
        return self._lie(self._replica.rotated(now_ms=now_ms))

    def snapshot_durable(self, index: int, *, now_ms: int) -> list[Output]:
        return self._lie(self._replica.snapshot_durable(index, now_ms=now_ms))

    def _lie(self, outputs: list[Output]) -> list[Output]:
        said: list[Output] = []
        for output in outputs:
            if isinstance(output, ToPeers):
                said += [ToPeers(to, frame) for to, frame in self._distort(output.to, output.frame)]
            else:
                said.append(output)
        return said


def build_liar(
    config: ConsensusConfig,
    genesis: Genesis,
    key: SigningKey,
    ledger: Ledger,
    *,
    voting: bool,
    snapshots: tuple[Snapshot, ...] = (),
) -> Replica:
    """The product's replica behind a distortion."""
    honest = consensus_node.build_replica(config, genesis, key, ledger, voting=voting, snapshots=snapshots)
    pen = liars.Pen(signer=key, chain_id=genesis.chain_id, replica=config.replica)
    return cast(Replica, Liar(honest, liars.Equivocator(Random(config.replica), pen)))


async def main(config: ConsensusConfig, process: Process) -> None:
    """As the node's own, with the liar in the place of the replica."""
    await consensus_node.serve(config, process, build_liar)


if __name__ == "__main__":
    run(ConsensusConfig, main)
