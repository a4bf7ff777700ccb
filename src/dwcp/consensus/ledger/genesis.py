"""Genesis: who the replicas and the first clients are, and every parameter they must share.

Its canonical bytes are the chain's identity, so two installations that differ
in anything listed here can never take each other's messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import msgspec

from dwcp.consensus.core.errors import CoreError
from dwcp.consensus.crypto.hashes import SIZE, Domain, digest
from dwcp.consensus.crypto.signatures import valid_public_key

VERSION = 1
REPLICAS_MIN = 4
REPLICAS_MAX = 1024
ENGINES = ("probft",)


class GenesisInvalid(CoreError):
    """The genesis file cannot be used: correct the key it names, or make a new one with `dwcp init`."""


class _Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class GenesisReplica(_Shape, frozen=True):
    """`public_key` is Ed25519, hex; `tls_sha256` the fingerprint of its certificate (DER), hex."""

    id: int
    name: str
    site: str
    host: str
    peer_port: int
    client_port: int
    http_port: int
    public_key: str
    tls_sha256: str


class GenesisClient(_Shape, frozen=True):
    """A client that the ledger knows from the start. Prefixes are text; "" covers every key."""

    name: str
    public_key: str
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    admin: bool = False


class Params(_Shape, frozen=True):
    """What all replicas must do alike. Counts, bytes and milliseconds as the names say."""

    checkpoint_interval: int = 256  # positions between state roots
    window: int = 512  # positions that may be open above the last stable checkpoint
    batch_bytes_max: int = 1_048_576
    batch_count_max: int = 512  # payloads in one batch
    key_bytes_max: int = 4096
    value_bytes_max: int = 1_572_864
    request_bytes_max: int = 1_572_864  # one encoded operation
    bundle_count_max: int = 64  # operations in one bundle; at most the session window
    txn_operations_max: int = 128  # comparisons, and operations of one branch
    range_bytes_max: int = 4_194_304  # keys and values of one answer
    range_keys_max: int = 100_000  # keys that one operation may look at
    delete_keys_max: int = 10_000  # keys that one operation may delete
    quota_bytes: int = 1_073_741_824  # keys and values, history included
    history_revisions_kept: int = 10_000
    sessions_per_client_max: int = 64
    session_ttl_ms_max: int = 604_800_000
    reply_cache_bytes_max: int = 16_384  # a larger reply is not kept for retransmission
    clients_max: int = 4096


class Genesis(_Shape, frozen=True, dict=True):
    """The content of `genesis.json`."""

    name: str
    replicas: tuple[GenesisReplica, ...]
    clients: tuple[GenesisClient, ...]
    authority_sha256: str
    nonce: str
    version: int = VERSION
    epoch: int = 0
    engine: str = "probft"
    params: Params = Params()

    @property
    def n(self) -> int:
        return len(self.replicas)

    @property
    def f(self) -> int:
        """How many replicas may lie: (n-1)//3."""
        return (self.n - 1) // 3

    @property
    def quorum(self) -> int:
        """⌈(n+f+1)/2⌉: any two quorums share an honest replica."""
        return (self.n + self.f + 2) // 2

    @cached_property
    def chain_id(self) -> bytes:
        return digest(Domain.CHAIN, self.encode())

    def committee(self) -> tuple[bytes, ...]:
        """The replicas' public keys, by id."""
        return self._committee

    @cached_property
    def _committee(self) -> tuple[bytes, ...]:
        return tuple(bytes.fromhex(replica.public_key) for replica in self.replicas)

    def encode(self) -> bytes:
        """The canonical file: sorted keys, two spaces, a final newline."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n"

    def validate(self, *, where: str = "genesis.json") -> None:
        """Raises `GenesisInvalid` naming `where` and the key of the first contradiction."""
        _validate_head(self, where)
        _validate_replicas(self.replicas, where)
        _validate_clients(self, where)
        _validate_params(self.params, where)


def load(path: Path) -> Genesis:
    """Read and validate a genesis file; raises `GenesisInvalid` naming the file and the key."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise GenesisInvalid(f"{path}: cannot be read: {exc.strerror}") from exc
    return decode(data, where=str(path))


def decode(data: bytes, *, where: str = "genesis.json") -> Genesis:
    """A validated genesis from its bytes; any other formatting of the same content is accepted."""
    try:
        genesis = msgspec.json.decode(data, type=Genesis)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise GenesisInvalid(f"{where}: {exc}") from exc
    genesis.validate(where=where)
    return genesis


def _refuse(where: str, key: str, sentence: str) -> None:
    raise GenesisInvalid(f"{where}: {key}: {sentence}")


def _hex(value: str, size: int) -> bytes | None:
    try:
        data = bytes.fromhex(value)
    except ValueError:
        return None
    return data if len(data) == size and value == data.hex() else None


def _validate_head(genesis: Genesis, where: str) -> None:
    if genesis.version != VERSION:
        _refuse(where, "version", f"this program reads version {VERSION}, the file says {genesis.version}")
    if not genesis.name:
        _refuse(where, "name", "must not be empty")
    if genesis.epoch != 0:
        _refuse(where, "epoch", f"a chain begins in epoch 0, not {genesis.epoch}")
    if genesis.engine not in ENGINES:
        _refuse(where, "engine", f"{genesis.engine!r} is none of: {', '.join(ENGINES)}")
    for key, value in (("nonce", genesis.nonce), ("authority_sha256", genesis.authority_sha256)):
        if _hex(value, SIZE) is None:
            _refuse(where, key, f"must be {SIZE} bytes in lowercase hex")


def _validate_replicas(replicas: Sequence[GenesisReplica], where: str) -> None:
    if not REPLICAS_MIN <= len(replicas) <= REPLICAS_MAX:
        _refuse(
            where,
            "replicas",
            f"{len(replicas)} replicas cannot tolerate a fault: at least {REPLICAS_MIN} are needed"
            if len(replicas) < REPLICAS_MIN
            else f"at most {REPLICAS_MAX} replicas, got {len(replicas)}",
        )
    seen: dict[tuple[str, str], int] = {}
    for position, replica in enumerate(replicas):
        at = f"replicas[{position}]"
        if replica.id != position:
            _refuse(where, f"{at}.id", f"ids count from 0 in order: expected {position}, got {replica.id}")
        _validate_key(where, f"{at}.public_key", replica.public_key)
        if _hex(replica.tls_sha256, SIZE) is None:
            _refuse(where, f"{at}.tls_sha256", f"must be {SIZE} bytes in lowercase hex")
        for key in ("name", "site", "host"):
            if not getattr(replica, key):
                _refuse(where, f"{at}.{key}", "must not be empty")
        ports = (replica.peer_port, replica.client_port, replica.http_port)
        for key, port in zip(("peer_port", "client_port", "http_port"), ports, strict=True):
            if not 1 <= port <= 65535:
                _refuse(where, f"{at}.{key}", f"{port} is no TCP port")
        distinct = [("name", replica.name), ("public_key", replica.public_key)]
        distinct.append(("tls_sha256", replica.tls_sha256))
        distinct.extend(("port", f"{replica.host}:{port}") for port in ports)
        for key, value in distinct:
            other = seen.setdefault((key, value), position)
            if other != position or (key == "port" and len(set(ports)) != len(ports)):
                _refuse(where, f"{at}.{key}", f"{value} is already used by replicas[{other}]")


def _validate_key(where: str, key: str, value: str) -> None:
    data = _hex(value, 32)
    if data is None:
        _refuse(where, key, "must be 32 bytes in lowercase hex")
    elif not valid_public_key(data):
        _refuse(where, key, "is no valid Ed25519 public key")


def _validate_clients(genesis: Genesis, where: str) -> None:
    if len(genesis.clients) > genesis.params.clients_max:
        _refuse(where, "clients", f"more than params.clients_max ({genesis.params.clients_max})")
    owners = {replica.public_key: f"replicas[{replica.id}]" for replica in genesis.replicas}
    names: dict[str, str] = {}
    for position, client in enumerate(genesis.clients):
        at = f"clients[{position}]"
        _validate_key(where, f"{at}.public_key", client.public_key)
        if not client.name:
            _refuse(where, f"{at}.name", "must not be empty")
        if client.public_key in owners:
            _refuse(where, f"{at}.public_key", f"is already used by {owners[client.public_key]}")
        if client.name in names:
            _refuse(where, f"{at}.name", f"{client.name!r} is already used by {names[client.name]}")
        owners[client.public_key] = names[client.name] = at


def _validate_params(params: Params, where: str) -> None:
    for key in params.__struct_fields__:
        value = getattr(params, key)
        if value < 1:
            _refuse(where, f"params.{key}", f"must be at least 1, got {value}")
    relations = (
        ("window", params.window >= params.checkpoint_interval, "must be at least checkpoint_interval"),
        ("bundle_count_max", params.bundle_count_max <= 64, "must be at most 64, a session's window"),
        (
            "request_bytes_max",
            params.request_bytes_max >= params.value_bytes_max,
            "must be at least value_bytes_max",
        ),
        (
            "range_bytes_max",
            params.value_bytes_max + params.key_bytes_max <= params.range_bytes_max <= 6_291_456,
            "must hold one key and value, and fit a frame (6291456)",
        ),
        (
            "quota_bytes",
            params.quota_bytes >= params.request_bytes_max,
            "must be at least request_bytes_max",
        ),
        ("batch_bytes_max", params.batch_bytes_max <= 6_291_456, "must fit a frame (6291456)"),
    )
    for key, holds, sentence in relations:
        if not holds:
            _refuse(where, f"params.{key}", sentence)
