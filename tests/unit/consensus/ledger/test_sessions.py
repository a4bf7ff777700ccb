"""Sessions: exactly once, whoever retries, whatever order bundles arrive in."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.consensus.ledger.scene import ADMIN, STRANGER, USER, Scene, failure, results

from dwcp.api import kv
from dwcp.consensus.ledger.ledger import Ledger
from dwcp.consensus.ledger.operations import decode
from dwcp.consensus.ledger.sessions import WINDOW


def test_a_repeated_bundle_is_answered_from_memory() -> None:
    """Goal: no operation is executed twice.

    Method: the same payload in one batch, in a later one, and split.
    """
    scene = Scene()
    scene.open()
    payload = scene.payload([kv.Put(b"k", b"1"), kv.Put(b"k", b"2")], first=1)
    first = scene.commit(payload, payload)
    again = scene.commit(payload)
    half = scene.commit(scene.payload([kv.Put(b"k", b"2")], first=2))

    assert scene.ledger.revision == 3
    assert first.outcomes[0].answers == first.outcomes[1].answers == again.outcomes[0].answers
    assert half.outcomes[0].answers == first.outcomes[0].answers[1:]
    assert {answer.index for answer in again.outcomes[0].answers} == {first.index}
    assert first.results_root != again.results_root


@settings(deadline=None, max_examples=40)
@given(order=st.permutations(list(range(1, 41))), repeats=st.lists(st.integers(1, 40), max_size=40))
def test_any_order_inside_the_window_executes_each_once(order: list[int], repeats: list[int]) -> None:
    """Goal: bundles may overtake each other.

    Method: permutations with repeats; each put of a key of its own.
    """
    scene = Scene()
    scene.open()
    for sequence in [*order, *repeats]:
        executed = scene.commit(scene.payload([kv.Put(b"k%d" % sequence, b"")], first=sequence))
        assert not failure(results(executed)[0])

    assert scene.ledger.revision == 41


def test_below_the_window_is_expired_and_not_executed() -> None:
    """Goal: a sequence that may have been forgotten is never run again. Method: jump ahead, then go back."""
    scene = Scene()
    scene.open()
    scene.commit(scene.payload([kv.Put(b"k", b"")], first=WINDOW + 10))
    late = scene.commit(scene.payload([kv.Put(b"k", b""), kv.Put(b"k", b"")], first=10))
    at_the_edge = scene.commit(scene.payload([kv.Put(b"k", b"")], first=12))

    assert [failure(result) for result in results(late)] == ["expired", ""]
    assert not failure(results(at_the_edge)[0])
    assert scene.ledger.revision == 4
    huge = scene.commit(scene.payload([kv.Put(b"k", b"")], first=2**62))
    assert not failure(results(huge)[0])


def test_what_a_client_gave_up_never_follows_what_it_did_next() -> None:
    """Goal: an operation given up happens before the client's next one, or never.

    Method: order the later bundle first; its floor stands above the earlier one.
    """
    scene = Scene()
    scene.open()
    given_up = scene.payload([kv.Put(b"k", b"old")], first=1)
    scene.commit(scene.payload([kv.Put(b"k", b"new")], first=2, floor=2))
    late = scene.commit(given_up)

    assert failure(results(late)[0]) == "expired"
    scene.next[USER.public, 1] = 3
    assert scene.get(b"k") == b"new"


def test_answers_below_the_floor_are_not_kept() -> None:
    """Goal: a session holds what its client may still ask for, restored or not. Method: its record."""
    scene = Scene(checkpoint_interval=1)
    scene.open()
    first = scene.payload([kv.Put(b"k", b"")] * 5, first=1)
    scene.commit(first)
    scene.commit(scene.payload([kv.Put(b"k", b"")], first=6, floor=4))
    snapshot = scene.ledger.snapshot()
    restored = Ledger(scene.genesis)
    restored.install(snapshot.parts, snapshot.root)

    for ledger in (scene.ledger, restored):
        session = ledger._sessions.find(USER.public, 1)
        assert session is not None
        assert session.low == 4
        assert sorted(session.answers) == [4, 5, 6]
        assert ledger.forgotten(decode(first.body or b"", scene.genesis.params)) is False


def test_unknown_sessions_and_clients() -> None:
    """Goal: nothing runs without a session, and nothing for a stranger. Method: try both."""
    scene = Scene()
    without = scene.commit(scene.payload([kv.Put(b"k", b"")], first=1))
    stranger = scene.commit(scene.payload([kv.OpenSession()], first=0, key=STRANGER))

    assert failure(results(without)[0]) == "expired"
    assert failure(results(stranger)[0]) == "permission_denied"
    assert scene.ledger.revision == 1


def test_opening_and_using_a_session_in_one_bundle() -> None:
    """Goal: a first request needs no extra round. Method: OpenSession and a put together."""
    scene = Scene()
    executed = scene.commit(scene.payload([kv.OpenSession(), kv.Put(b"k", b"v")], first=0))

    assert [failure(result) for result in results(executed)] == ["", ""]
    assert scene.ledger.revision == 2


def test_sessions_expire_by_committed_time_only() -> None:
    """Goal: expiry is a function of the log. Method: stay inside the ttl by use, then let it pass."""
    scene = Scene()
    scene.open(ttl_ms=5000)
    for first in (1, 2, 3):
        executed = scene.commit(scene.payload([kv.Put(b"k", b"")], first=first), step_ms=4900)
        assert not failure(results(executed)[0])
    assert scene.ledger.open_sessions == 1
    executed = scene.commit(scene.payload([kv.Put(b"k", b"")], first=4), step_ms=5001)

    assert failure(results(executed)[0]) == "expired"
    assert scene.ledger.open_sessions == 0


def test_a_session_number_never_comes_back() -> None:
    """Goal: whoever replays the bundles of an expired session changes nothing. Method: replay all of them."""
    scene = Scene()
    opening = scene.payload([kv.OpenSession(1000), kv.Put(b"k", b"")], first=0)
    scene.commit(opening)
    scene.open(session=2)
    scene.commit(scene.payload([kv.Put(b"k", b"")], first=1, session=2), step_ms=2000)
    revision = scene.ledger.revision
    replay = scene.commit(opening)

    assert [failure(result) for result in results(replay)] == ["expired", "expired"]
    assert scene.ledger.revision == revision
    assert failure(scene.open(session=1)) == "expired"
    assert not failure(scene.open(session=3))


def test_too_many_sessions_close_the_least_recently_used() -> None:
    """Goal: a client cannot fill memory with sessions. Method: one over the limit; the oldest one goes."""
    scene = Scene(sessions_per_client_max=2)
    for session in (1, 2):
        scene.open(session=session)
    assert not failure(scene.run(kv.Put(b"k", b""), session=1))
    scene.open(session=3)

    assert failure(scene.run(kv.Put(b"k", b""), session=2)) == "expired"
    assert not failure(scene.run(kv.Put(b"k", b""), session=1))
    assert scene.ledger.open_sessions == 2
    scene.open(ADMIN, session=1)
    assert scene.ledger.open_sessions == 3


def test_large_answers_are_not_kept() -> None:
    """Goal: bounded replies in memory.

    Method: a large read runs again, a large transaction's answer is gone.
    """
    scene = Scene(reply_cache_bytes_max=100)
    scene.run(kv.Put(b"k", bytes(200)))
    read = scene.payload([kv.Range(b"k")], first=2)
    write = scene.payload([kv.Txn((), (kv.Put(b"j", b""), kv.Range(b"k")))], first=3)
    first, second = scene.commit(read), scene.commit(write)
    scene.next[USER.public, 1] = 4
    scene.run(kv.Put(b"k", bytes(201)))
    read_again, write_again = scene.commit(read), scene.commit(write)

    assert isinstance(results(first)[0], kv.RangeDone)
    assert isinstance(results(second)[0], kv.TxnDone)
    assert results(read_again)[0].kvs[0].value == bytes(201)  # type: ignore[union-attr]
    assert failure(results(write_again)[0]) == "expired"
    assert scene.ledger.revision == 4


def test_open_session_has_its_place_and_limits() -> None:
    """Goal: a malformed opening changes nothing. Method: wrong sequence, wrong ttl."""
    scene = Scene()
    scene.open()
    late = scene.commit(scene.payload([kv.OpenSession()], first=1))
    endless = scene.commit(scene.payload([kv.OpenSession(10**15)], first=0, session=2))
    never = scene.commit(scene.payload([kv.OpenSession(0)], first=0, session=2))

    assert [failure(results(each)[0]) for each in (late, endless, never)] == [
        "malformed",
        "too_large",
        "too_large",
    ]
