"""Proven lies: told to everyone once, and the view of a lying leader is left (specification §4, S5)."""

from __future__ import annotations

from collections.abc import Callable

from dwcp.consensus.core import evidence
from dwcp.consensus.core.committee import leader_of
from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.core.evidence import Conflict, statement
from dwcp.consensus.core.machine import Claim
from dwcp.consensus.engines.probft.messages import Equivocation, Kind
from dwcp.consensus.engines.probft.params import VIEWS_AHEAD_MAX
from dwcp.consensus.engines.probft.standing import Standing
from dwcp.consensus.engines.probft.voice import Voice

CONVICTIONS_MAX = 256  # remembered, so that one lie is not reported for ever
KIND_NAMES = {
    int(Kind.PROPOSE): "equivocation",
    int(Kind.PREPARE): "double-prepare",
    int(Kind.COMMIT): "double-commit",
}


class Faults:
    """One accusation per (culprit, kind, view); a lying leader's view is blocked, also a future one."""

    __slots__ = ("_blocked", "_convicted", "_on_blocked", "_standing", "_voice")

    def __init__(self, *, standing: Standing, voice: Voice, on_blocked: Callable[[], None]) -> None:
        self._standing = standing
        self._voice = voice
        self._on_blocked = on_blocked
        self._convicted: dict[tuple[int, int, int], None] = {}
        self._blocked: set[int] = set()

    def claims(self, conflict: Conflict) -> tuple[Claim, ...]:
        """What must hold for `conflict` to convict."""
        return tuple(
            self._voice.claim(
                conflict.kind, conflict.culprit, statement(conflict.slot, conflict.view, digest), sign
            )
            for digest, sign in (conflict.first, conflict.second)
        )

    def on_equivocation(self, body: Equivocation) -> Conflict | None:
        """Evidence from a peer, worth verifying; None where it is malformed, far ahead or known."""
        try:
            conflict = evidence.decode(body.proof)
        except MalformedFrame:
            return None
        near = 1 <= conflict.view <= self._standing.current + VIEWS_AHEAD_MAX
        sensible = (
            conflict.kind == Kind.PROPOSE
            and conflict.epoch == self._voice.epoch
            and near
            and conflict.culprit == leader_of(conflict.view, self._voice.committee.n)
            and conflict.first[0] != conflict.second[0]
        )
        return conflict if sensible and not self.convicted(conflict) else None

    def convicted(self, conflict: Conflict) -> bool:
        return (conflict.culprit, conflict.kind, conflict.view) in self._convicted

    def convict(self, conflict: Conflict) -> None:
        """Both signatures hold. Forward once, accuse once, and leave a lying leader's view."""
        if self.convicted(conflict):
            return
        self._convicted[conflict.culprit, conflict.kind, conflict.view] = None
        if len(self._convicted) > CONVICTIONS_MAX:
            del self._convicted[next(iter(self._convicted))]
        proof = conflict.encode()
        self._voice.accuse(conflict.culprit, KIND_NAMES.get(conflict.kind, "conflict"), proof)
        if conflict.kind != Kind.PROPOSE or conflict.view < self._standing.current:
            return
        self._voice.broadcast(self._voice.frame(Kind.EQUIVOCATION, Equivocation(proof)))
        self._blocked.add(conflict.view)
        self.block_current()

    def block_current(self) -> None:
        """Stop voting and deciding in the current view if its leader was caught in it."""
        current = self._standing.current
        self._blocked = {view for view in self._blocked if view >= current}
        if current in self._blocked and not self._standing.blocked:
            self._standing.blocked = True
            self._on_blocked()
