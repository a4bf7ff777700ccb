"""Genesis: what is accepted, what is refused and how the refusal reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.consensus.ledger.scene import ADMIN, REPLICA_KEYS, genesis_of

from dwcp.consensus.ledger import genesis


@pytest.mark.parametrize(("n", "f", "quorum"), [(4, 1, 3), (5, 1, 4), (6, 1, 4), (7, 2, 5)])
def test_quorums(n: int, f: int, quorum: int) -> None:
    """Goal: the arithmetic of every small committee. Method: the table of the specification."""
    found = genesis_of(n)

    assert (found.n, found.f, found.quorum) == (n, f, quorum)
    assert 2 * quorum - n > f
    assert found.committee() == tuple(key.public for key in REPLICA_KEYS[:n])


def test_file_round_trip(tmp_path: Path) -> None:
    """Goal: a written genesis reads back as itself, and formatting does not change the chain.

    Method: reformat.
    """
    path = tmp_path / "genesis.json"
    path.write_bytes(genesis_of().encode())
    first = genesis.load(path)
    path.write_text(json.dumps(json.loads(path.read_text())))

    assert first == genesis_of()
    assert genesis.load(path).chain_id == first.chain_id


def test_chain_id_depends_on_everything() -> None:
    """Goal: no two different installations share a chain. Method: change a parameter, a client, the nonce."""
    document = json.loads(genesis_of().encode())
    ids = {genesis_of().chain_id}
    for change in (
        {"nonce": "ef" * 32},
        {"name": "other"},
        {"clients": document["clients"][:2]},
        {"params": {**document["params"], "window": 512}},
    ):
        ids.add(genesis.decode(json.dumps({**document, **change}).encode()).chain_id)

    assert len(ids) == 5


def _set(document: Any, path: str, value: object) -> None:
    *parents, last = path.split(".")
    for part in parents:
        document = document[int(part) if part.isdigit() else part]
    document[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("version", 2, r"version: this program reads version 1"),
        ("name", "", r"name: must not be empty"),
        ("epoch", 3, r"epoch: a chain begins in epoch 0"),
        ("engine", "raft", r"engine: 'raft' is none of: probft"),
        ("nonce", "zz", r"nonce: must be 32 bytes"),
        ("nonce", "AB" * 32, r"nonce: must be 32 bytes in lowercase"),
        ("authority_sha256", "ab", r"authority_sha256: must be 32 bytes"),
        ("replicas", [], r"replicas: 0 replicas cannot tolerate a fault"),
        ("replicas.1.id", 3, r"replicas\[1\].id: ids count from 0 in order: expected 1, got 3"),
        ("replicas.1.public_key", "00" * 32, r"replicas\[1\].public_key: is no valid Ed25519"),
        ("replicas.1.public_key", "12", r"replicas\[1\].public_key: must be 32 bytes"),
        ("replicas.2.peer_port", 70000, r"replicas\[2\].peer_port: 70000 is no TCP port"),
        ("replicas.2.client_port", 9000, r"replicas\[2\].port: 127.0.1.3:9000 is already used by"),
        (
            "replicas.3.host",
            "127.0.1.1",
            r"replicas\[3\].port: 127.0.1.1:9000 is already used by replicas\[0\]",
        ),
        ("replicas.3.name", "probft-1", r"replicas\[3\].name: probft-1 is already used by replicas\[0\]"),
        ("replicas.0.site", "", r"replicas\[0\].site: must not be empty"),
        ("replicas.0.tls_sha256", "xy", r"replicas\[0\].tls_sha256"),
        ("clients.1.public_key", REPLICA_KEYS[2].public.hex(), r"clients\[1\].public_key: .*replicas\[2\]"),
        (
            "clients.1.public_key",
            ADMIN.public.hex(),
            r"clients\[1\].public_key: is already used by clients\[0\]",
        ),
        ("clients.1.name", "admin", r"clients\[1\].name: 'admin' is already used by clients\[0\]"),
        ("clients.1.name", "", r"clients\[1\].name: must not be empty"),
        ("params.window", 64, r"params.window: must be at least checkpoint_interval"),
        ("params.window", 0, r"params.window: must be at least 1"),
        ("params.bundle_count_max", 65, r"params.bundle_count_max"),
        ("params.range_bytes_max", 1000, r"params.range_bytes_max"),
        ("params.quota_bytes", 1000, r"params.quota_bytes"),
        ("params.request_bytes_max", 1000, r"params.request_bytes_max"),
        ("params.batch_bytes_max", 10**9, r"params.batch_bytes_max"),
        ("params.windoww", 3, r"windoww"),
        ("params.window", "many", r"window"),
        ("replicas.1.public_key", REPLICA_KEYS[0].public.hex(), r"replicas\[1\].public_key: .*replicas\[0\]"),
    ],
)
def test_contradictions_name_file_and_key(path: str, value: object, sentence: str) -> None:
    """Goal: every refusal says where and what. Method: break one key at a time."""
    document = json.loads(genesis_of().encode())
    _set(document, path, value)

    with pytest.raises(genesis.GenesisInvalid, match=f"^some.json: .*{sentence}"):
        genesis.decode(json.dumps(document).encode(), where="some.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_junk_is_refused(data: bytes) -> None:
    """Goal: no bytes end in a traceback. Method: feed junk."""
    with pytest.raises(genesis.GenesisInvalid, match=r"^genesis\.json: "):
        genesis.decode(data)


def test_missing_file(tmp_path: Path) -> None:
    """Goal: a missing file is a sentence. Method: load one."""
    with pytest.raises(genesis.GenesisInvalid, match=r"absent\.json: cannot be read: No such file"):
        genesis.load(tmp_path / "absent.json")
