"""How far from the oracle are the selector's choices, its own cost included?

Streams of 8 MiB in segments of 1 MiB are cut from a folder's files: packed ones unpacked, small ones in tars
by type; where that gives too few streams, files of this host that training never sees are added, then made data.
Every segment goes through 19 codecs, the least of three timings. Each link's transfer is then priced as bulk: a
segment takes as long as its slowest stage, packing (all trials of a race included), sending or unpacking; the
seconds of choosing come on top. T* takes the best of the 19 for each segment and costs nothing to choose.

Fractions, not per cent: 0.03 is 3 % slower than the oracle. Headline figures are over the links up to 1 Gbit/s.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dwcp.compression import calibration, codecs, corpus, corpus_generated, costs, oracle
from dwcp.compression import model as models
from dwcp.compression.corpus_heldout import unpacked
from dwcp.compression.costs import Link, Terms
from dwcp.compression.errors import TransferError
from dwcp.compression.model_shipped import held_out, shipped
from dwcp.compression.oracle import Measurement, Oracle
from dwcp.compression.race import Entry
from dwcp.compression.selector import Selector, Step, selection_seconds
from dwcp.compression.selector_stream import StreamSelector
from dwcp.compression.train_data import MARKED_BPS, RATES_BPS
from dwcp.models.artefact import Made

Array = NDArray[np.float64]

MIB = 1 << 20
SEGMENTS = 8
STREAM_BYTES = SEGMENTS * MIB
WORSE = 0.02
UNUSED_SEED = 1 << 40  # of generated data: training counts from its own seed, far below
SHIPPED = list(oracle.SHIPPED)
PLACES = [codec.name for codec in codecs.CODECS]


@dataclass(frozen=True)
class Stream:
    name: str
    origin: str  # corpus | host | generated
    raw: bytes

    def segments(self) -> list[bytes]:
        return [self.raw[at : at + MIB] for at in range(0, len(self.raw), MIB)]


@dataclass
class Run:
    """One stream on one link: seconds of us, of the oracle and of the simple policies."""

    link: int
    mine: float = 0.0
    best: float = 0.0
    table: float = 0.0
    fixed: Array = field(default_factory=lambda: np.zeros(len(PLACES)))
    selection_us: list[float] = field(default_factory=list)
    race_ms: list[float] = field(default_factory=list)


# ----- what is sent -----


def from_folder(folder: Path) -> Iterator[Stream]:
    """Large files cut into streams, the rest of them and small files in tars by type."""
    small: dict[str, list[tuple[str, bytes]]] = {}
    for name, raw in unpacked(folder):
        whole = len(raw) - len(raw) % STREAM_BYTES
        for at in range(0, whole, STREAM_BYTES):
            yield Stream(f"{name}@{at // MIB}", "corpus", raw[at : at + STREAM_BYTES])
        if len(raw) > whole:
            small.setdefault(kind(name), []).append((name, raw[whole:]))
    for group, files in sorted(small.items()):
        tar = corpus.tar(files, limit=1 << 40)
        for at in range(0, len(tar), STREAM_BYTES):
            if len(tar) - at >= MIB:
                yield Stream(f"{group}.tar@{at // MIB}", "corpus", tar[at : at + STREAM_BYTES])


def kind(name: str) -> str:
    ending = name.rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else "plain"
    return ending if len(ending) < 6 else "plain"


def from_host(count: int, *, seed: int) -> Iterator[Stream]:
    """`count` streams of files in groups that training never sees: kinds in turn, then what is left of them
    mixed, then later stretches of large files."""
    found = {
        name: [s for s in each if corpus.reserved(s.group)]
        for name, each in corpus.sources(seed=seed).items()
    }
    rest: list[bytes] = []
    lanes = [_host_lane(name, each, rest) for name, each in sorted(found.items())]
    yield from islice(chain(_in_turn(lanes), _mixed(rest), _in_turn(_later(found))), count)


def generated(count: int) -> Iterator[Stream]:
    """`count` streams of made data, where files do not suffice: kinds in turn, seeds that training never uses."""
    kinds = sorted(corpus_generated.KINDS)
    for number in range(count):
        name = kinds[number % len(kinds)]
        raw = corpus_generated.generate(name, seed=UNUSED_SEED + number, size=STREAM_BYTES)
        yield Stream(f"made-{name}-{number}", "generated", raw)


def _in_turn(lanes: list[Iterator[Stream]]) -> Iterator[Stream]:
    while lanes:
        for lane in list(lanes):
            stream = next(lane, None)
            if stream is None:
                lanes.remove(lane)
            else:
                yield stream


def _host_lane(name: str, found: list[corpus.Source], rest: list[bytes]) -> Iterator[Stream]:
    """Streams of one kind; what does not fill one goes to `rest`."""
    pool, number = bytearray(), 0
    for source in found:
        pool += corpus.load(source, limit=STREAM_BYTES)
        if len(pool) >= STREAM_BYTES:
            yield Stream(f"host-{name}-{number}", "host", bytes(pool[:STREAM_BYTES]))
            pool, number = bytearray(), number + 1
    rest.append(bytes(pool))


def _mixed(rest: list[bytes]) -> Iterator[Stream]:
    whole = b"".join(rest)
    for at in range(0, len(whole) - STREAM_BYTES + 1, STREAM_BYTES):
        yield Stream(f"host-mixed-{at // STREAM_BYTES}", "host", whole[at : at + STREAM_BYTES])


def _later(found: dict[str, list[corpus.Source]]) -> list[Iterator[Stream]]:
    """A lane for each large file, from its second stretch on."""
    large = [source for _, each in sorted(found.items()) for source in each if len(source.paths) == 1]
    return [_stretches(source) for source in large]


def _stretches(source: corpus.Source) -> Iterator[Stream]:
    raw = corpus.load(source)
    for at in range(STREAM_BYTES, len(raw) - STREAM_BYTES + 1, STREAM_BYTES):
        name = Path(source.paths[0]).name[-20:]
        yield Stream(f"host-{source.kind}-{name}@{at // MIB}", "host", raw[at : at + STREAM_BYTES])


# ----- measuring and pricing -----


class Measured:
    """Segments through the oracle, kept in a file so that an interrupted run goes on."""

    def __init__(self, cache: Path | None, *, repeats: int, patience_s: float) -> None:
        self._cache, self._repeats, self._patience_s = cache, repeats, patience_s
        self._known = oracle.read_lines(cache) if cache else {}
        self._oracle = Oracle()

    def row(self, raw: bytes, stream: Stream, segment: int) -> Measurement:
        key = oracle.digest(raw)
        if (row := self._known.get(key)) is None:
            values = self._oracle.measure(raw, repeats=self._repeats, patience_s=self._patience_s)
            row = Measurement(key, "bench", stream.name, stream.name, segment, len(raw), *values)
            self._known[key] = row
            if self._cache:
                oracle.append_line(self._cache, row)
        return row


def transfer(stream: Stream, rows: list[Measurement], selector: Selector, link: int) -> Run:
    """The stream over one link by our choices, and what the others would have taken."""
    terms = Terms(Link(RATES_BPS[link]))
    grid = oracle.grid(rows)
    parts = costs.stages(
        grid.packed + costs.HEADER_BYTES, compress_s=grid.pack_s, decompress_s=grid.unpack_s, link=terms.link
    )
    seconds = costs.total_seconds(parts, blocks=1, mode=terms.mode, link=terms.link)
    run = Run(link, best=float(seconds.min(axis=1).sum()), fixed=seconds[:, SHIPPED].sum(axis=0))
    segments, left = stream.segments(), len(stream.raw)  # cutting them leaves caches cold, as a transfer does
    with (clock := Stopwatch.ready()):
        choosing = StreamSelector(selector, terms)
    for at, raw in enumerate(segments):
        choice, spent, trials = decide(choosing, raw, left, rows[at])
        if not at:
            spent += clock.seconds
        column = SHIPPED[choice]
        pack_s = float(grid.pack_s[at, column]) + trials
        run.mine += max(pack_s, float(parts.send[at, column]), float(parts.decompress[at, column])) + spent
        run.selection_us.append(spent * 1e6)
        if trials:
            run.race_ms.append(trials * 1e3)
        table = selector.cell(size=len(raw), link=terms.link).place
        run.table += float(seconds[at, SHIPPED[table]])
        left -= len(raw)
    return run


def decide(choosing: StreamSelector, raw: bytes, left: int, row: Measurement) -> tuple[int, float, float]:
    """(the codec of the segment, seconds of choosing, seconds of packing for nothing but knowledge)."""
    clock = Stopwatch.ready()
    with clock:
        step = choosing.begin(raw, left_bytes=left)
    if step.race is not None and not step.late:
        race(step, row, clock)
    with clock:
        choice = choosing.settle(step)
    if step.race is not None and step.late:
        step.race.observe(entry(row, choice)) if choice else None
        race(step, row, clock)
    sent = entry(row, choice)
    with clock:
        choosing.done(step, sent)
    tried = step.race.entries if step.race is not None else []
    return choice, clock.seconds, sum(each.pack_s for each in tried if each.place != choice)


def race(step: Step, row: Measurement, clock: Stopwatch) -> None:
    assert step.race is not None
    while True:
        with clock:
            place = step.race.next()
        if place is None:
            return
        with clock:
            step.race.observe(entry(row, place))


def entry(row: Measurement, place: int) -> Entry:
    """What a trial would show: sizes and packing seconds as measured."""
    column = SHIPPED[place]
    return Entry(place, min(row.packed[column], row.size), row.pack_us[column] * 1e-6)


class Stopwatch:
    """CPU seconds of the thread inside `with`, less what asking the clock costs."""

    asking_s = 0.0

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begun = 0.0

    def __enter__(self) -> Stopwatch:
        self._begun = time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += max(0.0, time.thread_time() - self._begun - self.asking_s)

    @classmethod
    def ready(cls) -> Stopwatch:
        """One whose own code is in the caches: what it costs to fetch that is no cost of choosing."""
        with cls():
            pass
        return cls()

    @classmethod
    def calibrate(cls) -> None:
        """Times nothing, often."""
        taken = []
        for _ in range(2000):
            with (clock := cls()):
                pass
            taken.append(clock.seconds)
        cls.asking_s = sorted(taken)[len(taken) // 2]


# ----- figures -----


def told(runs: list[list[Run]], *, seed: int) -> dict[str, object]:
    """`runs` [streams][links]."""
    mine, best = grid_of(runs, "mine"), grid_of(runs, "best")
    table = grid_of(runs, "table")
    fixed = np.array([[run.fixed for run in each] for each in runs])  # [streams, links, codecs]
    regret, table_regret = np.log(mine / best), np.log(table / best)
    fixed_regret = np.log(fixed / best[:, :, None])
    marked = np.array(RATES_BPS) <= MARKED_BPS
    hindsight = fixed_regret.mean(axis=0).min(axis=1)  # the best codec of each link, known afterwards
    low, high = interval(regret[:, marked], seed=seed)
    selection = np.concatenate([run.selection_us for each in runs for run in each])
    racing = [value for each in runs for run in each for value in run.race_ms]
    return {
        "basis": "priced",
        "cells": int(regret[:, marked].size),
        "regret_gmean": fraction(regret[:, marked].mean()),
        "regret_p95": fraction(np.percentile(regret[:, marked], 95)),
        "p95_low": fraction(low),
        "p95_high": fraction(high),
        "zstd3": fraction(fixed_regret[:, marked, PLACES.index("zstd-3")].mean()),
        "best_fixed": fraction(fixed_regret[:, marked].mean(axis=(0, 1)).min()),
        "table": fraction(table_regret[:, marked].mean()),
        "table_hindsight": fraction(hindsight[marked].mean()),
        "worse_than_table_share": round(float((mine > table * (1 + WORSE))[:, marked].mean()), 4),
        "selection_us_p50": round(float(np.percentile(selection, 50)), 1),
        "selection_us_p95": round(float(np.percentile(selection, 95)), 1),
        "race_ms_p50": round(float(np.median(racing)), 2) if racing else 0.0,
        "per_link": [
            {
                "mbps": round(rate / 1e6, 1),
                "regret_gmean": fraction(regret[:, at].mean()),
                "regret_p95": fraction(np.percentile(regret[:, at], 95)),
                "table": fraction(table_regret[:, at].mean()),
                "table_hindsight": fraction(hindsight[at]),
                "zstd3": fraction(fixed_regret[:, at, PLACES.index("zstd-3")].mean()),
                "none": fraction(fixed_regret[:, at, 0].mean()),
                "worse_than_table_share": round(float((mine > table * (1 + WORSE))[:, at].mean()), 4),
            }
            for at, rate in enumerate(RATES_BPS)
        ],
    }  # fmt: skip


def grid_of(runs: list[list[Run]], name: str) -> Array:
    return np.array([[getattr(run, name) for run in each] for each in runs])


def interval(regret: Array, *, seed: int) -> tuple[float, float]:
    """95 % of the bootstrap of the 95th percentile, streams drawn whole."""
    rng = np.random.default_rng(seed)
    drawn = [np.percentile(regret[rng.integers(0, len(regret), len(regret))], 95) for _ in range(400)]
    return float(np.percentile(drawn, 2.5)), float(np.percentile(drawn, 97.5))


def fraction(log_regret: float | np.floating) -> float:
    return round(float(np.expm1(log_regret)), 5)


def main() -> int:
    arguments = parse()
    try:
        result = measure(arguments)
    except TransferError as failed:
        print(failed, file=sys.stderr)
        return 2
    if not arguments.json:
        print("per link: " + ", ".join(f"{x['mbps']:g}: {x['regret_gmean']:.2%}" for x in result["per_link"]))  # type: ignore[attr-defined]
    print(json.dumps(result))
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    print(f"the oracle's codecs: {', '.join(oracle.NAMES)}", file=sys.stderr)
    model = load(arguments.model)
    selector = hosted(model)
    Stopwatch.calibrate()
    source = Measured(arguments.cache, repeats=arguments.repeats, patience_s=arguments.patience_s)
    runs: list[list[Run]] = []
    counts = {"corpus": 0, "host": 0, "generated": 0}
    blocks = held_out()
    for stream in streams(arguments):
        if stream.origin == "host" and blocks.shares(stream.raw):
            continue
        rows = [source.row(raw, stream, at) for at, raw in enumerate(stream.segments())]
        for link in range(len(RATES_BPS)) if not runs else ():
            transfer(stream, rows, selector, link)  # fills caches, as a running service has them
        runs.append([transfer(stream, rows, selector, link) for link in range(len(RATES_BPS))])
        counts[stream.origin] += 1
        mine = [np.expm1(np.log(run.mine / run.best)) for run in runs[-1]]
        print(
            f"{len(runs):4} {stream.name[-40:]:40} " + " ".join(f"{100 * x:6.1f}" for x in mine),
            file=sys.stderr,
        )
    if not runs:
        raise TransferError(f"{arguments.corpus} holds nothing of 1 MiB: name a folder with files")
    facts = {
        "streams": counts,
        "codecs": oracle.NAMES,
        "model": model.digest[:16],
        "repeats": arguments.repeats,
    }
    return {**told(runs, seed=arguments.seed), **facts}


def hosted(model: models.Model) -> Selector:
    """The model on this host: its speeds and the cost of a decision, measured now."""
    here = calibration.measure(host="benchmark").speeds
    speeds = {name: (each.pack_bps, each.unpack_bps) for name, each in here.items()}
    trial = Selector(model, speeds=speeds)
    raw = b"".join(calibration.reference_blocks()) * 4
    return Selector(model, speeds=speeds, selection_s=selection_seconds(trial, raw, cpu=time.thread_time))


def load(folder: Path | None) -> models.Model:
    if folder is None:
        return shipped()
    try:
        manifest = (folder / "compression-selector.json").read_bytes()
        weights = (folder / "compression-selector.safetensors").read_bytes()
    except OSError as exc:
        raise TransferError(f"no model in {folder}: {exc.strerror}") from exc
    return models.load(Made(manifest, weights))[0]


def streams(arguments: argparse.Namespace) -> Iterator[Stream]:
    count = 0
    if arguments.corpus is not None:
        for stream in from_folder(arguments.corpus):
            count += 1
            yield stream
    for stream in from_host(arguments.streams - count, seed=arguments.seed):
        count += 1
        yield stream
    yield from generated(arguments.streams - count)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, help="a folder of files; without it only this host's are used")
    parser.add_argument("--json", action="store_true", help="the JSON line alone on standard output")
    parser.add_argument("--streams", type=int, default=100, help="at least so many")
    parser.add_argument("--repeats", type=int, default=oracle.REPEATS, help="timings of each codec")
    parser.add_argument(
        "--patience-s",
        type=float,
        default=float("inf"),
        help="CPU seconds after which a codec is not timed again",
    )
    parser.add_argument("--cache", type=Path, help="keeps measurements, so that a run can go on")
    parser.add_argument("--model", type=Path, help="folder of another model")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
