"""What all replicas of an epoch agree on, and the bounds of what a replica keeps for its peers.

The deterministic profile of ProBFT (specification §1.6): quorums of ⌈(n+f+1)/2⌉, every
replica in every sample, no VRF; in effect PBFT with a leader-signed header in each vote.
"""

from __future__ import annotations

from dataclasses import dataclass

VIEWS_AHEAD_MAX = 8  # messages for views further ahead are dropped (specification §4, Buffers)
AHEAD_MESSAGES_MAX = 1024  # per sender: messages kept for views not yet entered
AHEAD_PROPOSALS_MAX = 8  # of those, proposals, which are large
HELD_PROPOSALS_MAX = 16  # verified proposals that wait for a predecessor or for their time
CATCH_UP_SLOTS = 16  # decisions per answer to one ASK
CATCH_UP_BYTES = 1 << 20  # and bytes
ASK_GAP_MS = 2  # a peer earns one answer to an ASK per this time,
ASK_BURST = 64  # and saves up to this many
HEAVY_GAP_MS = 250  # NEWVIEW and checkpoint certificates go to one peer at most this often
RESEND_SLOTS = 8  # undecided slots whose messages one retransmission repeats
RESEND_MS_MIN = 250
RESEND_MS_MAX = 4_000
BEACON_MS = 1_000


@dataclass(frozen=True, slots=True)
class Params:
    """Agreed values; genesis holds them. Bytes are bodies plus tags.

    `window` ≥ 2 × `checkpoint_interval`, so that one checkpoint can fail to become
    stable without stopping the log.
    """

    checkpoint_interval: int = 256  # slots
    window: int = 512  # slots after the stable checkpoint
    timeout_start_ms: int = 300
    timeout_cap_ms: int = 30_000
    time_ahead_ms_max: int = 500  # a proposal's time may be this far ahead of a voter's clock
    batch_bytes_max: int = 1 << 20
    batch_count_max: int = 512
    unprepared_max: int = 1  # slots that a leader proposes before their predecessor is prepared
    pending_bytes_max: int = 64 << 20
    pending_count_max: int = 1 << 16

    def __post_init__(self) -> None:
        if self.window < 2 * self.checkpoint_interval or self.checkpoint_interval < 1:
            raise ValueError("window must be at least twice checkpoint_interval, which is at least 1")
        if self.unprepared_max < 1 or self.batch_count_max < 1:
            raise ValueError("unprepared_max and batch_count_max are at least 1")
