"""How a service process starts and ends: arguments, configuration, logs, signals, one sentence on failure.

A service module ends with `run(MyConfig, main)`; `main(config, process)` builds the
service, serves until `process.stop` is set, and returns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import psutil
import structlog
import uvloop

from dwcp import __version__
from dwcp.consensus.core.errors import CoreError
from dwcp.runtime import failpoints
from dwcp.runtime.clock import Clock, SystemClock
from dwcp.runtime.config import ServiceConfig, dump, load
from dwcp.runtime.errors import Exit, RuntimeFault
from dwcp.runtime.http import Health
from dwcp.runtime.layout import ensure
from dwcp.runtime.telemetry import Telemetry, setup_logs

C = TypeVar("C", bound=ServiceConfig)


@dataclass(frozen=True, slots=True)
class Process:
    """What the process gives to its service."""

    name: str
    stop: asyncio.Event  # set by SIGTERM or SIGINT: drain and return
    clock: Clock
    log: structlog.stdlib.BoundLogger
    telemetry: Telemetry
    health: Health
    failpoints: tuple[str, ...]  # as given, for children that a test may arm too


def run(
    shape: type[C], main: Callable[[C, Process], Awaitable[None]], argv: Sequence[str] | None = None
) -> NoReturn:
    """Runs the service and exits; every fault of the operator is one sentence on standard error."""
    arguments = _arguments(argv)
    try:
        config = load(arguments.config, shape)
        if arguments.dump_config:
            sys.stdout.write(dump(config))
            sys.exit(Exit.OK)
        failpoints.arm(arguments.failpoint, config.data_dir, testing=config.testing)
        _claim(config)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_main(config, main, tuple(arguments.failpoint)))
    except* (RuntimeFault, CoreError) as group:
        fault = _first(group)
        sys.stdout.flush()
        sys.stderr.write(f"{fault}\n")
        sys.exit(fault.exit_code if isinstance(fault, RuntimeFault) else Exit.FAILED)
    except* OSError as group:
        sys.stdout.flush()
        sys.stderr.write(_system_said(_first(group), arguments.config) + "\n")
        sys.exit(Exit.FAILED)
    sys.exit(Exit.OK)


async def _main(config: C, main: Callable[[C, Process], Awaitable[None]], armed: tuple[str, ...]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log = setup_logs(config.name, level=config.log_level)
    clock = SystemClock()
    process = Process(
        name=config.name,
        stop=stop,
        clock=clock,
        log=log,
        telemetry=Telemetry(config.name, version=__version__),
        health=Health(config.name, version=__version__, clock=clock),
        failpoints=armed,
    )
    log.info("service.started", version=__version__)
    try:
        await main(config, process)
    except BaseException as exc:
        log.error("service.failed", error=str(_first(exc)))
        raise
    log.info("service.completed")


def _claim(config: ServiceConfig) -> None:
    """Makes the data folder and says who runs, with the start time that tells a reused pid apart."""
    ensure(config.data_dir)
    if config.run_dir is not None:
        ensure(config.run_dir)
        started = psutil.Process().create_time()
        content = json.dumps({"pid": os.getpid(), "create_time": started})
        (config.run_dir / f"{config.name}.pid").write_text(content)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A service of DWCP.")
    parser.add_argument("--config", type=Path, required=True, help="its configuration file")
    parser.add_argument("--failpoint", action="append", default=[], metavar="NAME=ACTION", help="tests only")
    parser.add_argument(
        "--dump-config", action="store_true", help="print the effective configuration and exit"
    )
    return parser.parse_args(argv)


def _system_said(fault: BaseException, config: Path) -> str:
    """A full or read-only disk, missing rights: the operator's to repair, so without our stack."""
    name = getattr(fault, "filename", None) or f"a file or address named in {config}"
    said = getattr(fault, "strerror", None) or str(fault)
    return f"{name}: {said}; repair that, then start again"


def _first(fault: BaseException) -> BaseException:
    """The first fault inside nested groups, which is the one that stopped the others."""
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    return fault
