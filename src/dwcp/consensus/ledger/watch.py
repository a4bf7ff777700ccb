"""Watches of one replica's clients: whole revisions, in order, without gaps."""

from __future__ import annotations

from collections.abc import Sequence

from dwcp.consensus.ledger.ledger import Change, Ledger
from dwcp.consensus.ledger.messages import ReplicaFrame, Watch


class Watches:
    """Subscriptions by connection."""

    def __init__(self, ledger: Ledger) -> None:
        raise NotImplementedError

    def open(self, connection: int, client: bytes, watch: Watch) -> list[ReplicaFrame]:
        """Start a watch; the frames that bring it up to the present."""
        raise NotImplementedError

    def close(self, connection: int, watch: int) -> None:
        raise NotImplementedError

    def changed(self, changes: Sequence[Change]) -> list[tuple[int, ReplicaFrame]]:
        """The frames that newly executed revisions cause, with their connections."""
        raise NotImplementedError

    def drop(self, connection: int) -> None:
        """The connection is gone."""
        raise NotImplementedError

    def reset(self) -> list[tuple[int, ReplicaFrame]]:
        """The state was replaced: end every watch."""
        raise NotImplementedError
