"""The pieces of the work and ledger commands: transactions as text, calls and their faults, following."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import pytest
from tests.unit.control.genuine import GENESIS, genuine

from dwcp.api import manager as api
from dwcp.api.kv import Compare, DeleteRange, KeyValue, Put, Range, RangeDone, Relation, Target
from dwcp.api.manager import Event, EventKind, EventList, Report, StoredReceipt, Submission, WorkloadView
from dwcp.api.requests import request
from dwcp.api.workloads import Demand, Job, State, WorkloadState
from dwcp.cli import output, submission
from dwcp.cli.calls import ControlPlane, ServiceRefused, ServiceUnavailable
from dwcp.cli.commands import logs
from dwcp.cli.environment import Environment, using
from dwcp.cli.following import Screen, check, describe, follow, line, proof_of
from dwcp.cli.ledger_text import EXAMPLE, TxnMalformed, read_txn, shown_pair
from dwcp.consensus.ledger.receipts import ReceiptInvalid
from dwcp.control.errors import JobRefused
from dwcp.control.jobs import check_identity
from dwcp.runtime.clock import ManualClock
from dwcp.runtime.errors import Exit, NotRunning

ID = "w-aaaaaaaaaa"
JOB = Job(name="j", demand=Demand(cpu=1, memory_mib=64, storage_mib=64), run=("true",))


def plane(handler: Callable[[httpx.Request], httpx.Response]) -> ControlPlane:
    return ControlPlane(httpx.Client(transport=httpx.MockTransport(handler)), "https://manager")


def view(state: State) -> WorkloadView:
    return WorkloadView(
        id=ID,
        job=JOB,
        payload=None,
        submitted_ms=0,
        submitted_by="t",
        state=WorkloadState(state=state, attempt=1),
        revision=1,
    )


def test_the_example_transaction_is_read() -> None:
    """Goal: what the help shows works. Method: read it."""
    txn = read_txn(EXAMPLE.encode())

    assert txn.compare == (Compare(b"a", Target.MOD, Relation.EQUAL, 0),)
    assert (txn.success, txn.failure) == ((Put(b"a", b"1"),), (Range(b"a"),))
    assert read_txn(b'{"success": [{"delete": "a", "end": "b"}]}').success == (DeleteRange(b"a", b"b"),)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"sucess": []}',
        b'{"success": [{"put": "a"}]}',
        b'{"success": [{"put": "a", "value": "1", "get": "a"}]}',
        b'{"compare": [{"key": "a", "target": "mood", "relation": "equal", "operand": 0}]}',
        b'{"compare": [{"key": "a", "target": "mod", "relation": "same", "operand": 0}]}',
        b'{"compare": [{"key": "a", "target": "mod", "relation": "equal", "operand": "x"}]}',
        b'{"compare": [{"key": "a", "target": "value", "relation": "equal", "operand": 1}]}',
        b"[" * 3000,
        b" " * 1_048_577,
    ],
)
def test_malformed_transactions_get_a_sentence(text: bytes) -> None:
    """Goal: no traceback for any text. Method: wrong words, types, sizes."""
    with pytest.raises(TxnMalformed):
        read_txn(text)


def test_bytes_that_are_no_text_are_shown_as_hex() -> None:
    """Goal: output is always printable, and says what it is. Method: a binary value."""
    assert shown_pair(KeyValue(b"k", b"\xff\x00", 1, 1, 1))["value_hex"] == "ff00"
    assert shown_pair(KeyValue(b"k", b"v", 1, 1, 1))["value"] == "v"


@pytest.mark.parametrize(
    ("status", "kind", "code"), [(409, ServiceRefused, Exit.REFUSED), (503, ServiceUnavailable, Exit.UNKNOWN)]
)
def test_refusals_keep_their_sentence(status: int, kind: type[Exception], code: Exit) -> None:
    """Goal: the service's sentence reaches the user, with the right exit code. Method: both classes of status."""
    body = {"error": {"code": "x", "detail": "because of this"}}

    with pytest.raises(kind, match="because of this") as caught:
        plane(lambda _request: httpx.Response(status, json=body)).ask(WorkloadView, api.workload(ID))
    assert getattr(caught.value, "exit_code", None) is code


def test_an_absent_manager_says_dwcp_up() -> None:
    """Goal: the most common fault names its cure. Method: a refused connection."""

    def refuse(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(NotRunning, match="dwcp up"):
        plane(refuse).ask(WorkloadView, api.workload(ID))


def test_an_answer_of_another_shape_is_no_traceback() -> None:
    """Goal: a foreign service on that port is a sentence. Method: HTML."""
    with pytest.raises(ServiceUnavailable, match="cannot be read"):
        plane(lambda _request: httpx.Response(200, text="<html>")).ask(WorkloadView, api.workload(ID))


def test_identifiers_never_leave_their_place_in_the_path() -> None:
    """Goal: no id reaches another route. Method: climbing and query characters."""
    assert request("GET", "api", "../x?y#z").path == "/api/..%2Fx%3Fy%23z"


def test_a_submission_is_repeated_under_one_id_until_it_is_answered() -> None:
    """Goal: a manager killed on the way makes no second workload. Method: two lost answers, then one."""
    seen: list[str] = []

    def handler(asked: httpx.Request) -> httpx.Response:
        seen.append(msgspec.json.decode(asked.content, type=Submission).id)
        if len(seen) == 1:
            raise httpx.RemoteProtocolError("cut")
        if len(seen) == 2:
            return httpx.Response(503, json={"error": {"code": "indeterminate", "detail": "?"}})
        return httpx.Response(201, content=msgspec.json.encode(view(State.PENDING)))

    made = submission.create(
        plane(handler), Submission(id=ID, job=JOB), clock=ManualClock(), sleep=lambda _seconds: None
    )
    assert (made.id, seen) == (ID, [ID, ID, ID])


def test_a_refused_submission_is_not_repeated() -> None:
    """Goal: a refusal is final. Method: count the requests."""
    seen: list[str] = []

    def handler(asked: httpx.Request) -> httpx.Response:
        seen.append(asked.url.path)
        return httpx.Response(422, json={"error": {"code": "job_refused", "detail": "no"}})

    with pytest.raises(ServiceRefused):
        submission.create(
            plane(handler), Submission(id=ID, job=JOB), clock=ManualClock(), sleep=lambda _s: None
        )
    assert len(seen) == 1


def test_following_survives_a_restart_and_shows_a_state_once() -> None:
    """Goal: the end is read from the log, whatever events are lost or doubled. Method: a scripted manager."""
    calls = 0

    def handler(asked: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise httpx.ConnectError("restarting")
        if "events" in asked.url.path:
            running = Report(workload=ID, kind=EventKind.RUNNING, node="rome", attempt=1)
            events = tuple(Event(sequence=n, source="s", report=running) for n in (1, 2))
            return httpx.Response(200, content=msgspec.json.encode(EventList(events=events, next_after=2)))
        state = State.RUNNING if calls < 5 else State.DONE
        return httpx.Response(200, content=msgspec.json.encode(view(state)))

    said: list[str] = []
    with using(Environment(err=io.StringIO())), output.progress(quiet=True) as bars:
        ended = follow(
            plane(handler), ID, clock=ManualClock(), screen=Screen(bars, said.append), sleep=lambda _s: None
        )
    assert ended.state.state is State.DONE
    assert [text for text in said if text.startswith("running")] == ["running, attempt 1, on rome"]


def test_an_absent_manager_is_said_to_be_absent_once() -> None:
    """Goal: a restart does not flood the screen. Method: twenty refused connections, then the end."""
    calls = 0

    def handler(asked: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if calls <= 20:
            raise httpx.ConnectError("restarting")
        page = EventList(events=(), next_after=1)
        answer = page if "events" in asked.url.path else view(State.DONE)
        return httpx.Response(200, content=msgspec.json.encode(answer))

    said: list[str] = []
    with using(Environment(err=io.StringIO())), output.progress(quiet=True) as bars:
        follow(
            plane(handler), ID, clock=ManualClock(), screen=Screen(bars, said.append), sleep=lambda _s: None
        )
    assert len(said) == 1
    assert "waiting" in said[0]


def test_a_receipt_is_waited_for_while_the_manager_is_away() -> None:
    """Goal: the end is proven though the manager restarts just then. Method: two failures, then the receipt."""
    answers: list[httpx.Response | Exception] = [
        httpx.ConnectError("restarting"),
        httpx.Response(503, json={"error": {"code": "not_ready", "detail": "not yet"}}),
        httpx.Response(200, json={"receipts": [_stored("done")]}),
    ]

    def handler(_asked: httpx.Request) -> httpx.Response:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ended = msgspec.structs.replace(view(State.DONE), state=WorkloadState(state=State.DONE, attempt=2))
    proof = proof_of(plane(handler), ended, GENESIS, clock=ManualClock(), sleep=lambda _s: None)
    assert proof is not None
    assert "receipt verified: done, attempt 2" in describe(proof)


@pytest.mark.parametrize("label", [{"kind": "failed"}, {"attempt": 7}, {"workload": "w-bbbbbbbbbb"}])
def test_a_label_that_the_receipt_does_not_bear_out_is_refused(label: dict[str, object]) -> None:
    """Goal: a manager cannot show a genuine receipt as proof of something else. Method: each label changed."""
    with pytest.raises(ReceiptInvalid, match="does not prove"):
        check(msgspec.convert(_stored("done") | label, StoredReceipt), GENESIS)


def test_an_unanswered_submission_names_its_id() -> None:
    """Goal: what may have happened can be looked up. Method: a manager that never comes back."""
    clock = ManualClock()

    def handler(_asked: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("late")

    with pytest.raises(ServiceUnavailable, match=f"whether {ID} was created is not known"):
        submission.create(
            plane(handler),
            Submission(id=ID, job=JOB),
            clock=clock,
            sleep=lambda seconds: clock.advance(int(seconds * 1000)),
        )


def test_logs_of_all_services_come_in_the_order_of_time(tmp_path: Path) -> None:
    """Goal: one story, not a file after the other. Method: two logs that interleave, one line without a time."""
    one, two = tmp_path / "one.log", tmp_path / "two.log"
    one.write_text('{"at": "2026-01-01T00:00:01Z"}\nTraceback\n{"at": "2026-01-01T00:00:04Z"}\n')
    two.write_text('{"at": "2026-01-01T00:00:02Z"}\n{"at": "2026-01-01T00:00:03Z"}\n')

    shown = [
        (file.stem, line[-4:-2] if line.startswith("{") else "ba")
        for file, line in logs._merged([one, two], 4)
    ]
    assert shown == [("one", "ba"), ("two", "2Z"), ("two", "3Z"), ("one", "4Z")]


def _stored(kind: str) -> dict[str, object]:
    return {"workload": ID, "attempt": 2, "kind": kind, "receipt": genuine()}


def test_an_event_is_a_readable_line() -> None:
    """Goal: reasons come last, numbers are named. Method: one of each."""
    report = Report(
        workload=ID, kind=EventKind.DONE, node="rome", attempt=2, fields={"exit_status": 0, "reason": "ok"}
    )
    assert line(report) == "done, attempt 2, on rome, exit_status 0: ok"


def test_new_identities_are_valid_and_differ() -> None:
    """Goal: ids as the manager wants them. Method: make some."""
    made = {submission.new_identity() for _ in range(50)}

    assert len(made) == 50
    assert all(check_identity(identity) for identity in made)


def test_a_missing_or_huge_job_file_is_a_sentence(tmp_path: Path) -> None:
    """Goal: bad files cost a sentence. Method: absent, a folder, a gigabyte of nothing (sparse)."""
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(2**30)
    for path in (tmp_path / "absent.yaml", tmp_path, huge):
        with pytest.raises(JobRefused):
            submission.read_file(path)


def test_range_results_are_json() -> None:
    """Goal: `ledger get --json` is one document. Method: encode a shown range."""
    from dwcp.cli.ledger_text import shown_result

    shown = shown_result(RangeDone(3, (KeyValue(b"a", b"1", 1, 2, 3),), 1, False))
    assert msgspec.json.decode(msgspec.json.encode(shown))["kvs"][0]["key"] == "a"
