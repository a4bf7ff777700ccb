"""ATTEST: a replica's word that a position of the history is final and executed.

Signed once for each batch. A quorum of them over one history digest proves
everything that the digest commits to; receipts and checkpoints are made of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence

from dwcp.consensus.core.machine import Signer
from dwcp.consensus.crypto import signatures
from dwcp.consensus.crypto.envelope import Context
from dwcp.consensus.crypto.hashes import SIZE, Domain, digest
from dwcp.consensus.ledger.messages import Share

CONTEXT = b"dwcp/attest/v1"
KIND = 1
_BODY = struct.Struct(">Q32s")
_TIME = struct.Struct(">Q")


def genesis_history(chain_id: bytes) -> bytes:
    """The history digest before the first position."""
    return digest(Domain.HISTORY, chain_id)


def extend_history(previous: bytes, *, batch_digest: bytes, results_root: bytes, time_ms: int) -> bytes:
    """The history digest after a position: it commits to every batch and result so far."""
    return digest(Domain.HISTORY, previous, batch_digest, results_root, _TIME.pack(time_ms))


def signed(*, chain_id: bytes, replica: int, epoch: int, index: int, history_digest: bytes) -> bytes:
    """The bytes under replica `replica`'s ATTEST."""
    body = _BODY.pack(index, history_digest)
    return Context(CONTEXT, chain_id).signed(kind=KIND, epoch=epoch, sender=replica, body=body)


def attest(
    *, chain_id: bytes, me: int, epoch: int, index: int, history_digest: bytes, signer: Signer
) -> Share:
    """This replica's share; made for final, executed positions only."""
    text = signed(chain_id=chain_id, replica=me, epoch=epoch, index=index, history_digest=history_digest)
    return Share(epoch, index, history_digest, signer.sign(text))


def share_holds(
    share: Share,
    *,
    replica: int,
    chain_id: bytes,
    committee: Sequence[bytes],
    verify: Callable[[bytes, bytes, bytes], bool] = signatures.verify,
) -> bool:
    """Whether `share` is the signature of `replica`, a member of `committee` (keys by id)."""
    if not 0 <= replica < len(committee) or len(share.history_digest) != SIZE:
        return False
    if not (0 <= share.epoch < 2**32 and 0 <= share.index < 2**64):
        return False
    text = signed(
        chain_id=chain_id,
        replica=replica,
        epoch=share.epoch,
        index=share.index,
        history_digest=share.history_digest,
    )
    return verify(committee[replica], text, share.signature)


class Attestor:
    """Signs each executed position once, and keeps the recent shares for retries."""

    __slots__ = ("_capacity", "_chain_id", "_me", "_shares", "_signer")

    def __init__(self, *, me: int, chain_id: bytes, signer: Signer, capacity: int = 4096) -> None:
        self._me = me
        self._chain_id = chain_id
        self._signer = signer
        self._capacity = capacity
        self._shares: dict[int, Share] = {}

    def attest(self, *, epoch: int, index: int, history_digest: bytes) -> Share:
        """The share of a final, executed position."""
        share = attest(
            chain_id=self._chain_id,
            me=self._me,
            epoch=epoch,
            index=index,
            history_digest=history_digest,
            signer=self._signer,
        )
        self._shares[index] = share
        if len(self._shares) > self._capacity:
            del self._shares[next(iter(self._shares))]
        return share

    def shares(self, indexes: Iterable[int]) -> tuple[Share, ...]:
        """The kept shares of these positions, each once, ascending."""
        return tuple(self._shares[index] for index in sorted(set(indexes)) if index in self._shares)
