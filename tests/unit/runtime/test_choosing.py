"""Choices of codecs along transfers: what leaves is what came, suits the link, and is never held back by a race."""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dwcp.compression import codecs
from dwcp.compression.calibration import Calibration, Speed
from dwcp.compression.chunking import address
from dwcp.compression.container import BLOCK_HEADER_BYTES, Header, PackedBlock, Reader, Writer
from dwcp.compression.errors import ModelInvalid
from dwcp.compression.manifest import Chunk
from dwcp.compression.model import Model
from dwcp.compression.model_shipped import shipped
from dwcp.compression.selector import Selector
from dwcp.compression.table import Table
from dwcp.runtime.choosing import TableChooser, calibrated, of_this_host
from dwcp.runtime.choosing_learned import Chosen, LearnedChooser, hopeless
from dwcp.runtime.chunkstore import ChunkStore
from dwcp.runtime.packflow import Choice, Chooser, FixedChooser, Inflow, Outflow, Pacer, stream

MIB = 1 << 20
STREAM = bytes(16)
ALL = frozenset(codec.name for codec in codecs.CODECS)
QUICK = {"none", "lz4", "lz4-a8", "zstd-f1", "zstd-1", "igzip-1"}


@pytest.fixture(scope="module")
def selector() -> Selector:
    return Selector(shipped())


def _text(size: int, *, seed: int = 1) -> bytes:
    source = random.Random(seed)
    words = [bytes(source.choices(range(97, 123), k=source.randint(2, 9))) for _ in range(3000)]
    weights = [1 / rank for rank in range(1, 3001)]
    return b" ".join(source.choices(words, weights, k=size // 4))[:size].ljust(size)


TEXT = _text(300_000)
NOISE = random.Random(2).randbytes(MIB)


def _table() -> Table:
    return Table(Calibration("x", 0.0, {codec.name: Speed(1e8, 1e8) for codec in codecs.CODECS}))


def _packed(choice: Choice, raws: list[bytes], rates: list[float]) -> list[bytes]:
    """The frames of a transfer, one pack after another."""

    async def main() -> list[bytes]:
        frames, left = [], sum(map(len, raws))
        for index, (raw, rate) in enumerate(zip(raws, rates, strict=True)):
            frame = await choice.pack(raw, stream_id=STREAM, index=index, left_bytes=left, rate_bps=rate)
            frames.append(frame)
            left -= len(raw)
        return frames

    return asyncio.run(main())


def _unpacked(frames: list[bytes]) -> list[bytes]:
    writer = Writer(Header(STREAM, 8 << 20))
    data = writer.header.encode() + b"".join(frames)
    for frame in frames:
        writer.note(frame)
    reader = Reader(raw_bytes_max=1 << 30)
    found = [item.unpack() for item in reader.feed(data + writer.end()) if isinstance(item, PackedBlock)]
    reader.finish()
    return found


def _codecs(frames: list[bytes]) -> list[str]:
    return [codecs.by_wire(frame[1]).name for frame in frames]


def _learned(selector: Selector, told: list[Chosen] | None = None) -> LearnedChooser:
    """Its clock stands still: the wire stays busy, and nothing is known of this host's load."""
    return LearnedChooser(selector, told=None if told is None else told.append, clock=lambda: 1.0)


def _choosers(selector: Selector) -> list[Chooser]:
    return [_learned(selector), TableChooser(_table()), FixedChooser("zstd-3")]


@pytest.mark.parametrize("rate", [1.0, 1e6, 2e7, 1e9, 1e12])
def test_what_leaves_is_what_came(selector: Selector, rate: float) -> None:
    """Goal: every chooser's frames hold the bytes, whatever link is believed. Method: text, noise, zeros, few."""
    raws = [TEXT[:100_000], NOISE[:50_000], bytes(70_000), b"few", TEXT[:70_000]]
    for chooser in _choosers(selector):
        assert _unpacked(_packed(chooser.begin(), raws, [rate] * 5)) == raws


def test_receivers_get_nothing_that_they_do_not_read(selector: Selector) -> None:
    """Goal: `allowed` holds for all choosers, trials included. Method: a slow link, two codecs, then none."""
    raws = [TEXT[:100_000]] * 4
    for chooser in _choosers(selector):
        few = chooser.begin(allowed=frozenset({"lz4", "zstd-1"}))
        assert set(_codecs(_packed(few, raws, [2e6] * 4))) <= {"lz4", "zstd-1", "none"}
        assert set(_codecs(_packed(chooser.begin(allowed=frozenset({"x"})), raws, [2e6] * 4))) == {"none"}


def test_the_codec_follows_the_link(selector: Selector) -> None:
    """Goal: tight packing where the link is slow, quick packing where it is fast, within a transfer, both ways.

    Method: one transfer of text, the rate changed twice by a factor of five hundred.
    """
    rates = [2e6] * 4 + [1e9] * 4 + [2e6] * 4
    frames = _packed(_learned(selector).begin(), [TEXT] * 12, rates)
    sizes = [len(frame) for frame in frames]

    assert set(_codecs(frames[4:8])) <= QUICK
    assert max(sizes[1:4] + sizes[9:]) < min(sizes[4:8])


def test_the_first_pack_leaves_at_once_and_the_next_learn_from_its_race(selector: Selector) -> None:
    """Goal: no trial before the first pack; trials for those behind it. Method: 2 Mbit/s, what was told."""
    told: list[Chosen] = []
    _packed(_learned(selector, told).begin(), [TEXT] * 4, [2e6] * 4)

    assert told[0].race_s < 0.001
    assert told[0].tier == "model"
    assert "race" in {chosen.tier for chosen in told[1:]}
    assert all(chosen.packed_bytes < len(TEXT) / 2 and chosen.pack_s > 0 for chosen in told)


def test_nothing_is_tried_where_no_core_is_idle(selector: Selector) -> None:
    """Goal: a busy host races nothing. Method: packing threads were seen to get a fifth of a core."""
    told: list[Chosen] = []
    chooser = _learned(selector, told)
    for _ in range(40):
        chooser.packed(0.02, 0.1)
    assert chooser.share == 0.25
    _packed(chooser.begin(), [TEXT] * 3, [2e6] * 3)

    assert "race" not in {chosen.tier for chosen in told}
    assert all(chosen.race_s < 0.001 for chosen in told)


def test_nothing_is_tried_while_the_wire_is_empty(selector: Selector) -> None:
    """Goal: a race hides behind sending, and delays nothing. Method: the wire is through before each pack."""
    told: list[Chosen] = []
    now = itertools.count(step=1000.0)
    choice = LearnedChooser(selector, told=told.append, clock=lambda: next(now)).begin()
    for index in range(3):
        choice.pack_now(TEXT, stream_id=STREAM, index=index, left_bytes=9 * MIB, rate_bps=2e6)

    assert "race" not in {chosen.tier for chosen in told}


def test_a_pull_in_several_requests(selector: Selector, tmp_path: Path) -> None:
    """Goal: plans of one peer, packed by one choice, arrive whole in its store. Method: two plans."""
    held = {address(each): each for at in range(8) if (each := TEXT[at * 30_000 : (at + 1) * 30_000])}
    plan = [Chunk(name, len(data)) for name, data in held.items()]
    store = ChunkStore.open(tmp_path)
    chooser = _learned(selector)

    async def take(part: list[Chunk]) -> None:
        choice = chooser.begin(peer="rome", allowed=frozenset({"lz4", "zstd-3", "brotli-5"}))
        outflow = Outflow(lambda chunk: held[chunk.address], choice, Pacer(), 5e6)
        inflow = Inflow(part, store)
        async for piece in stream(part, outflow):
            await inflow.feed(piece)
        inflow.finish()

    async def main() -> None:
        await take(plan[:5])
        await take(plan[5:])

    asyncio.run(main())
    assert all(store.get(name) == data for name, data in held.items())


def test_a_peer_goes_on_where_it_stopped(selector: Selector) -> None:
    """Goal: the requests of one pull are one transfer; peers, and readers of other codecs, are apart."""
    chooser = _learned(selector)
    rome = chooser.begin(peer="rome", allowed=ALL)

    assert chooser.begin(peer="rome", allowed=ALL) is rome
    assert chooser.begin(peer="oslo", allowed=ALL) is not rome
    assert chooser.begin(peer="rome", allowed=frozenset({"lz4"})) is not rome
    assert chooser.begin() is not chooser.begin()


def test_connections_side_by_side(selector: Selector) -> None:
    """Goal: packs of several connections at once are all sound. Method: 6 at once, on a loop and in threads."""
    choice = _learned(selector).begin()

    async def main() -> list[bytes]:
        packing = [
            choice.pack(TEXT, stream_id=STREAM, index=index, left_bytes=6 * MIB, rate_bps=1e7)
            for index in range(6)
        ]
        return await asyncio.gather(*packing)

    assert _unpacked(asyncio.run(main())) == [TEXT] * 6
    other = _learned(selector).begin()
    with ThreadPoolExecutor(3) as pool:
        frames = pool.map(
            lambda index: other.pack_now(
                TEXT, stream_id=STREAM, index=index, left_bytes=6 * MIB, rate_bps=1e7
            ),
            range(6),
        )
    assert _unpacked(list(frames)) == [TEXT] * 6


def test_incompressible_packs_on_fast_links_cost_nothing(selector: Selector) -> None:
    """Goal: stored as they are, by the probe alone. Method: noise between text at 1 Gbit/s."""
    told: list[Chosen] = []
    frames = _packed(_learned(selector, told).begin(), [TEXT, NOISE, TEXT], [1e9] * 3)

    assert told[1].tier == "probe"
    assert len(frames[1]) == MIB + BLOCK_HEADER_BYTES


def test_numbers_are_not_taken_for_noise(selector: Selector) -> None:
    """Goal: what has no repeats but frequent bytes is packed on fast links too. Method: a random walk of floats,
    of which coding bytes by their frequency saves a tenth, at 100 Mbit/s; noise and deflated text stay noise."""
    source = random.Random(3)
    walk = struct.pack("<262144f", *itertools.accumulate(source.gauss(0, 1) for _ in range(1 << 18)))
    assert codecs.looks_incompressible(walk)
    assert not hopeless(walk)
    assert hopeless(NOISE)
    assert hopeless(zlib.compress(_text(3 * MIB)))
    assert not hopeless(TEXT)
    assert not hopeless(b"")

    frames = _packed(_learned(selector).begin(), [walk] * 3, [1e8] * 3)
    assert all(len(frame) < 0.95 * len(walk) for frame in frames)


def test_cores_that_pack_side_by_side_count() -> None:
    """Goal: with two cores a pack may take twice as long, so smaller ones leave. Method: what is packed to, with one
    core and with two, over links from slower to faster than all codecs: where the two part is the host's affair.
    """

    def left(rate: float, cores: int) -> int:
        selector = Selector(shipped())  # of its own: what one learns of the processor is not the next one's
        chooser = LearnedChooser(selector, races=False, share=0.25, cores=cores, clock=lambda: 1.0)
        frames = _packed(chooser.begin(), [TEXT] * 7, [rate] * 7)
        assert _unpacked(frames) == [TEXT] * 7
        return sum(map(len, frames[5:]))  # the link is busy from then on

    rates = [5e7 * 2**step for step in range(7)]
    assert sum(left(rate, 2) for rate in rates) < 0.97 * sum(left(rate, 1) for rate in rates)


def test_the_table_where_the_model_cannot_be_loaded(tmp_path: Path) -> None:
    """Goal: a damaged artefact costs the learning, not the transfer, and is told. Method: loading fails."""

    def damaged() -> Model:
        raise ModelInvalid("compression-selector.safetensors is damaged: install it again")

    found = of_this_host(tmp_path, load=damaged)

    assert isinstance(found, TableChooser)
    assert "damaged" in found.trouble
    assert "damaged" in found.basis
    assert _unpacked(_packed(found.begin(), [TEXT], [1e7])) == [TEXT]


def test_this_host_has_a_selector_that_knows_its_own_cost(tmp_path: Path) -> None:
    """Goal: speeds and the cost of deciding are this host's. Method: open it twice; nothing is measured again."""
    found = of_this_host(tmp_path)
    again = of_this_host(tmp_path)

    assert isinstance(found, LearnedChooser)
    assert isinstance(again, LearnedChooser)
    assert found.trouble == ""
    assert found.basis.startswith("model ")
    assert 1e-6 < found.selector.selection_s < 0.1
    assert (found.selector.scale == again.selector.scale).all()


def test_the_table_is_asked_again_when_the_rate_changes() -> None:
    """Goal: the table's codec of the new rate at once. Method: 1 Mbit/s, then 10 Gbit/s."""
    frames = _packed(TableChooser(_table()).begin(), [TEXT] * 2, [1e6, 1e10])
    wanted = [_table().choose(rate_bps=rate, size_bytes=2 * len(TEXT)).codec.name for rate in (1e6, 1e10)]

    assert _codecs(frames) == wanted
    assert wanted[0] != wanted[1]


def test_the_calibration_is_kept(tmp_path: Path) -> None:
    """Measured once, read from the cache afterwards; a folder that is not there is no reason to fail."""
    first = calibrated(tmp_path)

    assert calibrated(tmp_path) == first
    assert calibrated(tmp_path / "missing").host == first.host
