"""Making an installation once, and checking at each start that its files still belong together.

Everything is made in a folder of its own and moved into place when complete, so
that an interrupted `init` leaves nothing half made. A file that contradicts
genesis is refused: a replica under another identity would break promises.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from dwcp.consensus.core.logformat import Identity, Journal
from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.consensus.ledger.genesis import Genesis, GenesisClient, GenesisReplica
from dwcp.consensus.ledger.genesis import load as load_genesis
from dwcp.runtime import keys
from dwcp.runtime.config import dump, load
from dwcp.runtime.disk import RealDisk
from dwcp.runtime.durable import replace_private
from dwcp.runtime.errors import Contradiction
from dwcp.runtime.layout import Layout, ensure
from dwcp.runtime.tokens import Role, TokenBook
from dwcp.runtime.world import (
    CLIENT_PORT,
    NODE_HTTP_PORT,
    OPERATOR,
    PEER_PORT,
    ServicePlan,
    World,
    agent_name,
    replica_name,
    services,
)

MANAGER = "dwcp-manager"
_COMPLETE = "complete"  # marks a made installation that waits to be moved into place
_PIECES = (
    "authority",
    "keys",
    "tokens",
    "data",
    "cluster.yaml",
    "genesis.json",
)  # genesis last: it means "made"


def exists(layout: Layout) -> bool:
    """Whether an installation was made here."""
    return layout.genesis.exists()


def create(layout: Layout, world: World, *, now_ms: int) -> None:
    """Makes keys, tokens, genesis and journals. Raises `Contradiction` where some of them exist already."""
    ensure(layout.root)
    making = Layout(layout.root / ".making")
    if not (making.root / _COMPLETE).exists():
        left = [piece for piece in _PIECES if (layout.root / piece).exists()]
        if left:
            raise Contradiction(
                f"{layout.root}: there is no {layout.genesis.name}, yet there is {', '.join(left)}: "
                "restore the missing file from a backup, or move the folder away"
            )
        shutil.rmtree(making.root, ignore_errors=True)
        _make(making, world, now_ms=now_ms)
        keys.write_public(making.root / _COMPLETE, b"")
    _move(making, layout)


def open_world(layout: Layout) -> World:
    """The installation's world, checked against genesis, keys and certificates.

    Raises `ConfigInvalid`, `KeyUnusable` or `Contradiction`, each naming the file.
    """
    world = load(layout.cluster, World)
    genesis = load_genesis(layout.genesis)
    _check_replicas(layout, world, genesis)
    _check_authority(layout, genesis)
    for name in identities(world):
        keys.client_context(layout.tls(name))
    clients = {client.name: client.public_key for client in genesis.clients}
    for name in ledger_clients(world):
        _check_key(layout.sign_key(name), clients.get(name), f"{layout.genesis}: clients.{name}")
    return world


def write_configs(layout: Layout, world: World) -> tuple[ServicePlan, ...]:
    """Writes every service's configuration anew; they are made from `cluster.yaml`, never edited."""
    plans = services(world, layout)
    ensure(layout.conf)
    for plan in plans:
        target = layout.config(plan.name)
        text = f"# Made from {layout.cluster} at each start: change that file instead.\n" + dump(plan.config)
        replace_private(target, text.encode(), durable=False)
        ensure(layout.data(plan.name))
    return plans


def identities(world: World) -> dict[str, tuple[str, ...]]:
    """Every process that has a certificate, with the addresses it answers on."""
    plans = services(world, Layout(Path()))
    hosts = {plan.name: tuple(dict.fromkeys(address.host for address in plan.listens)) for plan in plans}
    return {**hosts, OPERATOR: ()}


def ledger_clients(world: World) -> tuple[str, ...]:
    """Every process that writes to the control log under a key of its own."""
    return (MANAGER, *(agent_name(agent.site) for agent in world.agents), OPERATOR)


def _make(layout: Layout, world: World, *, now_ms: int) -> None:
    from dwcp.runtime import authority as authorities  # here alone: every command loads this module

    ensure(layout.root)
    authority = authorities.create_authority(layout.authority, name=world.name, now_ms=now_ms)
    for name, hosts in identities(world).items():
        authorities.issue(authority, layout.keys(name), name=name, hosts=hosts, now_ms=now_ms)
    names = (*map(replica_name, range(len(world.replicas))), *ledger_clients(world))
    public = {name: keys.create_sign_key(layout.sign_key(name)).public for name in names}
    token = TokenBook(layout.tokens).create(OPERATOR, Role.ADMIN, now_ms=now_ms)
    keys.write_private(layout.operator_token, token.encode() + b"\n")
    genesis = _genesis(layout, world, public)
    genesis.validate()
    keys.write_public(layout.cluster, dump(world).encode())
    keys.write_public(layout.genesis, genesis.encode())
    for position in range(len(world.replicas)):
        _create_journal(layout, genesis, position)


def _create_journal(layout: Layout, genesis: Genesis, position: int) -> None:
    """A journal that exists and is empty says "never voted"; a missing one says nothing."""
    folder = ensure(layout.data(replica_name(position)) / "journal")
    disk = RealDisk(folder)
    try:
        Journal.create(disk, Identity(genesis.chain_id, position, secrets.token_bytes(16)))
    finally:
        disk.close()


def _genesis(layout: Layout, world: World, public: dict[str, bytes]) -> Genesis:
    replicas = tuple(
        GenesisReplica(
            id=position,
            name=replica_name(position),
            site=site,
            host=world.host(f"1.{position + 1}"),
            peer_port=PEER_PORT,
            client_port=CLIENT_PORT,
            http_port=NODE_HTTP_PORT,
            public_key=public[replica_name(position)].hex(),
            tls_sha256=keys.fingerprint(layout.tls(replica_name(position)).certificate).hex(),
        )
        for position, site in enumerate(world.replicas)
    )
    return Genesis(
        name=world.name,
        replicas=replicas,
        clients=_clients(world, public),
        authority_sha256=keys.fingerprint(layout.authority_certificate).hex(),
        nonce=secrets.token_hex(32),
    )


def _clients(world: World, public: dict[str, bytes]) -> tuple[GenesisClient, ...]:
    """Grants: the manager places work anywhere, an agent describes its own node only."""
    manager = GenesisClient(MANAGER, public[MANAGER].hex(), read=("",), write=("/w/", "/n/"))
    agents = tuple(
        GenesisClient(
            agent_name(plan.site),
            public[agent_name(plan.site)].hex(),
            read=("/w/", "/n/"),
            write=("/w/", f"/n/{plan.site}/"),
        )
        for plan in world.agents
    )
    operator = GenesisClient(OPERATOR, public[OPERATOR].hex(), read=("",), write=("",), admin=True)
    return (manager, *agents, operator)


def _move(making: Layout, layout: Layout) -> None:
    for piece in _PIECES:
        source = making.root / piece
        if source.exists():
            source.rename(layout.root / piece)
    descriptor = os.open(layout.root, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    shutil.rmtree(making.root)


def _check_replicas(layout: Layout, world: World, genesis: Genesis) -> None:
    if len(world.replicas) != genesis.n:
        raise Contradiction(
            f"{layout.cluster}: replicas: it lists {len(world.replicas)}, but {layout.genesis} was made with "
            f"{genesis.n}; members are not changed by editing this file: restore it"
        )
    for position, replica in enumerate(genesis.replicas):
        meant = (world.replicas[position], world.host(f"1.{position + 1}"))
        if meant != (replica.site, replica.host):
            raise Contradiction(
                f"{layout.cluster}: replica {replica.name} is {meant[0]} at {meant[1]}, but {layout.genesis} "
                f"says {replica.site} at {replica.host}; restore the file, or make a new installation"
            )
        _check_key(layout.sign_key(replica.name), replica.public_key, f"{layout.genesis}: {replica.name}")
        certificate = layout.tls(replica.name).certificate
        if keys.fingerprint(certificate).hex() != replica.tls_sha256:
            raise Contradiction(f"{certificate}: not the certificate that {layout.genesis} pins; restore it")


def _check_key(path: Path, expected: str | None, where: str) -> SigningKey:
    key = keys.load_sign_key(path)
    if key.public.hex() != expected:
        raise Contradiction(f"{path}: not the key that {where} names; restore it from a backup")
    return key


def _check_authority(layout: Layout, genesis: Genesis) -> None:
    if keys.fingerprint(layout.authority_certificate).hex() != genesis.authority_sha256:
        raise Contradiction(
            f"{layout.authority_certificate}: not the authority that {layout.genesis} names; restore it"
        )
