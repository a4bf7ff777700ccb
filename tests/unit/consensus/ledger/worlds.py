"""A ledger with contents, made by real signed bundles."""

from __future__ import annotations

import hashlib

from dwcp.api import kv
from dwcp.consensus.core.machine import Commit
from dwcp.consensus.crypto import codec
from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.consensus.ledger.genesis import Genesis, GenesisClient, GenesisReplica, Params
from dwcp.consensus.ledger.ledger import Ledger
from dwcp.consensus.ledger.operations import Signed, build, make_payload

CLIENT = SigningKey.from_seed(b"c" * 32)


def genesis_of(n: int = 4, **params: int) -> Genesis:
    """A valid genesis with deterministic keys and one administrator."""
    replicas = tuple(
        GenesisReplica(
            id=i,
            name=f"probft-{i + 1}",
            site=f"site-{i}",
            host=f"127.0.1.{i + 1}",
            peer_port=9000,
            client_port=9001,
            http_port=8080,
            public_key=SigningKey.from_seed(bytes([i + 1]) * 32).public.hex(),
            tls_sha256=hashlib.sha256(bytes([i])).hexdigest(),
        )
        for i in range(n)
    )
    client = GenesisClient("admin", CLIENT.public.hex(), read=("",), write=("",), admin=True)
    genesis = Genesis(
        name="test",
        replicas=replicas,
        clients=(client,),
        authority_sha256="00" * 32,
        nonce="11" * 32,
        params=Params(**{"checkpoint_interval": 128, "window": 256, **params}),
    )
    genesis.validate()
    return genesis


def ledger_with(*, keys: int) -> tuple[Genesis, Ledger]:
    """A ledger at its first checkpoint with that many keys (at most 8 a position)."""
    positions = max(2, 1 + (keys + 7) // 8)
    genesis = genesis_of(checkpoint_interval=positions, window=2 * positions)
    ledger = Ledger(genesis)
    operations: list[kv.Operation] = [kv.OpenSession()]
    sequence = 0
    for index in range(1, positions + 1):
        if index > 1:
            first = (index - 2) * 8
            operations = [kv.Put(b"k%05d" % i, b"v%d" % i) for i in range(first, min(first + 8, keys))]
            operations = operations or [kv.Put(b"last", b"")]
        packed = tuple(codec.encode(operation) for operation in operations)
        sequence = _apply(genesis, ledger, index, packed, sequence)
    return genesis, ledger


def _apply(genesis: Genesis, ledger: Ledger, index: int, packed: tuple[bytes, ...], sequence: int) -> int:
    signed = Signed(CLIENT.public, 1, sequence, 0, 0, 0, packed)
    payload = make_payload(build(signed, chain_id=genesis.chain_id, signer=CLIENT), ())
    ledger.apply(Commit(index, 0, 1_000 + index, (payload,)))
    return sequence + len(packed)
