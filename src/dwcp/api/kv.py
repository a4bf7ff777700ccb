"""The key-value application's operations and answers: what clients send and replicas agree on.

These shapes are part of the formats: they are hashed into receipts. Semantics
follow `etcd` where both have the same thing. Keys and values are bytes.
"""

from __future__ import annotations

from enum import IntEnum

from dwcp.consensus.crypto.codec import Record


class Target(IntEnum):
    """What a comparison looks at. An absent key has value b"" and all numbers 0."""

    VALUE = 0
    VERSION = 1  # number of writes since the key was created
    CREATE = 2  # revision that created the key
    MOD = 3  # revision of its last write; 0 means "does not exist"
    TIME = 4  # committed time of the batch, ms; the key is ignored


class Relation(IntEnum):
    EQUAL = 0
    NOT_EQUAL = 1
    LESS = 2
    GREATER = 3
    LESS_EQUAL = 4
    GREATER_EQUAL = 5


class Compare(Record, frozen=True):
    """One guard of a transaction; `operand` is bytes for VALUE, an integer otherwise."""

    key: bytes
    target: Target
    relation: Relation
    operand: bytes | int


class Put(Record, frozen=True, tag=1):
    key: bytes
    value: bytes


class Range(Record, frozen=True, tag=2):
    """Keys in [key, end); end b"" means the single key, end b"\\0" everything from key on.

    `revision` 0 reads the present; an older one reads history (`Compacted` if gone).
    """

    key: bytes
    end: bytes = b""
    limit: int = 0
    revision: int = 0


class DeleteRange(Record, frozen=True, tag=3):
    key: bytes
    end: bytes = b""


class Txn(Record, frozen=True, tag=4):
    """All guards hold: `success` is applied, else `failure`; atomically, in one revision."""

    compare: tuple[Compare, ...] = ()
    success: tuple[Put | Range | DeleteRange, ...] = ()
    failure: tuple[Put | Range | DeleteRange, ...] = ()


class Compact(Record, frozen=True, tag=5):
    """Forget history below `revision`."""

    revision: int


class OpenSession(Record, frozen=True, tag=6):
    """Makes the bundle's session known; its sequence numbers start at 1."""

    ttl_ms: int = 86_400_000


class Grant(Record, frozen=True, tag=7):
    """Lets `client` (public key) read and write under `prefixes`; needs an administrator's key."""

    client: bytes
    name: str
    read: tuple[bytes, ...]
    write: tuple[bytes, ...]
    admin: bool = False


class Revoke(Record, frozen=True, tag=8):
    client: bytes


Operation = Put | Range | DeleteRange | Txn | Compact | OpenSession | Grant | Revoke

# --------------------------------------------------------------------------- answers


class KeyValue(Record, frozen=True):
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int


class PutDone(Record, frozen=True, tag=1):
    revision: int


class RangeDone(Record, frozen=True, tag=2):
    """`count` is the number of keys in the range, `more` whether `limit` cut it."""

    revision: int
    kvs: tuple[KeyValue, ...]
    count: int
    more: bool


class DeleteDone(Record, frozen=True, tag=3):
    revision: int
    deleted: int


class TxnDone(Record, frozen=True, tag=4):
    """`revision` after the transaction; `time_ms` the committed time of its batch."""

    revision: int
    time_ms: int
    succeeded: bool
    results: tuple[PutDone | RangeDone | DeleteDone, ...]


class Done(Record, frozen=True, tag=5):
    """The answer of Compact, OpenSession, Grant and Revoke."""

    revision: int


class Failed(Record, frozen=True, tag=6):
    """The operation was refused and changed nothing. `code` is one of `FAILURES`."""

    code: str
    detail: str


FAILURES = {
    "expired": "the session is unknown or expired, or the sequence is below its window: open a new session",
    "compacted": "that revision is gone: read from a newer one",
    "future_revision": "that revision has not happened yet",
    "too_large": "the request is over a limit: make it smaller",
    "no_space": "the store is at its quota: delete or compact, deletes are still allowed",
    "permission_denied": "this client's grants do not cover the key: ask an administrator for a grant",
    "duplicate_key": "a transaction branch writes one key twice: merge the writes",
    "malformed": "the operation could not be decoded",
}

Result = PutDone | RangeDone | DeleteDone | TxnDone | Done | Failed
