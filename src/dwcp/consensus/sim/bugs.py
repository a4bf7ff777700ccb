"""Mistakes planted on purpose, one at a time: a checker that finds none of them shows nothing.

Each replaces one small part (an engine rule, the outbox, the journal, the ledger,
the replica) by a version with an error that real systems have shipped. The
product's own code has no switch for any of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dwcp.consensus.core import machine as m
from dwcp.consensus.core.logformat import NAME, Disk, Journal, NoJournal, recover
from dwcp.consensus.core.outbox import Outbox
from dwcp.consensus.core.views import selection
from dwcp.consensus.core.views.selection import Report, Row
from dwcp.consensus.engines.probft import records as journal
from dwcp.consensus.engines.probft.rules import Rules
from dwcp.consensus.ledger.outputs import Output
from dwcp.consensus.ledger.replica import Replica
from dwcp.consensus.ledger.sessions import Sessions
from dwcp.consensus.sim.cluster import Parts, WatchedLedger


@dataclass(frozen=True, slots=True)
class Bug:
    """`mistake` says what is wrong; `parts` what a history with it runs."""

    mistake: str
    parts: Callable[[], Parts]


def _rules(**changed: object) -> Callable[[], Parts]:
    return lambda: Parts(rules=Rules(**changed))  # type: ignore[arg-type]  # each value fits its seam


# --------------------------------------------------------------------------- engine rules


def _half(n: int, _f: int) -> int:
    return n // 2


def _any_liar(_n: int, f: int) -> int:
    return f


def _fresh_again(_known: object, _sender: int) -> bool:
    return True


def _older_views(message_view: int, current: int) -> bool:
    return message_view <= current


def _sends_first(promise: m.Effect, sends: Sequence[m.Effect]) -> Sequence[m.Effect]:
    return [*sends, promise]


def _forget_votes(found: Sequence[journal.Entry]) -> Sequence[journal.Entry]:
    """Only what was prepared seems worth keeping."""
    return [entry for entry in found if not isinstance(entry, journal.Voted)]


def _drop_last_slot(reports: Sequence[Report], null_digest: bytes) -> list[tuple[int, bytes]]:
    """The range of slots ends one too early."""
    return selection.select_proposals(reports, null_digest)[:-1]


def _nulls_for_prepared(reports: Sequence[Report], null_digest: bytes) -> list[tuple[int, bytes]]:
    """A slot that only one replica reports counts as a gap."""
    counts: dict[int, int] = {}
    for report in reports:
        for row in report.rows:
            counts[row.slot] = counts.get(row.slot, 0) + 1
    chosen = selection.select_proposals(reports, null_digest)
    return [(slot, digest if counts.get(slot, 0) > 1 else null_digest) for slot, digest in chosen]


def _report_nothing(_rows: Sequence[Row]) -> tuple[Row, ...]:
    return ()


def _prepared_is_enough(prepared_here: bool, _commits: int, _needed: int) -> bool:
    return prepared_here


def _certified_is_enough(stable: int, _snapshot: int) -> int:
    return stable


def _any_time(_time_ms: int, _previous_ms: int, _latest_ms: int) -> bool:
    return True


def _leaders_time(batch_ms: int, _previous_ms: int) -> int:
    return batch_ms


def _out_of_order(_slot: int, _delivered: int) -> bool:
    return True


def _unbound(_digest: bytes, _recomputed: bytes) -> bool:
    return True


def _always(*_arguments: object) -> bool:
    return True


# --------------------------------------------------------------------------- outbox


class LeakyOutbox(Outbox):
    """Holds sends back, but lets a decision through: clients hear of it before it is durable."""

    __slots__ = ()

    def push(self, effects: Iterable[m.Effect]) -> list[m.Effect]:
        effects = list(effects)
        commits = [effect for effect in effects if isinstance(effect, m.Commit)]
        rest = [effect for effect in effects if not isinstance(effect, m.Commit)]
        return [*super().push(rest), *commits]


class HastyOutbox(Outbox):
    """Frees everything that waits when a group is durable, also what a later record holds."""

    __slots__ = ()

    def durable(self, sequence: int) -> list[m.Effect]:
        released = super().durable(sequence)
        waiting = list(self._queue)
        self._queue = deque(effect for effect in waiting if isinstance(effect, m.Persist))
        return [*released, *(effect for effect in waiting if not isinstance(effect, m.Persist))]


# --------------------------------------------------------------------------- journal


class UncutJournal(Journal):
    """Opens without cutting the torn tail: later groups are appended behind garbage."""

    __slots__ = ()

    @classmethod
    def open(
        cls,
        disk: Disk,
        *,
        chain_id: bytes,  # noqa: ARG003 - the signature is the product's
        replica: int,  # noqa: ARG003
    ) -> tuple[tuple[bytes, ...], Journal]:
        if NAME not in disk.list():
            raise NoJournal(NAME)
        data = disk.read(NAME)
        found = recover(data)
        opened = cls(disk, found.identity, next_sequence=found.next_sequence)
        opened.cut, opened.size = found.cut, len(data)
        disk.sync(NAME)
        return found.records, opened


class UnsyncedJournal(Journal):
    """Takes the write for durable: the sync never happens."""

    __slots__ = ()

    def sync(self) -> None:
        pass


class ShortJournal(Journal):
    """Recovers every group but the last, which might be torn."""

    __slots__ = ()

    @classmethod
    def open(cls, disk: Disk, *, chain_id: bytes, replica: int) -> tuple[tuple[bytes, ...], Journal]:
        records, opened = Journal.open(disk, chain_id=chain_id, replica=replica)
        return records[:-1], opened


# --------------------------------------------------------------------------- ledger and replica


class ForgetfulSessions(WatchedLedger):
    """The session table is left out when a snapshot is installed."""

    def install(self, parts: tuple[bytes, ...], root: bytes) -> int:
        index = super().install(parts, root)
        self._sessions = Sessions(per_client_max=self._params.sessions_per_client_max)
        return index


class RepeatingLedger(WatchedLedger):
    """Answers are not kept: a retry that was ordered again is executed again."""

    def _remember(self, *_answer: object) -> None:
        return


class BackwardsReplica(Replica):
    """After one transfer it takes every snapshot that became durable for one to install."""

    _transferred = False

    def snapshot_durable(self, index: int, *, now_ms: int) -> list[Output]:
        snapshot = self._saving
        own = not self._installing and snapshot is not None and snapshot.index == index
        if own and self._transferred and snapshot is not None:
            self._ledger.install(snapshot.parts, snapshot.root)
        self._transferred |= self._installing
        return super().snapshot_durable(index, now_ms=now_ms)


BUGS: dict[str, Bug] = {
    "quorum-too-small": Bug("half of the replicas decide", _rules(quorum=_half)),
    "checkpoint-quorum-too-small": Bug(
        "f replicas make a checkpoint stable", _rules(checkpoint_quorum=_any_liar)
    ),
    "commit-before-persist": Bug("votes leave before their record", _rules(promise_order=_sends_first)),
    "reply-before-durable": Bug(
        "a decision is executed while its record waits", lambda: Parts(outbox=LeakyOutbox)
    ),
    "barrier-of-wrong-group": Bug(
        "a durable group frees what later records hold", lambda: Parts(outbox=HastyOutbox)
    ),
    "sync-skipped": Bug("a write is taken for durable", lambda: Parts(journal=UnsyncedJournal)),
    "torn-tail-kept": Bug("groups are appended behind a torn one", lambda: Parts(journal=UncutJournal)),
    "last-record-dropped": Bug("recovery leaves out the last record", lambda: Parts(journal=ShortJournal)),
    "vote-forgotten-at-restart": Bug(
        "recovery keeps only what was prepared", _rules(recover_votes=_forget_votes)
    ),
    "view-change-drops-slot": Bug(
        "the new view ends one slot too early", _rules(select_proposals=_drop_last_slot)
    ),
    "null-over-prepared": Bug(
        "a slot reported by one replica is filled with null",
        _rules(select_proposals=_nulls_for_prepared, null_allowed=_always),
    ),
    "report-forgets-prepared": Bug(
        "reports to a new leader are empty", _rules(reported_rows=_report_nothing)
    ),
    "duplicate-vote-counted": Bug("a vote sent twice counts twice", _rules(fresh_vote=_fresh_again)),
    "stale-view-accepted": Bug("votes of older views count", _rules(accepts_view=_older_views)),
    "commit-phase-skipped": Bug("what is prepared counts as decided", _rules(may_decide=_prepared_is_enough)),
    "time-runs-back": Bug(
        "committed time is what the leader says",
        _rules(valid_time=_any_time, committed_time=_leaders_time),
    ),
    "delivered-out-of-order": Bug(
        "a slot is delivered before its predecessor", _rules(next_in_order=_out_of_order)
    ),
    "proposal-not-bound": Bug("a batch is not compared with its digest", _rules(binds=_unbound)),
    "truncated-too-early": Bug(
        "the log is cut at a certificate, whose state is on no disk here",
        _rules(truncate_below=_certified_is_enough),
    ),
    "snapshot-below-execution": Bug(
        "a snapshot below the executed position is installed",
        lambda: Parts(replica=BackwardsReplica),
    ),
    "sessions-not-in-snapshot": Bug(
        "installing a snapshot loses the sessions", lambda: Parts(ledger=ForgetfulSessions)
    ),
    "dedupe-skipped": Bug("answers are not kept for retries", lambda: Parts(ledger=RepeatingLedger)),
}
