"""Frames of the client port: what clients and replicas say to each other.

A frame is one canonical record; the transport adds a u32 length and mutual TLS.
A connection belongs to one client session, proven by `Hello`: its tag is made
with the secret that only the client and this replica share, and TLS keeps it
from everyone else, so that replies go to nobody who merely claims a key.
"""

from __future__ import annotations

from enum import IntEnum

from dwcp.consensus.core.errors import MalformedFrame
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Codec, Record
from dwcp.consensus.crypto.mac import Authenticator

VERSION = 1
FRAME_BYTES_MAX = 8 * 1024 * 1024
_HELLO = b"dwcp/hello/v1\0"


class Replies(IntEnum):
    """Who is to reply to a request."""

    ASKED = 0  # the replicas that the bundle names
    ALL = 1  # whoever receives this frame, too: a retry


# --------------------------------------------------------------------------- from clients


class Hello(Record, frozen=True, tag=1):
    """First on every connection. `tag` is `hello_tag` under the shared secret."""

    version: int
    chain_id: bytes
    client: bytes
    session: int
    tag: bytes


class Request(Record, frozen=True, tag=2):
    """A bundle (`operations`). A replica that does not lead passes it on."""

    body: bytes
    tags: bytes
    replies: Replies = Replies.ASKED


class Query(Record, frozen=True, tag=3):
    """A read of one replica's executed state, possibly stale; `range` is an encoded `kv.Range`."""

    query: int
    range: bytes


class Watch(Record, frozen=True, tag=4):
    """Changes of keys under `prefix` from `from_revision` on; 0 means after the present."""

    watch: int
    prefix: bytes
    from_revision: int = 0


class Unwatch(Record, frozen=True, tag=5):
    watch: int


class StatusRequest(Record, frozen=True, tag=6):
    pass


ClientFrame = Hello | Request | Query | Watch | Unwatch | StatusRequest

# --------------------------------------------------------------------------- from replicas


class Welcome(Record, frozen=True, tag=16):
    """The answer to `Hello`."""

    version: int
    chain_id: bytes
    replica: int
    index: int
    revision: int


class Answer(Record, frozen=True):
    """One operation's result and the position where it was executed (once, whoever retries)."""

    sequence: int
    index: int
    result: bytes


class Share(Record, frozen=True):
    """A replica's ATTEST of one position: its signature over `attest.signed`."""

    epoch: int
    index: int
    history_digest: bytes
    signature: bytes


class Material(Record, frozen=True):
    """What a receipt of one operation needs besides shares: where it is in its batch."""

    sequence: int
    index: int
    epoch: int
    time_ms: int
    position: int
    count: int
    previous_history: bytes
    operation_path: tuple[bytes, ...]
    result_path: tuple[bytes, ...]


class Reply(Record, frozen=True, tag=17):
    """From final state only. `shares` cover the answers' positions, `materials` where asked for.

    A repeated answer whose share its replica no longer holds comes without it.
    """

    replica: int
    session: int
    answers: tuple[Answer, ...]
    shares: tuple[Share, ...]
    materials: tuple[Material, ...] = ()


class QueryReply(Record, frozen=True, tag=18):
    """`result` is an encoded `kv.RangeDone` or `kv.Failed` at position `index`."""

    query: int
    index: int
    result: bytes


class WatchEvent(Record, frozen=True):
    """`value` is None where the key was deleted."""

    key: bytes
    value: bytes | None
    mod_revision: int


class WatchEvents(Record, frozen=True, tag=19):
    """Every change of one revision under the prefix. `complete` is False where more of it follows."""

    watch: int
    revision: int
    events: tuple[WatchEvent, ...]
    complete: bool = True


class WatchProgress(Record, frozen=True, tag=20):
    """Everything up to and including `revision` has been sent."""

    watch: int
    revision: int


class WatchClosed(Record, frozen=True, tag=21):
    """The watch has ended; `code` is one of `WATCH_CLOSED`. Resume from `resume_revision`."""

    watch: int
    code: str
    detail: str
    resume_revision: int


WATCH_CLOSED = {
    "compacted": "the revision is gone: read the range, then watch from the revision after it",
    "slow": "the client did not keep up: watch again from the given revision",
    "permission_denied": "this client's grants do not cover the prefix: ask an administrator for a grant",
    "too_many": "this connection has as many watches as it may have: close one",
}


class StatusReply(Record, frozen=True, tag=22):
    replica: int
    epoch: int
    view: int
    leader: int
    index: int
    revision: int
    voting: bool


class Overloaded(Record, frozen=True, tag=23):
    """The bundle was not taken; try again later."""

    session: int
    first_sequence: int
    retry_after_ms: int


class Refused(Record, frozen=True, tag=24):
    """The frame was refused; `code` is one of `REFUSALS`."""

    code: str
    detail: str


REFUSALS = {
    "version": "this replica speaks another version: upgrade the older side",
    "wrong_chain": "this replica belongs to another chain: check the genesis file",
    "unauthenticated": "say Hello with a registered key first",
    "malformed": "the frame could not be decoded",
    "bundle": "the bundle cannot be ordered",
    "not_ready": "this replica is still catching up: ask another one",
}

ReplicaFrame = (
    Welcome
    | Reply
    | QueryReply
    | WatchEvents
    | WatchProgress
    | WatchClosed
    | StatusReply
    | Overloaded
    | Refused
)

_CLIENT: Codec[ClientFrame] = Codec(ClientFrame)
_REPLICA: Codec[ReplicaFrame] = Codec(ReplicaFrame)


def encode(frame: ClientFrame | ReplicaFrame) -> bytes:
    return codec.encode(frame)


def decode_client(data: bytes) -> ClientFrame:
    """What a client sent; raises `MalformedFrame`."""
    _bounded(data)
    return _CLIENT.decode(data)


def decode_replica(data: bytes) -> ReplicaFrame:
    """What a replica sent; raises `MalformedFrame`."""
    _bounded(data)
    return _REPLICA.decode(data)


def _bounded(data: bytes) -> None:
    if len(data) > FRAME_BYTES_MAX:
        raise MalformedFrame(f"a frame holds at most {FRAME_BYTES_MAX} bytes, got {len(data)}")


def hello(*, chain_id: bytes, client: bytes, session: int, authenticator: Authenticator) -> Hello:
    """The greeting to the replica that shares `authenticator`'s secret."""
    tag = authenticator.tag(_hello_text(chain_id, client, session))
    return Hello(VERSION, chain_id, client, session, tag)


def hello_holds(greeting: Hello, authenticator: Authenticator) -> bool:
    """Whether the greeting was made by the client it names, for this replica."""
    if not 0 <= greeting.session < 2**63:
        return False
    text = _hello_text(greeting.chain_id, greeting.client, greeting.session)
    return authenticator.accepts(text, greeting.tag)


def _hello_text(chain_id: bytes, client: bytes, session: int) -> bytes:
    return _HELLO + chain_id + client + session.to_bytes(8, "big")
