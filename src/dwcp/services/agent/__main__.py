"""The agent's composition root."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from dwcp.api.workloads import Node
from dwcp.consensus.ledger import genesis as genesis_file
from dwcp.runtime import cgroups, http, keys, layout, payload_routes, sandbox
from dwcp.runtime.attempts import AttemptStore
from dwcp.runtime.choosing_late import LateChooser
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.client import LedgerClient
from dwcp.runtime.clock import boottime_ns
from dwcp.runtime.http import Check, Verdict
from dwcp.runtime.packflow import Pacer
from dwcp.runtime.principals import AGENTS, Grant
from dwcp.runtime.process import Process, run
from dwcp.services.agent import routes
from dwcp.services.agent.config import AgentConfig
from dwcp.services.agent.dispatch import Dispatch
from dwcp.services.agent.goods import StoreGoods
from dwcp.services.agent.log import LedgerLog
from dwcp.services.agent.outcomes import Outcomes
from dwcp.services.agent.site import Room, Site
from dwcp.services.agent.station import RECONCILE_S, Station

if TYPE_CHECKING:
    from dwcp.runtime.choosing import HostChooser

SILENCE_NS_MAX = int(6 * RECONCILE_S * 1e9)


async def main(config: AgentConfig, process: Process) -> None:
    """Open, serve, drain, close. Commands go on under their shims."""
    await asyncio.to_thread(sandbox.probe)
    async with AsyncExitStack() as opened:
        assert config.sign_key is not None  # `AgentConfig.validate`
        ledger = await LedgerClient.open(
            genesis=genesis_file.load(config.genesis),
            key=keys.load_sign_key(config.sign_key),
            tls=config.tls,
            session_path=config.data_dir / "session",
        )
        opened.push_async_callback(ledger.close)
        client = await opened.enter_async_context(http.client(config.tls))
        store = await asyncio.to_thread(
            ChunkStore.open, config.data_dir / "chunks", quota_bytes=config.store_quota_mib << 20
        )
        await _serve(config, process, LedgerLog(ledger), client, store)


async def _serve(
    config: AgentConfig, process: Process, log: LedgerLog, client: httpx.AsyncClient, store: ChunkStore
) -> None:
    dispatch = Dispatch(
        directory=config.data_dir / "receipts",
        node=config.node,
        client=client,
        manager_url=config.manager,
        clock=process.clock,
        logger=process.log,
    )
    goods = StoreGoods(store=store, log=log, client=client, downlink=Pacer(config.downlink_mbps * 1e6))
    attempts = AttemptStore(layout.ensure(config.data_dir / "attempts"))
    site = Site(
        node=config.node,
        name=config.name,
        log=log,
        goods=goods,
        teller=dispatch,
        store=attempts,
        cgroups=cgroups.detect(group_name(config)),
        room=Room(config.capacity),
        clock=process.clock,
        telemetry=process.telemetry,
        logger=process.log,
        lease_ms=config.lease_ms,
        ship_stall_ms=config.ship_stall_ms,
        hidden=tuple(str(path) for path in {config.data_dir, config.genesis.parent}),
        shim_arguments=shim_arguments(process.failpoints, config.data_dir),
    )
    offer = Node(config.node, config.site, config.address, config.capacity)
    station = Station(site, offer, attempts_kept=config.attempts_kept)
    _add_checks(process, station, store)
    app = http.application(process.health, process.telemetry)
    routes.mount(app, node=config.node, store=attempts, dispatch=dispatch, busy=lambda: station.busy)
    outcomes = Outcomes(client, config.compression, telemetry=process.telemetry)
    chooser = late_chooser(process, lambda: _of_this_host(config.data_dir, outcomes))
    uplink = Pacer(config.uplink_mbps * 1e6)
    app.include_router(
        payload_routes.routes(
            routes.guarded(store),
            chooser=chooser,
            uplink=uplink,
            telemetry=process.telemetry,
            expect=chooser.expect,
        )
    )
    async with asyncio.TaskGroup() as tasks:
        news = [tasks.create_task(dispatch.run()), tasks.create_task(outcomes.run())]
        tasks.create_task(station.run(process.stop))
        await http.serve_configured(
            app,
            config,
            stop=process.stop,
            telemetry=process.telemetry,
            streams=payload_routes.STREAM_PATHS,
            grants=tuple(Grant(path, AGENTS) for path in payload_routes.SHARING_PATHS),
        )
        for each in news:
            each.cancel()


def _of_this_host(data_dir: Path, outcomes: Outcomes) -> HostChooser:
    """Blocking; what it loads is not loaded before."""
    from dwcp.runtime.choosing import of_this_host

    return of_this_host(data_dir, told=outcomes.told)


def late_chooser(process: Process, load: Callable[[], HostChooser]) -> LateChooser:
    """Loaded by the first transfer from here; where the table has to do, log, metrics and health say so."""

    def loaded(found: HostChooser) -> None:
        process.telemetry.gauge("dwcp_ship_selector_learned", 0.0 if found.trouble else 1.0)
        if found.trouble:
            process.log.warning("selector.not_loaded", error=found.trouble)

    def codecs() -> Check:
        return Check(Verdict.WARN if late.trouble else Verdict.OK, data={"basis": late.basis})

    late = LateChooser(load, loaded=loaded)
    process.health.add("codecs", codecs)
    return late


def group_name(config: AgentConfig) -> str:
    """Of its data folder, so that installations side by side never clean up after each other."""
    place = hashlib.sha256(str(config.data_dir.resolve()).encode()).hexdigest()[:8]
    return f"{config.name}-{place}"


def shim_arguments(armed: tuple[str, ...], data_dir: Path) -> tuple[str, ...]:
    """The shim's share of what a test has armed; the process was refused any unless it is testing."""
    words = [word for spec in armed if spec.startswith("shim.") for word in ("--failpoint", spec)]
    return (*words, "--failpoint-directory", str(data_dir / "failpoints")) if words else ()


def _add_checks(process: Process, station: Station, store: ChunkStore) -> None:
    def control_log() -> Check:
        silent_ns = boottime_ns() - station.heard_ns
        if not station.heard_ns:
            return Check(Verdict.UNKNOWN, "the control log has not answered yet")
        if silent_ns > SILENCE_NS_MAX:
            return Check(Verdict.CRIT, f"the control log has been silent for {silent_ns // 10**9} s")
        return Check(Verdict.OK)

    def node() -> Check:
        if not station.announced:
            return Check(Verdict.UNKNOWN, "this node is not in the control log yet")
        data: dict[str, object] = {
            "node": station.site.node,
            "attempts": station.busy,
            "chunk_bytes": store.bytes_held,
        }
        used = station.meter.now
        if used is not None:  # the manager reads it from here
            data["used"] = {"cpu_milli": used.cpu_milli, "memory_mib": used.memory_mib}
        return Check(Verdict.OK, data={**data, "limits_enforced": station.site.cgroups.version})

    process.health.add("control_log", control_log, needed=True)
    process.health.add("node", node, needed=True)


if __name__ == "__main__":
    run(AgentConfig, main)
