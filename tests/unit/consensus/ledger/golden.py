"""Makes the golden files of the ledger's formats: `python -m tests.unit.consensus.ledger.golden`.

A file that changes means that nodes of two releases no longer understand each
other, or cannot read their own data: raise the format's version instead.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tests.unit.consensus.ledger.network import Network
from tests.unit.consensus.ledger.scene import ADMIN, GUEST, USER, Scene, authenticators, genesis_of

from dwcp.api import kv
from dwcp.consensus.crypto import codec
from dwcp.consensus.ledger import checkpoint, messages, operations
from dwcp.consensus.ledger.client import Completed
from dwcp.consensus.ledger.messages import Answer, Material, ReplicaFrame, Share
from dwcp.consensus.ledger.receipts import Receipt

GOLDEN = Path(__file__).parents[3] / "golden"

OPERATIONS: dict[str, kv.Operation] = {
    "put": kv.Put(b"key", b"value"),
    "range": kv.Range(b"a", b"b", 10, 7),
    "delete": kv.DeleteRange(b"a", b"\0"),
    "txn": kv.Txn(
        (
            kv.Compare(b"k", kv.Target.MOD, kv.Relation.EQUAL, 0),
            kv.Compare(b"k", kv.Target.VALUE, kv.Relation.NOT_EQUAL, b"v"),
        ),
        (kv.Put(b"k", b"v"), kv.Range(b"k")),
        (kv.DeleteRange(b"k"),),
    ),
    "compact": kv.Compact(9),
    "open_session": kv.OpenSession(60_000),
    "grant": kv.Grant(GUEST.public, "guest", (b"r/",), (b"w/",), False),
    "revoke": kv.Revoke(GUEST.public),
}
_KEY_VALUE = kv.KeyValue(b"k", b"v", 2, 3, 2)
RESULTS: dict[str, kv.Result] = {
    "put": kv.PutDone(5),
    "range": kv.RangeDone(5, (_KEY_VALUE,), 2, True),
    "delete": kv.DeleteDone(6, 2),
    "txn": kv.TxnDone(7, 1_700_000_000_000, True, (kv.PutDone(7), kv.RangeDone(7, (_KEY_VALUE,), 1, False))),
    "done": kv.Done(7),
    "failed": kv.Failed("too_large", "a value has at most 8 bytes"),
}
_TAGS = authenticators(4, USER, genesis_of().chain_id)
_BODY = operations.build(
    operations.Signed(USER.public, 7, 1, 1, 1, 3, tuple(map(codec.encode, OPERATIONS.values()))),
    chain_id=genesis_of().chain_id,
    signer=USER,
)
CLIENT_FRAMES: dict[str, messages.ClientFrame] = {
    "hello": messages.hello(
        chain_id=genesis_of().chain_id, client=USER.public, session=7, authenticator=_TAGS[0]
    ),
    "request": messages.Request(_BODY, operations.make_payload(_BODY, _TAGS).tags, messages.Replies.ALL),
    "query": messages.Query(3, codec.encode(kv.Range(b"k"))),
    "watch": messages.Watch(4, b"/w/", 12),
    "unwatch": messages.Unwatch(4),
    "status_request": messages.StatusRequest(),
}
_SHARE = Share(0, 9, b"h" * 32, b"s" * 64)
REPLICA_FRAMES: dict[str, ReplicaFrame] = {
    "welcome": messages.Welcome(1, genesis_of().chain_id, 2, 10, 11),
    "reply": messages.Reply(
        2,
        7,
        (Answer(1, 9, codec.encode(kv.PutDone(5))),),
        (_SHARE,),
        (Material(1, 9, 0, 1_700_000_000_000, 3, 5, b"p" * 32, (b"a" * 32,), (b"b" * 32, b"c" * 32)),),
    ),
    "query_reply": messages.QueryReply(3, 9, codec.encode(kv.Failed("compacted", "gone"))),
    "watch_events": messages.WatchEvents(
        4,
        12,
        (messages.WatchEvent(b"/w/1", b"v", 12), messages.WatchEvent(b"/w/2", None, 12)),
        False,
    ),
    "watch_progress": messages.WatchProgress(4, 12),
    "watch_closed": messages.WatchClosed(4, "compacted", "history begins at 8", 9),
    "status": messages.StatusReply(2, 0, 5, 0, 9, 12, True),
    "overloaded": messages.Overloaded(7, 1, 100),
    "refused": messages.Refused("wrong_chain", "another chain"),
}


def listing(entries: dict[str, bytes]) -> bytes:
    """Names and hex, a line each."""
    return "".join(f"{name} {data.hex()}\n" for name, data in entries.items()).encode()


def receipt() -> Receipt:
    """A receipt of the third operation of a bundle, by four replicas."""
    network = Network()
    session = network.session()
    network.deliver(session, session.flush(now_ms=0))
    for i in range(4):
        session.submit(kv.Put(b"k%d" % i, b"v"))
    session.flush(now_ms=0)
    sequence = session.submit(kv.Txn((), (kv.Put(b"k", b"v"),)), receipt=True)
    outcomes = network.deliver(session, session.flush(now_ms=0))
    found = {outcome.sequence: outcome for outcome in outcomes if isinstance(outcome, Completed)}
    made = found[sequence].receipt
    assert made is not None
    return made


def busy_scene() -> Scene:
    """A state with values, history, a deletion, sessions and a granted client."""
    scene = Scene(checkpoint_interval=1)
    scene.put(b"a", b"1")
    scene.put(b"a", b"2")
    scene.put(b"b", b"3")
    scene.run(kv.DeleteRange(b"b"))
    scene.run(kv.Grant(GUEST.public, "guest", (b"",), ()), key=ADMIN)
    return scene


@cache
def files() -> dict[str, bytes]:
    """Every golden file of the ledger, by path below `tests/golden`."""
    snapshot = busy_scene().ledger.snapshot()
    return {
        "ledger/genesis.json": genesis_of().encode(),
        "ledger/operations.txt": listing({n: codec.encode(each) for n, each in OPERATIONS.items()}),
        "ledger/results.txt": listing({n: codec.encode(each) for n, each in RESULTS.items()}),
        "ledger/client-frames.txt": listing({n: messages.encode(f) for n, f in CLIENT_FRAMES.items()}),
        "ledger/replica-frames.txt": listing({n: messages.encode(f) for n, f in REPLICA_FRAMES.items()}),
        "ledger/bundle.txt": listing({"body": _BODY, "digest": operations.payload_digest(_BODY)}),
        "receipt/receipt-v1.json": receipt().encode(),
        "receipt/genesis.json": genesis_of().encode(),
        "snapshot/snapshot-v1.bin": codec.encode((snapshot.root, snapshot.parts)),
        "snapshot/part-digest.txt": listing({"empty": checkpoint.part_digest(b"\x90")}),
    }


if __name__ == "__main__":
    for name, data in files().items():
        path = GOLDEN / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
