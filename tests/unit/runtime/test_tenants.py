"""Tenants on one agent: nothing that one asks, sends or is answered depends on what another holds."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from dwcp.compression import intake
from dwcp.compression.errors import ContainerInvalid, RequestInvalid, ShipFailed
from dwcp.compression.manifest import Manifest
from dwcp.compression.rolling import RollingHash
from dwcp.consensus.crypto import codec
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.held import Hint, held, near
from dwcp.runtime.http import Health, application
from dwcp.runtime.packflow import FixedChooser, Pacer
from dwcp.runtime.payload_routes import routes
from dwcp.runtime.payloads import Uploaded, sent_list, upload
from dwcp.runtime.pushes import Pushes
from dwcp.runtime.shipping import PACKS_PATH, PackRequest, Patience, download, have
from dwcp.runtime.telemetry import Telemetry
from dwcp.runtime.trees import read_tree

T = TypeVar("T")
URL = "http://agent"


class _Whole(httpx.AsyncByteStream):
    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body


@dataclass
class Agent(httpx.AsyncBaseTransport):
    """One agent with a store for each tenant; `seen`: what was asked, and how many bytes were answered."""

    folder: Path
    tenant: str = "a"
    stores: dict[str, ChunkStore] = field(default_factory=dict)
    seen: list[tuple[str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for tenant in ("a", "b"):
            self.stores[tenant] = ChunkStore.open(self.folder, tenant=tenant)
        app = application(Health("agent", version="0"), Telemetry("agent", version="0"))
        app.include_router(
            routes(lambda _: self.stores[self.tenant], chooser=FixedChooser("zstd-1"), uplink=Pacer())
        )
        self._app = httpx.ASGITransport(app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._app.handle_async_request(request)
        body = await answer.aread()
        self.seen.append((request.url.path, answer.status_code, len(body)))
        return httpx.Response(answer.status_code, stream=_Whole(body))

    def run(self, tenant: str, work: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        """As this tenant."""
        self.tenant = tenant

        async def main() -> T:
            async with httpx.AsyncClient(transport=self) as client:
                return await work(client)

        return asyncio.run(main())


def _tree(folder: Path) -> Path:
    source = random.Random(3)
    folder.mkdir()
    (folder / "noise").write_bytes(source.randbytes(1 << 20))
    (folder / "text").write_bytes(b"the same words again and again %d\n" * 20_000)
    return folder


def _sent(agent: Agent, tenant: str, tree: Path) -> Uploaded:
    return agent.run(tenant, lambda client: upload(client, URL, read_tree(tree), name="mine"))


def test_questions_about_what_another_tenant_holds(tmp_path: Path) -> None:
    """Goal: B learns nothing of A's chunks, paths, payloads or names. Method: A sends; B asks every route."""
    agent = Agent(tmp_path / "agent")
    root = bytes.fromhex(_sent(agent, "a", _tree(tmp_path / "tree")).root)
    manifest: Manifest = agent.stores["a"].manifest(root)
    plan = intake.plan(manifest)

    assert all(agent.run("a", lambda client: have(client, URL, plan)))
    assert not any(agent.run("b", lambda client: have(client, URL, plan)))
    places = (Hint("text", 0, 1),)
    assert agent.run("a", lambda client: near(client, URL, places, hashing=RollingHash(1024, 3))) != [()]
    assert agent.run("b", lambda client: near(client, URL, places, hashing=RollingHash(1024, 3))) == [()]
    assert agent.run("a", lambda client: held(client, URL, ("text", "noise"))).keys() == {"text", "noise"}
    assert agent.run("b", lambda client: held(client, URL, ("text", "noise"))) == {}
    assert agent.run("b", lambda client: sent_list(client, URL)) == ()
    request = codec.encode(PackRequest(tuple(plan), 0, 10**9, ("zstd-1",)))
    known = agent.run("b", lambda client: client.post(URL + PACKS_PATH, content=request))
    unknown = PackRequest(tuple(each for each in plan[:-1]), 0, 10**9, ("zstd-1",))
    other = agent.run("b", lambda client: client.post(URL + PACKS_PATH, content=codec.encode(unknown)))
    assert known.status_code == other.status_code == 404
    with pytest.raises(ShipFailed, match="no payload"):
        agent.run(
            "b",
            lambda client: download(
                client, URL, root, tmp_path / "out", patience=Patience(failures=1, first_pause_s=0)
            ),
        )


def test_a_send_costs_the_same_whatever_another_tenant_holds(tmp_path: Path) -> None:
    """Goal: neither bytes nor round trips tell B that A has the very files. Method: B sends them to an agent
    where A holds them and to one where nobody does; requests, answers and bytes are the same. How many of the
    streams find a pack to carry is up to the scheduler, so those count once."""
    tree = _tree(tmp_path / "tree")
    shared, empty = Agent(tmp_path / "shared"), Agent(tmp_path / "empty")
    first = _sent(shared, "a", tree)
    shared.seen.clear()
    there, nowhere = _sent(shared, "b", tree), _sent(empty, "b", tree)

    assert there.received_bytes == nowhere.received_bytes == first.received_bytes > 1 << 20
    assert _asked(shared) == _asked(empty)
    again = _sent(shared, "b", tree)
    assert again.received_bytes == 0, "its own chunks it need not send again"


def _asked(agent: Agent) -> Counter[tuple[str, int, int]]:
    asked = Counter(agent.seen)
    return Counter({request: 1 if request[0] == "/v1/chunks" else times for request, times in asked.items()})


def test_one_tenant_cannot_take_part_in_the_push_of_another(tmp_path: Path) -> None:
    """Goal: a push that B names like A's is refused. Method: the same name, two stores."""
    stores = [ChunkStore.open(tmp_path, tenant=name) for name in ("a", "b")]

    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    async def main() -> None:
        pushes = Pushes(clock=lambda: 0.0)
        with contextlib.suppress(ContainerInvalid):
            await pushes.take("ab" * 16, nothing(), stores[0])
        with pytest.raises(RequestInvalid, match="somebody else"):
            await pushes.take("ab" * 16, nothing(), stores[1])

    asyncio.run(main())
