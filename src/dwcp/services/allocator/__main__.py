"""The allocator's composition root."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import time

from dwcp.allocation.serving.rehearsal import DECISIONS, Rehearsal
from dwcp.allocation.serving.warming import warm
from dwcp.runtime.http import Check, Verdict, application, serve_configured
from dwcp.runtime.keys import create_sign_key, load_sign_key
from dwcp.runtime.principals import MANAGER, Grant
from dwcp.runtime.process import Process, run
from dwcp.runtime.registry import Registry
from dwcp.services.allocator import extender_routes, keeping, routes
from dwcp.services.allocator.config import AllocatorConfig
from dwcp.services.allocator.desk import DEADLINE_S, Desk
from dwcp.services.allocator.extender_routes import add_extender_routes
from dwcp.services.allocator.placers import Placers
from dwcp.services.allocator.rebalance_routes import PLAN_PATH, add_rebalance_routes
from dwcp.services.allocator.stage import KIND, Stage
from dwcp.services.allocator.watching import watch
from dwcp.services.model_routes import DEPLOY_PATH, add_model_routes


async def main(config: AllocatorConfig, process: Process) -> None:
    """Serves until told to stop."""
    path = config.data_dir / "models.key"
    key = load_sign_key(path) if path.exists() else create_sign_key(path)
    registry = Registry(config.data_dir / "models", KIND, public=key.public)
    stage = Stage(
        telemetry=process.telemetry,
        clock=process.clock,
        registry=registry,
        use_shipped=config.use_model,
        warm=functools.partial(warm, policy=config.policy, terrain=config.terrain),
        drift_max=config.drift_max,
    )
    desk = Desk(
        clock=process.clock,
        telemetry=process.telemetry,
        stage=stage,
        policy=config.policy,
        reservation_ms=config.reservation_ms,
        terrain=config.terrain,
    )
    await stage.refresh()  # what served before a restart has been rehearsed
    stage.rehearsal = lambda: Rehearsal(
        desk.records.newest(DECISIONS), config.policy, config.terrain, DEADLINE_S, time.thread_time
    )
    day = config.data_dir / keeping.FILE
    trouble = keeping.take_up(desk, day, now_ms=process.clock.now_ms())
    if trouble:
        process.log.warning("day_unknown", detail=trouble)
    process.health.add("policy", lambda: _check(desk))
    app = application(process.health, process.telemetry)
    routes.add_routes(app, desk)
    add_extender_routes(app, desk)
    add_rebalance_routes(app)
    add_model_routes(app, Placers(stage, key, process.clock))
    gc.collect()
    gc.freeze()  # what is loaded by now stays: later collections look at requests alone
    watching = [
        asyncio.create_task(stage.watch()),
        asyncio.create_task(watch(desk)),
        asyncio.create_task(keeping.keep(desk, day)),
    ]
    try:
        await serve_configured(
            app,
            config,
            stop=process.stop,
            telemetry=process.telemetry,
            pure=(*routes.PURE_PATHS, *extender_routes.PURE_PATHS),
            streams=(DEPLOY_PATH,),
            at_once=routes.at_once(desk),
            grants=tuple(
                Grant(granted, MANAGER)
                for granted in (
                    routes.PLACE_PATH,
                    routes.BATCH_PATH,
                    routes.RELEASE_PATH,
                    routes.NODES_PATH,
                    PLAN_PATH,
                )
            ),
        )
    finally:
        for task in watching:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await keeping.save(desk, day)


def _check(desk: Desk) -> Check:
    stage = desk.stage
    verdict = Verdict.WARN if stage.trouble or stage.drift.changed else Verdict.OK
    model = "none" if stage.active is None else stage.active.digest
    return Check(verdict, stage.detail(), {"model": model, "policy": desk.policy})


if __name__ == "__main__":
    run(AllocatorConfig, main)
