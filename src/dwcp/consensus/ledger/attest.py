"""ATTEST: a replica's word that a position of the history is final and executed.

Signed once for each batch. A quorum of them over one history digest proves
everything that the digest commits to; receipts and checkpoints are made of them.
"""

from __future__ import annotations

import struct

from dwcp.consensus.core.machine import Signer
from dwcp.consensus.crypto.envelope import Context
from dwcp.consensus.crypto.hashes import Domain, digest
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
