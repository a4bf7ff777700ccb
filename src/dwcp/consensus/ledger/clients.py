"""Who may do what: clients of genesis, and those granted or revoked by ledger entries.

Part of the replicated state: grants are checked when an operation is applied,
so that all replicas answer alike whatever they knew when it was admitted.
"""

from __future__ import annotations

from collections.abc import Iterable

from dwcp.api import kv
from dwcp.api.workloads import prefix_end
from dwcp.consensus.crypto.codec import Codec, Record
from dwcp.consensus.crypto.signatures import valid_public_key
from dwcp.consensus.ledger.genesis import Genesis


class Client(Record, frozen=True):
    """One client's grants. `session_floor`: no session with this number or a lower one may be opened.

    A revoked client keeps its record and floor, so that its old bundles can
    never be replayed after it is granted again.
    """

    client: bytes
    name: str
    read: tuple[bytes, ...]
    write: tuple[bytes, ...]
    admin: bool
    revoked: bool
    session_floor: int

    def reads(self, key: bytes, end: bytes = b"") -> bool:
        return _covers(self.read, key, end)

    def writes(self, key: bytes, end: bytes = b"") -> bool:
        return _covers(self.write, key, end)


CLIENTS: Codec[tuple[Client, ...]] = Codec(tuple[Client, ...])


def _covers(prefixes: tuple[bytes, ...], key: bytes, end: bytes) -> bool:
    """Whether one prefix covers the key, or the whole of [key, end)."""
    if not end:
        return key.startswith(prefixes)
    for prefix in prefixes:
        if not prefix:
            return True
        if key.startswith(prefix) and end != b"\0" and prefix.strip(b"\xff") and end <= _after(prefix):
            return True
    return False


def _after(prefix: bytes) -> bytes:
    return prefix_end(prefix.rstrip(b"\xff"))


def from_genesis(genesis: Genesis) -> list[Client]:
    return [
        Client(
            bytes.fromhex(entry.public_key),
            entry.name,
            tuple(prefix.encode() for prefix in entry.read),
            tuple(prefix.encode() for prefix in entry.write),
            entry.admin,
            False,
            0,
        )
        for entry in genesis.clients
    ]


class Clients:
    """The registry. `version` counts changes, so that its encoding is renewed only after one."""

    __slots__ = ("_clients", "_clients_max", "version")

    def __init__(self, clients: Iterable[Client], *, clients_max: int) -> None:
        self._clients = {client.client: client for client in clients}
        self._clients_max = clients_max
        self.version = 0

    def find(self, client: bytes) -> Client | None:
        """The client if it is registered and not revoked."""
        found = self._clients.get(client)
        return None if found is None or found.revoked else found

    def ordered(self) -> tuple[Client, ...]:
        return tuple(self._clients[client] for client in sorted(self._clients))

    def grant(self, operation: kv.Grant) -> kv.Failed | None:
        """Register a client or replace its grants."""
        if not valid_public_key(operation.client):
            return kv.Failed("malformed", "the client's key is no valid Ed25519 public key")
        prefixes = (*operation.read, *operation.write)
        if len(operation.name) > 256 or len(prefixes) > 256 or sum(map(len, prefixes)) > 16_384:
            detail = "a name has at most 256 characters, a client 256 prefixes of 16384 bytes in all"
            return kv.Failed("too_large", detail)
        before = self._clients.get(operation.client)
        if before is None and len(self._clients) >= self._clients_max:
            return kv.Failed("no_space", f"the registry holds at most {self._clients_max} clients")
        if not operation.admin and self._only_administrator(operation.client):
            return kv.Failed("permission_denied", "the last administrator must stay one")
        self._replace(
            Client(
                operation.client,
                operation.name,
                operation.read,
                operation.write,
                operation.admin,
                False,
                before.session_floor if before else 0,
            )
        )
        return None

    def revoke(self, client: bytes) -> kv.Failed | None:
        before = self.find(client)
        if before is None:
            return kv.Failed("permission_denied", "no client has this key")
        if self._only_administrator(client):
            return kv.Failed("permission_denied", "the last administrator cannot be revoked")
        self._replace(Client(client, before.name, (), (), False, True, before.session_floor))
        return None

    def raise_floor(self, client: bytes, session: int) -> None:
        """Sessions up to `session` are never opened again."""
        before = self._clients[client]
        if session > before.session_floor:
            fields = (before.name, before.read, before.write, before.admin, before.revoked)
            self._replace(Client(client, *fields, session))

    def _replace(self, client: Client) -> None:
        self._clients[client.client] = client
        self.version += 1

    def _only_administrator(self, client: bytes) -> bool:
        return [each.client for each in self._clients.values() if each.admin] == [client]
