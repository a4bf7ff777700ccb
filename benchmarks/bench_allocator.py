"""Which placement policy costs least, and how far is the best one from a bound that nobody can beat?

Windows of 1,500 workloads, each from one warm snapshot that all policies start from. The rival is the best of all
causal policies without learning, chosen per load on validation windows; bounds are clairvoyant. The last line is one
JSON object. `--tune FILE` makes the table of tuned policies instead, on training streams alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import allocator_page
from dwcp.allocation import shipped
from dwcp.allocation.bounds import BoundUnknown, lower_bound
from dwcp.allocation.env.episode import Episode, State, rows
from dwcp.allocation.env.reference import Reference
from dwcp.allocation.env.rollout import Outcome, group_names, refusals, rollout, total, warm
from dwcp.allocation.env.view import Scores
from dwcp.allocation.env.weights import BOUNDED, WEIGHTS, sensitivities
from dwcp.allocation.policies import evidence, tuned, tuning
from dwcp.allocation.policies.guarded import Tally, guarded
from dwcp.allocation.policies.milp import RollingMilp
from dwcp.allocation.policies.rules import RULES, Knobs, abreast, policy
from dwcp.allocation.traces import splits
from dwcp.allocation.traces.windows import LOOKBACK, Wanted, WindowImpossible, together
from dwcp.models.artefact import Artefact, Made, ModelRefused
from dwcp.runtime.errors import RuntimeFault
from dwcp.runtime.traces import load as load_trace
from dwcp.runtime.traces import load_prices

PRICED = 0.01  # of the rival's cost: where old information costs less, no share of it can be told
MODEL, SHIPPED = "maddpg", "shipped"
ROOT = Path(__file__).resolve().parent.parent
TUNED = ROOT / "src" / "dwcp" / "allocation" / "policies" / "tuned.json"
STALE = {"gossip_s": 300, "cut_mtbf_s": 43_200.0}
WARM_POLICY = policy(RULES["balance"], Knobs(money=1.0))
TEST_SEEDS, VALIDATION_SEED = 0, 0
CHUNK = 100  # windows side by side: twice as fast a window as 20 are; 200 are no faster


@dataclass(frozen=True)
class Field:
    """Windows with their common snapshots, `CHUNK` to an episode, and the seed that each belongs to."""

    episodes: list[Episode]
    states: list[State]
    seeds: np.ndarray
    block: int

    def run(self, candidate: Scores) -> Outcome:
        parts = [
            rollout(episode, state, candidate)
            for episode, state in zip(self.episodes, self.states, strict=True)
        ]
        return Outcome(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def mean_costs(self, policies: dict[str, Scores]) -> dict[str, float]:
        """Dollars per window of many policies; as many of them side by side as make 2 · `CHUNK` windows a run."""
        windows = len(self.seeds)
        few = max(1, 2 * CHUNK // windows)
        named, found = list(policies.items()), {}
        for at in range(0, len(named), few):
            names, some = zip(*named[at : at + few], strict=True)
            outcomes = [
                rollout(rows(episode, copies), rows_of(state, copies), abreast(some, len(episode.capacity)))
                for episode, state in zip(self.episodes, self.states, strict=True)
                for copies in [np.tile(np.arange(len(episode.capacity)), len(some))]
            ]
            sums = sum(total(one, WEIGHTS).reshape(len(some), -1).sum(axis=1) for one in outcomes)
            found |= dict(zip(names, (sums / windows).tolist(), strict=True))
        return found

    def fresh(self) -> Field:
        """The same windows with full information."""
        return replace(
            self, episodes=[one._replace(gossip_s=np.zeros_like(one.gossip_s)) for one in self.episodes]
        )

    def milp(self) -> Outcome:
        parts = [_milp(episode, state) for episode, state in zip(self.episodes, self.states, strict=True)]
        return Outcome(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def bounds(self) -> np.ndarray:
        """[W]; NaN where HiGHS gave up."""
        found = []
        for episode, state in zip(self.episodes, self.states, strict=True):
            for window in range(len(episode.capacity)):
                try:
                    found.append(lower_bound(episode, state, window))
                except BoundUnknown as fault:
                    print(f"window {len(found)}: {fault}", file=sys.stderr)
                    found.append(np.nan)
        return np.array(found)

    def value(self) -> np.ndarray:
        """[W] contract value of the measured workloads."""
        sums = []
        for episode in self.episodes:
            since = int(episode.measured_from[0])
            for window in range(len(episode.capacity)):
                arrived = episode.event_arg[window, since:][episode.event_kind[window, since:] == 1]
                sums.append(episode.value[window, arrived].sum())
        return np.array(sums)


def _milp(episode: Episode, state: State) -> Outcome:
    env = Reference.at(episode, state)
    planner = RollingMilp(env, Knobs(money=1.0))
    costs = np.zeros_like(env.cost)
    for event in range(int(episode.measured_from[0]), episode.event_time.shape[1]):
        planner.decide(env.begin(event), event)
        costs += env.cost
    env.finish()
    return Outcome(
        costs + env.cost, env.state.counts, np.zeros((len(costs), 4)), refusals(episode, env.state)
    )


def field(options: argparse.Namespace, load: float, split: str, *, seeds: int, count: int) -> Field:
    """`count` windows over `seeds` worlds of the split."""
    wanted = Wanted(load=load, measured=options.jobs, warm=options.warm, **(STALE if options.stale else {}))
    prices = load_prices(Path(options.prices)) if options.prices else None
    each = -(-count // seeds)
    length = LOOKBACK + wanted.warm + wanted.measured + (each - 1) * wanted.measured // 3
    found: list[Episode] = []
    owners: list[int] = []
    for seed in range(seeds):
        records = load_trace(options.trace, split, seed=seed, count=length)
        number = splits.generator_seed(split, seed)
        made = splits.windows(records, count=each, seed=number, wanted=wanted, prices=prices)
        found += [rows(made, at) for at in range(each)]
        owners += [seed] * each
        begins = splits.starts(len(records), each, wanted)
    stride = int(begins[1] - begins[0]) if each > 1 else wanted.measured
    block = max(1, min(each, -(-(wanted.warm + wanted.measured) // max(stride, 1))))
    episodes = [together(found[at : at + CHUNK]) for at in range(0, len(found), CHUNK)]
    states = [warm(episode, WARM_POLICY) for episode in episodes]
    return Field(episodes, states, np.array(owners), block)


def choose_rival(ground: Field, policies: dict[str, Scores], *, milp: bool) -> tuple[str, dict[str, float]]:
    """The cheapest on these (validation) windows, with `milp` the rolling program among the candidates."""
    costs = ground.mean_costs(policies)
    if milp:
        costs["rolling-milp"] = float(total(ground.milp(), WEIGHTS).mean())
    return min(costs, key=lambda name: costs[name]), costs


def measure(options: argparse.Namespace, load: float, model: Artefact | None) -> dict[str, Any]:
    """Everything about one load; without a model the gap stays unsaid."""
    tally = Tally()
    learned = {} if model is None else {MODEL: guarded(model, tally)}
    policies = tuned.causal_policies(read_tuned().entries(load, stale=options.stale))
    practice = field(options, load, "validation", seeds=1, count=options.validation)
    rival, on_validation = choose_rival(practice, policies, milp=options.milp and not options.stale)
    ground = field(options, load, "test", seeds=options.seeds, count=options.windows)
    wanted = (*allocator_page.BLIND, rival) if options.few else (*RULES, tuned.LINEAR, rival)
    shown = {name: one for name, one in policies.items() if name in wanted}
    outcomes = {name: ground.run(one) for name, one in {**shown, **learned}.items()}
    if rival == "rolling-milp":
        outcomes[rival] = ground.milp()
    bound = ground.bounds() if options.bounds else np.full(len(ground.seeds), np.nan)
    ours = next(iter(learned), rival)
    found = compare(ground, outcomes, ours=ours, rival=rival, bound=bound, known=bool(learned))
    thousand = 1000.0 / options.jobs
    found |= {
        "load": load,
        "cost_per_1k": {
            name: round(float(total(one, WEIGHTS).mean()) * thousand, 3) for name, one in outcomes.items()
        },
        "validation_cost_per_1k": {name: round(cost * thousand, 3) for name, cost in on_validation.items()},
        "bound": None if np.isnan(bound).all() else round(float(np.nanmean(bound)) * thousand, 3),
        "rival_bounded": round(float(total(outcomes[rival], WEIGHTS, BOUNDED).mean()) * thousand, 3),
        "violations_size_weighted": round(
            float(outcomes[ours].costs[:, 0].sum() / max(ground.value().sum(), 1e-9)), 5
        ),
        "never_placed": never_placed(outcomes[ours], ground.episodes[0].transfer_s.shape[2]),
        "model": ours if learned else "none",
        "model_share": round(tally.share, 5),  # of the windows alone: times are taken below
        "saved": saved(ground, outcomes, ours=ours, rival=rival, thousand=thousand),
        "windows": len(ground.seeds),
        "block": ground.block,
        "sensitivity": sensitivity(outcomes, rival=rival, ours=ours),
    }
    if rival != "rolling-milp":
        found |= decision_times(ground, {**policies, **learned}[ours])
    if options.stale:
        informed = tuned.causal_policies(read_tuned().entries(load, stale=False))
        fresh_rival, _costs = choose_rival(practice.fresh(), informed, milp=False)
        fresh = total(ground.fresh().run(informed[fresh_rival]), WEIGHTS)
        found |= {"fresh_rival": fresh_rival}
        found |= price_of_staleness(fresh, outcomes, rival=rival, ours=ours, learned=bool(learned))
    return found


def compare(
    ground: Field, outcomes: dict[str, Outcome], *, ours: str, rival: str, bound: np.ndarray, known: bool
) -> dict[str, Any]:
    """The gap closed by `ours`; without a model only whether there is a gap at all."""
    covered = ~np.isnan(bound)
    costs = {name: total(outcomes[name], WEIGHTS, BOUNDED) for name in (ours, rival)}
    answer: dict[str, Any] = {
        "rival": rival,
        "gap_closed": None,
        "gap_closed_low": None,
        "gap_closed_high": None,
    }
    if not covered.any():
        return answer | {"no_gap": None, "verdict": "no bound"}
    gap = evidence.gap_closed(
        costs[ours][covered],
        costs[rival][covered],
        bound[covered],
        seeds=ground.seeds[covered],
        block=ground.block,
        rng=np.random.default_rng(1),
    )
    answer["no_gap"] = gap.no_gap
    if not known:
        return answer | {"verdict": "no model"}
    parts = {"gap_closed": gap.closed, "gap_closed_low": gap.low, "gap_closed_high": gap.high}
    return answer | parts | {"verdict": gap.verdict}


def saved(
    ground: Field, outcomes: dict[str, Outcome], *, ours: str, rival: str, thousand: float
) -> dict[str, float]:
    """Dollars per 1,000 workloads that ours costs less than the rival, all components, with the 95 % interval."""
    mean, low, high = evidence.paired_difference(
        total(outcomes[rival], WEIGHTS),
        total(outcomes[ours], WEIGHTS),
        seeds=ground.seeds,
        block=ground.block,
        rng=np.random.default_rng(1),
    )
    return {
        name: round(value * thousand, 3) for name, value in {"mean": mean, "low": low, "high": high}.items()
    }


def sensitivity(outcomes: dict[str, Outcome], *, rival: str, ours: str) -> dict[str, dict[str, Any]]:
    """Each weight at ½ and 2, costs of the same runs priced anew: the cheapest, and ours − rival."""
    found = {}
    for name, weights in sensitivities().items():
        means = {one: float(total(outcome, weights).mean()) for one, outcome in outcomes.items()}
        best = min(means, key=lambda one: means[one])
        found[name] = {"best": best, "ours_minus_rival": round(means[ours] - means[rival], 4)}
    return found


def never_placed(outcome: Outcome, sites: int) -> dict[str, float]:
    """Share of workloads by priority, size, tenant and origin: shows a policy that starves some of them."""
    sums = outcome.refused.sum(axis=0)
    shares = sums[:, 0] / np.maximum(sums[:, 1], 1)
    return {name: round(float(share), 4) for name, share in zip(group_names(sites), shares, strict=True)}


def price_of_staleness(
    fresh: np.ndarray, outcomes: dict[str, Outcome], *, rival: str, ours: str, learned: bool
) -> dict[str, Any]:
    """What old information costs the best rival, and how much of that the model wins back. `fresh` [W]: what the rival
    that is best with full information pays in the same windows with full information."""
    stale, mine = (float(total(outcomes[name], WEIGHTS).mean()) for name in (rival, ours))
    price = stale - float(fresh.mean())
    return {
        "stale_price_per_window": round(price, 3),
        "won_back": round((stale - mine) / price, 4) if learned and price > PRICED * stale else None,
        "conflicts_per_window": round(float(outcomes[ours].counts[:, 3].mean()), 2),
    }


def decision_times(ground: Field, candidate: Scores, decisions: int = 400) -> dict[str, float]:
    """One window, one decision at a time: view, scores, choice and commit."""
    episode = rows(ground.episodes[0], slice(0, 1))
    env = Reference.at(episode, rows_of(ground.states[0], slice(0, 1)))
    taken: list[float] = []
    for event in range(int(episode.measured_from[0]), episode.event_time.shape[1]):
        job = env.begin(event)
        begun = time.perf_counter()
        env.commit(job, candidate)
        if job[0] >= 0:
            taken.append((time.perf_counter() - begun) * 1000)
        if len(taken) == decisions:
            break
    low, high = np.quantile(taken, [0.5, 0.99])
    return {"decision_ms_p50": round(float(low), 3), "decision_ms_p99": round(float(high), 3)}


def rows_of(state: State, wanted: slice | np.ndarray) -> State:
    return State(*(array[wanted] for array in state))


def read_tuned() -> tuned.Table:
    return tuned.parse(TUNED.read_bytes()) if TUNED.is_file() else tuned.Table(sets={})


def tune(options: argparse.Namespace, place: Path) -> None:
    """Every rule and the linear scorer with the same number of environment steps, on training streams.

    Sets of other loads in `place` stay; it is written after each load. `--only cem-linear` makes that entry alone.
    """
    sets = dict(tuned.parse(place.read_bytes()).sets) if place.is_file() else {}
    for load in options.loads:
        course, name = tuning_course(options, load), tuned.setting(load, stale=options.stale)
        if options.only:
            kept = sets.get(name, tuned.Tunings(command=command(), entries={}))
            entry = tune_linear(options, course, sets)
            sets[name] = msgspec.structs.replace(kept, entries=kept.entries | {tuned.LINEAR: entry})
        else:
            sets[name] = tuned.Tunings(command=command(), entries=tune_all(options, course))
        table = msgspec.json.encode(tuned.Table(sets=sets))
        place.write_bytes(msgspec.json.format(table, indent=1) + b"\n")
        print(f"load {load:g}: tuned", file=sys.stderr)


def tuning_course(options: argparse.Namespace, load: float) -> tuning.Course:
    """The first windows of the training split that can be cut: a burst may be all of a short one."""
    wanted = Wanted(load=load, measured=options.jobs, warm=options.warm, **(STALE if options.stale else {}))
    made: list[Episode] = []
    number = 0
    while len(made) < options.tune_windows:
        try:
            made.append(splits.training_window(number, wanted=wanted))
        except WindowImpossible as fault:
            print(f"training window {number}: {fault}", file=sys.stderr)
        number += 1
    episode = together(made)
    return tuning.Course(episode, warm(episode, WARM_POLICY))


def tune_linear(
    options: argparse.Namespace, course: tuning.Course, sets: dict[str, tuned.Tunings]
) -> tuned.Entry:
    """From the best of the hand-written weights and of all that the table has, in `options.trials` of few windows."""
    known = [
        np.array(one.entries[tuned.LINEAR].weights) for one in sets.values() if tuned.LINEAR in one.entries
    ]
    rng = np.random.default_rng([7, 100])
    best = tuning.tune_linear(course, rng, trials=options.trials, sitting=options.sitting, starts=known)
    steps = best.trials * min(options.sitting, course.windows) * options.jobs
    weights = [float(weight) for weight in best.described]
    return tuned.Entry(cost=round(best.cost, 4), steps=steps, weights=weights, command=command())


def tune_all(options: argparse.Namespace, course: tuning.Course) -> dict[str, tuned.Entry]:
    steps = options.trials * len(course.episode.capacity) * options.jobs
    found = {}
    for number, (name, rule) in enumerate(RULES.items()):
        rng = np.random.default_rng([7, number])
        best = tuning.tune_rule(rule, course, rng, trials=options.trials, stale=options.stale)
        knobs = {key: round(value, 5) for key, value in dict(best.described).items()}  # type: ignore[arg-type]
        found[name] = tuned.Entry(cost=round(best.cost, 4), steps=steps, knobs=knobs)
    best = tuning.tune_linear(course, np.random.default_rng([7, 99]), trials=options.trials)
    weights = [float(weight) for weight in best.described]
    found[tuned.LINEAR] = tuned.Entry(cost=round(best.cost, 4), steps=steps, weights=weights)
    return found


def digest(results: list[dict[str, Any]]) -> str:
    """Of the costs alone: equal runs have equal digests."""
    costs = [(one["load"], one["cost_per_1k"], one["bound"]) for one in results]
    return hashlib.sha256(json.dumps(costs, sort_keys=True).encode()).hexdigest()[:16]


def command() -> str:
    """What was typed, with traces by their last folder: results name no machine's paths."""
    words = [re.sub(r"((azure|openb|swf):.*/|^/.*/)", _kind, word) for word in sys.argv[1:]]
    return "python benchmarks/bench_allocator.py " + " ".join(words)


def _kind(found: re.Match[str]) -> str:
    return f"{found[2]}:" if found[2] else ""


def commit() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def read_model(place: str) -> Artefact | None:
    """`shipped`, a folder that training wrote, or none. Raises `ModelRefused`, OSError."""
    if not place:
        return None
    if place == SHIPPED:
        return shipped.shipped()
    folder = Path(place)
    return shipped.load(
        Made((folder / "manifest.json").read_bytes(), (folder / "weights.safetensors").read_bytes())
    )


def main() -> int:
    options = _options()
    begun, cpu = time.monotonic(), time.process_time()
    try:
        if options.tune:
            tune(options, Path(options.tune))
            return 0
        model = read_model(options.model)
        results = [measure(options, load, model) for load in options.loads]
    except (RuntimeFault, ModelRefused, tuned.TunedMalformed, ValueError, OSError) as fault:
        print(f"bench_allocator: {fault}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as fault:
        print(f"bench_allocator: {fault}: pip install 'dwcp[train]', or --no-bounds", file=sys.stderr)
        return 2
    answer = {
        "trace": re.sub(r":.*/", ":", options.trace),
        "stale": options.stale,
        "model": None if model is None else {"digest": model.digest, "version": model.manifest.version},
        "seeds": options.seeds,
        "jobs": options.jobs,
        "results": results,
        "digest": digest(results),
        "commit": commit(),
        "machine": f"{platform.machine()} Python {platform.python_version()} numpy {np.__version__}",
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    if options.save:
        allocator_page.save(answer, options.save, command())
    if not options.json:
        _print_table(results)
    print(json.dumps(answer))
    return 0


def _print_table(results: list[dict[str, Any]]) -> None:
    for one in results:
        print(f"load {one['load']:g}: rival {one['rival']}, bound {one['bound']}, {one['verdict']}")
        for name, cost in sorted(one["cost_per_1k"].items(), key=lambda item: item[1]):
            print(f"  {name:18} {cost:10.2f} $ per 1,000 workloads")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--trace", default="generated:g1", help="azure:DIR, openb:DIR, swf:FILE, generated:NAME"
    )
    parser.add_argument("--loads", type=_loads, default=[0.7, 0.85, 0.95, 1.1])
    parser.add_argument("--seeds", type=int, default=3, help="worlds; 10 for what is quoted")
    parser.add_argument("--windows", type=int, default=200, help="test windows over all seeds")
    parser.add_argument("--validation", type=int, default=40, help="windows on which the rival is chosen")
    parser.add_argument("--jobs", type=int, default=1500, help="measured workloads per window")
    parser.add_argument("--warm", type=int, default=300, help="workloads of the warm-up")
    parser.add_argument("--stale", action="store_true", help="controllers see other sites as last reported")
    parser.add_argument(
        "--model", default="", metavar="FOLDER", help="what training wrote, or `shipped`; else rivals alone"
    )
    parser.add_argument("--prices", default="", help="a published table of prices per GB between regions")
    parser.add_argument(
        "--few", action="store_true", help="on test windows only the rival and the page's blind rules"
    )
    parser.add_argument("--no-bounds", dest="bounds", action="store_false")
    parser.add_argument("--milp", action="store_true", help="the rolling program is a candidate rival: slow")
    parser.add_argument("--tune", default="", metavar="FILE", help="make the table of tuned policies instead")
    parser.add_argument("--trials", type=int, default=40, help="of tuning, per policy")
    parser.add_argument("--tune-windows", type=int, default=12)
    parser.add_argument("--only", default="", choices=["", tuned.LINEAR], help="tune this one alone")
    parser.add_argument(
        "--sitting", type=_whole, default=8, help="windows per trial, by turns, of what is tuned alone"
    )
    parser.add_argument(
        "--save", default="", metavar="NAME", help="keep the result and make the page of docs anew"
    )
    parser.add_argument("--json", action="store_true", help="only the last line")
    return parser.parse_args()


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of at least 1")
    return int(text)


def _loads(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers with commas between") from None
    if not all(0.05 <= load <= 3 for load in found):
        raise argparse.ArgumentTypeError("loads are between 0.05 and 3")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
