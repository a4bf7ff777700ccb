"""One replica of a log as a process: the composition root of the consensus nodes.

Phases: check that configuration, keys, genesis and data directory agree; open
storage; build the replica; serve peers, clients and HTTP; drain; close.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from typing import Any, Protocol

from fastapi import FastAPI, Response

from dwcp.consensus.core.machine import Commit
from dwcp.consensus.crypto.mac import Authenticators, shared_secret
from dwcp.consensus.crypto.signatures import SigningKey
from dwcp.consensus.engines.probft.engine import ProBFT
from dwcp.consensus.engines.probft.params import Params as EngineParams
from dwcp.consensus.ledger import genesis as genesis_file
from dwcp.consensus.ledger.checkpoint import SnapshotInvalid
from dwcp.consensus.ledger.genesis import Genesis
from dwcp.consensus.ledger.ledger import Executed, Ledger, Snapshot
from dwcp.consensus.ledger.operations import PayloadChecker
from dwcp.consensus.ledger.port import ClientPort as LedgerPort
from dwcp.consensus.ledger.replica import Limits, Replica
from dwcp.consensus.ledger.verifier import ClaimVerifier
from dwcp.runtime import http, keys
from dwcp.runtime.client_port import ClientPort
from dwcp.runtime.driver import Driver
from dwcp.runtime.errors import Contradiction
from dwcp.runtime.failpoints import failpoint
from dwcp.runtime.process import Process, run
from dwcp.runtime.storage import Opened, SnapshotDamaged, open_storage
from dwcp.runtime.transport import Identity, Peer, PeerLinks
from dwcp.services.consensus_config import ConsensusConfig
from dwcp.services.consensus_health import NodeObserver, NodeView

SWITCH_INTERVAL_S = 0.0005  # the disk's thread must get the interpreter soon after a sync ends
GC_THRESHOLD = 50_000  # acyclic hot path: collections would only scan the state
METRICS_PERIOD_S = 5.0


class Builder(Protocol):
    """Makes the replica that the process hosts: `build_replica`, or a test's own."""

    def __call__(
        self,
        config: ConsensusConfig,
        genesis: Genesis,
        key: SigningKey,
        ledger: Ledger,
        *,
        voting: bool,
        snapshots: tuple[Snapshot, ...] = (),
    ) -> Replica: ...


class NodeLedger(Ledger):
    """The ledger with the failpoints and counts of a process around each execution."""

    def watch_executions(self, executed: Callable[[int], None]) -> None:
        """`executed` is told the number of operations of each batch."""
        self._executed_operations = executed

    def apply(self, commit: Commit) -> Executed:
        failpoint("node.execute.before")
        done = super().apply(commit)
        failpoint("node.execute.after")
        self._executed_operations(sum(len(outcome.answers) for outcome in done.outcomes))
        return done


async def main(config: ConsensusConfig, process: Process) -> None:
    """Check, open, serve, drain, close."""
    await serve(config, process, build_replica)


async def serve(config: ConsensusConfig, process: Process, build: Builder) -> None:
    """The whole process around the replica that `build` makes."""
    assert config.sign_key is not None  # `ConsensusConfig.validate`
    genesis = genesis_file.load(config.genesis)
    key = keys.load_sign_key(config.sign_key)
    check_identity(config, genesis, key)
    storage = open_storage(
        config.data_dir,
        chain_id=genesis.chain_id,
        replica=config.replica,
        observe_sync=lambda seconds: process.telemetry.observe("dwcp_journal_sync_seconds", seconds),
    )
    try:
        if storage.learner:
            process.log.warning("replica.learner", reason=storage.learner)
        await _run(config, process, genesis, key, storage, build)
    finally:
        storage.close()


def check_identity(config: ConsensusConfig, genesis: Genesis, key: SigningKey) -> None:
    """Raises `Contradiction` where configuration, keys and genesis do not describe one replica."""
    where = str(config.genesis)
    if config.replica >= genesis.n:
        raise Contradiction(f"{where}: has no replica {config.replica}: it lists {genesis.n}, from 0")
    own = genesis.replicas[config.replica]
    if own.name != config.name:
        raise Contradiction(
            f"{where}: replica {config.replica} is {own.name}, the configuration says {config.name}"
        )
    if own.public_key != key.public.hex():
        raise Contradiction(
            f"{config.sign_key}: is not the voting key that {where} lists for {own.name}: restore it"
        )
    if own.tls_sha256 != keys.fingerprint(config.tls.certificate).hex():
        raise Contradiction(
            f"{config.tls.certificate}: is not the certificate that {where} pins for {own.name}: restore it"
        )
    if genesis.authority_sha256 != keys.fingerprint(config.tls.authority).hex():
        raise Contradiction(f"{config.tls.authority}: is not the authority that {where} names: restore it")


def restore(ledger: Ledger, storage: Opened, process: Process) -> tuple[Snapshot, ...]:
    """Bring the ledger to the newest snapshot that is whole; all whole ones, oldest first, for peers."""
    whole: list[Snapshot] = []
    for index in reversed(storage.snapshots.indexes()):
        try:
            snapshot = storage.snapshots.load(index)
            if not whole:
                ledger.install(snapshot.parts, snapshot.root)
        except (SnapshotDamaged, SnapshotInvalid) as exc:
            process.log.error("snapshot.damaged", index=index, error=str(exc))
            continue
        process.log.info("snapshot.restored", index=index)
        whole.insert(0, snapshot)
    return tuple(whole)


def build_replica(
    config: ConsensusConfig,
    genesis: Genesis,
    key: SigningKey,
    ledger: Ledger,
    *,
    voting: bool,
    snapshots: tuple[Snapshot, ...] = (),
) -> Replica:
    """The whole replica, without any I/O."""
    chain_id, params = genesis.chain_id, genesis.params
    authenticators = Authenticators(lambda peer: shared_secret(key, peer, chain_id))
    checker = PayloadChecker(
        me=config.replica, n=genesis.n, chain_id=chain_id, params=params, authenticators=authenticators
    )
    machine = ProBFT(
        me=config.replica,
        n=genesis.n,
        chain_id=chain_id,
        epoch=genesis.epoch,
        params=EngineParams(
            checkpoint_interval=params.checkpoint_interval,
            window=params.window,
            batch_bytes_max=params.batch_bytes_max,
            batch_count_max=params.batch_count_max,
        ),
        signer=key,
        voting=voting,
    )
    return Replica(
        me=config.replica,
        genesis=genesis,
        machine=machine,
        ledger=ledger,
        verifier=ClaimVerifier(committee=genesis.committee(), checker=checker),
        checker=checker,
        port=LedgerPort(me=config.replica, genesis=genesis, ledger=ledger, authenticators=authenticators),
        signer=key,
        voting=voting,
        limits=Limits(pending_bytes_max=config.pending_bytes_max),
        snapshots=snapshots,
    )


async def _run(
    config: ConsensusConfig,
    process: Process,
    genesis: Genesis,
    key: SigningKey,
    storage: Opened,
    build: Builder,
) -> None:
    ledger = NodeLedger(genesis)
    observer = NodeObserver(process.log, process.telemetry)
    ledger.watch_executions(observer.executed)
    snapshots = restore(ledger, storage, process)
    voting = not storage.learner
    replica = build(config, genesis, key, ledger, voting=voting, snapshots=snapshots)
    driver = Driver(
        replica=replica,
        journal=storage.journal,
        snapshots=storage.snapshots,
        clock=process.clock,
        observer=observer,
    )
    links = PeerLinks(
        identity=Identity(genesis.chain_id, genesis.epoch, config.replica),
        peers=[
            Peer(other.id, other.host, other.peer_port, bytes.fromhex(other.tls_sha256))
            for other in genesis.replicas
            if other.id != config.replica
        ],
        dial=keys.client_context(config.tls),
        receive=driver.peer_frames,
        changed=observer.peer_changed,
    )
    clients = ClientPort(
        receive=driver.client_frames,
        gone=driver.client_gone,
        counters=links.counters,
        connections_max=config.client_connections_max,
    )
    view = NodeView(genesis, config.replica, replica, links, clients, storage.learner)
    view.add_checks(process.health)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    await _serve(config, process, driver, links, clients, observer, view, storage.records)


async def _serve(
    config: ConsensusConfig,
    process: Process,
    driver: Driver,
    links: PeerLinks,
    clients: ClientPort,
    observer: NodeObserver,
    view: NodeView,
    records: tuple[bytes, ...],
) -> None:
    own = view.own
    accept = keys.server_context(config.tls)
    app = _application(process, view)
    stop_http = asyncio.Event()
    web = asyncio.create_task(_serve_http(config, process, app, stop_http))
    measure = asyncio.create_task(_measure(observer, view))
    stopped: asyncio.Task[object] = asyncio.create_task(process.stop.wait())
    try:
        driver.start(peers=links, clients=clients, records=records)
        links.open(host=own.host, port=own.peer_port, accept=accept)
        clients.open(host=own.host, port=own.client_port, accept=accept)
        endings: set[asyncio.Future[Any]] = {stopped, web, measure, driver.failed}
        await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        if driver.failed.done():
            driver.failed.result()
        for task in (web, measure):
            if task.done():
                task.result()
    finally:
        stopped.cancel()
        measure.cancel()
        await clients.stop_accepting()
        await driver.close()
        await clients.close()
        await links.close()
        stop_http.set()
        await asyncio.gather(web, return_exceptions=True)


def _application(process: Process, view: NodeView) -> FastAPI:
    app = http.application(process.health, process.telemetry)

    async def get_status() -> Response:
        return http.json_response(view.status())

    app.add_api_route("/cluster/status", get_status, methods=["GET"], response_model=None)
    return app


async def _serve_http(config: ConsensusConfig, process: Process, app: FastAPI, stop: asyncio.Event) -> None:
    await http.serve_configured(
        app,
        config,
        stop=stop,
        telemetry=process.telemetry,
    )


async def _measure(observer: NodeObserver, view: NodeView) -> None:
    """Copy counts to the metrics now and then: the hot path only adds integers."""
    while True:
        observer.publish(view)
        await asyncio.sleep(METRICS_PERIOD_S)


if __name__ == "__main__":
    run(ConsensusConfig, main)
