"""One party of a transfer as a process of its own: `source` serves a store, `target` pulls into one,
`pusher` sends the folder to the agent at the one source.

Started by `test_shipping.py` with one JSON argument; prints one JSON line per fact.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop
from benchmarks.data_path import say, serve_store, tls_files

from dwcp.runtime import choosing, failpoints
from dwcp.runtime.choosing_learned import Chosen
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.config import TlsFiles
from dwcp.runtime.http import client
from dwcp.runtime.packflow import Chooser, FixedChooser, Pacer
from dwcp.runtime.payloads import Handed, upload
from dwcp.runtime.shipping import Patience, Progress, Source, pull
from dwcp.runtime.trees import read_tree


class Plan(msgspec.Struct, forbid_unknown_fields=True):
    """What the test wants of this process."""

    role: str
    folder: Path
    tls: dict[str, Path]
    host: str
    port: int
    root: str = ""
    sources: dict[str, str] = {}
    rate_bps: float | None = None
    quota_bytes: int = 1 << 40
    failpoints: list[str] = []
    codec: str = "zstd-3"  # of a pusher; "auto": chosen for each pack, and said


async def source(plan: Plan, tls: TlsFiles) -> None:
    store = ChunkStore.open(plan.folder, quota_bytes=plan.quota_bytes)
    await serve_store("source", store, at=(plan.host, plan.port), tls=tls, rate_bps=plan.rate_bps)


async def target(plan: Plan, tls: TlsFiles) -> None:
    store = ChunkStore.open(plan.folder)
    last: list[Progress] = []
    async with client(tls) as http:
        await pull(
            bytes.fromhex(plan.root),
            [Source(name, url) for name, url in plan.sources.items()],
            store=store,
            owner="w-1",
            client=http,
            pacer=Pacer(plan.rate_bps),
            tell=last.append,
            patience=Patience(failures=200, first_pause_s=0.05, longest_pause_s=0.1, stall_s=2.0),
        )
    wire = last[-1].wire_bytes if last else 0
    say(complete=store.complete(bytes.fromhex(plan.root)), wire_bytes=wire)


async def pusher(plan: Plan, tls: TlsFiles) -> None:
    (url,) = plan.sources.values()
    async with client(tls, timeout_s=60) as http:
        tree = read_tree(plan.folder)
        chooser = await asyncio.to_thread(_chooser, plan)
        pacer = Pacer(plan.rate_bps)
        answer = await upload(http, url, tree, name="data", pacer=pacer, tell=_tell(plan), chooser=chooser)
    say(root=answer.root, received_bytes=answer.received_bytes)


def _chooser(plan: Plan) -> Chooser:
    if plan.codec != "auto":
        return FixedChooser(plan.codec)

    def told(chosen: Chosen) -> None:
        say(codec=chosen.codec, tier=chosen.tier, rate_bps=chosen.rate_bps)

    return choosing.of_this_host(plan.folder.parent, told=told)


def _tell(plan: Plan) -> Callable[[Handed], None]:
    """Says each sent pack where the test follows."""
    return lambda handed: say(sent=handed.sent_bytes) if plan.rate_bps else None


def main() -> None:
    plan = msgspec.json.decode(sys.argv[1], type=Plan, dec_hook=lambda _, text: Path(text))
    failpoints.arm(plan.failpoints, plan.folder.parent / f"{plan.folder.name}-points", testing=True)
    tls = tls_files(plan.tls)
    uvloop.run({"source": source, "target": target, "pusher": pusher}[plan.role](plan, tls))


if __name__ == "__main__":
    main()
