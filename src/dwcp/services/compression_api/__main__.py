"""The compression service's composition root."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from dwcp.runtime.choosing import calibrated
from dwcp.runtime.http import Check, Health, Verdict, application, serve_configured
from dwcp.runtime.keys import create_sign_key, load_sign_key
from dwcp.runtime.principals import AGENTS, Grant
from dwcp.runtime.process import Process, run
from dwcp.runtime.registry import Registry
from dwcp.services.compression_api import dictionaries, streams
from dwcp.services.compression_api.admission import Admission
from dwcp.services.compression_api.config import CompressionConfig
from dwcp.services.compression_api.desk import Desk
from dwcp.services.compression_api.dictionaries import Dictionaries
from dwcp.services.compression_api.dictionary_routes import DICTIONARIES_PATH, add_dictionary_routes
from dwcp.services.compression_api.learned import Family
from dwcp.services.compression_api.learned_selector import SelectorFamily
from dwcp.services.compression_api.models import Models
from dwcp.services.compression_api.outcomes import Outcomes
from dwcp.services.compression_api.routes import (
    COMPRESSION_PREFIX,
    FEEDBACK_PATH,
    PURE_PATHS,
    Front,
    add_routes,
)
from dwcp.services.compression_api.stage import Stage
from dwcp.services.compression_api.staging import Staging, own_module
from dwcp.services.compression_api.streams import Limits, Streams
from dwcp.services.model_routes import DEPLOY_PATH, add_model_routes

_SWITCH_S = 5e-4  # a packing thread that is done waits no longer than this for the loop to let it say so


async def main(config: CompressionConfig, process: Process, *, family: Family | None = None) -> None:
    """Calibrates (cached after the first time), then serves until told to stop. `family`: else the release's."""
    sys.setswitchinterval(_SWITCH_S)
    calibration = await asyncio.to_thread(calibrated, config.data_dir)
    process.log.info("calibration.completed", host=calibration.host, seconds=calibration.seconds)
    telemetry = process.telemetry
    path = config.data_dir / "models.key"
    key = load_sign_key(path) if path.exists() else create_sign_key(path)
    family = family or SelectorFamily()
    registry = Registry(config.data_dir / "models", family.kind, public=key.public) if family else None
    stage = Stage(calibration, telemetry=telemetry, clock=process.clock, family=family, registry=registry)
    await stage.refresh()
    desk = Desk(stage, Outcomes(calibration, telemetry=telemetry), telemetry=telemetry)
    admission = Admission(
        rated_per_s=config.rated_per_s,
        streams_max=config.streams_max,
        clock=time.monotonic,
        telemetry=telemetry,
    )
    _add_checks(process.health, stage)
    app = application(process.health, telemetry)
    add_routes(app, desk, admission=admission)
    module = None if config.staging else own_module()
    staging = Staging(config, module, family.kind) if module else None
    add_model_routes(app, Models(stage, key, process.clock, staging))
    if config.staging:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), process.stop.set)
    kept = Dictionaries(
        config.data_dir / "dictionaries",
        limits=dictionaries.Limits(int(config.dictionary_days * 86_400_000), config.dictionaries_max),
        clock=process.clock,
    )
    add_dictionary_routes(app, kept, admission=admission, telemetry=telemetry)
    limits = Limits(config.stream_bytes_max, config.stream_seconds_max)
    with ThreadPoolExecutor(2, thread_name_prefix="codec") as pool:
        through = Streams(desk.decide, pool=pool, limits=limits, telemetry=telemetry)
        streams.add_routes(app, through, admission=admission, limits=limits)
        watching = asyncio.create_task(stage.watch())
        front = Front(app, desk, admission=admission)
        gc.freeze()  # what was made until now stays: a full collection would stop the loop for 20 ms
        try:
            await serve_configured(
                front,
                config,
                stop=process.stop,
                telemetry=telemetry,
                pure=PURE_PATHS,
                streams=(streams.STREAM_PREFIX, COMPRESSION_PREFIX, DEPLOY_PATH, DICTIONARIES_PATH),
                grants=(Grant(FEEDBACK_PATH, AGENTS),),
                at_once=front.at_once,
            )
        finally:
            watching.cancel()
            stage.close()


def _add_checks(health: Health, stage: Stage) -> None:
    def calibration() -> Check:
        found = {"host": stage.calibration.host, "tier": stage.tier}
        return Check(Verdict.OK, "speeds of this host", found)

    def model() -> Check:
        verdict = Verdict.WARN if stage.trouble or stage.damaged or stage.drift.changed else Verdict.OK
        return Check(verdict, stage.detail(), {"digest": stage.incumbent.digest or "none"})

    health.add("calibration", calibration, needed=True)
    health.add("model", model)


if __name__ == "__main__":
    run(CompressionConfig, main)
