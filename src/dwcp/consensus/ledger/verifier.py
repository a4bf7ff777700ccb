"""Answers an engine's `Verify`: replicas' signatures and clients' bundles.

The signature function is injected: Ed25519 in production, keyed hashes in most
seeds of the simulator. Nothing else builds a `Verified`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dwcp.consensus.core.machine import Claim, PayloadClaim, SignatureClaim, Verified
from dwcp.consensus.crypto import signatures
from dwcp.consensus.ledger.operations import PayloadChecker


class ClaimVerifier:
    """Checks claims against one committee's keys."""

    def __init__(
        self,
        *,
        committee: Sequence[bytes],
        checker: PayloadChecker,
        verify: Callable[[bytes, bytes, bytes], bool] = signatures.verify,
    ) -> None:
        self._committee = committee
        self._checker = checker
        self._verify = verify

    def check(self, message: object, claims: tuple[Claim, ...]) -> Verified:
        return Verified(message, all(map(self._holds, claims)))

    def _holds(self, claim: Claim) -> bool:
        if isinstance(claim, SignatureClaim):
            return 0 <= claim.signer < len(self._committee) and self._verify(
                self._committee[claim.signer], claim.signed, claim.signature
            )
        return self._vouched(claim)

    def _vouched(self, claim: PayloadClaim) -> bool:
        return all(map(self._checker.vouched, claim.payloads))
