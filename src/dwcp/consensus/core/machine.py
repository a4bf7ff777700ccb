"""The contract between a consensus engine and whatever hosts it.

An engine is told what happened (an `Event`) and answers what to do (a list of
`Effect`s). It never awaits, reads a clock, draws a random number, opens or
logs anything. The host (`consensus.ledger.replica`, run by `runtime.driver`
and by the simulator alike) turns effects into frames, records and timers.

**The effect list is the contract, in order.**

* `Persist` is a barrier: every `Send`, `Commit`, `Truncate`, `InstallSnapshot`
  and `Persist` emitted after it, in the same step or in any later one, is held
  back until its record is durable. `Verify`, `Fetch`, timers, `Accuse` and
  `Note` do not wait, and neither do later steps: the engine goes on.
* Held effects are released in the order in which they were emitted.
* Records that wait together may become durable together: one group is one
  atomic record of the log, so none of its members survives without all the
  earlier ones (`core.logformat`).
* `Verify(message, claims)` comes back as `Verified(message, valid)`. Nothing
  is kept for it in the engine: what is in flight is the host's to bound.
* Time is `now_ms`, Unix milliseconds by this node's clock. It may jump: it may
  delay progress, never break agreement. Timers are relative and named; setting
  a name again replaces it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Payload:
    """What an engine orders without looking inside.

    `digest` is 32 bytes over `body` (the ledger says how). `body` is None
    where only the digest is known: `Fetch` brings it. `tags` are receivers'
    authenticators; they travel with the body and are outside the digest.
    """

    digest: bytes
    body: bytes | None
    tags: bytes = b""


# --------------------------------------------------------------------------- claims


@dataclass(frozen=True, slots=True)
class SignatureClaim:
    """`signature` is replica `signer`'s Ed25519 signature over `signed`."""

    signer: int
    signed: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class PayloadClaim:
    """Each body matches its digest, is well formed, and its client vouches for it.

    A backup checks its MAC first and the client's signature where that fails;
    the leader checked the signature before it proposed.
    """

    payloads: tuple[Payload, ...]


Claim = SignatureClaim | PayloadClaim

# --------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Received:
    """A peer's frame, decoded by the engine's own codec.

    `sender` is who the link authenticated, a replica id; the message may be
    signed by another (relayed). Nothing in it has been verified yet.
    """

    sender: int
    message: object


@dataclass(frozen=True, slots=True)
class Verified:
    """The verifier's answer to `Verify`. Only a verifier builds one."""

    message: object
    valid: bool


@dataclass(frozen=True, slots=True)
class TimerFired:
    name: str


@dataclass(frozen=True, slots=True)
class Submitted:
    """Payloads from clients (or forwarded by a peer), already authenticated here."""

    payloads: tuple[Payload, ...]


@dataclass(frozen=True, slots=True)
class PayloadReady:
    """Bodies that `Fetch` asked for; checked against their digests by the host."""

    payloads: tuple[Payload, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """The application executed `index`.

    `state_root` (32 bytes) is present at checkpoints only: where `index` is a
    multiple of the checkpoint interval. `next_epoch` says that this index ends
    the instance.
    """

    index: int
    state_root: bytes | None = None
    next_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshotted:
    """A snapshot of the state after `index` is durable here: taken, installed, or found at the start.

    After an installed one the engine continues at `index + 1`.
    """

    index: int
    state_root: bytes
    installed: bool = False


Event = Received | Verified | TimerFired | Submitted | PayloadReady | Applied | Snapshotted

# --------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Send:
    """One signed frame to each of `to` (replica ids, never this one)."""

    to: tuple[int, ...]
    frame: bytes


@dataclass(frozen=True, slots=True)
class Persist:
    """Append `record` to the vote journal; a barrier for what follows."""

    record: bytes


@dataclass(frozen=True, slots=True)
class SetTimer:
    name: str
    after_ms: int


@dataclass(frozen=True, slots=True)
class CancelTimer:
    name: str


@dataclass(frozen=True, slots=True)
class Verify:
    """Check every claim; answer with one `Verified` for `message` (all or nothing)."""

    message: object
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring the bodies of these digests, first from `sources` (replica ids)."""

    digests: tuple[bytes, ...]
    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """Position `index` holds `payloads` (empty: a null batch). Contiguous from the snapshot on.

    `time_ms` is committed time, strictly increasing over non-null batches.
    `final` is False for a tentative decision, which may be replaced.
    """

    index: int
    epoch: int
    time_ms: int
    payloads: tuple[Payload, ...]
    final: bool = True


@dataclass(frozen=True, slots=True)
class Truncate:
    """No record about a position below `below` is needed any more.

    The host may now rewrite the journal as `Machine.records()`.
    """

    below: int


@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """This node is behind: bring the state after `index`, whose root is `state_root`.

    A quorum certified the root. The host answers with `Snapshotted(installed=True)`.
    """

    index: int
    state_root: bytes
    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Accuse:
    """Replica `culprit` provably lied; `proof` convinces anyone who holds genesis."""

    culprit: int
    kind: str
    proof: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a log line or a metric: `event` is dotted, `fields` are plain values."""

    event: str
    fields: dict[str, int | str] = field(default_factory=dict)


Effect = (
    Send
    | Persist
    | SetTimer
    | CancelTimer
    | Verify
    | Fetch
    | Commit
    | Truncate
    | InstallSnapshot
    | Accuse
    | Note
)

# --------------------------------------------------------------------------- machine


class Machine(Protocol):
    """An engine: `probft`, `bullshark`, `tpbft`."""

    def start(self, *, now_ms: int, journal: Sequence[bytes], applied: int, applied_ms: int) -> list[Effect]:
        """Recover from the journal's records and begin.

        `applied` is the position of the snapshot that the application starts
        from, `applied_ms` its committed time; committed positions above it are
        emitted again as `Commit`.
        """
        ...

    def step(self, event: Event, *, now_ms: int) -> list[Effect]: ...

    def decode(self, frame: bytes) -> object:
        """A peer's frame as this engine's message; raises `core.errors.MalformedFrame`."""
        ...

    def records(self) -> list[bytes]:
        """What a rewritten journal must hold: every promise still binding this replica."""
        ...

    def payload(self, digest: bytes) -> Payload | None:
        """A body that this engine holds, for a peer that fetches it."""
        ...

    @property
    def view(self) -> int: ...

    @property
    def leader(self) -> int:
        """The replica to which client payloads go now."""
        ...

    def pending(self) -> tuple[Payload, ...]:
        """Payloads that wait here, oldest first; the host forwards them when the leader changes."""
        ...

    @property
    def pending_bytes(self) -> int:
        """Payload bytes waiting to be proposed; the host sheds load above its limit."""
        ...


class Signer(Protocol):
    """This replica's signing key, injected; deterministic (RFC 8032)."""

    def sign(self, signed: bytes) -> bytes: ...


class Verifier(Protocol):
    """Checks claims; the only builder of `Verified`."""

    def check(self, message: object, claims: tuple[Claim, ...]) -> Verified: ...
