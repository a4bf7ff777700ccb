"""A small chain for tests: four replicas, three clients, and the shortest way to run operations on it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from dwcp.api import kv
from dwcp.consensus.core.machine import Commit, Payload
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.codec import Codec
from dwcp.consensus.crypto.mac import Authenticator, shared_secret
from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.consensus.ledger import operations
from dwcp.consensus.ledger.genesis import Genesis, GenesisClient, GenesisReplica, Params
from dwcp.consensus.ledger.ledger import Executed, Ledger
from dwcp.consensus.ledger.operations import Flags, Signed

REPLICA_KEYS = tuple(SigningKey.from_seed(bytes([i + 1]) * 32) for i in range(7))
ADMIN = SigningKey.from_seed(b"a" * 32)
USER = SigningKey.from_seed(b"u" * 32)
GUEST = SigningKey.from_seed(b"g" * 32)  # may read and write under guest/ only
STRANGER = SigningKey.from_seed(b"s" * 32)
RESULT: Codec[kv.Result] = Codec(kv.Result)


def genesis_of(n: int = 4, **params: int) -> Genesis:
    """A valid genesis; `params` replace defaults."""
    return Genesis(
        name="scene",
        replicas=tuple(
            GenesisReplica(
                id=i,
                name=f"probft-{i + 1}",
                site="hub",
                host=f"127.0.1.{i + 1}",
                peer_port=9000,
                client_port=9001,
                http_port=8080,
                public_key=REPLICA_KEYS[i].public.hex(),
                tls_sha256=bytes([i + 1]).hex() * 32,
            )
            for i in range(n)
        ),
        clients=(
            GenesisClient("admin", ADMIN.public.hex(), read=("",), write=("",), admin=True),
            GenesisClient("user", USER.public.hex(), read=("",), write=("",)),
            GenesisClient("guest", GUEST.public.hex(), read=("guest/",), write=("guest/",)),
        ),
        authority_sha256="ab" * 32,
        nonce="cd" * 32,
        params=Params(**{"checkpoint_interval": 128, "window": 256, **params}),
    )


@cache
def authenticators(n: int, client: SigningKey, chain_id: bytes) -> tuple[Authenticator, ...]:
    return tuple(Authenticator(shared_secret(client, REPLICA_KEYS[i].public, chain_id)) for i in range(n))


class Scene:
    """One ledger fed by hand: every call of `run` is one batch, a second of committed time apart."""

    def __init__(self, **params: int) -> None:
        self.genesis = genesis_of(**params)
        self.ledger = Ledger(self.genesis)
        self.commits: list[Commit] = []
        self.next: dict[tuple[bytes, int], int] = {}

    def payload(
        self,
        ops: Sequence[kv.Operation],
        *,
        first: int,
        key: SigningKey = USER,
        session: int = 1,
        floor: int = 0,
        receipt: bool = False,
    ) -> Payload:
        flags = Flags.RECEIPT if receipt else Flags.NONE
        packed = tuple(codec.encode(op) for op in ops)
        signed = Signed(key.public, session, first, floor, flags, 0, packed)
        body = operations.build(signed, chain_id=self.genesis.chain_id, signer=key)
        return operations.make_payload(body, ())

    def commit(self, *payloads: Payload, step_ms: int = 1000) -> Executed:
        """Execute one batch."""
        commit = Commit(self.ledger.index + 1, 0, self.ledger.time_ms + step_ms, payloads)
        self.commits.append(commit)
        return self.ledger.apply(commit)

    def open(self, key: SigningKey = USER, session: int = 1, ttl_ms: int = 86_400_000) -> kv.Result:
        opening = self.payload([kv.OpenSession(ttl_ms)], first=0, key=key, session=session)
        self.next[key.public, session] = 1
        return results(self.commit(opening))[0]

    def run(self, *ops: kv.Operation, key: SigningKey = USER, session: int = 1) -> kv.Result:
        """Execute operations in one batch, in a session opened when needed; the last one's result."""
        if (key.public, session) not in self.next:
            assert isinstance(self.open(key, session), kv.Done)
        first = self.next[key.public, session]
        self.next[key.public, session] = first + len(ops)
        return results(self.commit(self.payload(ops, first=first, key=key, session=session)))[-1]

    def put(self, key: bytes, value: bytes) -> int:
        done = self.run(kv.Put(key, value))
        assert isinstance(done, kv.PutDone)
        return done.revision

    def get(self, key: bytes, revision: int = 0) -> bytes | None:
        found = self.run(kv.Range(key, revision=revision))
        assert isinstance(found, kv.RangeDone), found
        return found.kvs[0].value if found.kvs else None


def results(executed: Executed) -> list[kv.Result]:
    """Every result of a batch, in order."""
    return [RESULT.decode(answer.result) for outcome in executed.outcomes for answer in outcome.answers]


def failure(result: kv.Result) -> str:
    """The code of a refusal; "" for success."""
    return result.code if isinstance(result, kv.Failed) else ""
