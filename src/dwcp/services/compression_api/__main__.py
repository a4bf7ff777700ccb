"""The compression service's composition root."""

from __future__ import annotations

import asyncio

from dwcp.compression.table import Table
from dwcp.runtime.choosing import calibrated
from dwcp.runtime.http import Check, Verdict, application, serve_configured
from dwcp.runtime.process import Process, run
from dwcp.services.compression_api.config import CompressionConfig
from dwcp.services.compression_api.routes import PREDICT_PATH, Selector, add_routes


async def main(config: CompressionConfig, process: Process) -> None:
    """Calibrates (cached after the first time), then serves until told to stop."""
    calibration = await asyncio.to_thread(calibrated, config.data_dir)
    process.log.info("calibration.completed", host=calibration.host, seconds=calibration.seconds)
    selector = Selector(Table(calibration), telemetry=process.telemetry)
    process.health.add(
        "calibration",
        lambda: Check(Verdict.OK, "speeds of this host", {"host": calibration.host, "tier": "table"}),
        needed=True,
    )
    app = application(process.health, process.telemetry)
    add_routes(app, selector)
    await serve_configured(
        app,
        config,
        stop=process.stop,
        telemetry=process.telemetry,
        pure=(PREDICT_PATH,),
    )


if __name__ == "__main__":
    run(CompressionConfig, main)
