"""Runs seeds: one by one, over several processes, or against planted bugs.

`run` is what `dwcp sim` and `python -m dwcp.consensus.sim` call.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

from dwcp.consensus.core.errors import CoreError
from dwcp.consensus.sim.bugs import BUGS, Bug
from dwcp.consensus.sim.checkers import Violation
from dwcp.consensus.sim.cluster import Cluster, Parts
from dwcp.consensus.sim.coverage import Coverage
from dwcp.consensus.sim.scenario import draw
from dwcp.consensus.sim.world import World

ENGINES = ("probft",)
SLOTS_MIN = 50
SEEDS = (0, 100)
BUG_SEEDS = (0, 1000)  # where each planted bug must be found
NODES_MIN, NODES_MAX = 4, 31


class BadRequest(CoreError):
    """The simulator was asked for something it does not have; the text names what it has."""


@dataclass(frozen=True, slots=True)
class SimRequest:
    """`seeds` is [first, after the last); `bug` a name of `bugs.BUGS`, or "all"."""

    engine: str = "probft"
    nodes: int = 4
    seeds: tuple[int, int] = SEEDS
    jobs: int = 1
    slots: int = SLOTS_MIN
    bug: str | None = None
    verbose: bool = False


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One history. `checker` is "" where nothing was found."""

    seed: int
    steps: int
    slots: int
    trace: int
    coverage: Coverage
    checker: str = ""
    sentence: str = ""
    story: tuple[str, ...] = ()


@dataclass(slots=True)
class SimReport:
    """What `--json` prints. `failures` holds one entry for each seed that found something."""

    engine: str
    nodes: int
    seeds: int = 0
    violations: int = 0
    stuck: int = 0
    events: int = 0
    events_per_s: int = 0
    slots_min: int = 0
    trace: str = ""
    coverage: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, str | int]] = field(default_factory=list)
    bugs: int | None = None
    found: int | None = None
    detail: dict[str, dict[str, str | int]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Nothing found in the product, or every planted bug found."""
        if self.bugs is not None:
            return self.found == self.bugs
        return not self.violations and not self.stuck

    def as_json(self) -> dict[str, object]:
        fields = asdict(self)
        if self.bugs is None:
            return {k: v for k, v in fields.items() if k not in ("bugs", "found", "detail")}
        return {k: fields[k] for k in ("engine", "nodes", "bugs", "found", "detail")}


Progress = Callable[[str], None]


def quiet(_line: str) -> None:
    """For callers who want no progress."""


def run(request: SimRequest, progress: Progress = quiet) -> SimReport:
    """Raises `BadRequest`."""
    validate(request)
    if request.bug is not None:
        return _hunt(request, progress)
    return _sweep(request, progress)


def validate(request: SimRequest) -> None:
    if request.engine not in ENGINES:
        raise BadRequest(f"no engine {request.engine!r}; there is: {', '.join(ENGINES)}")
    if not NODES_MIN <= request.nodes <= NODES_MAX:
        raise BadRequest(f"{request.nodes} nodes; a history has {NODES_MIN} to {NODES_MAX}")
    if not 0 <= request.seeds[0] < request.seeds[1]:
        raise BadRequest(f"seeds {request.seeds[0]}:{request.seeds[1]} is no range; write FIRST:AFTER_LAST")
    if request.jobs < 1 or request.slots < 1:
        raise BadRequest("jobs and slots are at least 1")
    if request.bug is not None and request.bug != "all" and request.bug not in BUGS:
        raise BadRequest(f"no bug {request.bug!r}; there are: all, {', '.join(BUGS)}")


def replay_command(request: SimRequest, seed: int) -> str:
    """The one command that shows this seed again."""
    bug = f" --bug {request.bug}" if request.bug else ""
    slots = f" --slots {request.slots}" if request.slots != SLOTS_MIN else ""
    return (
        f"dwcp sim --engine {request.engine} --nodes {request.nodes} "
        f"--seeds {seed}:{seed + 1}{slots}{bug} --verbose"
    )


# --------------------------------------------------------------------------- one seed


def play(
    seed: int, *, nodes: int, slots: int = SLOTS_MIN, bug: Bug | None = None, verbose: bool = False
) -> SeedResult:
    """Run one history to its end, or to what a checker finds."""
    scenario = draw(seed, n=nodes, slots_min=slots)
    parts = bug.parts() if bug is not None else Parts()
    world = World(scenario, Cluster(scenario, parts))
    if verbose:
        world.story = [str(scenario)]
    checker = sentence = ""
    try:
        world.run()
    except Violation as violation:
        checker, sentence = violation.checker, violation.sentence
        world.tell(str(violation))
    return SeedResult(
        seed,
        world.steps,
        world.agreement.highest,
        world.trace,
        world.coverage,
        checker,
        sentence,
        tuple(world.story or ()),
    )


# --------------------------------------------------------------------------- many seeds


@dataclass(frozen=True, slots=True)
class _Task:
    """What a worker process plays; picklable."""

    nodes: int
    slots: int
    bug: str | None = None

    def __call__(self, seed: int) -> SeedResult:
        bug = BUGS[self.bug] if self.bug is not None else None
        return play(seed, nodes=self.nodes, slots=self.slots, bug=bug)


def _play_all(task: _Task, seeds: range, jobs: int) -> Iterator[SeedResult]:
    """Results in seed order."""
    if jobs == 1:
        yield from map(task, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs) as pool:
        yield from pool.imap(task, seeds, chunksize=4)


def _sweep(request: SimRequest, progress: Progress) -> SimReport:
    report = SimReport(request.engine, request.nodes)
    coverage = Coverage()
    seeds = range(*request.seeds)
    results: Iterator[SeedResult]
    if request.verbose:
        results = iter([play(seed, nodes=request.nodes, slots=request.slots, verbose=True) for seed in seeds])
    else:
        results = _play_all(_Task(request.nodes, request.slots), seeds, request.jobs)
    trace = 0
    started = time.perf_counter()
    for result in results:
        report.seeds += 1
        report.events += result.steps
        coverage.add(result.coverage)
        trace = (trace * 1_000_003 + result.trace) & 0xFFFF_FFFF_FFFF_FFFF
        if result.checker:
            _fail(report, request, result, progress)
        elif not report.slots_min or result.slots < report.slots_min:
            report.slots_min = result.slots
        for line in result.story:
            progress(line)
    report.events_per_s = int(report.events / (time.perf_counter() - started))
    report.trace = f"{trace:016x}"
    report.coverage = coverage.summary()
    return report


def _fail(report: SimReport, request: SimRequest, result: SeedResult, progress: Progress) -> None:
    if result.checker == "stuck":
        report.stuck += 1
    else:
        report.violations += 1
    command = replay_command(request, result.seed)
    report.failures.append(
        {
            "seed": result.seed,
            "checker": result.checker,
            "sentence": result.sentence,
            "replay": command,
        }
    )
    progress(f"seed {result.seed}: {result.checker}: {result.sentence}\n  replay: {command}")


# --------------------------------------------------------------------------- planted bugs


def _hunt(request: SimRequest, progress: Progress) -> SimReport:
    """For each bug, seeds until a checker finds it."""
    names = list(BUGS) if request.bug == "all" else [str(request.bug)]
    report = SimReport(request.engine, request.nodes, bugs=len(names), found=0)
    seeds = range(*request.seeds)
    hunters = [_Hunter(name, request.nodes, request.slots, seeds) for name in names]
    for name, result in zip(names, _hunt_each(hunters, request.jobs), strict=True):
        if result is None:
            progress(f"{name}: not found within {len(seeds)} seeds")
            report.detail[name] = {"seed": -1, "checker": ""}
            continue
        report.found = (report.found or 0) + 1
        report.detail[name] = {"seed": result.seed, "checker": result.checker}
        progress(f"{name}: {result.checker} at seed {result.seed}: {result.sentence}")
    return report


@dataclass(frozen=True, slots=True)
class _Hunter:
    bug: str
    nodes: int
    slots: int
    seeds: range


def _hunt_each(hunters: list[_Hunter], jobs: int) -> Iterator[SeedResult | None]:
    if jobs == 1:
        yield from map(_hunt_one, hunters)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_hunt_one, hunters)


def _hunt_one(hunter: _Hunter) -> SeedResult | None:
    """The first seed where a checker finds it: without the bug, none of these seeds finds anything."""
    bug = BUGS[hunter.bug]
    for seed in hunter.seeds:
        result = play(seed, nodes=hunter.nodes, slots=hunter.slots, bug=bug)
        if result.checker:
            return result
    return None


def print_progress(line: str) -> None:
    """Progress for people goes to standard error; the report alone to standard output."""
    sys.stderr.write(line + "\n")
