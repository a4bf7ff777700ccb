"""The proofs inside ProBFT's frames, as the checkers compare them with the votes really given."""

from __future__ import annotations

from collections.abc import Iterator

from dwcp.consensus.engines.probft.messages import Certificate as Prepared
from dwcp.consensus.engines.probft.messages import (
    Decided,
    Message,
    NewLeader,
    NewView,
    StableProof,
)
from dwcp.consensus.sim.checkers import Certificate, Vote

PROPOSE, PREPARE, COMMIT, CHECKPOINT = "propose", "prepare", "commit", "checkpoint"


def shown(message: Message, *, quorum: int) -> Iterator[Certificate]:
    """Every proof that the frame carries."""
    body = message.body
    if isinstance(body, (NewLeader, NewView)):
        for prepared in body.certificates:
            yield _prepared(prepared, quorum)
        if body.checkpoint is not None:
            yield _stable(body.checkpoint, quorum)
    elif isinstance(body, Decided):
        vote = Vote(COMMIT, body.view, body.slot, body.digest)
        yield Certificate(vote, tuple(signer for signer, _ in body.votes), quorum)
    elif isinstance(body, StableProof):
        yield _stable(body, quorum)


def _prepared(body: Prepared, quorum: int) -> Certificate:
    """The leader's header stands for its PREPARE, so one vote less is needed."""
    vote = Vote(PREPARE, body.view, body.slot, body.digest)
    return Certificate(vote, tuple(signer for signer, _ in body.votes), quorum - 1)


def _stable(body: StableProof, quorum: int) -> Certificate:
    vote = Vote(CHECKPOINT, 0, body.index, body.state_root)
    return Certificate(vote, tuple(signer for signer, _ in body.votes), quorum)
