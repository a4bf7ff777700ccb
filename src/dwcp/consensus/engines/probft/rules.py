"""The decisions on which safety hangs, each a small pure function that can be looked at alone.

The engine asks `Rules` for every one of them and decides none by itself. The
product runs `Rules()`. A simulator that wants to know whether its checkers would
notice a mistake replaces one function; each seam below names such a mistake that
was made in real systems.

| seam | the mistake it invites |
|---|---|
| `quorum` | 2f+1 or a majority where ⌈(n+f+1)/2⌉ is needed |
| `checkpoint_quorum` | f: a checkpoint becomes stable on liars' word |
| `fresh_vote` | one sender's vote counted twice (retransmissions help) |
| `distinct_signers` | the same signature twice in a certificate |
| `accepts_view` | votes of an older view counted in this one |
| `accepts_slot` | votes for truncated slots, or without an upper bound |
| `select_proposals` | a view change drops a prepared slot, or takes the lowest view's digest |
| `reported_rows` | a report leaves out slots prepared before it restarted, or the last one |
| `may_vote` | two PREPAREs for one (slot, view) |
| `may_decide` | commits counted without being prepared in the same view (H1) |
| `recover_votes` | votes forgotten at a restart |
| `promise_order` | a vote leaves before its record is durable |
| `may_install` | a snapshot installed below the execution point |
| `valid_time` | batch time neither increasing nor bounded by the voter's clock |
| `committed_time` | the leader's clock taken as it is, so time runs backwards |
| `next_in_order` | a decided slot delivered before its predecessor |
| `truncate_below` | the log cut before the own snapshot is durable |
| `binds` | a proposal's payloads not compared with the digest that is voted on |
| `enters` | a view entered again or backwards |
| `null_allowed` | a null batch accepted over a slot that this replica has decided |
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from dwcp.consensus.core import quorum as quorums
from dwcp.consensus.core.machine import Effect
from dwcp.consensus.core.views import selection
from dwcp.consensus.core.views.selection import Report, Row
from dwcp.consensus.core.views.votes import Signed
from dwcp.consensus.engines.probft import records as journal


def fresh_vote(known: Container[int], sender: int) -> bool:
    """The first vote of a sender in its (slot, view, phase) counts, no other."""
    return sender not in known


def distinct_signers(votes: Sequence[Signed]) -> bool:
    return len({sender for sender, _ in votes}) == len(votes)


def accepts_view(message_view: int, current: int) -> bool:
    """A vote counts in its own view only."""
    return message_view == current


def accepts_slot(slot: int, low: int, high: int) -> bool:
    """Positions in (low, high] are open; `low` is stable, `high` the end of the window."""
    return low < slot <= high


def reported_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Every slot that this replica prepared above its stable checkpoint, by slot."""
    return tuple(sorted(rows))


def may_vote(voted_view: int, voted_digest: bytes, view: int, digest: bytes) -> bool:
    """Never two digests at one (slot, view), and never back in a view that was left."""
    return voted_view < view or (voted_view == view and voted_digest == digest)


def may_decide(prepared_here: bool, commits: int, needed: int) -> bool:
    """H1: prepared in the same view for the same digest, and a quorum of COMMITs."""
    return prepared_here and commits >= needed


def recover_votes(found: Sequence[journal.Entry]) -> Sequence[journal.Entry]:
    """What a restart takes from the journal: all of it."""
    return found


def promise_order(promise: Effect, sends: Sequence[Effect]) -> Sequence[Effect]:
    """A promise is durable before anyone hears of it."""
    return [promise, *sends]


def may_install(index: int, executed: int) -> bool:
    """A snapshot only ever moves the application forwards."""
    return index > executed


def valid_time(time_ms: int, previous_ms: int, latest_ms: int) -> bool:
    """Strictly after the batch before, and not ahead of the voter's clock beyond its tolerance.

    The least that can follow is always valid: no leader can say less, so nothing is gained by
    refusing it where all clocks went back, and the log would stand still until they caught up.
    """
    return previous_ms < time_ms <= max(latest_ms, previous_ms + 1)


def committed_time(batch_ms: int, previous_ms: int) -> int:
    """Strictly increasing, even where batches of different views were put next to each other."""
    return max(batch_ms, previous_ms + 1)


def next_in_order(slot: int, delivered: int) -> bool:
    return slot == delivered + 1


def truncate_below(stable: int, snapshot: int) -> int:
    """Positions up to this one are needed by nobody here: certified, and in an own durable snapshot."""
    return min(stable, snapshot)


def binds(digest: bytes, recomputed: bytes) -> bool:
    return digest == recomputed


def enters(view: int, current: int) -> bool:
    return view > current


def null_allowed(decided: bytes | None, proposed: bytes) -> bool:
    """A slot that is decided here can only be proposed again with its decided digest."""
    return decided is None or decided == proposed


@dataclass(frozen=True, slots=True)
class Rules:
    """The defaults are the protocol; see the table at the top of this module."""

    quorum: Callable[[int, int], int] = quorums.quorum
    checkpoint_quorum: Callable[[int, int], int] = quorums.quorum
    fresh_vote: Callable[[Container[int], int], bool] = fresh_vote
    distinct_signers: Callable[[Sequence[Signed]], bool] = distinct_signers
    accepts_view: Callable[[int, int], bool] = accepts_view
    accepts_slot: Callable[[int, int, int], bool] = accepts_slot
    select_proposals: Callable[[Sequence[Report], bytes], list[tuple[int, bytes]]] = (
        selection.select_proposals
    )
    reported_rows: Callable[[Sequence[Row]], tuple[Row, ...]] = reported_rows
    may_vote: Callable[[int, bytes, int, bytes], bool] = may_vote
    may_decide: Callable[[bool, int, int], bool] = may_decide
    recover_votes: Callable[[Sequence[journal.Entry]], Sequence[journal.Entry]] = recover_votes
    promise_order: Callable[[Effect, Sequence[Effect]], Sequence[Effect]] = promise_order
    may_install: Callable[[int, int], bool] = may_install
    valid_time: Callable[[int, int, int], bool] = valid_time
    committed_time: Callable[[int, int], int] = committed_time
    next_in_order: Callable[[int, int], bool] = next_in_order
    truncate_below: Callable[[int, int], int] = truncate_below
    binds: Callable[[bytes, bytes], bool] = binds
    enters: Callable[[int, int], bool] = enters
    null_allowed: Callable[[bytes | None, bytes], bool] = null_allowed
