"""An agent's data path in a process of its own, for benchmarks and tests: a chunk store behind mutual TLS.

What the product has is imported when it is served, so that a process that only passes bytes on starts at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dwcp.runtime.chunkstore import ChunkStore
    from dwcp.runtime.config import TlsFiles


def say(**facts: object) -> None:
    """One fact, one line."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def tls_files(paths: Mapping[str, str | Path]) -> TlsFiles:
    from dwcp.runtime.config import TlsFiles

    return TlsFiles(**{name: Path(path) for name, path in paths.items()})


async def serve_store(
    name: str, store: ChunkStore, *, at: tuple[str, int], tls: TlsFiles, rate_bps: float | None = None
) -> None:
    """Until it is cancelled; says "ready" when it can be reached. `rate_bps`: its uplink, None without limit."""
    from dwcp.runtime.http import Health, application, serve
    from dwcp.runtime.packflow import FixedChooser, Pacer
    from dwcp.runtime.payload_routes import SHARING_PATHS, STREAM_PATHS, routes
    from dwcp.runtime.principals import AGENTS, Grant
    from dwcp.runtime.telemetry import Telemetry

    telemetry = Telemetry(name, version="0")
    app = application(Health(name, version="0"), telemetry)
    app.include_router(
        routes(store, chooser=FixedChooser("zstd-1"), uplink=Pacer(rate_bps), telemetry=telemetry)
    )
    started = asyncio.Event()
    serving = asyncio.create_task(
        serve(
            app,
            stop=asyncio.Event(),
            telemetry=telemetry,
            tls=(*at, tls),
            streams=STREAM_PATHS,
            grants=tuple(Grant(path, AGENTS) for path in SHARING_PATHS),
            started=started,
        )
    )
    await asyncio.wait([serving, asyncio.create_task(started.wait())], return_when=asyncio.FIRST_COMPLETED)
    say(ready=True)
    await serving
