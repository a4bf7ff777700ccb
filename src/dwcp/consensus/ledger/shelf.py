"""What receipts of recent operations need: kept by each replica for itself, never agreed on."""

from __future__ import annotations

from dataclasses import dataclass

from dwcp.consensus.core.machine import Commit
from dwcp.consensus.crypto import merkle
from dwcp.consensus.ledger.messages import Material

LEAVES_MAX = 65_536  # over all kept batches; 64 bytes each

Place = tuple[bytes, int, int]  # client, session, sequence


@dataclass(frozen=True, slots=True)
class _Kept:
    index: int
    epoch: int
    time_ms: int
    previous_history: bytes
    operations: list[bytes]
    results: list[bytes]
    places: dict[Place, int]


class Shelf:
    """Batches in which somebody asked for a receipt, the oldest forgotten first."""

    __slots__ = ("_batches", "_leaves", "_where")

    def __init__(self) -> None:
        self._batches: dict[int, _Kept] = {}
        self._where: dict[Place, int] = {}
        self._leaves = 0

    def put(
        self,
        commit: Commit,
        previous_history: bytes,
        operations: list[bytes],
        results: list[bytes],
        places: dict[Place, int],
    ) -> None:
        """Keep a batch whose operations at `places` may need a receipt."""
        kept = _Kept(
            commit.index, commit.epoch, commit.time_ms, previous_history, operations, results, places
        )
        self._batches[commit.index] = kept
        self._where.update(dict.fromkeys(places, commit.index))
        self._leaves += len(operations)
        while self._leaves > LEAVES_MAX and len(self._batches) > 1:
            self._drop(next(iter(self._batches)))

    def find(self, place: Place) -> Material | None:
        """The material of one operation; None where it was executed too long ago."""
        index = self._where.get(place)
        if index is None:
            return None
        kept = self._batches[index]
        position = kept.places[place]
        return Material(
            sequence=place[2],
            index=kept.index,
            epoch=kept.epoch,
            time_ms=kept.time_ms,
            position=position,
            count=len(kept.operations),
            previous_history=kept.previous_history,
            operation_path=merkle.path(kept.operations, position),
            result_path=merkle.path(kept.results, position),
        )

    def _drop(self, index: int) -> None:
        kept = self._batches.pop(index)
        self._leaves -= len(kept.operations)
        for place in kept.places:
            if self._where.get(place) == index:
                del self._where[place]
