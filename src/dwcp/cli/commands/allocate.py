"""`dwcp allocate`: train a placer, compare it with the rule below it, and advise whether to use one at all.

Everything that needs a clock or a file is here; what is computed is in `dwcp.allocation.learn`. JAX is an
optional extra.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dwcp.cli import output
from dwcp.cli.options import Json
from dwcp.runtime.errors import Exit, RuntimeFault

if TYPE_CHECKING:
    from dwcp.allocation.learn.assemble import Base
    from dwcp.allocation.learn.config import Config
    from dwcp.allocation.learn.courses import Course
    from dwcp.allocation.learn.search import Judged
    from dwcp.allocation.learn.trainer import Standing, Trainer
    from dwcp.allocation.policies.tuned import Entry, Table
    from dwcp.cli.spreading import Files, Told, Work
    from dwcp.models.artefact import Artefact

T = TypeVar("T")
app = typer.Typer(help="train and judge policies that place workloads", rich_markup_mode=None)

MANIFEST, WEIGHTS, CURVES, CHECKPOINT, CARD, SEARCHED = (
    "manifest.json", "weights.safetensors", "curves.svg", "checkpoint.safetensors", "card.md", "searched.safetensors",
)  # fmt: skip
CHECKPOINT_EVERY_S = 60.0
SHARE_ROUNDS = 5
WIDE_JOBS = 600  # workloads per window from which on a run is worth trying on larger fleets

Out = Annotated[Path, typer.Option("--out", help="folder for model, curves and checkpoint")]
Profile = Annotated[str, typer.Option("--profile", help="how much: smoke, dev or default")]
Algorithm = Annotated[str, typer.Option("--algorithm", help="matd3, mappo or canonical")]
Seed = Annotated[int, typer.Option("--seed", help="of the run; each seed is another run")]
Stale = Annotated[bool, typer.Option("--stale", help="sites know each other only as last reported")]
Minutes = Annotated[float, typer.Option("--minutes", help="stop after the segment in which this has passed")]
Anew = Annotated[bool, typer.Option("--anew", help="ignore a checkpoint in the folder")]
Seeds = Annotated[str, typer.Option("--seeds", help="many runs: seeds with commas between, or FIRST:END")]
Ray = Annotated[
    str, typer.Option("--ray", help="train --seeds at once: `local`, or the address of a Ray cluster")
]
BaseRule = Annotated[
    str, typer.Option("--base", help="a rule to stand on, blind, or RULE@SETTING as it was tuned")
]
Share = Annotated[
    bool, typer.Option("--share", help="measure what environment and actors take; compiles once more")
]
Trace = Annotated[str, typer.Option("--trace", help="azure:DIR, openb:DIR, swf:FILE or generated:NAME")]
Load = Annotated[float, typer.Option("--load", help="realised demand / capacity of the scarcest resource")]
Model = Annotated[Path, typer.Option("--model", help="the folder that training wrote")]
Windows = Annotated[int, typer.Option("--windows", help="windows to compare on")]
NodeCounts = Annotated[str, typer.Option("--nodes", help="fleet sizes with commas between")]
Epsilon = Annotated[
    float, typer.Option("--epsilon", help="a saving below this share is not worth complexity")
]
Trials = Annotated[int, typer.Option("--trials", help="of tuning, per rule")]
Jobs = Annotated[int, typer.Option("--jobs", help="workloads per window; 0: as the profile says")]


class TrainingImpossible(RuntimeFault):
    """Training cannot start: the message says which setting or package is the reason."""

    exit_code = Exit.USAGE


class ModelUnreadable(RuntimeFault):
    """The folder holds no placer that this program can use: give the folder that `dwcp allocate train` wrote."""


@app.command()
def train(
    out: Out,
    profile: Profile = "default",
    algorithm: Algorithm = "matd3",
    seed: Seed = 0,
    stale: Stale = False,
    minutes: Minutes = 25.0,
    anew: Anew = False,
    share: Share = False,
    base: BaseRule = "",
    seeds: Seeds = "",
    ray: Ray = "",
    as_json: Json = False,
) -> None:
    """Train a placer on generated streams, on one core; goes on from the folder's checkpoint.

    Writes the model (two files), its card, its learning curves as a picture, and a checkpoint about every minute.
    The best by validation is kept, paired with the tuned rule that the model stands on. With `--seeds` each seed has
    its folder below, and `--ray` trains them on as many cores and machines as there are.

    Example: dwcp allocate train --out models/placer --profile dev --seed 1
    (or --seeds 0:10 --ray local)
    """
    _require_writable(out)
    if seeds:
        work = functools.partial(_seed, profile, algorithm, stale, minutes, anew, share, base)
        _spread(work, seeds, out, ray=ray, as_json=as_json)
        return
    if ray:
        raise typer.BadParameter("--ray spreads seeds: name them with --seeds")
    config = _config(profile, algorithm=algorithm, seed=seed, stale=stale)
    run = _prepared(config, base, _command(profile, config, base), out, anew=anew)
    standing, seconds = _run(run, out, minutes=minutes, anew=anew)
    answer = _written(run, standing, out, seconds=seconds, share=share)
    output.show(answer, as_json=as_json, text="\n".join(f"{key}: {value}" for key, value in answer.items()))


@app.command()
def evaluate(
    model: Model,
    trace: Trace = "generated:g1",
    load: Load = 0.95,
    stale: Stale = False,
    windows: Windows = 12,
    nodes: NodeCounts = "12",
    jobs: Jobs = 600,
    as_json: Json = False,
) -> None:
    """Compare a model with the rule that it stands on, on the development part of a trace, paired by window.

    Claims are made by the benchmark on the test part alone; this is for looking, and for other fleet sizes.

    Example: dwcp allocate evaluate --model models/placer --nodes 12,100,500
    """
    from dwcp.allocation.learn import judge

    found = _model(model)
    rows = []
    for count in _counts(nodes):
        records = _loaded(trace, "dev", count=judge.length(windows, jobs))
        asked = judge.Asked(load=load, stale=stale, windows=windows, nodes=count, jobs=jobs)
        rows.append(_possible(functools.partial(judge.compare, found, records, asked)))
    table = output.Table(
        ("nodes", "rule $", "model $", "difference", "low", "high", "placed"),
        [[str(row.nodes), *(f"{cost:.3f}" for cost in row[1:])] for row in rows],
    )
    output.show(
        {"model": found.digest, "rows": [row._asdict() for row in rows]}, as_json=as_json, table=table
    )


@app.command()
def advise(
    trace: Trace,
    load: Load = 0.95,
    stale: Stale = False,
    profile: Profile = "dev",
    seed: Seed = 0,
    epsilon: Epsilon = 0.02,
    trials: Trials = 24,
    windows: Windows = 24,
    jobs: Jobs = 0,
    as_json: Json = False,
) -> None:
    """Say whether a learned placer is worth it on your own records: fits rules, a linear scorer and a model.

    Fits on the first half of the records and compares on the last three tenths. Recommends the simplest candidate
    whose interval stays within epsilon of the cheapest.

    Example: dwcp allocate advise --trace swf:cluster.swf --load 0.9
    """
    from dwcp.allocation.learn import advise as advising

    changes: dict[str, object] = {"seed": seed, "stale": stale}
    if jobs:
        changes["jobs"] = jobs
    _require_training()
    plan = advising.Plan(
        _config(profile, **changes), load=load, trials=trials, windows=windows, epsilon=epsilon
    )
    parts = [_loaded(trace, split, count=20_000) for split in _splits(trace)]
    found = _possible(lambda: advising.advise(advising.joined(parts), plan, output.remark))
    table = output.Table(
        ("candidate", "$ per window", "from the cheapest", "low", "high"),
        [
            [row.name, *(f"{cost:.3f}" for cost in (row.cost, row.difference, row.low, row.high))]
            for row in found.rows
        ],
    )
    output.show(found, as_json=as_json, text=found.sentence, table=table)


def _spread(work: Work, seeds: str, out: Path, *, ray: str, as_json: bool) -> None:
    """Each seed into its own folder as it ends; the exit code is not 0 where one failed."""
    from dwcp.cli.spreading import seeds_of, spread

    try:
        wanted = seeds_of(seeds)
    except ValueError as fault:
        raise typer.BadParameter(f"--seeds {seeds[:40]!r}: {fault}") from fault
    folders = {seed: out / f"seed-{seed}" for seed in wanted}
    answers, faults = {}, {}
    for told in spread(work, {seed: _kept(folder) for seed, folder in folders.items()}, ray=ray):
        if told.fault:
            faults[str(told.seed)] = told.fault
            output.remark(f"seed {told.seed} failed: {told.fault}")
            continue
        folders[told.seed].mkdir(parents=True, exist_ok=True)
        for name, content in told.files.items():
            _put(folders[told.seed] / name, content)
        answers[str(told.seed)] = told.answer | {"folder": str(folders[told.seed])}
    said = [f"seed {seed}: {answer.get('model', '')}" for seed, answer in answers.items()]
    output.show({"seeds": answers, "failed": faults}, as_json=as_json, text="\n".join(said))
    if faults:
        raise typer.Exit(Exit.FAILED)


def _seed(  # what `train` was given, for a function that travels
    profile: str,
    algorithm: str,
    stale: bool,
    minutes: float,
    anew: bool,
    share: bool,
    base: str,
    seed: int,
    files: Files,
) -> Told:
    """One seed's training, wherever it runs: files come and go as bytes."""
    import tempfile

    from dwcp.cli.spreading import Told

    config = _config(profile, algorithm=algorithm, seed=seed, stale=stale)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            _put(Path(folder) / name, content)
        run = _prepared(config, base, _command(profile, config, base), Path(folder), anew=anew)
        standing, seconds = _run(run, Path(folder), minutes=minutes, anew=anew)
        answer = _written(run, standing, Path(folder), seconds=seconds, share=share)
        return Told(seed, answer, _kept(Path(folder)))


def _kept(folder: Path) -> Files:
    names = (MANIFEST, WEIGHTS, CURVES, CHECKPOINT, CARD, SEARCHED)
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


@dataclass(frozen=True, slots=True)
class _Run:
    """A trainer with what it was made from."""

    config: Config
    base: Base
    course: Course
    exam: Course
    one: Trainer
    digest: str
    trained_on: dict[str, str]
    wide: bool  # whether larger fleets are tried at the end
    judged: Judged | None  # what was searched before the gradient
    searched_s: float


def _command(profile: str, config: Config, rule: str) -> str:
    words = [
        "dwcp allocate train",
        f"--profile {profile}",
        f"--algorithm {config.algorithm}",
        f"--seed {config.seed}",
    ]
    return " ".join([*words, *(["--stale"] if config.stale else []), *([f"--base {rule}"] if rule else [])])


def _prepared(config: Config, rule: str, command: str, out: Path, *, anew: bool) -> _Run:
    """Windows, the base rule at its scale with what was searched below it, and the compiled parts."""
    _require_training()
    from dwcp.allocation.learn import assemble, checkpoint, courses, trainer

    first = assemble.HAND_WRITTEN
    offered = [_asked(rule)] if rule else _candidates(config)
    _possible(lambda: assemble.make_base(*offered[0]))
    rough = assemble.make_base(*first).score
    output.remark(f"cutting {config.windows} windows for training and {config.validation} for validation")
    course = courses.training(0, config.windows, base=rough, like=config)
    exam = courses.validation(config.validation, base=rough, like=config)
    output.remark(f"choosing the rule to stand on from {len(offered)}, on validation windows")
    name, entry = assemble.best_entry(offered, exam) if len(offered) > 1 else offered[0]
    base = assemble.make_base(name, entry, course)
    trained_on = {
        "command": command,
        "train": checkpoint.course_digest((*course.episodes, *course.states)),
        "validation": checkpoint.course_digest((*exam.episodes, *exam.states)),
    }
    described = f"{name} {entry.knobs} {entry.weights}"
    digest = checkpoint.config_digest(config, described + trained_on["train"] + trained_on["validation"])
    output.remark(f"standing on {name}")
    judged, searched_s = _searched(config, course, exam, base, out / SEARCHED, digest, anew=anew)
    if judged is not None:
        base = assemble.with_waiting(base, judged)
    output.remark("compiling")
    exam = courses.padded(exam, course.nodes)
    one = _possible(lambda: trainer.prepare(config, course, exam, base.score, base.sharpness))
    wide = config.jobs >= WIDE_JOBS
    return _Run(config, base, course, exam, one, digest, trained_on, wide, judged, searched_s)


def _searched(
    config: Config, course: Course, exam: Course, base: Base, place: Path, digest: str, *, anew: bool
) -> tuple[Judged | None, float]:
    """What waiting is worth below a linear scorer, and the seconds it took to find; an earlier run's, if there."""
    from dwcp.allocation.learn import checkpoint, search

    if not config.generations or config.algorithm == "canonical" or "base.linear" not in base.weights:
        return None, 0.0
    if not anew and place.is_file() and (known := checkpoint.load_search(place.read_bytes(), digest)):
        output.remark("going on from what was searched")
        return known
    begun = time.monotonic()
    plan = search.Plan(config.seed, config.generations, config.pairs, config.sitting)
    found = search.judged(search.search(plan, course, base.score, output.remark), exam, base.score)
    seconds = time.monotonic() - begun
    output.remark(
        f"waiting: {found.difference:+.3f} $ per window [{found.low:+.3f}, {found.high:+.3f}] from {base.name}, "
        + ("kept" if found.kept else "dropped")
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    _put(place, checkpoint.dump_search(found, seconds, digest))
    return found, seconds


def _run(run: _Run, out: Path, *, minutes: float, anew: bool) -> tuple[Standing, float]:
    """Segments until the end, the minutes or Ctrl-C; (what stands, seconds)."""
    from dwcp.allocation.learn import checkpoint, trainer

    out.mkdir(parents=True, exist_ok=True)
    place = out / CHECKPOINT
    standing = run.one.fresh()
    if place.exists() and not anew:
        try:
            standing = checkpoint.load(place.read_bytes(), standing, run.digest)
        except checkpoint.CheckpointRefused as fault:
            raise TrainingImpossible(f"{place}: {fault}; or give --anew") from fault
        output.remark(f"going on after segment {len(standing.points)}")
    begun = written = time.monotonic()
    for reached in run.one.run(standing):
        standing, now = reached, time.monotonic()
        _tell(run, standing, now - begun)
        over = now - begun > minutes * 60
        if over or now - written > CHECKPOINT_EVERY_S or trainer.finished(run.config, standing):
            _put(place, checkpoint.dump(standing, run.digest))
            written = now
        if over:
            break
    return standing, time.monotonic() - begun


def _tell(run: _Run, standing: Standing, seconds: float) -> None:
    point = standing.points[-1]
    best = " *" if standing.best_at == len(standing.points) - 1 else ""
    output.remark(
        f"segment {len(standing.points)} of {run.config.segments}, {seconds:.0f} s, {point.updates} updates: "
        f"{point.cost:.2f} $ per window, {point.difference:+.3f} [{point.low:+.3f}, {point.high:+.3f}] "
        f"from {run.base.name}{best}"
    )


def _written(run: _Run, standing: Standing, out: Path, *, seconds: float, share: bool) -> dict[str, Any]:
    """The model, its picture, and what is to be said of them."""
    from dwcp.allocation import shipped
    from dwcp.allocation.learn import assemble, card, courses, curves, fleets, trainer
    from dwcp.allocation.policies import learned

    figures = {
        "train_seconds": round(seconds + run.searched_s, 1),
        "search_seconds": round(run.searched_s, 1),
    }
    figures |= assemble.search_figures(run.judged, run.config)
    figures |= {"env_share": _env_share(run.one)} if share else {}
    title = f"{run.config.algorithm}, seed {run.config.seed}, on {run.base.name}"
    rule_cost = float(run.one.rule_cost.mean())
    _put(out / CURVES, curves.picture(standing.points, title=title, rule_cost=rule_cost).encode())
    answer: dict[str, Any] = {
        "algorithm": run.config.algorithm,
        "base": run.base.name,
        "rule_cost": round(rule_cost, 4),
    }
    answer |= {
        name: round(value, 4)
        for name, value in {**figures, **assemble.run_figures(standing, run.config)}.items()
    }
    if run.config.algorithm == "canonical":
        return answer | {
            "model": "none: canonical MADDPG cannot change its number of nodes, so it is not served"
        }
    weights = trainer.export(standing, run.base.weights)
    made = assemble.make(
        standing,
        config=run.config,
        base=run.base,
        views=courses.sampled(run.course, learned.scorer(weights), every=20, windows=run.course.windows),
        trained_on=run.trained_on,
        figures=figures | {"rule_cost": rule_cost},
        tried=fleets.tried(weights, output.remark, fleets.COUNTS if run.wide else ()),
    )
    model = shipped.load(made)  # refuses what a server would refuse
    _put(out / WEIGHTS, made.weights)
    _put(out / MANIFEST, made.manifest)
    _put(out / CARD, card.write(model).encode())
    return answer | {"model": made.digest, "folder": str(out)}


def _env_share(one: Trainer) -> float:
    """The part of a chunk's time that playing takes, timed apart from learning."""
    import jax

    from dwcp.allocation.learn import trainer

    algorithm = trainer.ALGORITHMS[one.config.algorithm]
    gather = jax.jit(functools.partial(algorithm.gather, one.config, one.setting, one.start))
    learn = jax.jit(functools.partial(algorithm.learn, one.config))
    learner = one.fresh().learner
    spent = [0.0, 0.0]
    for round_ in range(SHARE_ROUNDS + 1):
        begun = time.monotonic()
        learner, found = jax.block_until_ready(gather(learner, one.ground))
        between = time.monotonic()
        learner, _told = jax.block_until_ready(learn(learner, found))
        if round_:  # the first compiles
            spent = [spent[0] + between - begun, spent[1] + time.monotonic() - between]
    return round(spent[0] / sum(spent), 4)


def _config(profile: str, **changes: object) -> Config:
    from dwcp.allocation.learn.config import profile as named

    return _possible(lambda: named(profile, **changes))


def _possible(make: Callable[[], T]) -> T:
    """What `make` makes; its ValueError is the operator's to read."""
    try:
        return make()
    except ValueError as fault:
        raise TrainingImpossible(str(fault)) from fault


def _require_training() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("jax", "optax") if find_spec(name) is None]
    if missing:
        raise TrainingImpossible(f"{' and '.join(missing)} not installed: pip install 'dwcp[train]'")


def _asked(rule: str) -> tuple[str, Entry]:
    """A blind rule, or `RULE@SETTING` as it was tuned, such as local-best-fit@fresh-0.7."""
    from dwcp.allocation.policies import tuned

    name, _at, setting = rule.partition("@")
    if not setting:
        return name, tuned.Entry(cost=0.0, steps=0)
    found = _tuned().sets.get(setting)
    if found is None or name not in found.entries:
        raise TrainingImpossible(f"--base {rule[:60]!r}: no rule was tuned under this name and setting")
    return name, found.entries[name]


def _candidates(config: Config) -> list[tuple[str, Entry]]:
    from dwcp.allocation.learn import assemble

    return assemble.candidates(_tuned(), stale=config.stale)


def _tuned() -> Table:
    from dwcp.allocation.policies import tuned

    place = resources.files("dwcp.allocation.policies") / "tuned.json"
    return tuned.parse(place.read_bytes()) if place.is_file() else tuned.Table(sets={})


def _model(folder: Path) -> Artefact:
    from dwcp.allocation import shipped
    from dwcp.models.artefact import Made, ModelRefused

    try:
        made = Made((folder / MANIFEST).read_bytes(), (folder / WEIGHTS).read_bytes())
        return shipped.load(made)
    except (OSError, ModelRefused) as fault:
        raise ModelUnreadable(f"{folder}: {fault}") from fault


def _loaded(trace: str, split: str, *, count: int) -> Any:
    from dwcp.runtime.traces import load

    return load(trace, split, seed=0, count=count)


def _splits(trace: str) -> tuple[str, ...]:
    """A recorded trace is read whole; a generator gives one stream."""
    return ("dev",) if trace.startswith("generated:") else ("dev", "validation", "test")


def _counts(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(4 <= count <= 5000 for count in found):
        raise typer.BadParameter(f"--nodes {text[:40]!r}: numbers from 4 to 5000, with commas between")
    return found


def _require_writable(out: Path) -> None:
    """Before minutes of work: its end must have a place. Makes the folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as exc:
        raise TrainingImpossible(
            f"--out {out}: nothing can be written there: {exc.strerror}; give another folder"
        ) from exc


def _put(place: Path, content: bytes) -> None:
    """Whole or not there."""
    temporary = place.with_name(f".{place.name}.new")
    temporary.write_bytes(content)
    temporary.replace(place)
