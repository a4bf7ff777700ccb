"""What a journal is read back into, and what a rewritten one must hold.

A replica that restarts is the replica that crashed, minus what it had not promised: it
repeats its votes and never makes another in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dwcp.consensus.core.errors import LogCorrupt, MalformedFrame
from dwcp.consensus.core.views.slotlog import Decision, Prepared, Slot, SlotLog
from dwcp.consensus.core.views.synchroniser import Synchroniser
from dwcp.consensus.core.views.window import Checkpoint, CheckpointWindow
from dwcp.consensus.crypto.codec import encode
from dwcp.consensus.engines.probft import messages as wire
from dwcp.consensus.engines.probft import records as journal
from dwcp.consensus.engines.probft.agreement import Agreement
from dwcp.consensus.engines.probft.checkpoints import proof_of, stable_of
from dwcp.consensus.engines.probft.delivery import Delivery
from dwcp.consensus.engines.probft.pool import Pool
from dwcp.consensus.engines.probft.rules import Rules
from dwcp.consensus.engines.probft.standing import Standing

_OF_A_SLOT = (journal.Voted, journal.PreparedHere, journal.DecidedHere)


@dataclass(frozen=True, slots=True)
class Start:
    """Where the application stands, and the committed time of the last batch up to there."""

    index: int
    time_ms: int


def decode(record: bytes) -> journal.Entry:
    """Raises `LogCorrupt`: a record that passed its checksum but is none of ours."""
    try:
        return journal.CODEC.decode(record)
    except MalformedFrame as exc:
        raise LogCorrupt(f"the journal holds a record of another format: {exc}") from exc


def restore(  # noqa: PLR0913 - fills every part that remembers anything
    found: Sequence[journal.Entry],
    *,
    applied: Start,
    rules: Rules,
    standing: Standing,
    log: SlotLog,
    window: CheckpointWindow,
    pool: Pool,
    delivery: Delivery,
    sync: Synchroniser,
    agreement: Agreement,
    me: int,
) -> None:
    """Fill empty parts from the journal; `applied` is where the application starts."""
    entries = rules.recover_votes(found)
    _restore_window(entries, window=window, log=log, applied=applied, me=me)
    headers = _restore_view(entries, standing=standing, sync=sync, me=me)
    for header in headers:
        if header.slot > window.low:
            slot = log.at(header.slot)
            slot.accept(header.digest, header.signature, certified=True, now_ms=0)
            if header.digest == wire.NULL_DIGEST:
                slot.contents[header.digest] = wire.NULL_CONTENT
            if standing.leading:
                slot.voted_view, slot.voted_digest = standing.current, header.digest
    for entry in entries:
        if isinstance(entry, _OF_A_SLOT) and entry.slot > log.base:
            _restore_slot(log.at(entry.slot), entry, standing=standing, me=me)
    delivery.delivered = applied.index
    for slot in log.ordered():
        _settle(slot, log=log, pool=pool, delivery=delivery)
    if delivery.delivered >= window.low > log.decided:
        log.jump(window.low, window.low_ms)
    agreement.next_slot = max([window.low, log.top, *(h.slot for h in headers)]) + 1


def _restore_window(
    entries: Sequence[journal.Entry], *, window: CheckpointWindow, log: SlotLog, applied: Start, me: int
) -> None:
    """The newest certificate, the own checkpoints above it, and the base whose time is known.

    The application's time is needed where its snapshot lags behind the certificate: the journal
    is cut below the snapshot, and what it holds above may be on no other disk as a state.
    """
    proofs = [e.proof for e in entries if isinstance(e, journal.StableHere)]
    own = [e for e in entries if isinstance(e, journal.OwnCheckpoint)]
    times = (
        {0: 0, applied.index: applied.time_ms}
        | {e.index: e.time_ms for e in own}
        | {p.index: p.time_ms for p in proofs}
    )
    best = max(proofs, key=lambda proof: proof.index, default=None)
    if best is not None:
        window.stable = stable_of(best)
    base = max(index for index in times if index <= min(window.low, applied.index))
    log.base = window.floor = base
    log.decided, log.decided_ms = base, times[base]
    window.snapshot = applied.index
    for e in own:
        if e.index > window.low:
            window.sign_own(me, Checkpoint(e.index, e.state_root, e.time_ms), e.signature)


def _restore_view(
    entries: Sequence[journal.Entry], *, standing: Standing, sync: Synchroniser, me: int
) -> tuple[wire.Header, ...]:
    """The view this replica is bound to, and the headers of its NEWVIEW."""
    headers: tuple[wire.Header, ...] = ()
    for entry in entries:
        if isinstance(entry, (journal.Wished, journal.Entered, journal.Installed)):
            sync.note(me, entry.view)
        if isinstance(entry, journal.Entered) and entry.view > standing.current:
            standing.enter(entry.view)
            headers = ()
        if isinstance(entry, journal.Installed) and entry.view >= standing.current:
            standing.enter(entry.view)
            standing.install(entry.frame)
            body = wire.decode(entry.frame).body
            headers = body.headers if isinstance(body, wire.NewView) else ()
    return headers


def _restore_slot(
    slot: Slot,
    entry: journal.Voted | journal.PreparedHere | journal.DecidedHere,
    *,
    standing: Standing,
    me: int,
) -> None:
    here = standing.installed and entry.view == standing.current
    if not isinstance(entry, journal.PreparedHere) and entry.batch is not None:
        slot.contents[entry.digest] = wire.unpack(entry.batch)
        slot.written.add(entry.digest)
    if isinstance(entry, journal.Voted):
        if entry.view >= slot.voted_view:
            slot.voted_view, slot.voted_digest = entry.view, entry.digest
        if here:
            certified = slot.certified and slot.digest == entry.digest
            slot.accept(entry.digest, entry.leader_signature, certified=certified, now_ms=0)
            slot.my_prepare = entry.signature
            if entry.signature:
                slot.prepares.add_own(me, entry.digest, entry.signature)
    elif isinstance(entry, journal.PreparedHere):
        slot.prepared = Prepared(entry.view, entry.digest, entry.leader_signature, entry.votes)
        if here:
            slot.prepared_here = True
            slot.my_commit = entry.signature
            slot.commits.add_own(me, entry.digest, entry.signature)
    else:
        slot.decision = Decision(entry.view, entry.digest, entry.votes)


def _settle(slot: Slot, *, log: SlotLog, pool: Pool, delivery: Delivery) -> None:
    """Contents count as placed; decisions wait for their turn; what is accepted sets the top."""
    content = slot.content()
    if content is not None:
        pool.place(slot.index, content.payloads)
    if slot.decision is not None and content is not None:
        delivery.recovered(slot)
    elif slot.decision is not None:
        slot.decision = None
    if slot.digest is not None:
        log.top = max(log.top, slot.index)


# --------------------------------------------------------------------------- rewriting


def records(*, standing: Standing, log: SlotLog, window: CheckpointWindow, sync: Synchroniser) -> list[bytes]:
    """Every promise still binding, oldest kind first."""
    entries: list[journal.Entry] = []
    if window.stable is not None:
        entries.append(journal.StableHere(proof_of(window.stable)))
    for index in sorted(window.own):
        point, signature = window.own[index]
        entries.append(journal.OwnCheckpoint(index, point.state_root, point.time_ms, signature))
    if standing.current > 1:
        entries.append(journal.Entered(standing.current))
        if standing.installed:
            entries.append(journal.Installed(standing.current, standing.frame))
    if sync.own > standing.current:
        entries.append(journal.Wished(sync.own))
    for slot in log.ordered():
        entries.extend(_slot_records(slot, view=standing.current))
    return [encode(entry) for entry in entries]


def _slot_records(slot: Slot, *, view: int) -> list[journal.Entry]:
    """Votes of the current view as they were sent; of older votes only what they voted for."""
    entries: list[journal.Entry] = []
    for digest in sorted(slot.written):
        content = slot.contents.get(digest)
        if content is None:
            continue
        batch = wire.pack(content)
        entries.append(journal.Voted(slot.index, 0, digest, wire.UNSIGNED, b"", batch))
    if slot.voted_view == view and slot.digest == slot.voted_digest:
        entries.append(
            journal.Voted(slot.index, view, slot.voted_digest, slot.leader_signature, slot.my_prepare, None)
        )
    if slot.prepared is not None:
        p = slot.prepared
        signature = slot.my_commit if p.view == view else wire.UNSIGNED
        entries.append(
            journal.PreparedHere(slot.index, p.view, p.digest, p.leader_signature, p.votes, signature)
        )
    if slot.decision is not None:
        d = slot.decision
        entries.append(journal.DecidedHere(slot.index, d.view, d.digest, d.votes, None))
    return entries
