"""The allocator's composition root."""

from __future__ import annotations

from dwcp.runtime.http import Check, Verdict, application, serve_configured
from dwcp.runtime.principals import MANAGER, Grant
from dwcp.runtime.process import Process, run
from dwcp.services.allocator.config import AllocatorConfig
from dwcp.services.allocator.rebalance_routes import PLAN_PATH, add_rebalance_routes
from dwcp.services.allocator.routes import NO_MODEL, PLACE_PATH, RELEASE_PATH, Desk, add_routes


async def main(config: AllocatorConfig, process: Process) -> None:
    """Serves until told to stop."""
    desk = Desk(
        policy=config.policy,
        reservation_ms=config.reservation_ms,
        clock=process.clock,
        telemetry=process.telemetry,
        links={link.site: (link.uplink_mbps, link.downlink_mbps) for link in config.links},
    )
    process.health.add(
        "policy", lambda: Check(Verdict.OK, NO_MODEL, {"model": "none", "policy": desk.policy})
    )
    app = application(process.health, process.telemetry)
    add_routes(app, desk)
    add_rebalance_routes(app)
    await serve_configured(
        app,
        config,
        stop=process.stop,
        telemetry=process.telemetry,
        grants=(Grant(PLACE_PATH, MANAGER), Grant(RELEASE_PATH, MANAGER), Grant(PLAN_PATH, MANAGER)),
    )


if __name__ == "__main__":
    run(AllocatorConfig, main)
