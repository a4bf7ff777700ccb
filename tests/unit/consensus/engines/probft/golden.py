"""Makes the golden files of the engine's formats: `python -m tests.unit.consensus.engines.probft.golden`.

A file that changes means that replicas of two releases no longer understand each other,
or cannot read their own journals: raise the format's version instead.
"""

from __future__ import annotations

from pathlib import Path

from dwcp.consensus.core.evidence import Conflict, statement
from dwcp.consensus.core.machine import Payload
from dwcp.consensus.core.views.slotlog import Content
from dwcp.consensus.crypto.codec import encode
from dwcp.consensus.crypto.envelope import Context, Envelope
from dwcp.consensus.crypto.hashes import Domain, digest
from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.consensus.engines.probft import messages as wire
from dwcp.consensus.engines.probft import records as journal
from dwcp.consensus.engines.probft.messages import Kind

GOLDEN = Path(__file__).parents[4] / "golden"
CONTEXT = Context(wire.CONTEXT, bytes(range(32)))
KEYS = [SigningKey.from_seed(bytes([i]) * 32) for i in range(4)]


def signed(me: int, kind: Kind, part: bytes) -> bytes:
    return KEYS[me].sign(CONTEXT.signed(kind=kind, epoch=0, sender=me, body=part))


def payload(text: bytes) -> Payload:
    return Payload(digest(Domain.BUNDLE, text), text, b"tags-" + text)


CONTENT = Content(1_700_000_000_123, (payload(b"first"), payload(b"second")))
BATCH = wire.pack(CONTENT)
DIGEST = wire.batch_digest(BATCH)
PART = statement(7, 1, DIGEST)
HEADER = signed(0, Kind.PROPOSE, PART)
PREPARES = tuple((i, signed(i, Kind.PREPARE, PART)) for i in (1, 2))
COMMITS = tuple((i, signed(i, Kind.COMMIT, PART)) for i in (0, 1, 3))
CHECKPOINT = wire.CheckpointVote(128, digest(Domain.STATE, b"root"), 1_700_000_000_000)
STABLE = wire.StableProof(
    CHECKPOINT.index,
    CHECKPOINT.state_root,
    CHECKPOINT.time_ms,
    tuple((i, signed(i, Kind.CHECKPOINT, encode(CHECKPOINT))) for i in (0, 1, 2)),
)
CERTIFICATE = wire.Certificate(130, 1, DIGEST, HEADER, PREPARES)
REPORT = wire.ViewReport(2, 128, (wire.ReportRow(130, 1, DIGEST),))
NEW_VIEW = wire.NewView(
    2,
    tuple(wire.SignedReport(i, REPORT, signed(i, Kind.NEWLEADER, encode(REPORT))) for i in (1, 2, 3)),
    (CERTIFICATE,),
    STABLE,
    tuple(
        wire.Header(slot, name, signed(1, Kind.PROPOSE, statement(slot, 2, name)))
        for slot, name in ((129, wire.NULL_DIGEST), (130, DIGEST))
    ),
)
CONFLICT = Conflict(Kind.PROPOSE, 0, 0, 7, 1, (DIGEST, HEADER), (wire.NULL_DIGEST, HEADER))


def frame(me: int, kind: Kind, body: wire.Body, signature: bytes = wire.UNSIGNED) -> bytes:
    return Envelope(kind, 0, me, encode(body), signature).encode()


def frames() -> dict[str, bytes]:
    """One frame of every kind, under real keys."""
    vote = wire.Vote(7, 1, DIGEST, HEADER)
    report = wire.NewLeader(REPORT, (CERTIFICATE,), STABLE)
    return {
        "propose": frame(0, Kind.PROPOSE, wire.Propose(7, 1, DIGEST, BATCH), HEADER),
        "prepare": frame(1, Kind.PREPARE, vote, PREPARES[0][1]),
        "commit": frame(1, Kind.COMMIT, vote, COMMITS[1][1]),
        "newleader": frame(3, Kind.NEWLEADER, report, signed(3, Kind.NEWLEADER, encode(REPORT))),
        "newview": frame(1, Kind.NEWVIEW, NEW_VIEW, signed(1, Kind.NEWVIEW, encode(NEW_VIEW))),
        "wish": frame(2, Kind.WISH, wire.Wish(2), signed(2, Kind.WISH, encode(wire.Wish(2)))),
        "equivocation": frame(2, Kind.EQUIVOCATION, wire.Equivocation(CONFLICT.encode())),
        "decided": frame(3, Kind.DECIDED, wire.Decided(7, 1, DIGEST, COMMITS, BATCH)),
        "checkpoint": frame(0, Kind.CHECKPOINT, CHECKPOINT, STABLE.votes[0][1]),
        "stable": frame(2, Kind.STABLE, STABLE),
        "beacon": frame(2, Kind.BEACON, wire.Beacon(2, 1, 130, 128)),
        "ask": frame(2, Kind.ASK, wire.Ask(131)),
        "ask_batch": frame(2, Kind.ASK_BATCH, wire.AskBatch(131, DIGEST)),
        "batch": frame(0, Kind.BATCH, wire.BatchAnswer(131, DIGEST, BATCH)),
    }


def entries() -> dict[str, journal.Entry]:
    """One journal record of every kind."""
    return {
        "voted": journal.Voted(7, 1, DIGEST, HEADER, PREPARES[0][1], BATCH),
        "voted_leader_again": journal.Voted(7, 2, DIGEST, HEADER, b"", None),
        "prepared": journal.PreparedHere(7, 1, DIGEST, HEADER, PREPARES, COMMITS[1][1]),
        "decided": journal.DecidedHere(7, 1, DIGEST, COMMITS, None),
        "wished": journal.Wished(2),
        "entered": journal.Entered(2),
        "installed": journal.Installed(2, frames()["newview"]),
        "own_checkpoint": journal.OwnCheckpoint(
            CHECKPOINT.index, CHECKPOINT.state_root, CHECKPOINT.time_ms, STABLE.votes[0][1]
        ),
        "stable": journal.StableHere(STABLE),
    }


def lines(values: dict[str, bytes]) -> str:
    return "".join(f"{name} {value.hex()}\n" for name, value in values.items())


def read(path: Path) -> dict[str, bytes]:
    pairs = (line.split(" ") for line in path.read_text().splitlines())
    return {name: bytes.fromhex(value) for name, value in pairs}


WIRE = GOLDEN / "wire" / "probft-v1.txt"
LOG = GOLDEN / "log" / "probft-records-v1.txt"
PROOF = GOLDEN / "wire" / "probft-evidence-v1.txt"


def main() -> None:
    WIRE.parent.mkdir(parents=True, exist_ok=True)
    WIRE.write_text(lines(frames()))
    LOG.write_text(lines({name: encode(entry) for name, entry in entries().items()}))
    PROOF.write_text(lines({"conflict": CONFLICT.encode()}))


if __name__ == "__main__":
    main()
