"""The manager's composition root."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from dwcp.consensus.ledger import genesis as genesis_file
from dwcp.consensus.ledger.genesis import Genesis
from dwcp.runtime import http, keys
from dwcp.runtime.client import LedgerClient
from dwcp.runtime.http import Check, Verdict
from dwcp.runtime.principals import AGENTS, Grant
from dwcp.runtime.process import Process, run
from dwcp.services.manager.config import ManagerConfig
from dwcp.services.manager.coordinator import Coordinator
from dwcp.services.manager.dependencies import AllocatorOrLocal, Dependencies
from dwcp.services.manager.events import Events
from dwcp.services.manager.ledger import LedgerPort
from dwcp.services.manager.loop import Loop, targets
from dwcp.services.manager.moves import MoveLimits
from dwcp.services.manager.receipts import ReceiptFiles, proof_needed
from dwcp.services.manager.routes import EVENTS_PATH, RECEIPTS_PATH, Desk, add_routes


async def main(config: ManagerConfig, process: Process) -> None:
    """Open, serve, drain, close."""
    async with AsyncExitStack() as opened:
        assert config.sign_key is not None  # `ManagerConfig.validate`
        genesis = genesis_file.load(config.genesis)
        ledger = await LedgerClient.open(
            genesis=genesis,
            key=keys.load_sign_key(config.sign_key),
            tls=config.tls,
            session_path=config.data_dir / "session",
        )
        opened.push_async_callback(ledger.close)
        client = await opened.enter_async_context(http.client(config.tls))
        dependencies = Dependencies(
            limits=config.breaker.limits(),
            clock=process.clock,
            telemetry=process.telemetry,
            probe_ms=config.probe_ms,
            client=client,
        )
        await _serve(config, process, genesis, LedgerPort(ledger), dependencies)


async def _serve(
    config: ManagerConfig, process: Process, genesis: Genesis, port: LedgerPort, dependencies: Dependencies
) -> None:
    events = Events(boot_ms=process.clock.now_ms())
    receipts = ReceiptFiles(config.data_dir / "receipts")

    def noted(problem: str) -> None:
        process.log.warning("allocator.failed", error=problem)

    allocator = AllocatorOrLocal(
        dependencies,
        url=config.allocator,
        timeout_s=config.allocator_timeout_ms / 1000,
        plan_timeout_s=config.plan_timeout_ms / 1000,
        noted=noted,
    )
    coordinator = Coordinator(
        log=port,
        placer=allocator,
        planner=allocator,
        limits=MoveLimits(at_once=config.moves_at_once, bytes_at_once=config.moves_bytes_at_once),
        receipts=receipts,
        events=events,
        telemetry=process.telemetry,
        logger=process.log,
        now_ms=process.clock.now_ms,
        lease_ms=config.lease_ms,
        unreachable=dependencies.unreachable,
        lease_missed=lambda node: loop.lease_missed(node),
    )
    expected = {agent.name: agent.url for agent in config.agents}
    loop = Loop(
        coordinator=coordinator,
        watcher=port,
        dependencies=dependencies,
        clock=process.clock,
        telemetry=process.telemetry,
        log=process.log,
        targets=lambda: targets(coordinator, allocator=config.allocator, expected=expected),
        reconcile_ms=config.reconcile_ms,
        probe_ms=config.probe_ms,
    )
    _add_checks(process, loop, dependencies)
    app = http.application(process.health, process.telemetry)
    desk = Desk(
        coordinator=coordinator,
        dependencies=dependencies,
        events=events,
        receipts=receipts,
        prove=proof_needed(genesis),
        telemetry=process.telemetry,
        wake=loop.wake,
    )
    add_routes(app, desk)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(loop.run())
        tasks.create_task(_release_readers(process.stop, events))
        await http.serve_configured(
            app,
            config,
            stop=process.stop,
            telemetry=process.telemetry,
            grants=(Grant(RECEIPTS_PATH, AGENTS), Grant(EVENTS_PATH, AGENTS)),
        )
        running.cancel()


async def _release_readers(stop: asyncio.Event, events: Events) -> None:
    """Who waits for events must not hold up the drain."""
    await stop.wait()
    events.close()


def _add_checks(process: Process, loop: Loop, dependencies: Dependencies) -> None:
    stale_ms = max(6 * loop.reconcile_ms, 3 * loop.probe_ms)

    def control_log() -> Check:
        condition = loop.condition
        age_ms = process.clock.monotonic_ms() - condition.at_ms
        if condition.at_ms < 0:
            return Check(Verdict.UNKNOWN, condition.problem)
        if condition.problem or age_ms > stale_ms:
            return Check(Verdict.CRIT, condition.problem or f"no answer for {age_ms} ms")
        damaged = len(loop.coordinator.inventory.damaged)
        if damaged:
            return Check(
                Verdict.WARN, f"{damaged} entries of the control log cannot be read", {"damaged": damaged}
            )
        return Check(Verdict.OK, data={"revision": loop.coordinator.inventory.revision})

    def breakers() -> Check:
        views = dependencies.views()
        shut = [view.name for view in views if view.state != "closed"]
        data = {"breakers": {view.name: view.state for view in views}}
        if shut:
            return Check(Verdict.WARN, f"not asked for now: {', '.join(shut)}", data)
        return Check(Verdict.OK, data=data)

    process.health.add("control_log", control_log, needed=True)
    process.health.add("dependencies", breakers)


if __name__ == "__main__":
    run(ManagerConfig, main)
