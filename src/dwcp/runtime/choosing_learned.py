"""The learned selector along real transfers: decides, tries, packs, and learns from what came out.

A choice packs what it is given, in a thread: deciding, trials, packing and learning stay together. Trials hide
behind what is still on the wire and stop when that runs out, so they delay nothing; where no core is idle,
nothing is tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dwcp.compression import codecs
from dwcp.compression.codecs import Codec
from dwcp.compression.container import BLOCK_HEADER_BYTES, pack_block
from dwcp.compression.costs import Link, Terms
from dwcp.compression.race import Entry
from dwcp.compression.selector import Selector, Step
from dwcp.compression.selector_stream import StreamSelector

PROBE_ABOVE_BPS = 50e6  # below, a codec that works for nothing costs nothing: the probe sees repeats only
RETUNE = 1.25  # the selector is told where the link's rate has changed by more
_IDLE_SHARE_MIN = 0.6  # of a core for a packing thread: below, no core is idle
_SHARES = (1.0, 0.7, 0.5, 0.35, 0.25)  # few, because the selector's table has a cell for each
_SHARE_SLACK = 1.15
_SHARE_WEIGHT = 0.2  # of one pack
_TELLING_S = 0.002  # packing that took less says nothing about the share of a core
_ROOM_SHARE = 0.7  # of what the wire still has to do may be spent on trials
_SAMPLE_PIECES, _SAMPLE_PIECE_BYTES = 8, 2048
_RANDOM_BITS = 7.9  # entropy of a byte, from a sample; of random bytes it comes out as 7.99
_FILLED_PACKS = 4  # before, the link waits for each pack, however many are packed side by side
_RATE_MAX = 10e9
_PEERS_MAX = 256
_FORGOTTEN_S = 30.0  # what a peer was sent so long ago says nothing about what comes


@dataclass(frozen=True, slots=True)
class Chosen:
    """One pack and what its choice came to: thread CPU seconds of deciding, of trials that were not sent, and
    of packing; bytes left of the transfer, the pack included; the rate in bit/s that was believed."""

    codec: str
    tier: str
    raw: bytes
    packed_bytes: int
    select_s: float
    race_s: float
    pack_s: float
    left_bytes: int
    rate_bps: float


Told = Callable[[Chosen], None]


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a pack stands: its frame's stream and index, bytes left with it, and the link's rate."""

    stream_id: bytes
    index: int
    left_bytes: int
    rate_bps: float


@dataclass(frozen=True, slots=True)
class _Done:
    """A frame, what is told of it, what is learned from it; `late`: to be raced now that it leaves."""

    frame: bytes
    chosen: Chosen
    entry: Entry
    late: Step | None = None


class _Wire:
    """What has been handed to the link and is not through it, by the rates that were believed."""

    def __init__(self) -> None:
        self._bits = 0.0
        self._seen_s = 0.0

    def add(self, size_bytes: int, rate_bps: float, *, now_s: float) -> None:
        self.room_s(rate_bps, now_s=now_s)
        self._bits += size_bytes * 8

    def room_s(self, rate_bps: float, *, now_s: float) -> float:
        """Seconds that the link still has to do."""
        self._bits = max(0.0, self._bits - max(0.0, now_s - self._seen_s) * rate_bps)
        self._seen_s = now_s
        return self._bits / rate_bps


class LearnedChooser:
    """The learned selector of this process on this host: what it learns of the processor, all transfers share.

    A peer's next request within half a minute goes on where its last one stopped: a pull is many of them.
    `share` of a core that a packing thread will get, until packing has shown it; `cores` of them pack side by side.
    """

    def __init__(
        self,
        selector: Selector,
        *,
        overhead_s: float = 0.0,
        told: Told | None = None,
        races: bool = True,
        clock: Callable[[], float] = time.monotonic,
        share: float = 1.0,
        cores: int = 1,
    ) -> None:
        self.selector = selector
        self.overhead_s = overhead_s
        self.told = told or (lambda _: None)
        self.trouble = ""  # as of a chooser that had to be taken in its place
        self.clock = clock
        self._races = races
        self.cores = cores
        self._share = share
        self._peers: dict[tuple[str, frozenset[str]], LearnedChoice] = {}

    @property
    def basis(self) -> str:
        """What choices rest on, for people."""
        return f"model {self.selector.model.digest[:12]}"

    @property
    def may_race(self) -> bool:
        """Whether a core is idle."""
        return self._races and self.share >= _IDLE_SHARE_MIN

    @property
    def share(self) -> float:
        """Of a core that a packing thread gets, one of a few values."""
        return next((share for share in _SHARES if share <= self._share * _SHARE_SLACK), _SHARES[-1])

    def begin(self, *, peer: str = "", allowed: frozenset[str] = frozenset()) -> LearnedChoice:
        """The choice of one transfer, or of the one with `peer` that goes on."""
        if not peer:
            return LearnedChoice(self, _places(allowed))
        found = self._peers.get((peer, allowed))
        if found is None or found.idle_s > _FORGOTTEN_S:
            if len(self._peers) >= _PEERS_MAX:
                self._peers.clear()
            found = self._peers[peer, allowed] = LearnedChoice(self, _places(allowed))
        return found

    def packed(self, cpu_s: float, wall_s: float) -> None:
        """A thread has packed for so long."""
        if wall_s > _TELLING_S:
            self._share += _SHARE_WEIGHT * (min(1.0, cpu_s / wall_s) - self._share)


class LearnedChoice:
    """One transfer. Packs of several connections may be under way at once, but where trials are made no more
    than there are cores, so that each learns from those before it: there the processor waits for the link."""

    def __init__(self, chooser: LearnedChooser, allowed: frozenset[int]) -> None:
        self._chooser = chooser
        self._terms = Terms(Link(1e8), allowed=allowed)
        self._stream: StreamSelector | None = None
        self._wire = _Wire()
        self._begun = 0  # packs
        self._one_by_one = True
        self._turn = asyncio.Semaphore(chooser.cores)
        self._line = threading.Semaphore(chooser.cores)  # the same for threads without a loop
        self._late: asyncio.Task[None] | None = None
        self._guard = threading.Lock()  # of the stream's state and of `_wire`
        self._heard_s = self._chooser.clock()

    @property
    def idle_s(self) -> float:
        """Since the last pack."""
        return self._chooser.clock() - self._heard_s

    async def pack(
        self, raw: bytes, *, stream_id: bytes, index: int, left_bytes: int, rate_bps: float
    ) -> bytes:
        spot = _Spot(stream_id, index, left_bytes, min(_RATE_MAX, max(1.0, rate_bps)))
        self._heard_s = self._chooser.clock()
        if not self._one_by_one:
            return self._tell(await asyncio.to_thread(self._pack, raw, spot))
        async with self._turn:
            if self._late is not None:
                await asyncio.shield(self._late)
                self._late = None
            done = await asyncio.to_thread(self._pack, raw, spot)
            if done.late is not None:
                racing = asyncio.to_thread(self._race_late, raw, done.late, done.entry)
                self._late = asyncio.ensure_future(racing)
            return self._tell(done)

    def pack_now(
        self, raw: bytes, *, stream_id: bytes, index: int, left_bytes: int, rate_bps: float
    ) -> bytes:
        """The same for threads without a loop; what would be raced after sending is not."""
        spot = _Spot(stream_id, index, left_bytes, min(_RATE_MAX, max(1.0, rate_bps)))
        with self._line if self._one_by_one else contextlib.nullcontext():
            done = self._pack(raw, spot)
            if done.late is not None:
                self._learn(done.late, done.entry)
        return self._tell(done)

    # in a thread

    def _pack(self, raw: bytes, spot: _Spot) -> _Done:
        if spot.rate_bps > PROBE_ABOVE_BPS and hopeless(raw):
            return self._frame(raw, codecs.NONE, spot, "probe")
        begun = time.thread_time()
        with self._guard:
            step = self._begin(raw, spot)
            room_s = self._wire.room_s(spot.rate_bps, now_s=self._chooser.clock())
        selected = time.thread_time()
        self._one_by_one = step.race is not None
        if step.late and spot.left_bytes <= len(raw):  # nobody to learn from its race
            step.race, step.late = None, False
        trials = {} if step.late else self._race(raw, step, room_s)
        raced = time.thread_time()
        place = self._following.settle(step)
        done = self._frame(raw, codecs.CODECS[place], spot, step.tier.value, trials.get(place))
        if not step.late:
            self._learn(step, done.entry)
        race_s = raced - selected - (done.entry.pack_s if place in trials else 0.0)
        chosen = replace(done.chosen, select_s=selected - begun, race_s=max(0.0, race_s))
        return replace(done, chosen=chosen, late=step if step.late else None)

    def _begin(self, raw: bytes, spot: _Spot) -> Step:
        """Tells the stream what has become of the link and of this host, and lets it decide."""
        share, link = self._chooser.share, self._terms.link
        moved = not link.rate_bps / RETUNE < spot.rate_bps < link.rate_bps * RETUNE
        cores = self._chooser.cores if self._begun >= _FILLED_PACKS else 1
        self._begun += 1
        if self._stream is None or moved or (share, cores) != (link.sender_share, link.sender_cores):
            link = Link(
                spot.rate_bps,
                sender_share=share,
                sender_cores=cores,
                block_overhead_s=self._chooser.overhead_s,
            )
            self._terms = replace(self._terms, link=link)
            if self._stream is not None:
                self._stream.retune(link)
        if self._stream is None:
            self._stream = StreamSelector(self._chooser.selector, self._terms)
        return self._stream.begin(raw, left_bytes=max(spot.left_bytes, len(raw)))

    def _race(self, raw: bytes, step: Step, room_s: float) -> dict[int, tuple[bytes, float]]:
        """Trials as long as the wire has enough to do; packed bytes and CPU seconds by place."""
        trials: dict[int, tuple[bytes, float]] = {}
        race = step.race
        until_s = self._chooser.clock() + _ROOM_SHARE * room_s
        cores = self._terms.link.sender_cores
        while race is not None and self._chooser.may_race:
            place = race.next()
            if place is None:
                break
            if (
                self._chooser.clock() + cores * race.prospect.parts.compress[place] > until_s
            ):  # on one of them
                break
            begun = time.thread_time()
            packed = codecs.CODECS[place].pack(raw)
            cpu_s = time.thread_time() - begun
            trials[place] = packed, cpu_s
            race.observe(Entry(place, len(packed), cpu_s))
        return trials

    def _race_late(self, raw: bytes, step: Step, sent: Entry) -> None:
        """The first pack's race, while it is on the wire."""
        with self._guard:
            room_s = self._wire.room_s(self._terms.link.rate_bps, now_s=self._chooser.clock())
        self._race(raw, step, room_s)
        self._learn(step, sent)

    def _learn(self, step: Step, sent: Entry) -> None:
        with self._guard:
            self._following.done(step, sent)

    @property
    def _following(self) -> StreamSelector:
        assert self._stream is not None  # every step was begun by it
        return self._stream

    def _frame(
        self, raw: bytes, codec: Codec, spot: _Spot, tier: str, trial: tuple[bytes, float] | None = None
    ) -> _Done:
        """The frame, packed now unless a trial has done that already."""
        begun_s, begun = self._chooser.clock(), time.thread_time()
        packing = codec if trial is None else _made(codec, trial[0])
        frame = pack_block(raw, packing, stream_id=spot.stream_id, index=spot.index)
        cpu_s = time.thread_time() - begun
        self._chooser.packed(cpu_s, self._chooser.clock() - begun_s)
        if trial is not None:
            cpu_s = trial[1]
        with self._guard:
            self._wire.add(len(frame), spot.rate_bps, now_s=self._chooser.clock())
        packed, name = len(frame) - BLOCK_HEADER_BYTES, codecs.by_wire(frame[1]).name
        chosen = Chosen(name, tier, raw, packed, 0.0, 0.0, cpu_s, spot.left_bytes, spot.rate_bps)
        return _Done(frame, chosen, Entry(codecs.CODECS.index(codec), packed, cpu_s))

    def _tell(self, done: _Done) -> bytes:
        self._chooser.told(done.chosen)
        return done.frame


def hopeless(raw: bytes) -> bool:
    """Whether every codec would work for nothing: no repeats in a sample, and all bytes about as frequent.

    Numbers in binary have no repeats either, but a codec that codes frequent bytes shorter saves a tenth of them.
    """
    if not codecs.looks_incompressible(raw):
        return False
    stride = max(1, (len(raw) - _SAMPLE_PIECE_BYTES) // (_SAMPLE_PIECES - 1))
    sample = b"".join(raw[at * stride : at * stride + _SAMPLE_PIECE_BYTES] for at in range(_SAMPLE_PIECES))
    counts = np.bincount(np.frombuffer(sample, np.uint8))
    shares = counts[counts > 0] / len(sample)
    return -float(shares @ np.log2(shares)) > _RANDOM_BITS


def _places(allowed: frozenset[str]) -> frozenset[int]:
    """In `codecs.CODECS`; empty where every codec is allowed, for which the selector is quicker."""
    if not allowed:
        return frozenset()
    places = frozenset(at for at, codec in enumerate(codecs.CODECS) if not at or codec.name in allowed)
    return frozenset() if len(places) == len(codecs.CODECS) else places


def _made(codec: Codec, packed: bytes) -> Codec:
    """The codec with one answer, which a trial has given already."""
    return replace(codec, pack=lambda _: packed)
