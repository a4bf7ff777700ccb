"""Shipping between stores through the agent's routes, without a network: honest, broken and lying sources."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dwcp.compression import codecs, intake, packs
from dwcp.compression import manifest as m
from dwcp.compression.chunking import address
from dwcp.compression.container import Header, PackedBlock, Reader, Writer
from dwcp.compression.errors import (
    BombRefused,
    PayloadChanged,
    PayloadRefused,
    ShipFailed,
    SourceFailed,
    SourceLied,
    TransferError,
)
from dwcp.compression.manifest import Chunk, Manifest
from dwcp.compression.recall import describe
from dwcp.consensus.crypto import codec
from dwcp.runtime import payloads, pushing
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.held import HELD_PATH, NEAR_PATH, newest
from dwcp.runtime.held import held as held_lists
from dwcp.runtime.http import Health, application
from dwcp.runtime.packflow import FixedChooser, Pacer
from dwcp.runtime.payload_routes import routes
from dwcp.runtime.payloads import Handed, Sent, sent_list, upload
from dwcp.runtime.pushes import Pushes
from dwcp.runtime.pushing import CHUNKS_PATH
from dwcp.runtime.shipping import HAVE_PATH, Patience, Progress, Source, download, have, pull, sentence
from dwcp.runtime.telemetry import Telemetry
from dwcp.runtime.trees import capture, index, read_tree

QUICK = Patience(failures=3, first_pause_s=0, longest_pause_s=0)
Tamper = Callable[[httpx.Request, bytes], bytes | httpx.Response]


class Agents(httpx.AsyncBaseTransport):
    """A few agents by host name; each may be down, or lie by a function over its answers."""

    def __init__(self) -> None:
        self.stores: dict[str, ChunkStore] = {}
        self.lies: dict[str, Tamper] = {}
        self.down: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self._apps: dict[str, httpx.ASGITransport] = {}

    def add(self, name: str, store: ChunkStore) -> Source:
        app = application(Health(name, version="0"), Telemetry(name, version="0"))
        app.include_router(routes(store, chooser=FixedChooser("zstd-1"), uplink=Pacer()))
        self.stores[name] = store
        self._apps[name] = httpx.ASGITransport(app)
        return Source(name, f"http://{name}")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        self.asked.append((name, request.url.path))
        if name in self.down:
            raise httpx.ConnectError("connection refused", request=request)
        answer = await self._apps[name].handle_async_request(request)
        if name not in self.lies:
            return answer
        changed = self.lies[name](request, await answer.aread())
        if isinstance(changed, httpx.Response):
            return changed
        return httpx.Response(answer.status_code, stream=_Cut(changed))


class _Cut(httpx.AsyncByteStream):
    """A body in small pieces; `CUT` at its end breaks the connection there."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        data = self._data.removesuffix(CUT)
        for at in range(0, len(data), 50_000):
            yield data[at : at + 50_000]
        if data != self._data:
            raise httpx.ReadError("connection reset")


CUT = b"<the connection breaks here>"


def _tree(directory: Path, *, seed: int = 1, size: int = 3 << 20) -> Path:
    source = random.Random(seed)
    (directory / "sub").mkdir(parents=True)
    (directory / "noise").write_bytes(source.randbytes(size))
    (directory / "text").write_bytes(b"".join(b"line %d\n" % source.randrange(1000) for _ in range(200_000)))
    for n in range(30):
        (directory / "sub" / f"small{n}").write_bytes(source.randbytes(source.randrange(2000)))
    (directory / "sub" / "link").symlink_to("../text")
    return directory


def _run(work: Callable[[httpx.AsyncClient], object], agents: Agents) -> object:
    async def main() -> object:
        async with httpx.AsyncClient(transport=agents) as client:
            return await work(client)  # type: ignore[misc]

    return asyncio.run(main())


@pytest.fixture
def agents() -> Agents:
    return Agents()


@pytest.fixture
def held(tmp_path: Path, agents: Agents) -> tuple[Manifest, Source]:
    """A payload of 5 MB at the agent `oslo`."""
    store = ChunkStore.open(tmp_path / "oslo")
    manifest = capture(_tree(tmp_path / "payload"), store, owner="w-1")
    return manifest, agents.add("oslo", store)


def _pull(
    agents: Agents, manifest: Manifest, sources: list[Source], store: ChunkStore, **more: object
) -> Manifest:
    def work(client: httpx.AsyncClient) -> object:
        return pull(
            m.root(manifest),
            sources,
            store=store,
            owner="w-1",
            client=client,
            patience=QUICK,
            **more,  # type: ignore[arg-type]
        )

    return _run(work, agents)  # type: ignore[return-value]


def test_a_payload_travels_whole(tmp_path: Path, agents: Agents, held: tuple[Manifest, Source]) -> None:
    """Everything arrives, packed smaller than it is, and progress ends at the total."""
    manifest, oslo = held
    told: list[Progress] = []
    store = ChunkStore.open(tmp_path / "rome")

    assert _pull(agents, manifest, [oslo], store, tell=told.append) == manifest

    assert store.complete(m.root(manifest))
    assert told[-1].done_bytes == told[-1].total_bytes == sum(c.size for c in intake.plan(manifest))
    assert told[-1].wire_bytes < told[-1].total_bytes
    assert [each.done_bytes for each in told] == sorted(each.done_bytes for each in told)
    assert {each.codec for each in told} >= {"zstd-1", "none"}


def test_only_missing_chunks_travel(tmp_path: Path, agents: Agents, held: tuple[Manifest, Source]) -> None:
    """A second version of the payload, one byte longer in the middle: a fraction is moved."""
    manifest, oslo = held
    store = ChunkStore.open(tmp_path / "rome")
    _pull(agents, manifest, [oslo], store)
    data = (tmp_path / "payload" / "noise").read_bytes()
    (tmp_path / "payload" / "noise").write_bytes(data[:1_000_000] + b"!" + data[1_000_000:])
    changed = capture(tmp_path / "payload", agents.stores["oslo"], owner="w-2")
    told: list[Progress] = []

    _pull(agents, changed, [oslo], store, tell=told.append)

    assert told[-1].wire_bytes < 500_000


def test_what_is_there_already_asks_nobody(
    tmp_path: Path, agents: Agents, held: tuple[Manifest, Source]
) -> None:
    """A second owner of a complete payload costs no request at all."""
    manifest, oslo = held
    store = ChunkStore.open(tmp_path / "rome")
    _pull(agents, manifest, [oslo], store)
    agents.asked.clear()

    _pull(agents, manifest, [oslo], store)

    assert agents.asked == []


def test_a_broken_stream_goes_on_at_the_next_pack(
    tmp_path: Path, agents: Agents, held: tuple[Manifest, Source]
) -> None:
    """Each answer breaks off after a pack and a bit: resumed by index, nothing is sent twice."""
    manifest, oslo = held
    sizes = []

    def break_off(request: httpx.Request, body: bytes) -> bytes:
        if not request.url.path.endswith("packs") or len(body) < 1_800_000:
            return body
        sizes.append(1_700_000)
        return body[:1_700_000] + CUT

    agents.lies["oslo"] = break_off
    told: list[Progress] = []
    store = ChunkStore.open(tmp_path / "rome")

    _pull(agents, manifest, [oslo], store, tell=told.append)

    assert store.complete(m.root(manifest))
    assert len(sizes) >= 2
    assert agents.asked.count(("oslo", "/v1/chunks/have")) == 1
    assert told[-1].done_bytes == told[-1].total_bytes


def test_another_source_takes_over(tmp_path: Path, agents: Agents, held: tuple[Manifest, Source]) -> None:
    """The first is down, the second has none of it, the third delivers."""
    manifest, oslo = held
    down = Source("down", "http://down")
    agents.down.add("down")
    empty = agents.add("empty", ChunkStore.open(tmp_path / "empty"))
    store = ChunkStore.open(tmp_path / "rome")

    _pull(agents, manifest, [down, empty, oslo], store)

    assert store.complete(m.root(manifest))


def test_sources_may_complete_each_other(
    tmp_path: Path, agents: Agents, held: tuple[Manifest, Source]
) -> None:
    """One has lost some chunks: what it has is taken, the rest comes from the other."""
    manifest, oslo = held
    partial = ChunkStore.open(tmp_path / "partial")
    _pull(agents, manifest, [oslo], partial)
    plan = intake.plan(manifest)
    for chunk in plan[::2]:
        partial._discard(chunk.address)
    for chunk in plan[1::2]:
        agents.stores["oslo"]._discard(chunk.address)
    store = ChunkStore.open(tmp_path / "rome")

    _pull(agents, manifest, [agents.add("partial", partial), oslo], store)

    assert store.complete(m.root(manifest))


def _flip(request: httpx.Request, body: bytes) -> bytes:
    if not request.url.path.endswith("packs"):
        return body
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def _other_manifest(request: httpx.Request, body: bytes) -> bytes:
    return m.encode(m.make([])) if "manifests" in request.url.path else body


def _endless(request: httpx.Request, body: bytes) -> bytes:
    return body + bytes(1 << 20) if "manifests" not in request.url.path else body


def _junk(request: httpx.Request, body: bytes) -> bytes:
    return b"\x00\xff" * 500


def _swapped_chunk(request: httpx.Request, body: bytes) -> bytes:
    """A well-formed stream of right sizes and wrong bytes: only the addresses can tell."""
    if not request.url.path.endswith("packs"):
        return body
    items = list(Reader(raw_bytes_max=1 << 30).feed(body))
    header = next(item for item in items if isinstance(item, Header))
    writer = Writer(header)
    blocks = [
        writer.block(bytes(len(item.unpack())), codecs.NONE)
        for item in items
        if isinstance(item, PackedBlock)
    ]
    return header.encode() + b"".join(blocks) + writer.end()


@pytest.mark.parametrize("lie", [_flip, _other_manifest, _endless, _junk, _swapped_chunk])
def test_a_liar_is_found_and_not_asked_again(
    tmp_path: Path, agents: Agents, held: tuple[Manifest, Source], lie: Tamper
) -> None:
    """Alone it cannot deliver; beside an honest source the payload arrives all the same."""
    manifest, oslo = held
    copy = ChunkStore.open(tmp_path / "copy")
    _pull(agents, manifest, [oslo], copy)
    liar = agents.add("liar", copy)
    agents.lies["liar"] = lie

    with pytest.raises(ShipFailed, match="cannot be had"):
        _pull(agents, manifest, [liar], ChunkStore.open(tmp_path / "rome"))
    agents.asked.clear()
    store = ChunkStore.open(tmp_path / "lima")
    _pull(agents, manifest, [liar, oslo], store)

    assert store.complete(m.root(manifest))
    assert [name for name, _ in agents.asked].count("liar") <= 4  # manifest, chunks, two streams at once


def test_an_unreachable_source_ends_in_a_sentence(tmp_path: Path, agents: Agents) -> None:
    """Patience is bounded, and the last failure is named."""
    agents.down.add("oslo")

    with pytest.raises(ShipFailed, match=r"oslo: .*connection refused"):
        _pull(agents, m.make([]), [Source("oslo", "http://oslo")], ChunkStore.open(tmp_path / "rome"))


def test_nobody_to_ask_ends_in_a_sentence(tmp_path: Path, agents: Agents) -> None:
    """An empty list of sources."""
    with pytest.raises(ShipFailed, match="no source"):
        _pull(agents, m.make([]), [], ChunkStore.open(tmp_path / "rome"))


def test_a_damaged_chunk_at_the_source_is_had_elsewhere(
    tmp_path: Path, agents: Agents, held: tuple[Manifest, Source]
) -> None:
    """One flipped byte on oslo's disk: its stream breaks, the copy delivers, nothing wrong is stored."""
    manifest, oslo = held
    copy = ChunkStore.open(tmp_path / "copy")
    _pull(agents, manifest, [oslo], copy)
    victim = agents.stores["oslo"]._chunk_path(intake.plan(manifest)[5].address)
    victim.write_bytes(b"X" + victim.read_bytes()[1:])
    store = ChunkStore.open(tmp_path / "rome")

    # The in-process transport shows the failure of the app itself; a socket would show a broken connection.
    agents._apps["oslo"].raise_app_exceptions = False
    _pull(agents, manifest, [oslo, agents.add("copy", copy)], store)

    assert store.complete(m.root(manifest))


def test_downloads_verify_and_write(tmp_path: Path, agents: Agents, held: tuple[Manifest, Source]) -> None:
    """`dwcp output`: into a new directory, with nothing left beside it."""
    manifest, _ = held

    def work(client: httpx.AsyncClient) -> object:
        return download(client, "http://oslo", m.root(manifest), tmp_path / "here", patience=QUICK)

    _run(work, agents)

    assert (tmp_path / "here" / "sub" / "link").read_bytes() == (tmp_path / "payload" / "text").read_bytes()
    assert not (tmp_path / ".here.dwcp-partial").exists()
    with pytest.raises(PayloadRefused, match="not an empty directory"):
        _run(work, agents)


def _upload(agents: Agents, directory: Path, tell: Callable[[Handed], None] | None = None) -> object:
    def work(client: httpx.AsyncClient) -> object:
        return upload(client, "http://oslo", read_tree(directory), workload="w-9", tell=tell)

    return _run(work, agents)


def test_an_upload_arrives_and_a_second_one_costs_nothing(tmp_path: Path, agents: Agents) -> None:
    """The agent answers with the root that the submitter computed itself; chunks travel once."""
    store = ChunkStore.open(tmp_path / "oslo")
    agents.add("oslo", store)
    told: list[Handed] = []

    first = _upload(agents, _tree(tmp_path / "payload"), told.append)
    second = _upload(agents, tmp_path / "payload")

    assert store.roots() == {bytes.fromhex(first.root): frozenset({"w-9"})}  # type: ignore[attr-defined]
    assert first.files == 32  # type: ignore[attr-defined]
    assert first.received_bytes == first.bytes  # type: ignore[attr-defined]
    assert second.received_bytes == 0  # type: ignore[attr-defined]
    assert {each.stage for each in told} == {"sending", "checking"}
    assert told[-1].done_bytes == told[-1].total_bytes


def test_a_payload_that_changes_between_naming_and_sending(tmp_path: Path, agents: Agents) -> None:
    """The second read finds other bytes: a sentence with the path, and the agent commits nothing."""
    store = ChunkStore.open(tmp_path / "oslo")
    agents.add("oslo", store)
    payload = _tree(tmp_path / "payload")

    def change(handed: Handed) -> None:
        if handed.stage == "sending" and not handed.done_bytes:
            (payload / "text").write_bytes(b"other")

    with pytest.raises(PayloadChanged, match="'text'"):
        _upload(agents, payload, change)
    assert store.roots() == {}


def test_a_full_store_refuses_with_its_sentence_and_is_clean_again(tmp_path: Path, agents: Agents) -> None:
    """The submitter reads the agent's sentence; nothing holds what came before it was full: a sweep, as the next who
    needs room begins one, removes it."""
    store = ChunkStore.open(tmp_path / "oslo", quota_bytes=1_000_000)
    agents.add("oslo", store)

    with pytest.raises(TransferError, match="may hold 1000000 bytes"):
        _upload(agents, _tree(tmp_path / "payload"))
    store.sweep()
    assert store.bytes_held == 0


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=300), cut=st.integers(0, 4000))
def test_strangers_bodies_get_4xx(tmp_path: Path, junk: bytes, cut: int) -> None:
    """Junk, or a valid upload cut anywhere and continued with junk, on every route that takes a body."""
    agents = Agents()
    agents.add("oslo", ChunkStore.open(tmp_path / "oslo"))
    content = b"hello " * 100
    manifest = m.make([m.Entry("f", 0, 0o644, len(content), (m.Chunk(address(content), len(content)),))])
    body = intake.prelude(manifest, {address(content)})[:cut] + junk

    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        paths = ("/v1/payloads?workload=w-1", "/v1/packs", "/v1/chunks/have", "/v1/payloads?workload=../x")
        return [await client.post(f"http://oslo{path}", content=body) for path in paths]

    for response in _run(work, agents):  # type: ignore[attr-defined]
        assert response.status_code in range(400, 500) or (
            response.url.path.endswith("have") and not len(body) % 32
        )
        if response.status_code >= 400:
            assert response.json()["error"]["detail"]


def test_routes_say_what_is_wrong(tmp_path: Path, agents: Agents, held: tuple[Manifest, Source]) -> None:
    """Roots, files and owners that do not exist or are no such thing; and what does exist is shown."""
    manifest, _ = held
    root = m.root(manifest).hex()

    async def work(client: httpx.AsyncClient) -> None:
        for path, status in (
            ("/v1/manifests/zz", 400),
            (f"/v1/manifests/{'0' * 64}", 404),
            (f"/v1/outputs/{root}/files/nothing", 404),
            (f"/v1/outputs/{root}/files/sub/link", 404),
            (f"/v1/outputs/{root}/files/../../etc/passwd", 404),
            (f"/v1/outputs/{root}", 200),
            (f"/v1/outputs/{root}/files/text", 200),
        ):
            response = await client.get(f"http://oslo{path}")
            assert response.status_code == status, path
        assert response.content == (tmp_path / "payload" / "text").read_bytes()
        assert (await client.post("http://oslo/v1/payloads", content=b"")).status_code == 400

    _run(work, agents)


def test_have_answers_in_order(tmp_path: Path, agents: Agents, held: tuple[Manifest, Source]) -> None:
    """The bitmap says of each address whether it is there."""
    manifest, oslo = held
    plan = [chunk for pair in ((c, m.Chunk(bytes(32), 1)) for c in intake.plan(manifest)) for chunk in pair]

    def work(client: httpx.AsyncClient) -> object:
        return have(client, oslo.url, plan)

    assert _run(work, agents) == [True, False] * (len(plan) // 2)


def test_sentences_come_from_any_answer() -> None:
    """An agent's own error, or whatever a proxy says."""
    assert sentence(404, b'{"error": {"code": "x", "detail": "not here"}}') == "not here"
    assert sentence(502, b"<html>") == "it answered 502: <html>"
    assert "no explanation" in sentence(500, b"")
    assert isinstance(SourceFailed("x"), TransferError)


def test_a_name_holds_the_last_thing_sent(tmp_path: Path, agents: Agents) -> None:
    """Sent twice under one name: the second replaces the first, whose own chunks go; removed, all go."""
    store = ChunkStore.open(tmp_path / "oslo")
    agents.add("oslo", store)
    tree = _tree(tmp_path / "payload")

    async def main() -> list[tuple[Sent, ...]]:
        async with httpx.AsyncClient(transport=agents) as client:
            seen = []
            for text in ("first", "second"):
                (tree / "note").write_text(text)
                await upload(client, "http://oslo", read_tree(tree), name="data")
                seen.append(await sent_list(client, "http://oslo"))
            only = read_tree(tree, only="note")
            answer = await upload(client, "http://oslo", only, name="note")
            assert (answer.files, answer.received_bytes) == (1, 0)
            seen.append(await sent_list(client, "http://oslo"))
            for name in ("data", "note", "never"):
                assert (await client.delete(f"http://oslo/v1/sent/{name}")).status_code == 200
            return seen

    first, second, both = asyncio.run(main())
    assert [each.name for each in (*first, *second, *both)] == ["data", "data", "data", "note"]
    assert first[0].root != second[0].root
    assert store.roots() == {}
    assert store.bytes_held == 0


def test_pushes_hold_what_they_sent_until_they_are_over(tmp_path: Path) -> None:
    """A full store sweeps what nobody holds: not what a push under way has sent, but what a silent one has."""
    now = [0.0]
    store = ChunkStore.open(tmp_path / "oslo")
    pushes = Pushes(clock=lambda: now[0], kept_s=600)

    async def body(seed: int) -> AsyncIterator[bytes]:
        chunks = [packs.Part(random.Random(seed).randbytes(50_000)), packs.Part(b"x")]
        writer = Writer(Header(bytes(16), packs.PARCEL_BYTES_MAX))
        yield writer.header.encode() + writer.block(packs.parcel(chunks), codecs.NONE) + writer.end()

    async def main() -> list[int]:
        held = []
        await pushes.take("a", body(1), store)
        held.append(store.sweep())
        now[0] = 500.0
        await pushes.take("b", body(2), store)
        held.append(store.sweep())
        now[0] = 700.0
        await pushes.take("b", body(3), store)  # by now "a" is forgotten
        held.append(store.sweep())
        pushes.end("b")
        return [*held, store.sweep()]

    assert asyncio.run(main()) == [0, 0, 50_000, 100_001]


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 2**32 - 1), max_size=4),
    count=st.integers(0, 2**32 - 1),
    tail=st.binary(max_size=60),
)
def test_forged_parcels_are_refused(sizes: list[int], count: int, tail: bytes) -> None:
    """Whatever a sender declares, a parcel is its chunks exactly or is refused with a sentence."""
    raw = struct.pack(f">I{len(sizes)}I", count, *sizes) + tail
    try:
        chunks = packs.unparcel(raw)
    except TransferError:
        return
    assert packs.parcel(chunks) == raw


def test_an_edit_travels_as_what_is_new(tmp_path: Path, agents: Agents) -> None:
    """4 KiB overwritten in a file of 3 MiB that the agent has: some KiB travel, and the root is right."""
    store = ChunkStore.open(tmp_path / "oslo")
    agents.add("oslo", store)
    tree = _tree(tmp_path / "payload")

    async def main() -> int:
        async with httpx.AsyncClient(transport=agents) as client:
            await upload(client, "http://oslo", read_tree(tree), name="data")
            with (tree / "noise").open("r+b") as file:
                file.seek(1_500_000)
                file.write(random.Random(7).randbytes(4096))
            answer = await upload(client, "http://oslo", read_tree(tree), name="data")
            assert store.complete(bytes.fromhex(answer.root))
            return answer.received_bytes

    assert 4096 < asyncio.run(main()) < 16_000


def test_a_push_of_many_groups_ends_where_a_question_fails(
    tmp_path: Path, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: the reader goes from group to group as they are answered, and is not left waiting for an answer that
    will not come. Method: groups of one file or two; all is known the second time; then the third question breaks."""
    monkeypatch.setattr(pushing, "_GROUP_BYTES", 4096)
    monkeypatch.setattr(pushing, "_GROUP_BYTES_MAX", 4096)
    monkeypatch.setattr(pushing, "_GROUPS_LEFT", 1 << 20)
    monkeypatch.setattr(payloads, "_PAUSES_S", ())
    agents.add("oslo", ChunkStore.open(tmp_path / "oslo"))
    first = _upload(agents, _tree(tmp_path / "payload"))
    before = agents.asked.count(("oslo", HELD_PATH))
    second = _upload(agents, tmp_path / "payload")
    asked = agents.asked.count(("oslo", HELD_PATH)) - before

    assert second.received_bytes == 0  # type: ignore[attr-defined]
    assert second.root == first.root  # type: ignore[attr-defined]
    assert asked > 4

    def lie(request: httpx.Request, body: bytes) -> bytes:
        third = agents.asked.count(("oslo", HELD_PATH)) - before - asked > 2
        return b"junk" if third and request.url.path == HELD_PATH else body

    agents.lies["oslo"] = lie
    with pytest.raises(TransferError):
        _upload(agents, tmp_path / "payload")


def test_a_bomb_of_recipes_is_refused(tmp_path: Path) -> None:
    """A small pack whose recipes make far more than a pack: refused at the limit, with a sentence."""
    store = ChunkStore.open(tmp_path / "oslo")
    base = random.Random(1).randbytes(250_000)
    store.put(address(base), base)
    made = b"".join((bytes([1, 0, 1]), address(base), bytes([1, 0]), bytes(4), len(base).to_bytes(4, "big")))

    async def body() -> AsyncIterator[bytes]:
        writer = Writer(Header(bytes(16), packs.PARCEL_BYTES_MAX))
        raw = packs.parcel([packs.Part(made, is_recipe=True)] * 1000)
        yield writer.header.encode() + writer.block(raw, codecs.NONE) + writer.end()

    async def main() -> None:
        with pytest.raises(BombRefused, match="make more than"):
            await Pushes(clock=lambda: 0.0).take("a", body(), store)

    asyncio.run(main())
    assert store.bytes_held == len(base)


def test_sources_give_side_by_side(tmp_path: Path, agents: Agents, held: tuple[Manifest, Source]) -> None:
    """Two that have everything: both send packs, and no chunk travels twice."""
    manifest, oslo = held
    copy = ChunkStore.open(tmp_path / "copy")
    _pull(agents, manifest, [oslo], copy)
    lima = agents.add("lima", copy)
    big = _tree(tmp_path / "big", seed=8, size=24 << 20)
    manifests = [capture(big, agents.stores[name], owner="w-2") for name in ("oslo", "lima")]
    agents.asked.clear()
    told: list[Progress] = []
    store = ChunkStore.open(tmp_path / "rome")
    _pull(agents, manifests[0], [oslo, lima], store, tell=told.append)

    gave = {name for name, path in agents.asked if path == "/v1/packs"}
    assert gave == {"oslo", "lima"}
    assert told[-1].moved_bytes == sum(chunk.size for chunk in intake.plan(manifests[0]))
    assert told[-1].wire_bytes < told[-1].moved_bytes


def test_a_paced_link_is_shared_by_weight_and_survives_a_cancelled_wait() -> None:
    """Three transfers on 80 Mbit/s, weights 8 and 2, and one that is cancelled while it waits."""

    async def main() -> dict[str, int]:
        link = Pacer(80e6)
        moved = {"urgent": 0, "idle": 0}

        enough = asyncio.Event()

        async def move(name: str, weight: float) -> None:
            own = link.weighted(weight)
            while True:
                await own.take(10_000)
                moved[name] += 1
                if sum(moved.values()) >= 200:
                    enough.set()

        tasks = [asyncio.create_task(move("urgent", 8)), asyncio.create_task(move("idle", 2))]
        await asyncio.sleep(0)
        stray = asyncio.create_task(link.take(10_000))
        await asyncio.sleep(0)
        stray.cancel()
        await enough.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, stray, return_exceptions=True)
        return moved

    moved = asyncio.run(main())
    assert 3 < moved["urgent"] / moved["idle"] < 5


@pytest.mark.parametrize("lie", [b"junk", codec.encode((bytes(5),)), codec.encode((b"", b"", b"", b"", b""))])
def test_an_agent_that_lies_about_its_files_is_found(tmp_path: Path, agents: Agents, lie: bytes) -> None:
    """Goal: no answer does harm. Method: no lists, a list that is none, lists for other files."""
    agents.add("oslo", ChunkStore.open(tmp_path / "oslo"))
    agents.lies["oslo"] = lambda request, answer: lie if request.url.path == HELD_PATH else answer

    async def main() -> None:
        async with httpx.AsyncClient(transport=agents) as client:
            await held_lists(client, "http://oslo", ["a", "b"])

    with pytest.raises(SourceLied, match="lists of chunks"):
        asyncio.run(main())


def test_lists_of_other_content_cost_nothing_but_time(tmp_path: Path, agents: Agents) -> None:
    """Goal: an agent's file may have nothing in common with ours. Method: it describes another one; the
    payload that arrives is that of a sender who was told nothing."""
    store = ChunkStore.open(tmp_path / "oslo")
    agents.add("oslo", store)
    tree = _tree(tmp_path / "payload")
    other = describe([m.Chunk(bytes([n]) * 32, 20_000 + n) for n in range(40)])
    files = read_tree(tree).file_count
    agents.lies["oslo"] = lambda request, answer: (
        codec.encode((other,) * sum(1 for node in read_tree(tree).nodes if node.size))
        if request.url.path == HELD_PATH
        else answer
    )

    async def main() -> bytes:
        async with httpx.AsyncClient(transport=agents) as client:
            answer = await upload(client, "http://oslo", read_tree(tree), name="data")
            assert answer.files == files
        return bytes.fromhex(answer.root)

    assert asyncio.run(main()) == m.root(index(read_tree(tree)))


class _SweptAfterNaming(httpx.AsyncBaseTransport):
    """The agent gives its old payload back just after it has named chunks of it, in one of its answers."""

    def __init__(self, agents: Agents, store: ChunkStore, path: str) -> None:
        self._agents = agents
        self._path = path
        self._store = store
        self.swept = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._agents.handle_async_request(request)
        if request.url.path == self._path and not self.swept:
            self._store.release_owner("sent-data")
            self.swept = self._store.sweep() + 1
        return response


@pytest.mark.parametrize("path", [NEAR_PATH, HELD_PATH])
def test_an_edit_whose_base_is_swept_meanwhile_still_arrives(
    tmp_path: Path, agents: Agents, path: str
) -> None:
    """Goal: what an agent named may be gone when it is built on. Method: sweep after each kind of answer."""
    store = ChunkStore.open(tmp_path / "oslo")
    agents.add("oslo", store)
    tree = _tree(tmp_path / "payload")
    sweeping = _SweptAfterNaming(agents, store, path)

    async def main() -> bytes:
        async with httpx.AsyncClient(transport=agents) as client:
            await upload(client, "http://oslo", read_tree(tree), name="data")
        with (tree / "noise").open("r+b") as file:
            file.seek(1_500_000)
            file.write(random.Random(7).randbytes(4096))
        async with httpx.AsyncClient(transport=sweeping) as client:
            answer = await upload(client, "http://oslo", read_tree(tree), workload="w-9")
        return bytes.fromhex(answer.root)

    root = asyncio.run(main())
    assert sweeping.swept
    assert store.complete(root)


def test_an_edit_whose_base_was_damaged_on_disk_still_arrives(tmp_path: Path, agents: Agents) -> None:
    """Goal: sketches are guesses, what is built on them is not. Method: other bytes in every chunk at the agent."""
    store = ChunkStore.open(tmp_path / "oslo")
    agents.add("oslo", store)
    tree = _tree(tmp_path / "payload")
    olds: list[Chunk] = []

    async def main() -> bytes:
        async with httpx.AsyncClient(transport=agents) as client:
            await upload(client, "http://oslo", read_tree(tree), name="data")
            olds.extend(newest(store, "noise"))
            for chunk in olds:
                path = store._chunk_path(chunk.address)
                path.write_bytes(path.read_bytes()[:-1] + b"x")
            with (tree / "noise").open("r+b") as file:
                file.seek(1_500_000)
                file.write(random.Random(7).randbytes(4096))
            answer = await upload(client, "http://oslo", read_tree(tree), name="other")
        return bytes.fromhex(answer.root)

    root = asyncio.run(main())
    (noise,) = (entry for entry in store.manifest(root).entries if entry.path == "noise")
    fresh = [chunk for chunk in noise.chunks if chunk not in olds]
    assert fresh
    assert all(len(store.get(chunk.address)) == chunk.size for chunk in fresh)


class _AnswersWhenFed(httpx.AsyncBaseTransport):
    """From its third question on, the agent answers about chunks only after packs have begun to arrive."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._fed = asyncio.Event()
        self.questions = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == CHUNKS_PATH:
            self._fed.set()
        if request.url.path == HAVE_PATH:
            self.questions += 1
            if self.questions > 2:
                await asyncio.wait_for(self._fed.wait(), 10)
        return await self._agents.handle_async_request(request)


def test_an_idle_link_takes_what_there_is(tmp_path: Path, agents: Agents) -> None:
    """Goal: small parts do not wait for a full pack while the link is idle. Method: recipes for changes in
    half the chunks, far less than a pack, to an agent that goes on answering only once it is sent something."""
    agents.add("oslo", ChunkStore.open(tmp_path / "oslo"))
    folder = tmp_path / "payload"
    folder.mkdir()
    noise = bytearray(random.Random(3).randbytes(12 << 20))
    fed: list[_AnswersWhenFed] = []

    async def main() -> int:
        (folder / "noise").write_bytes(noise)
        async with httpx.AsyncClient(transport=agents) as client:
            await upload(client, "http://oslo", read_tree(folder), name="data")
        for at in range(0, len(noise), 150_000):
            noise[at] ^= 1
        (folder / "noise").write_bytes(noise)
        fed.append(_AnswersWhenFed(agents))
        async with httpx.AsyncClient(transport=fed[0]) as client:
            return (await upload(client, "http://oslo", read_tree(folder), name="data")).received_bytes

    assert asyncio.run(main()) < 256 << 10
    assert fed[0].questions > 3
