"""Execution: history, batches, the registry of clients, and refusals that all replicas share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.consensus.ledger.scene import (
    ADMIN,
    GUEST,
    STRANGER,
    USER,
    Scene,
    failure,
    genesis_of,
    results,
)

from dwcp.api import kv
from dwcp.consensus.core.errors import InvariantBroken
from dwcp.consensus.core.machine import Commit, Payload
from dwcp.consensus.crypto import codec, merkle
from dwcp.consensus.crypto.hashes import Domain
from dwcp.consensus.ledger import attest
from dwcp.consensus.ledger.ledger import Compacted, Ledger, operation_leaf, result_leaf
from dwcp.consensus.ledger.operations import Signed, build, payload_digest


def test_history_commits_to_every_operation_and_result() -> None:
    """Goal: the digest chain is what receipts assume. Method: recompute one step from its parts."""
    scene = Scene()
    scene.open()
    ops: list[kv.Operation] = [kv.Put(b"a", b"1"), kv.Put(b"b", b"2"), kv.Range(b"a")]
    executed = scene.commit(scene.payload(ops, first=1))
    operations = [
        operation_leaf(client=USER.public, session=1, sequence=1 + i, operation=codec.encode(op))
        for i, op in enumerate(ops)
    ]
    answers = [result_leaf(answer.result) for answer in executed.outcomes[0].answers]

    assert executed.batch_digest == merkle.bound_root(Domain.BATCH, operations)
    assert executed.results_root == merkle.bound_root(Domain.RESULT, answers)
    assert executed.history_digest == scene.ledger.history_digest
    assert executed.history_digest == attest.extend_history(
        executed.previous_history,
        batch_digest=executed.batch_digest,
        results_root=executed.results_root,
        time_ms=executed.time_ms,
    )


def test_null_batches_move_the_history_and_nothing_else() -> None:
    """Goal: gaps filled by a view change are no-ops.

    Method: a null batch between two puts, with a time of 0.
    """
    scene = Scene()
    scene.put(b"k", b"1")
    before = (scene.ledger.revision, scene.ledger.time_ms, scene.ledger.history_digest)
    executed = scene.ledger.apply(Commit(scene.ledger.index + 1, 0, 0, ()))

    assert (scene.ledger.revision, scene.ledger.time_ms) == before[:2]
    assert executed.history_digest != before[2]
    assert executed.outcomes == ()
    scene.put(b"k", b"2")


def test_positions_must_be_contiguous_final_and_forward_in_time() -> None:
    """Goal: a broken engine stops the process instead of forking the state. Method: break each promise."""
    scene = Scene()
    scene.open()
    index, time_ms = scene.ledger.index, scene.ledger.time_ms
    payload = scene.payload([kv.Put(b"k", b"")], first=1)
    for commit in (
        Commit(index, 0, time_ms + 1, ()),
        Commit(index + 2, 0, time_ms + 1, ()),
        Commit(index + 1, 0, time_ms + 1, (), final=False),
    ):
        with pytest.raises(InvariantBroken):
            scene.ledger.apply(commit)
    assert scene.ledger.index == index
    with pytest.raises(InvariantBroken):
        scene.ledger.apply(Commit(index + 1, 0, time_ms, (payload,)))


def test_malformed_payloads_take_a_position_and_do_nothing() -> None:
    """Goal: bytes that should never have been ordered cannot stop a replica.

    Method: junk between two bundles.
    """
    scene = Scene()
    scene.open()
    junk = Payload(payload_digest(b"junk"), b"junk")
    executed = scene.commit(
        scene.payload([kv.Put(b"a", b"")], first=1), junk, scene.payload([kv.Put(b"b", b"")], first=2)
    )

    assert scene.ledger.revision == 3
    assert len(executed.outcomes) == 2


def test_malformed_operations_fail_alone() -> None:
    """Goal: one bad operation does not hide its neighbours. Method: junk inside a signed bundle."""
    scene = Scene()
    scene.open()
    packed = (codec.encode(kv.Put(b"a", b"")), b"\xc1", b"", codec.encode(kv.Put(b"b", b"")))
    body = build(Signed(USER.public, 1, 1, 0, 0, 0, packed), chain_id=scene.genesis.chain_id, signer=USER)
    executed = scene.commit(Payload(payload_digest(body), body))

    assert [failure(each) for each in results(executed)] == ["", "malformed", "malformed", ""]


def test_oversized_operations_are_refused_when_applied() -> None:
    """Goal: what admission refuses, execution refuses again. Method: an operation over request_bytes_max."""
    scene = Scene(value_bytes_max=100, request_bytes_max=200)
    scene.open()
    executed = scene.commit(scene.payload([kv.Range(bytes(300))], first=1))

    assert failure(results(executed)[0]) == "too_large"


def test_time_guards_see_committed_time() -> None:
    """Goal: leases are fenced by the log's clock. Method: a guard on TIME before and after it passes."""
    scene = Scene()
    scene.open()
    deadline = scene.ledger.time_ms + 1500
    guard = kv.Txn((kv.Compare(b"", kv.Target.TIME, kv.Relation.GREATER, deadline),), (kv.Put(b"k", b""),))
    early, late = scene.run(guard), scene.run(guard)

    assert isinstance(early, kv.TxnDone)
    assert isinstance(late, kv.TxnDone)
    assert (early.succeeded, late.succeeded) == (False, True)
    assert early.time_ms < deadline < late.time_ms == scene.ledger.time_ms


def test_grants_are_checked_and_changed_through_the_log() -> None:
    """Goal: clients come and go by ledger entries only an administrator makes.

    Method: the life of a client.
    """
    scene = Scene()
    grant = kv.Grant(STRANGER.public, "stranger", (b"s/",), (b"s/",))
    assert failure(scene.run(grant)) == "permission_denied"
    assert failure(scene.run(kv.Revoke(GUEST.public))) == "permission_denied"
    assert failure(scene.run(kv.Compact(1))) == "permission_denied"

    assert not failure(scene.run(grant, key=ADMIN))
    assert scene.ledger.knows(STRANGER.public)
    assert not failure(scene.run(kv.Put(b"s/1", b""), key=STRANGER))
    assert failure(scene.run(kv.Put(b"t/1", b""), key=STRANGER)) == "permission_denied"
    assert not failure(scene.run(kv.Revoke(STRANGER.public), key=ADMIN))
    assert not scene.ledger.knows(STRANGER.public)
    assert failure(scene.run(kv.Put(b"s/2", b""), key=STRANGER)) == "permission_denied"

    assert not failure(scene.run(grant, key=ADMIN))
    assert failure(scene.run(kv.Put(b"s/2", b""), key=STRANGER)) == "expired"
    assert failure(scene.open(STRANGER, session=1)) == "expired"
    assert not failure(scene.open(STRANGER, session=2))


def test_grants_that_would_lock_everybody_out_are_refused() -> None:
    """Goal: there is always an administrator, and every key is sound. Method: try to get rid of the last."""
    scene = Scene(clients_max=4)
    demote = kv.Grant(ADMIN.public, "admin", (b"",), (b"",))
    assert failure(scene.run(kv.Revoke(ADMIN.public), key=ADMIN)) == "permission_denied"
    assert failure(scene.run(demote, key=ADMIN)) == "permission_denied"
    assert failure(scene.run(kv.Grant(bytes(32), "zero", (), ()), key=ADMIN)) == "malformed"
    assert failure(scene.run(kv.Revoke(STRANGER.public), key=ADMIN)) == "permission_denied"
    assert not failure(scene.run(kv.Grant(STRANGER.public, "s", (), (), admin=True), key=ADMIN))
    assert not failure(scene.run(kv.Revoke(ADMIN.public), key=STRANGER))
    other = kv.Grant(bytes.fromhex(scene.genesis.replicas[0].public_key), "r", (), ())
    assert failure(scene.run(other, key=STRANGER)) == "no_space"


def test_a_client_that_revokes_itself_does_nothing_more_in_the_same_bundle() -> None:
    """Goal: grants are those of the moment. Method: revoke and put in one bundle."""
    scene = Scene()
    scene.run(kv.Grant(STRANGER.public, "s", (b"",), (b"",), admin=True), key=ADMIN)
    assert failure(scene.run(kv.Revoke(STRANGER.public), kv.Put(b"k", b""), key=STRANGER)) != ""
    assert scene.ledger.revision == 1


def test_stale_queries_answer_from_executed_state_under_grants() -> None:
    """Goal: reads of one replica without ordering. Method: read, read outside the grant, junk, a stranger."""
    scene = Scene()
    scene.put(b"guest/k", b"v")

    def code(client: bytes, data: bytes) -> str:
        return failure(codec.Codec(kv.Result).decode(scene.ledger.query(client, data)))

    assert code(GUEST.public, codec.encode(kv.Range(b"guest/k"))) == ""
    assert code(GUEST.public, codec.encode(kv.Range(b"other"))) == "permission_denied"
    assert code(GUEST.public, b"junk") == "malformed"
    assert code(STRANGER.public, codec.encode(kv.Range(b"guest/k"))) == "permission_denied"


def test_a_batch_can_look_at_and_answer_a_bounded_amount() -> None:
    """Goal: no batch stalls replicas or fills memory, and a bundle's answers fit a frame.

    Method: many large reads.
    """
    scene = Scene(range_keys_max=50, range_bytes_max=1_600_000)
    scene.open()
    for i in range(40):
        scene.put(b"k%d" % i, bytes(10_000))
    whole = kv.Range(b"k", b"l")
    first = scene.next[USER.public, 1]
    several = scene.commit(scene.payload([whole] * 5, first=first))
    many = scene.commit(*[scene.payload([whole], first=first + 5 + i) for i in range(8)])

    assert [failure(each) for each in results(several)] == ["", "", "", "too_large", "too_large"]
    assert [failure(each) for each in results(many)] == [""] * 5 + ["too_large"] * 3
    later = scene.commit(scene.payload([whole], first=first + 13))
    assert not failure(results(later)[0])


def test_stale_queries_do_not_touch_what_batches_may_do() -> None:
    """Goal: local reads never make replicas differ. Method: one of two replicas is queried all the time."""
    quiet, busy = Scene(range_keys_max=4), Scene(range_keys_max=4)
    for scene in (quiet, busy):
        for i in range(4):
            scene.put(b"k%d" % i, b"")
        scene.open(session=2)
    for first in range(1, 6):
        for scene in (quiet, busy):
            payloads = [
                scene.payload([kv.Range(b"k", b"l")] * 3, first=first * 6 + 3 * i, session=2) for i in (0, 1)
            ]
            scene.commit(*payloads)
        busy.ledger.query(USER.public, codec.encode(kv.Range(b"k", b"l")))

    assert busy.ledger.history_digest == quiet.ledger.history_digest


def test_answered_knows_whole_bundles_only() -> None:
    """Goal: a retry is answered from memory, anything new is ordered.

    Method: a known, a partial, an unknown one.
    """
    scene = Scene()
    scene.open()
    payload = scene.payload([kv.Put(b"a", b""), kv.Put(b"b", b"")], first=1)
    bundle = scene.commit(payload).outcomes[0].bundle
    longer = scene.commit(scene.payload([kv.Put(b"x", b"")], first=9)).outcomes[0].bundle

    assert [answer.sequence for answer in scene.ledger.answered(bundle) or ()] == [1, 2]
    assert scene.ledger.answered(longer) is not None
    fresh = Ledger(scene.genesis)
    assert fresh.answered(bundle) is None


def test_history_below_compaction_is_refused() -> None:
    """Goal: a follower learns that it missed something. Method: changes before and after the floor."""
    scene = Scene(history_revisions_kept=3)
    for i in range(10):
        scene.put(b"k", b"%d" % i)

    assert scene.ledger.compacted == 8
    assert [change.revision for change in scene.ledger.changes(8)] == [9, 10, 11]
    with pytest.raises(Compacted, match="history begins at revision 8"):
        list(scene.ledger.changes(7))


_DIGESTS = """
from tests.unit.consensus.ledger.test_ledger import digests
print(digests())
"""


def digests() -> str:
    """History digests and state roots of a busy hour: many keys, sessions, grants, deletions."""
    scene = Scene(checkpoint_interval=5, history_revisions_kept=20, sessions_per_client_max=3)
    out = []
    for i in range(60):
        key = (USER, ADMIN, GUEST)[i % 3]
        session = 1 + i // 12
        prefix = b"guest/" if key is GUEST else b"x/"
        scene.run(
            kv.Put(prefix + b"%d" % (i % 17), os.fsencode(str(i))),
            kv.Txn((), (kv.DeleteRange(prefix, prefix + b"2"), kv.Put(prefix + b"9", b""))),
            key=key,
            session=session,
        )
        if i % 20 == 0:
            scene.run(kv.Grant(STRANGER.public, str(i), (b"", b"a"), (b"b",)), key=ADMIN, session=session)
        out.append(scene.ledger.history_digest.hex())
        out.append(scene.ledger.snapshot().root.hex())
    return codec.encode(out).hex()[-400:]


def test_same_digests_under_every_hash_seed() -> None:
    """Goal: no set or hash order reaches the state. Method: two processes with different PYTHONHASHSEED."""
    root = Path(__file__).parents[4]
    found = set()
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{root / 'src'}:{root}", "PATH": os.defpath}
        done = subprocess.run(
            [sys.executable, "-c", _DIGESTS],
            env=environment,
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)

    assert len(found) == 1
    assert found == {digests() + "\n"}


def test_genesis_state() -> None:
    """Goal: all replicas begin alike, and two chains differ. Method: compare fresh ledgers."""
    one, same, other = Ledger(genesis_of()), Ledger(genesis_of()), Ledger(genesis_of(window=512))

    assert (one.index, one.revision, one.time_ms) == (0, 1, 0)
    assert one.snapshot().root == same.snapshot().root
    assert one.snapshot().root != other.snapshot().root
