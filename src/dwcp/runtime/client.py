"""The way to a running ledger: one session over connections to every replica.

Concurrent operations of one client share bundles. A result is what f+1 replicas
agree on. Retries happen inside: the same session and sequence are sent again, so
an operation is executed at most once however often it is repeated.

    async with await LedgerClient.open(genesis=…, key=…, tls=…, session_path=None) as ledger:
        done = await ledger.txn(kv.Txn(success=(kv.Put(b"k", b"v"),)))
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dwcp.api import kv
from dwcp.consensus.core.errors import CoreError, MalformedFrame
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Codec
from dwcp.consensus.crypto.mac import Authenticator, shared_secret
from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.consensus.ledger import messages
from dwcp.consensus.ledger.client import ClientSession, Completed, Event
from dwcp.consensus.ledger.genesis import Genesis
from dwcp.consensus.ledger.receipts import Receipt
from dwcp.runtime.client_links import replica_links
from dwcp.runtime.client_watch import WatchBatch, WatchBoard
from dwcp.runtime.clock import SystemClock
from dwcp.runtime.config import TlsFiles as ClientTls
from dwcp.runtime.durable import replace_private

__all__ = [
    "ClientTls",
    "Committed",
    "Compacted",
    "Indeterminate",
    "LedgerClient",
    "Overloaded",
    "Refused",
    "WatchBatch",
]

OUTSTANDING_MAX = 4096  # operations without a result; more are refused before they are sent
OPEN_SECONDS_MAX = 5.0
QUERY_SECONDS_MAX = 2.0  # then the next replica is asked
_RESULT: Codec[kv.Result] = Codec(kv.Result)


class Indeterminate(CoreError):
    """No answer in time; the operation may have happened or may yet happen: read before repeating it."""


class Overloaded(CoreError):
    """Too much is in flight; the operation was not sent: try again later."""


class Refused(CoreError):
    """The ledger refused the operation, which changed nothing."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class Compacted(Refused):
    """That revision is gone: read the range now, then watch from the revision after it."""


@dataclass(frozen=True, slots=True)
class Committed:
    """An operation's result and the position where it was executed.

    `receipt` is None unless asked for, and if no quorum could give one.
    """

    result: kv.Result
    index: int
    receipt: Receipt | None = None


@dataclass(slots=True)
class _Waiting:
    operation: kv.Operation
    receipt: bool
    future: asyncio.Future[Completed]


class LedgerClient:
    """One session. Use from one event loop; any number of tasks."""

    def __init__(
        self, *, genesis: Genesis, key: SigningKey, tls: ClientTls, session_path: Path | None
    ) -> None:
        """Use `open`."""
        self._genesis = genesis
        self._key = key
        self._loop = asyncio.get_running_loop()
        self._clock = SystemClock()
        self._session_path = session_path
        secrets = (shared_secret(key, public, genesis.chain_id) for public in genesis.committee())
        self._authenticators = tuple(map(Authenticator, secrets))
        self._waiting: dict[int, _Waiting] = {}
        self._queries: dict[int, asyncio.Future[bytes]] = {}
        self._refusals: dict[int, messages.Refused] = {}
        self._last_query = 0
        self._flush_wanted = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = math.inf
        self._closed = False
        self._opened = False  # the ledger knows the session
        self._session = self._begin_session(0)
        self._links = replica_links(
            genesis,
            tls,
            greeting=lambda replica: self._session.greeting(replica),
            received=self._received,
            changed=self._changed,
        )
        self._watches = WatchBoard(send=self._send_now, candidates=self._connected)
        self._tasks = [self._loop.create_task(link.run()) for link in self._links]

    @classmethod
    async def open(
        cls, *, genesis: Genesis, key: SigningKey, tls: ClientTls, session_path: Path | None
    ) -> LedgerClient:
        """Connect. Returns when n-f replicas are connected, or after a few seconds with fewer.

        `session_path` keeps the last session number, so that a clock set back does no
        harm. Raises `KeyUnusable`.
        """
        client = cls(genesis=genesis, key=key, tls=tls, session_path=session_path)
        deadline = client._loop.time() + OPEN_SECONDS_MAX
        while len(client._connected()) < genesis.n - genesis.f and client._loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connections. What is in flight stays undetermined."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(Indeterminate("the client was closed before an answer came"))
        self._watches.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._links:
            link.drop()

    # ----------------------------------------------------------------- operations

    async def txn(self, txn: kv.Txn, *, receipt: bool = False, timeout_s: float = 10) -> Committed:
        """Commit a transaction. Raises `Indeterminate`, `Overloaded`, `Refused`."""
        return await self.submit(txn, receipt=receipt, timeout_s=timeout_s)

    async def submit(
        self, operation: kv.Operation, *, receipt: bool = False, timeout_s: float = 10
    ) -> Committed:
        """Commit any operation. Raises `Indeterminate`, `Overloaded`, `Refused`."""
        self._check_size(operation)
        if len(self._waiting) >= OUTSTANDING_MAX:
            raise Overloaded(f"{OUTSTANDING_MAX} operations of this client are in flight already")
        future: asyncio.Future[Completed] = self._loop.create_future()
        waiting = _Waiting(operation, receipt, future)
        self._enqueue(waiting)
        handle = self._loop.call_later(timeout_s, self._expire, waiting, timeout_s)
        try:
            completed = await future
        finally:
            handle.cancel()
            if not future.done() or future.cancelled():
                self._abandon(waiting)
        result = completed.result
        if isinstance(result, kv.Failed):
            raise (Compacted if result.code == "compacted" else Refused)(result.code, result.detail)
        return Committed(result, completed.index, completed.receipt)

    async def range(
        self,
        key: bytes,
        end: bytes = b"",
        *,
        linearizable: bool = True,
        limit: int = 0,
        revision: int = 0,
        timeout_s: float = 10,
    ) -> kv.RangeDone:
        """Keys in [key, end). Raises `Indeterminate`, `Overloaded`, `Refused`, `Compacted`.

        Linearizable reads go through the log. The others are one replica's word about its
        executed state, possibly old: a hint, to be guarded by a transaction's comparisons.
        """
        wanted = kv.Range(key, end, limit, revision)
        if linearizable:
            result = (await self.submit(wanted, timeout_s=timeout_s)).result
        else:
            result = await self._query(wanted, timeout_s)
        if isinstance(result, kv.Failed):
            raise (Compacted if result.code == "compacted" else Refused)(result.code, result.detail)
        if not isinstance(result, kv.RangeDone):
            raise Refused("malformed", f"a range was answered with {type(result).__name__}")
        return result

    async def watch(self, prefix: bytes, *, from_revision: int = 0) -> AsyncIterator[WatchBatch]:
        """Changes under `prefix`, whole revisions in order; 0 means after the present.

        From one replica at a time, so a hint: guard what follows by comparisons. Goes on at
        another replica when that one is lost. Raises `Compacted`, `Refused`.
        """
        async with aclosing(self._watches.follow(prefix, from_revision)) as batches:
            async for item in batches:
                if isinstance(item, messages.WatchClosed):
                    raise (Compacted if item.code == "compacted" else Refused)(item.code, item.detail)
                yield item

    @property
    def connected(self) -> tuple[int, ...]:
        """The replicas that this client has a connection to."""
        return self._connected()

    def _check_size(self, operation: kv.Operation) -> None:
        bound = self._genesis.params.request_bytes_max
        if isinstance(operation, kv.Put) and len(operation.key) + len(operation.value) < bound // 2:
            return  # the common case, without encoding it twice
        size = len(codec.encode(operation))
        if size > bound:
            raise Refused("too_large", f"the operation has {size} bytes, at most {bound} are taken")

    # ----------------------------------------------------------------- session

    def _begin_session(self, after: int) -> ClientSession:
        """A session with a number higher than any before."""
        number = max(self._clock.now_ms() * 1000, after + 1, _read_number(self._session_path) + 1)
        _write_number(self._session_path, number)
        return ClientSession(
            genesis=self._genesis,
            public=self._key.public,
            signer=self._key,
            authenticators=self._authenticators,
            session=number,
        )

    def _replace_session(self) -> None:
        """The ledger does not know the session: begin another.

        What was sent in the old one is undetermined; what never left is sent again.
        """
        lost, self._waiting = self._waiting, {}
        opened = self._opened
        self._opened = False
        self._session = self._begin_session(self._session.session)
        for link in self._links:
            link.send(self._session.greeting(self._links.index(link)))
        for waiting in lost.values():
            if waiting.future.done():
                continue
            if opened:
                waiting.future.set_exception(Indeterminate("the session expired before an answer came"))
            else:
                self._enqueue(waiting)

    def _enqueue(self, waiting: _Waiting) -> None:
        sequence = self._session.submit(waiting.operation, receipt=waiting.receipt)
        self._waiting[sequence] = waiting
        self._want_flush()

    def _abandon(self, waiting: _Waiting) -> None:
        for sequence, held in list(self._waiting.items()):
            if held is waiting:
                del self._waiting[sequence]
                self._session.abandon(sequence)

    def _expire(self, waiting: _Waiting, timeout_s: float) -> None:
        if waiting.future.done():
            return
        self._abandon(waiting)
        waiting.future.set_exception(Indeterminate(f"no answer within {timeout_s:g} s{self._why()}"))

    def _why(self) -> str:
        """What is known about the silence."""
        down = [
            f"{self._genesis.replicas[number].name}: {link.problem}"
            for number, link in enumerate(self._links)
            if not link.up
        ]
        reach = f"; {len(self._connected())} of {self._genesis.n} replicas are connected"
        return reach + (f" ({'; '.join(down)})" if down else "")

    # ----------------------------------------------------------------- frames out

    def _want_flush(self) -> None:
        """At the end of this turn, so that concurrent operations share a bundle."""
        if not self._flush_wanted and not self._closed:
            self._flush_wanted = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_wanted = False
        if self._closed:
            return
        for out in self._session.flush(now_ms=self._now_ms()):
            self._links[out.replica].send(out.frame)
        for link in self._links:
            link.flush()
        self._arm()

    def _send_now(self, replica: int, frame: messages.ClientFrame) -> None:
        self._links[replica].send(messages.encode(frame))
        self._links[replica].flush()

    def _arm(self) -> None:
        """Wake for the session's next retry; a later deadline leaves an earlier timer as it is."""
        due_ms = self._session.due_ms
        if due_ms is None or (self._timer is not None and self._timer_ms <= due_ms):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ms = due_ms
        self._timer = self._loop.call_later(max(due_ms - self._now_ms(), 1) / 1000, self._fire)

    def _fire(self) -> None:
        self._timer = None
        out, outcomes = self._session.timer(now_ms=self._now_ms())
        for item in out:
            self._links[item.replica].send(item.frame)
        for outcome in outcomes:
            if isinstance(outcome, Completed):
                self._complete(outcome)
        self._flush()

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)

    # ----------------------------------------------------------------- frames in

    def _received(self, replica: int, frames: list[bytes]) -> None:
        now_ms = self._now_ms()
        moved = False
        try:
            for frame in frames:
                for outcome in self._session.receive(replica, frame, now_ms=now_ms):
                    if isinstance(outcome, Completed):
                        moved = True
                        self._complete(outcome)
                    else:
                        self._event(outcome)
        except MalformedFrame:
            self._links[replica].drop()
        if moved and self._session.outstanding:
            self._want_flush()  # the session's window may have moved

    def _complete(self, completed: Completed) -> None:
        failed = completed.result if isinstance(completed.result, kv.Failed) else None
        if completed.sequence == 0:
            if failed is None:
                self._opened = True
            elif failed.code == "permission_denied":
                self._refuse_all(Refused(failed.code, failed.detail))
            else:
                self._replace_session()
            return
        if failed is not None and failed.code == "expired":
            self._replace_session()
            return
        waiting = self._waiting.pop(completed.sequence, None)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_result(completed)

    def _event(self, event: Event) -> None:
        frame = event.frame
        match frame:
            case messages.Welcome():
                self._refusals.pop(event.replica, None)
                self._watches.connected(event.replica)
            case messages.QueryReply():
                future = self._queries.get(frame.query)
                if future is not None and not future.done():
                    future.set_result(frame.result)
            case messages.Refused():
                self._refused(event.replica, frame)
            case _:
                self._watches.frame(event.replica, frame)

    def _refused(self, replica: int, refusal: messages.Refused) -> None:
        """One replica may lie; when f+1 say the same, one of them is honest."""
        self._refusals[replica] = refusal
        agreeing = [held for held in self._refusals.values() if held.code == refusal.code]
        if len(agreeing) > self._genesis.f and refusal.code != "not_ready":
            self._refusals.clear()
            self._refuse_all(Refused(refusal.code, refusal.detail))

    def _refuse_all(self, refusal: Refused) -> None:
        for waiting in list(self._waiting.values()):
            self._abandon(waiting)
            if not waiting.future.done():
                waiting.future.set_exception(refusal)

    def _changed(self, replica: int, up: bool) -> None:
        if not up:
            self._refusals.pop(replica, None)
            self._watches.lost(replica)
        frames = self._session.connected(replica) if up else self._session.disconnected(replica)
        for out in frames:
            self._links[out.replica].send(out.frame)
        self._want_flush()

    def _connected(self) -> tuple[int, ...]:
        return tuple(number for number, link in enumerate(self._links) if link.up)

    # ----------------------------------------------------------------- stale reads

    async def _query(self, wanted: kv.Range, timeout_s: float) -> kv.Result:
        """Ask one replica after the other until one answers."""
        deadline = self._loop.time() + timeout_s
        for replica in self._turns():
            left = deadline - self._loop.time()
            if left <= 0:
                break
            if replica not in self._connected():
                await asyncio.sleep(min(0.05, left))
                continue
            self._last_query = number = self._last_query + 1
            future = self._queries[number] = self._loop.create_future()
            try:
                self._send_now(replica, messages.Query(number, codec.encode(wanted)))
                async with asyncio.timeout(min(QUERY_SECONDS_MAX, left)):
                    return _RESULT.decode(await future)
            except (TimeoutError, MalformedFrame):
                continue
            finally:
                del self._queries[number]
        raise Indeterminate(f"no replica answered within {timeout_s:g} s{self._why()}")

    def _turns(self) -> Iterator[int]:
        """Replicas in turn for ever, each session beginning elsewhere."""
        turn = self._session.session
        while True:
            yield turn % self._genesis.n
            turn += 1


def _read_number(path: Path | None) -> int:
    try:
        return int(path.read_text()) if path is not None else 0
    except (FileNotFoundError, ValueError):
        return 0  # the number only guards against a clock set back


def _write_number(path: Path | None, number: int) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_private(path, f"{number}\n".encode(), durable=False)
